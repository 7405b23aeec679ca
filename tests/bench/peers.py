"""The same requests through others: transformers' `generate()` one by one, and its continuous batching."""

import gc
import time
from pathlib import Path
from typing import Any

import torch

from service.engine.base import EngineConfig, GenerationRequest
from service.engine.build import build_core
from tests.bench.load import Drive, Prompts

# Sharing and asynchronous batches together crash it on a cancel. Left to switch to flash attention by itself, it asks a
# hub for kernels, which a machine may not reach.
CONTINUOUS_BATCHING_SETTINGS = {"allow_block_sharing": False, "auto_switch_to_flash": False}
"""What transformers' continuous batching is not left to its defaults in; the benchmark prints it beside the figure."""


def serial_rate(model_dir: Path, device: str, prompt: int, new_tokens: int, vocab_size: int) -> float:
    """Tokens per second of one request at a time: transformers as the tutorial uses it."""
    config = EngineConfig(kind="reference", model_dir=str(model_dir), device=device, threads=1)
    core, prompts = build_core(config, lambda message: None), Prompts(vocab_size)
    for count in (2, new_tokens):  # the first one warms up
        drive = Drive(core)
        line = drive.add(prompts.request(prompt, count))
        drive.run()
    took = line.times[-1] - line.start
    del core
    free_memory()
    return len(line.tokens) / took


def continuous_batching_rate(model_dir: Path, device: torch.device, requests: list[GenerationRequest]) -> float:
    """Tokens per second of transformers' continuous batching over the same requests, greedy, prefill included.

    Raises whatever transformers raises: it may refuse a device or an attention.
    """
    from transformers import ContinuousBatchingConfig, GenerationConfig

    from service.engine.generate import load_model

    on_gpu = device.type == "cuda"
    model: Any = load_model(model_dir, device, torch.bfloat16 if on_gpu else torch.float32)
    generation = GenerationConfig(max_new_tokens=requests[0].max_new_tokens, do_sample=False, eos_token_id=-1)
    # Unset sizes take all of a CPU's memory.
    sizes = {} if on_gpu else {"num_blocks": 32, "max_batch_tokens": 256}
    batching = ContinuousBatchingConfig(**CONTINUOUS_BATCHING_SETTINGS, **sizes)
    inputs = [request.prompt_ids for request in requests]
    # One manager for both, so that its start is not counted: a server would start it once.
    model.generate_batch(inputs, generation, batching, persistent_manager=True)
    started = time.perf_counter()
    outputs = model.generate_batch(inputs, generation, batching, persistent_manager=True, warmup=False)
    took = time.perf_counter() - started
    model.destroy_cached_continuous_batching_manager()
    del model
    free_memory()
    return sum(len(output.generated_tokens) for output in outputs.values()) / took


def free_memory() -> None:
    """Give a dropped engine's memory back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
