"""Launch choices of the kernels that have any, each timed on the work that it would serve."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch

from service.engine.kernels.candidate import ServedShapes
from service.engine.kernels.linear_check import matrices
from service.engine.kernels.ops import Ops
from service.engine.kernels.stopwatch import seconds
from service.engine.kernels.tuning import DEFAULT, AttentionTuning, LinearTuning, Tuning, tuning_for
from tests.bench.kernel_cases import Case, linear_case, norm_linear_case, rotating_case

Line = dict[str, object]
ROWS = (16, 32, 64, 128, 256)
FEW = (32, 64, 128), (64, 128, 256), (4, 8), (3, 4, 5), (False,)
MANY = (64, 128), (64,), (4, 8), (2, 3, 4), (False, True)
"""What is tried of each field of `LinearTuning`."""
CONTEXTS = [[512] * 64, [512] * 256, [2048], [8192], [32_768], [4096] * 64]
"""The two that the benchmark judges, long ones alone, whose parts there are most of to merge, and many long ones."""


@dataclass(frozen=True)
class Group:
    """The choices of one kernel, the operations with one of them, and what is timed; that is made when it is asked for,
    as it takes a GPU's memory."""

    name: str
    choices: Sequence[LinearTuning | AttentionTuning]
    ops: Callable[..., Ops]
    cases: Callable[[], list[Case]]


def groups(shapes: ServedShapes, *, tiny: bool) -> list[Group]:
    """One row, each tile of few rows, and decode attention. A tiny one has two choices."""
    most = 2 if tiny else None
    few = [few_rows(shapes, rows) for rows in (ROWS[:1] if tiny else ROWS)]
    contexts = [[40]] if tiny else CONTEXTS
    every = [one_row(shapes), *few, decode_attention(shapes, contexts)]
    return [Group(group.name, group.choices[:most], group.ops, group.cases) for group in every]


def one_row(shapes: ServedShapes) -> Group:
    """On the widest matrix of a layer, alone and behind a norm, which takes more registers, as it is served."""
    from service.engine.kernels.gemv import OneRowLinear

    c, overlaps = shapes.config, _generation(shapes.device).overlaps

    def ops(tuning: LinearTuning) -> Ops:
        kernel = OneRowLinear(tuning, overlaps=overlaps)
        return Ops(one_row_linear=kernel.linear, one_row_norm_linear=kernel.norm_linear)

    return Group(
        "one_row",
        [LinearTuning(*v) for v in itertools.product((2, 4, 8, 16), (512, 1024, 2048, 4096), (4, 8), (1,))],
        ops,
        lambda: [linear_case(shapes, 1, 2 * c.intermediate_size, c.hidden_size, False), norm_linear_case(shapes)],
    )


def few_rows(shapes: ServedShapes, rows: int) -> Group:
    """On each matrix of a layer."""
    from service.engine.kernels.few_rows import FewRowsLinear

    units, generation = _units(shapes.device), _generation(shapes.device)
    return Group(
        f"few_rows_{rows}",
        [LinearTuning(*v) for v in itertools.product(*(FEW if rows <= 64 else MANY))],
        lambda tuning: Ops(
            few_rows_linear=FewRowsLinear(
                {rows: tuning}, units, overlaps=generation.overlaps, settles=generation.settles
            ).linear,
            few_rows=(rows,),
        ),
        lambda: [linear_case(shapes, rows, *matrix) for matrix in matrices(shapes.config)[:-1]],
    )


def decode_attention(shapes: ServedShapes, contexts: list[list[int]]) -> Group:
    """With its rotation, on each of these batches of contexts."""
    from service.engine.kernels.decode_attention import PagedDecodeAttention

    units, overlaps = _units(shapes.device), _generation(shapes.device).overlaps

    def ops(tuning: AttentionTuning) -> Ops:
        kernel = PagedDecodeAttention(tuning, units, overlaps=overlaps)
        return Ops(plan_decode=kernel.plan, rotating_attention=kernel.rotate_and_attend)

    return Group(
        "decode_attention",
        [AttentionTuning(*v) for v in itertools.product((32, 64), (4, 8), (2, 3, 4, 5), (2, 3, 4))],
        ops,
        lambda: [rotating_case(shapes, lengths) for lengths in contexts],
    )


def timed(group: Group, device: torch.device) -> Iterator[Line]:
    """What is timed; then a line per choice as soon as it is, since compiling all takes minutes and may be cut off;
    then the best one again."""
    cases = group.cases()
    yield {"sweep": group.name, "choices": len(group.choices), "cases": [case.shape for case in cases]}
    best: tuple[float, Line] | None = None
    for choice in group.choices:
        line = {"sweep": group.name, **asdict(choice)}
        try:
            each = [seconds(case.works(group.ops(choice)), device) for case in cases]
        except Exception as error:  # too much shared memory, or no such tile: what is raised is Triton's affair
            yield line | {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
            continue
        line |= {"microseconds": _microseconds(sum(each)), "of_cases": [_microseconds(took) for took in each]}
        yield line
        if best is None or sum(each) < best[0]:
            best = sum(each), line
    if best is not None:
        yield best[1] | {"best": True}


def _microseconds(took: float) -> float:
    return round(took * 1e6, 2)


def _generation(device: torch.device) -> Tuning:
    return tuning_for(torch.cuda.get_device_capability(device)) if device.type == "cuda" else DEFAULT


def _units(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count) if device.type == "cuda" else 4
