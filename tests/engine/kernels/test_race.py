"""Torch computes what it computes faster, and nothing else; a stand-in for the stopwatch says who is faster."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from service.engine.kernels import stopwatch
from service.engine.kernels.linear_check import MOST_WEIGHT_ROWS
from service.engine.kernels.ops import AddNorm, Affine, Ops, Product
from service.engine.kernels.race import race
from service.engine.kernels.stopwatch import Work, seconds, sets_needed
from service.engine.quantization import Int8Matrix
from tests.engine.kernels.test_selfcheck import CONFIG, CPU
from tests.support.rotating import rotate_and_attend

SERVED = replace(CPU, config=replace(CONFIG, intermediate_size=128))
"""Every matrix has a shape of its own."""
QKV = (CONFIG.query_size + 2 * CONFIG.kv_size, CONFIG.hidden_size, False)
GATE_UP = (2 * SERVED.config.intermediate_size, CONFIG.hidden_size, True)
HEAD = (CONFIG.vocab_size, CONFIG.hidden_size, False)


class Course:
    """Times by what runs: torch takes a second for anything, the kernels as long as is said of a product, and chains as
    long as is said of their second one."""

    def __init__(self, kernels: dict[Product, float], chains: dict[Product, float] | None = None) -> None:
        self._kernels = kernels
        self._chains = chains or {}
        self.chained: list[Product] = []
        self.is_chain = False
        self._last: Product | None = None
        self.timed: list[Product] = []

    @property
    def ops(self) -> Ops:
        linear = self.linear
        some = Ops(one_row_linear=linear, few_rows_linear=linear, many_rows_linear=linear)
        return replace(some, few_rows=(4, 8), many_rows=(16,))

    def linear(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gated: bool = False
    ) -> torch.Tensor:
        self._last = Product(x.shape[0], *weight.shape, gated)
        return Ops().linear(x, weight, bias, gated)

    def chain(
        self, x: torch.Tensor, first: Affine, norm: AddNorm, second: Affine, gated: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        result = Ops().chain(x, first, norm, second, gated)
        self._last, self.is_chain = Product(x.shape[0], *second.weight.shape, gated), True
        return result

    def stopwatch(self, works: Sequence[Work], device: torch.device) -> float:
        self._last, self.is_chain = None, False
        for work in works:
            work()
        if self._last is None:
            return 1.0
        if self.is_chain:
            self.chained.append(self._last)
            return self._chains.get(self._last, 0.4)
        self.timed.append(self._last)
        return self._kernels.get(self._last, 0.5)


def test_every_matrix_is_run_with_every_tile() -> None:
    course = Course({})
    raced = race(course.ops, SERVED, course.stopwatch)
    assert raced == course.ops, "our kernels won everything"
    assert len(course.timed) == len(set(course.timed)) == 5 * 4
    assert {product.rows for product in course.timed} == {1, 4, 8, 16}
    assert {Product(8, *shape) for shape in (QKV, GATE_UP, HEAD)} <= set(course.timed)


def test_what_torch_wins_by_more_than_noise_is_torchs() -> None:
    slow = {Product(4, *QKV): 1.5, Product(8, *GATE_UP): 1.03, Product(1, *HEAD): 1.01}
    course = Course(slow)
    raced = race(course.ops, SERVED, course.stopwatch)
    assert raced.outrun == {Product(4, *QKV), Product(8, *GATE_UP)}
    assert replace(raced, outrun=frozenset()) == course.ops


def test_a_loss_is_a_loss_only_when_it_is_one_again() -> None:
    """The first run may find the GPU asleep."""
    course = Course({Product(4, *QKV): 1.5, Product(8, *GATE_UP): 1.5})
    woken: list[Product] = []

    def stopwatch(works: Sequence[Work], device: torch.device) -> float:
        took = course.stopwatch(works, device)
        if took > 1 and course.timed[-1] == Product(4, *QKV):
            woken.append(course.timed[-1])
            return took if len(woken) == 1 else 0.5
        return took

    assert race(course.ops, SERVED, stopwatch).outrun == {Product(8, *GATE_UP)}


def test_one_row_runs_with_the_norm_that_goes_before_it() -> None:
    """What serves there is one kernel against two."""
    normed: list[tuple[int, ...]] = []

    def norm_linear(x: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
        normed.append(tuple(rest[3].shape))
        return Ops().norm_linear(x, *rest)

    course = Course({})
    ops = replace(course.ops, one_row_norm_linear=norm_linear)
    race(ops, SERVED, course.stopwatch)
    assert set(normed) == {QKV[:2], GATE_UP[:2]}


def test_a_chain_that_its_links_beat_is_parted() -> None:
    slow = {Product(4, *QKV): 0.6, Product(16, *GATE_UP): 0.52, Product(8, *GATE_UP): 0.505}
    course = Course({}, slow)
    ops = replace(course.ops, few_rows_chain=course.chain, many_rows_chain=course.chain)
    raced = race(ops, SERVED, course.stopwatch)
    assert raced.parted == {Product(4, *QKV), Product(16, *GATE_UP)}
    assert replace(raced, parted=frozenset()) == ops
    assert set(course.chained) == {Product(rows, *second) for rows in (4, 8, 16) for second in (QKV, GATE_UP)}


def test_a_chain_of_which_torch_won_a_product_has_nothing_to_beat() -> None:
    """It does not serve: what is timed is twice the same."""
    course = Course({Product(4, *QKV): 1.5}, {Product(4, *QKV): 9.0})
    raced = race(replace(course.ops, few_rows_chain=course.chain), SERVED, course.stopwatch)
    assert (raced.outrun, raced.parted) == ({Product(4, *QKV)}, frozenset())
    assert Product(4, *QKV) not in course.chained
    assert not any(product.rows == 16 for product in course.chained), "of which there is no chain"


@pytest.mark.parametrize(("apart", "serves"), [(0.4, False), (0.495, True), (0.6, True)])
def test_an_attention_that_rotates_serves_unless_the_two_apart_are_faster(apart: float, serves: bool) -> None:
    ran: list[str] = []

    def attention(*arguments: Any) -> torch.Tensor:
        ran.append("rotating")
        return rotate_and_attend(*arguments)

    def plain(*arguments: Any) -> torch.Tensor:
        ran.append("apart")
        return Ops().decode_attention(*arguments)

    def stopwatch(works: Sequence[Work], device: torch.device) -> float:
        ran.clear()
        for work in works:
            work()
        assert len(set(ran)) == 1
        return 0.5 if ran[0] == "rotating" else apart

    ops = replace(Ops(), rotating_attention=attention, decode_attention=plain)
    raced = race(ops, SERVED, stopwatch)
    assert raced == (ops if serves else replace(ops, rotating_attention=None))


def test_a_kernel_that_does_not_serve_does_not_run() -> None:
    course = Course({})
    race(replace(course.ops, few_rows_linear=None), CPU, course.stopwatch)
    assert {product.rows for product in course.timed} == {1, 16}
    course.timed.clear()

    def untimed(works: Sequence[Work], device: torch.device) -> float:
        raise AssertionError("there is nothing to compare")

    assert race(Ops(), CPU, untimed) == Ops()


def test_what_is_run_is_what_will_serve() -> None:
    """All of a matrix, in the served type, as often as the cache does not hold it."""
    met: list[tuple[torch.Size, torch.dtype]] = []

    def noting(works: Sequence[Work], device: torch.device) -> float:
        for work in works:
            work()
        return 1.0

    def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gated: bool = False) -> torch.Tensor:
        met.append((weight.shape, weight.dtype))
        assert x.dtype == weight.dtype
        return Ops().linear(x, weight, bias, gated)

    half = replace(CPU, dtype=torch.float16)
    race(replace(Ops(), one_row_linear=linear), half, noting)
    assert (torch.Size([CONFIG.vocab_size, CONFIG.hidden_size]), torch.float16) in met


def test_quantized_weights_are_raced_as_they_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds, sizes = set(), set()

    def linear(x: torch.Tensor, weight: object, bias: object, gated: bool = False) -> torch.Tensor:
        kinds.add(type(weight))
        return Ops().linear(x, weight, None, gated)  # type: ignore[arg-type]

    def sets_needed(size: int, device: torch.device) -> int:
        sizes.add(size)
        return 1

    monkeypatch.setattr("service.engine.kernels.race.sets_needed", sets_needed)
    race(replace(Ops(), one_row_linear=linear), replace(SERVED, quantization="int8"), Course({}).stopwatch)
    assert kinds == {Int8Matrix}
    assert QKV[0] * QKV[1] in sizes, "a byte a number"


def weights_of(work: Any) -> tuple[int, ...]:
    """Where they lie."""
    pair = [each.weight for each in work.args if isinstance(each, Affine)]
    return tuple(weight.data_ptr() for weight in pair or [work.args[-3]])


def test_a_large_vocabulary_is_raced_as_it_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it, which the checks are spared; in copies that the cache does not hold."""
    course, counts = Course({}), set()
    monkeypatch.setattr("service.engine.kernels.race.sets_needed", lambda size, device: 3)

    def stopwatch(works: Sequence[Work], device: torch.device) -> float:
        counts.add((len(works), len({weights_of(work) for work in works})))
        return course.stopwatch(works, device)

    config = replace(SERVED.config, vocab_size=MOST_WEIGHT_ROWS + 1, hidden_size=16, intermediate_size=32)
    chained = replace(course.ops, few_rows_chain=course.chain)
    race(chained, replace(SERVED, config=config), stopwatch)
    assert course.chained
    assert Product(8, MOST_WEIGHT_ROWS + 1, 16, False) in course.timed
    assert counts == {(3, 3)}


def test_a_stopwatch_gives_the_time_of_one_work(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter((10.0, 13.0))
    monkeypatch.setattr("service.engine.kernels.stopwatch.time.perf_counter", lambda: next(ticks))
    assert seconds([lambda: None] * 3, torch.device("cpu")) == 1.0


@pytest.mark.parametrize(("milliseconds", "replays"), [(0.1, 20), (10.0, 5), (1000.0, 3)])
def test_a_slow_gpu_replays_as_often_as_there_is_time(
    milliseconds: float, replays: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first one that hiccuped decides nothing."""
    times = iter([50 * milliseconds, *[milliseconds] * 40])
    replayed: list[None] = []
    event = SimpleNamespace(record=lambda: None, elapsed_time=lambda stop: next(times))
    monkeypatch.setattr(stopwatch, "_event", lambda: event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    graph: Any = SimpleNamespace(replay=lambda: replayed.append(None))
    assert stopwatch._median_replay(graph) == pytest.approx(milliseconds / 1e3), "in seconds"
    assert len(replayed) == replays + 3


def test_a_stopwatch_runs_every_work() -> None:
    ran: list[int] = []
    works = [lambda i=i: ran.append(i) for i in range(3)]
    assert seconds(works, torch.device("cpu")) > 0
    assert ran == [0, 1, 2] * 2, "once to get warm"


def test_sets_outgrow_the_cache_on_a_gpu_alone() -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert sets_needed(32 << 20, gpu) == 8
    assert sets_needed(48 << 20, gpu) == 6, "rounded up"
    assert sets_needed(1 << 30, gpu) == 1
    assert sets_needed(1, gpu) == 64
    assert sets_needed(1, cpu) == 1
