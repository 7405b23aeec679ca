"""What the engine's sizes are unless a setting says otherwise: each device's, where a setting is 0."""

from typing import Literal

Quantization = Literal["none", "int8"]
"""How the weights' matrices are kept (INTERNLM_QUANTIZATION): as the dtype says, or rounded (see `quantization`)."""
MOST_LOGPROBS = 20
"""Of the likeliest tokens, how many an answer's token may be reported beside. Source: OpenAI's `top_logprobs`."""
MOST_BIASED = 300
"""Tokens of which a request may have something added to the logits: each slot keeps room for so many."""
BLOCK_TOKENS = 64
"""Tokens of a KV block."""
RUNNING_ON_GPU, RUNNING_ON_CPU = 256, 8
"""Requests decoded at once (INTERNLM_MAX_RUNNING)."""
STEP_TOKENS_ON_GPU, STEP_TOKENS_ON_CPU = 2048, 512
"""Tokens that a step computes (INTERNLM_STEP_TOKENS). An H100's dense bf16 products of an 8B model reach 681 TFLOP/s
from 512 rows on only where a matrix is wide, and its narrow ones leave half of the GPU idle there."""
STEP_TOKENS_ON_LARGE_GPU, LARGE_GPU_BYTES = 4096, 70 << 30
"""And on one of so much memory at least, which computes them in a tenth of a second: with 2048 rows, the narrow
products still end in a round of tiles that leaves a part of its multiprocessors without work. Beside running streams
their pace bounds a step, not this. vLLM draws the line at the same size, for 8192 (vllm/engine/arg_utils.py)."""
NUMBERS_AT_ONCE = 1 << 27
"""Of a quantized matrix, those that are widened at a time where no kernel multiplies with it as it is."""


def step_tokens_on_gpu(total: int) -> int:
    """Tokens that a step computes on a GPU with `total` bytes of memory."""
    return STEP_TOKENS_ON_LARGE_GPU if total >= LARGE_GPU_BYTES else STEP_TOKENS_ON_GPU
