"""Kernels that do not wait for each other are found out; a stand-in reads too early where no pause came before it."""

from collections.abc import Callable
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from service.engine.cuda import overlap_check
from service.engine.cuda.overlap_check import STEPS, batches, check_overlap, paused
from service.engine.kernels import torch_ops
from service.engine.kernels.candidate import Disagreement
from service.engine.kernels.ops import AddNorm, Affine, Heads, Ops, nothing
from service.engine.quantization import Int8Matrix
from tests.engine.kernels.test_selfcheck import CPU
from tests.support.recorder import ReplayingRecorder
from tests.support.rotating import rotate_and_attend

ALWAYS = ("add_rms_norm", "rotate_and_cache", "locate", "plan_decode", "decode_attention", "silu_mul", "sample")
MOST = batches(Ops())[0]
CHAINS = ("few_rows_chain", "many_rows_chain")
ROTATING = "rotating_attention"
LINEAR = ("one_row_linear", "few_rows_linear", "many_rows_linear", "one_row_norm_linear", *CHAINS)


pytestmark = pytest.mark.usefixtures("one_thread")  # bits are compared


class Gpu:
    """Operations that count how often they ran, of which one reads what was there before unless a pause came first."""

    def __init__(self, hasty: str = "") -> None:
        self.ran = dict.fromkeys((*ALWAYS, *LINEAR, ROTATING), 0)
        self.pauses = 0
        self._hasty = hasty
        self._is_settled = False

    def pause(self) -> None:
        self.pauses += 1
        self._is_settled = True

    @property
    def ops(self) -> Ops:
        plain = Ops()
        found: dict[str, Callable[..., Any]] = {name: getattr(plain, name) for name in ALWAYS}
        found |= dict.fromkeys(("one_row_linear", "few_rows_linear", "many_rows_linear"), plain.linear)
        found["one_row_norm_linear"] = plain.norm_linear
        found |= dict.fromkeys(CHAINS, self._chain) | {ROTATING: rotate_and_attend}
        return Ops(**{name: self._counted(name, operation) for name, operation in found.items()})

    def _chain(
        self, x: torch.Tensor, first: Affine, norm: AddNorm, *rest: Any, between: Callable[[], object] = nothing
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """With a hasty second half, that of a chain which is hasty "within"."""
        self._is_settled = False
        between()
        is_early = self._hasty == "within" and not self._is_settled
        return Ops().chain(x, first, norm._replace(weight=norm.weight * (0.5 if is_early else 1.0)), *rest)

    def _counted(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **more: Any) -> Any:
            self.ran[name] += 1
            early = name == self._hasty and not self._is_settled
            self._is_settled = False
            return operation(*(self._stale(a) if early else a for a in arguments), **more)

        return run

    def _stale(self, argument: Any) -> Any:
        if isinstance(argument, Heads):
            return argument._replace(v=argument.v * 0.5)
        is_activation = isinstance(argument, torch.Tensor) and argument.dim() == 2 and argument.is_floating_point()
        return argument * 0.5 if is_activation and argument.shape[0] <= MOST else argument


def test_kernels_that_wait_pass_and_each_of_them_was_met() -> None:
    gpu, recorder = Gpu(), ReplayingRecorder()
    check_overlap(gpu.ops, CPU, recorder, gpu.pause)
    assert all(gpu.ran.values()), gpu.ran
    kinds = len(batches(gpu.ops)) + 1  # and one of the decodes that are rotated beside prompts
    assert recorder.recorded == 2 * kinds
    assert recorder.replays == 2 * kinds * STEPS, "what serves is what is replayed"
    assert gpu.pauses > 0


@pytest.mark.parametrize(
    "hasty", ["add_rms_norm", "rotate_and_cache", "silu_mul", "sample", "within", ROTATING, *LINEAR]
)
def test_a_kernel_that_reads_too_early_is_found_out(hasty: str) -> None:
    gpu = Gpu(hasty)
    with pytest.raises(Disagreement, match="differ from those with a pause after each kernel"):
        check_overlap(gpu.ops, CPU, ReplayingRecorder(), gpu.pause)


@pytest.mark.parametrize("cache", [0, 1], ids=["keys", "values"])
def test_a_stray_write_that_changes_no_token_is_found_out(cache: int) -> None:
    """To the last place of the cache, which no step reads yet."""
    gpu = Gpu()
    ops = gpu.ops

    def strays(*arguments: Any) -> None:
        settled = gpu._is_settled
        ops.rotate_and_cache(*arguments)
        if not settled:
            arguments[5 + cache][-1, -1] = 1.0

    with pytest.raises(Disagreement):
        check_overlap(replace(ops, rotate_and_cache=strays), CPU, ReplayingRecorder(), gpu.pause)


def test_a_chain_that_cannot_be_recorded_does_not_overlap() -> None:
    with pytest.raises(Disagreement, match="not permitted when stream is capturing"):
        check_overlap(Gpu().ops, CPU, ReplayingRecorder(failing=(3,)), lambda: None)


def test_a_pause_follows_every_operation_and_nothing_else_changes() -> None:
    pauses: list[None] = []
    ops = replace(Ops(), silu_mul=torch_ops.silu_mul, few_rows=(4,))
    slow = paused(ops, lambda: pauses.append(None))
    x = torch.randn(2, 6)
    assert torch.equal(slow.silu_mul(x), ops.silu_mul(x))
    assert len(pauses) == 1
    assert (slow.few_rows, slow.outrun, slow.one_row_linear) == ((4,), frozenset(), None)
    operations = {field.name for field in fields(Ops)} - {"few_rows", "many_rows", "outrun", "parted"}
    assert all(getattr(slow, name) is not getattr(ops, name) for name in operations if getattr(ops, name) is not None)


@pytest.mark.parametrize("many", [(128, 192, 256), ()])
@pytest.mark.parametrize("few", [(16, 32, 64), (16,)])
def test_every_large_tile_is_met_and_more_rows_than_any(few: tuple[int, ...], many: tuple[int, ...]) -> None:
    met, edges = batches(Ops(few_rows=few, many_rows=many)), (1, *few, *many)
    assert met == sorted(met, reverse=True), "the first one's memory serves all"
    assert {next((most for most in edges if most >= rows), None) for rows in met} >= {1, 16, edges[-1], None}
    assert all(any(low < rows <= high for rows in met) for low, high in pairwise(edges) if high > 40)


def test_quantized_kernels_are_tried_in_the_chain_they_serve_in() -> None:
    gpu, kinds = Gpu(), set()

    def noting(x: torch.Tensor, weight: object, *rest: Any) -> torch.Tensor:
        kinds.add(type(weight))
        return gpu.ops.linear(x, weight, *rest)  # type: ignore[arg-type]

    ops = replace(gpu.ops, few_rows_linear=noting)
    check_overlap(ops, replace(CPU, quantization="int8"), ReplayingRecorder(), gpu.pause)
    assert kinds == {Int8Matrix}


def test_what_is_compared_is_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN equals nothing, not even itself: a chain that comes to it could never pass."""
    traces: list[list[torch.Tensor]] = []
    decode = overlap_check._decode

    def noting(*arguments: Any) -> list[torch.Tensor]:
        traces.append(decode(*arguments))
        return traces[-1]

    monkeypatch.setattr(overlap_check, "_decode", noting)
    check_overlap(Ops(), replace(CPU, dtype=torch.bfloat16), ReplayingRecorder(), lambda: None)
    assert len(traces) == 2 * len(batches(Ops()))
    for tokens, *caches in traces:
        assert tokens.shape[0] == STEPS
        assert len({tuple(step) for step in tokens.tolist()}) > 1, "the steps draw different tokens"
        assert all(cache.isfinite().all() for cache in caches)
        assert all(cache.float().std() > 0.5 for cache in caches), "there is something to attend to"
