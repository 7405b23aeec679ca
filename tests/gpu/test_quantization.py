"""Eight-bit weights on a real GPU: rounded as on a CPU, by kernels of every tile, and beside what widens them."""

from pathlib import Path

import pytest
import torch

from service.engine.model import Model
from service.engine.quantization import Int8Matrix
from tests.gpu.conftest import Make
from tests.gpu.test_engine import answers, prompts, require_best, runner_of
from tests.support.engines import GREEDY, a_request
from tests.support.plans import load_native


@pytest.fixture(scope="module")
def rounded(model_dir: Path) -> Model:
    """The same eight-bit weights on the CPU, which computes with them in fp32."""
    return load_native(model_dir, torch.float32, "int8")


def test_no_kernel_is_degraded_and_the_weights_are_those_of_a_cpu(make: Make, rounded: Model) -> None:
    core = make(quantization="int8")
    assert core.info.degraded == []
    assert core.info.quantization == "int8"
    served = runner_of(core)._model._weights
    for ours, theirs in zip(served.layers, rounded._weights.layers, strict=True):
        assert isinstance(ours.down, Int8Matrix)
        assert isinstance(theirs.down, Int8Matrix)
        assert torch.equal(ours.down.values.cpu(), theirs.down.values)
        assert torch.equal(ours.down.scales.cpu(), theirs.down.scales)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_greedy_tokens_are_those_of_the_rounded_weights_up_to_ties(make: Make, rounded: Model, batch: int) -> None:
    """The prompts are longer than any tile, and shorter."""
    core = make(quantization="int8")
    requests = [a_request(prompt, new=24, sampling=GREEDY) for prompt in prompts()]
    given = [tokens for i in range(0, len(requests), batch) for tokens in answers(core, requests[i : i + batch])]
    for request, tokens in zip(requests, given, strict=True):
        require_best(rounded, request, tokens)


@pytest.mark.parametrize("rows", [130, 200])
def test_a_large_batch_is_decoded_by_the_large_tiles(make: Make, rounded: Model, rows: int) -> None:
    core = make(quantization="int8", max_running=256)
    requests = [a_request([9 + row, 8, 77, row * 13 % 4000], new=12, sampling=GREEDY) for row in range(rows)]
    for request, tokens in list(zip(requests, answers(core, requests), strict=True))[::16]:
        require_best(rounded, request, tokens)
