"""No step waits for the device before its tokens are asked for: each wait would leave the GPU idle for a round trip.

Steps run on the meta device, which has nothing to give to a host that asks, with kernels that are not launched; a
dispatch mode names what would wait on a GPU.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime import KernelInterface

from service.engine.attention import PagedCache
from service.engine.base import SamplingParams
from service.engine.config import INTERNLM3_8B
from service.engine.cuda.flash import FLASH_PAGE, FlashDecode, FlashPrefillAttention
from service.engine.cuda.paths import Paths, PrefillBySize
from service.engine.kernels.candidates import candidates
from service.engine.kernels.ops import Ops
from service.engine.kernels.tuning import tuning_for
from service.engine.model import Model
from service.engine.runner import TorchRunner
from service.engine.steps.plan import Chunk, Decode, StepPlan
from service.engine.weights import allocate
from tests.support.plans import CPU, GREEDY, sequence_of
from tests.support.tape import TapeRecorder

META = torch.device("meta")
CONFIG = replace(INTERNLM3_8B, num_layers=2)
LONGEST = 4 * FLASH_PAGE + 100
RUNNING = 4
MULTIPROCESSORS = 132
SORTED = SamplingParams(top_k=0, top_p=0.9, repetition_penalty=1.1, seed=3)
PATHS = [*product(("kernels", "flash", "planned"), (True, False)), ("gathered", False)]
"""Which paths serve, and whether their steps are recorded."""
READS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select"}


class NoWait(TorchDispatchMode):
    """AssertionError for an operation that waits: one whose result the host reads or whose size hangs on values, and a
    copy between host and device that was not told to go on."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not waits(func.name().removeprefix("aten::").split(".")[0], args, kwargs or {}), f"{func} waits"
        return func(*args, **(kwargs or {}))


class NoUpload(TorchFunctionMode):
    """The same for copies of which no dispatch mode is told: that inside `torch.tensor(values, device=...)`, and that
    of a number assigned to a place on a GPU (ATen/TensorIndexing.h, copy_to), which is none on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        uploads = func in (torch.tensor, torch.as_tensor) and (kwargs or {}).get("device") not in (None, CPU)
        assigns = func is torch.Tensor.__setitem__ and not isinstance(args[2], torch.Tensor) and args[0].device != CPU
        assert not uploads, f"{func} waits for its upload"
        assert not assigns, f"{func} waits for its number"
        return func(*args, **(kwargs or {}))


def waits(name: str, args: Any, kwargs: dict[str, Any]) -> bool:
    if name in ("index", "index_put", "index_put_"):
        indices = [index for index in args[1] if index is not None]
        return any(index.dtype in (torch.bool, torch.uint8) or index.device != args[0].device for index in indices)
    if name == "_to_copy":
        return kwargs.get("device", args[0].device) != args[0].device and not kwargs.get("non_blocking")
    if name == "copy_":
        return args[0].device != args[1].device and not (args[2] if len(args) > 2 else kwargs.get("non_blocking"))
    return name in READS


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launches do nothing; uploads are not waited for, as those from pinned memory are not."""

    def upload(values: list[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)

    def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        return tensor.to(device, non_blocking=True)

    monkeypatch.setattr("service.engine.steps.slots.to_device", to_device)
    monkeypatch.setattr(KernelInterface, "__getitem__", lambda kernel, grid: lambda *args, **options: None)
    for module in ("steps.slots", "cuda.flash", "kernels.chunk_attention"):
        monkeypatch.setattr(f"service.engine.{module}.upload", upload)


def paths_of(name: str) -> Paths:
    planned = partial(Paths, plans_decode=True, buckets=(1, 2, RUNNING))
    flash = FlashDecode(LONGEST)
    if name == "kernels":
        kernels = candidates(tuning_for((9, 0)), MULTIPROCESSORS)
        ops = replace(Ops(), **{field: value for kernel in kernels for field, value in kernel.fields.items()})
        assert ops.chunk_attention is not None
        narrow = PrefillBySize(FlashPrefillAttention, ops.chunk_attention, CONFIG.num_heads, MULTIPROCESSORS)
        return planned(ops, narrow)
    if name == "flash":
        return planned(Ops(plan_decode=flash.plan, decode_attention=flash.attend), FlashPrefillAttention)
    return planned() if name == "planned" else Paths()


@torch.inference_mode()
def runner_of(paths: Paths) -> TorchRunner:
    model = Model(CONFIG, allocate(CONFIG, META, torch.bfloat16), LONGEST, paths.ops)
    return TorchRunner(model, PagedCache(CONFIG, 40, FLASH_PAGE, META, torch.bfloat16), RUNNING, LONGEST, paths)


def blocks_of(slot: int) -> list[int]:
    return list(range(1 + 5 * slot, 6 + 5 * slot))


def steps(sampling: SamplingParams) -> Iterator[StepPlan]:
    """Decodes of one sequence and of three, prompts that begin, go on and end, and both in one step."""
    lengths = (30, 2 * FLASH_PAGE, LONGEST - 1, 300)
    served = [
        sequence_of([1] * length, slot=slot, blocks=blocks_of(slot), sampling=sampling, logprobs=(None, 3)[slot % 2])
        for slot, length in enumerate(lengths)
    ]
    decodes = [Decode(sequence, sequence.prompt_length) for sequence in served]
    ends = [Chunk(sequence, sequence.prompt_length - 20, sequence.prompt_length) for sequence in served]
    begun = [Chunk(sequence, 0, 25) for sequence in served[:2]]
    for chunks in ([], begun, ends[2:], [begun[0], ends[1]]):
        for count in (0, 1, 3):
            if chunks or count:
                taken = {chunk.sequence.slot for chunk in chunks}
                yield StepPlan(chunks, [decode for decode in decodes if decode.sequence.slot not in taken][:count])


@pytest.mark.parametrize("sampling", [GREEDY, SamplingParams(seed=1), SORTED], ids=["greedy", "candidates", "sorted"])
@pytest.mark.parametrize(("name", "records"), PATHS)
def test_the_only_wait_of_a_step_is_for_its_tokens(name: str, records: bool, sampling: SamplingParams) -> None:
    runner, recorder = runner_of(paths_of(name)), TapeRecorder()
    if records:
        runner.record(recorder)
        runner.record_segments(recorder, 100)
    for plan in steps(sampling):
        with NoWait(), NoUpload():
            for sequence in [c.sequence for c in plan.chunks] + [d.sequence for d in plan.decodes]:
                runner.admit(sequence)
            if plan.sampled:
                slots = [sequence.slot for sequence in plan.sampled]
                runner.restrict(slots, np.zeros((len(slots), -(-CONFIG.vocab_size // 8)), dtype=np.uint8))
            pending = runner.launch(plan)
        if plan.sampled:
            with pytest.raises(NotImplementedError):
                pending.tokens()
    by_segments = sum(bool(plan.chunks) for plan in steps(sampling)) * (CONFIG.num_layers + 1)
    assert recorder.replays >= by_segments if records else not recorder.replays


WAITS: dict[str, Callable[[torch.Tensor], object]] = {
    "a number": lambda t: int(t[0]),
    "a decision": lambda t: bool((t > 0).any()),
    "numbers": lambda t: t.tolist(),
    "a copy": lambda t: t.cpu(),
    "a copy into the host's memory": lambda t: torch.zeros(3).copy_(t),
    "a selection": lambda t: t[t > 0],
    "a write through a mask": lambda t: t.index_put_((t > 0,), torch.ones(2, device=META)),
    "places": lambda t: t.nonzero(),
    "an upload of pageable memory": lambda t: torch.tensor([1.0, 2.0, 3.0], device=META) + t,
    "a number assigned": lambda t: t.__setitem__(0, 1.0),
    "an upload of indices": lambda t: t[torch.tensor([0, 2])],
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS.keys())
def test_a_wait_would_be_seen(wait: Callable[[torch.Tensor], object]) -> None:
    """Guards the test above."""
    with NoWait(), NoUpload(), pytest.raises((AssertionError, NotImplementedError, RuntimeError)):
        wait(torch.empty(3, device=META))
