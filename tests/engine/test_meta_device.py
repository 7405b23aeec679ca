"""A GPU's steps at the served shapes on the meta device, which computes nothing but objects to a tensor that lies
elsewhere, to a wrong shape, and to arguments that torch's operators do not take."""

from dataclasses import replace

import pytest
import torch

from service.engine.attention import PagedCache, PrefillAttention
from service.engine.config import INTERNLM3_8B
from service.engine.cuda.flash import (
    FLASH_PAGE,
    FlashDecode,
    FlashPrefillAttention,
    Varlen,
    flash_function,
    flash_kernel,
)
from service.engine.cuda.paths import Paths, PrefillFactory
from service.engine.kernels.ops import Ops
from service.engine.model import Model
from service.engine.runner import TorchRunner
from service.engine.sampling import Method
from service.engine.steps.plan import Chunk, Decode, StepPlan
from service.engine.weights import allocate
from tests.support.plans import sequence_of

META = torch.device("meta")
CONFIG = replace(INTERNLM3_8B, num_layers=2)
FLASH = {"operator": flash_kernel, "public function": flash_function}


def runner_of(ops: Ops, prefill: PrefillFactory, plans_decode: bool) -> TorchRunner:
    model = Model(CONFIG, allocate(CONFIG, META, torch.bfloat16), 32_768, ops)
    cache = PagedCache(CONFIG, 300, FLASH_PAGE, META, torch.bfloat16)
    buckets = (1, 2, 4) if plans_decode else ()
    return TorchRunner(model, cache, 4, 32_768, Paths(ops, prefill, plans_decode, buckets))


def step(runner: TorchRunner, start: int) -> torch.Tensor:
    """The tokens of a step of two chunks, one from `start` on and completing, beside three decodes."""
    prompts = [sequence_of([1] * 300, slot=0, blocks=[1, 2]), sequence_of([1] * 30, slot=1, blocks=[3])]
    decodes = [sequence_of([1] * 30, slot=slot, blocks=[4 + slot]) for slot in (2, 3, 1)]
    for sequence in (*prompts, *decodes):
        runner.admit(sequence)
    chunks = [Chunk(prompts[0], start, 300), Chunk(prompts[1], 0, 20)]
    plan = StepPlan(chunks, [Decode(sequence, 30) for sequence in decodes])
    rows, hidden = runner._forward(plan)
    slots = runner.slots.upload([*(sequence.slot for sequence in plan.sampled), *runner._padding(plan)])
    return runner.sample(hidden[rows], slots, set(Method))


@pytest.mark.parametrize("start", [0, 100])
@pytest.mark.parametrize("prefill", ["operator", "public function", "plain"])
@pytest.mark.parametrize("decode", ["operator", "public function", "torch", "gathered"])
@torch.inference_mode()
def test_every_tensor_of_a_step_is_on_the_device_and_of_its_shape(start: int, prefill: str, decode: str) -> None:
    def factory(*arguments: object) -> FlashPrefillAttention:
        return FlashPrefillAttention(*arguments, varlen=FLASH[prefill])  # type: ignore[arg-type]

    runner = runner_of(decode_ops(decode), PrefillAttention if prefill == "plain" else factory, decode != "gathered")
    rows = 1 + (3 if decode == "gathered" else 4)
    for tokens, count in ((step(runner, start), rows), (decode_alone(runner), 4)):
        assert (tokens.shape, tokens.device, tokens.dtype) == ((count,), META, torch.int64)


def decode_ops(decode: str) -> Ops:
    if decode in ("torch", "gathered"):
        return Ops()
    varlen: Varlen = FLASH[decode]
    flash = FlashDecode(32_768, varlen)
    return Ops(plan_decode=flash.plan, decode_attention=flash.attend)


def decode_alone(runner: TorchRunner) -> torch.Tensor:
    slots = runner.slots.upload([0, 1, runner.slots.spare, runner.slots.spare])
    return runner.decode(slots, set(Method), 3)


@torch.inference_mode()
def test_a_tensor_left_on_the_host_would_be_seen() -> None:
    """Guards the test above."""
    runner = runner_of(Ops(), PrefillAttention, True)
    with pytest.raises(RuntimeError, match="device"):
        runner.decode(torch.tensor([0, 1]), set(Method), 3) + torch.zeros(2, dtype=torch.int64)
