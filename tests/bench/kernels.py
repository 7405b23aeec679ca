"""Each decode kernel beside the torch operation it replaces and the memory limit measured in the same run.

    python -m tests.bench.kernels [--dtype bfloat16] [--sweep]     on a GPU, shapes of the 8B model
    python -m tests.bench.kernels --tiny                           anywhere, to see that it runs

Prints JSON lines: `microseconds`, `torch_microseconds`, and `of_limit`, the share of the time that the bytes a kernel
must move would take at the measured bandwidth. `--sweep` prints each launch choice's time instead, the best one last:
that is what `service/engine/kernels/tuning.py` is filled from.
"""

import argparse
import itertools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace

import torch

from service.engine.config import INTERNLM3_8B
from service.engine.kernels.candidate import ServedShapes
from service.engine.kernels.decode_check import decode_problem
from service.engine.kernels.linear_check import matrices
from service.engine.kernels.ops import Ops
from service.engine.kernels.sample_check import SAMPLED, sampling_slots
from service.engine.kernels.selfcheck import prove
from service.engine.kernels.stopwatch import Work, seconds, sets_needed
from service.engine.kernels.tuning import AttentionTuning, LinearTuning, Tuning, tuning_for
from tests.bench.timing import read_bandwidth

TINY = replace(
    INTERNLM3_8B, vocab_size=400, hidden_size=64, intermediate_size=96, num_heads=4, head_dim=16, max_positions=512
)
EPS = 1e-5


@dataclass(frozen=True)
class Case:
    """`works(ops)` are the same work on one input set after the other; `size` counts the bytes one must move."""

    kernel: str
    shape: dict[str, object]
    size: int
    works: Callable[[Ops], list[Work]]


def cases(shapes: ServedShapes, *, tiny: bool) -> Iterator[Case]:
    """Small operations and products by rows; attention by rows and context; sampling by rows."""
    c = shapes.config
    for rows in (1, 3) if tiny else (1, 16, 64, 256):
        yield norm_case(shapes, rows)
        yield silu_case(shapes, rows)
        yield rope_case(shapes, rows)
        yield sample_case(shapes, rows)
    for width, depth, gated in matrices(c, c.vocab_size):
        for rows in (1, 3) if tiny else (1, 4, 16, 32, 64):
            yield linear_case(shapes, rows, width, depth, gated)
    yield norm_linear_case(shapes)
    batches = [[5, 40]] if tiny else [[512], [8192], [512] * 64, [4096] * 64, [512] * 256, [512] * 31 + [30_000]]
    for lengths in batches:
        yield attention_case(shapes, lengths)


def norm_case(shapes: ServedShapes, rows: int) -> Case:
    width = shapes.config.hidden_size
    size = 4 * rows * width * shapes.dtype.itemsize
    x, residual, weight = inputs(shapes, size, (rows, width)), shapes.random(rows, width), shapes.random(width)
    return Case(
        "add_rms_norm",
        {"rows": rows, "width": width},
        size,
        lambda ops: [lambda x=x: ops.add_rms_norm(x, residual, weight, EPS) for x in x],
    )


def silu_case(shapes: ServedShapes, rows: int) -> Case:
    width = shapes.config.intermediate_size
    size = 3 * rows * width * shapes.dtype.itemsize
    gate_up = inputs(shapes, size, (rows, 2 * width))
    return Case(
        "silu_mul", {"rows": rows, "width": width}, size, lambda ops: [lambda x=x: ops.silu_mul(x) for x in gate_up]
    )


def rope_case(shapes: ServedShapes, rows: int) -> Case:
    c = shapes.config
    width = c.query_size + 2 * c.kv_size
    size = 2 * rows * width * shapes.dtype.itemsize
    qkv = inputs(shapes, size, (rows, width))
    cache = shapes.random(2, rows + 1, shapes.block_size, c.num_kv_heads, c.head_dim)
    places = torch.arange(rows, device=shapes.device) * shapes.block_size + shapes.block_size
    cos, sin = torch.rand(2, c.max_positions, c.head_dim, device=shapes.device)

    def works(ops: Ops) -> list[Work]:
        return [lambda x=x: ops.rotate_and_cache(x, cos, sin, places % 512, places, cache[0], cache[1]) for x in qkv]

    return Case("rotate_and_cache", {"rows": rows, "heads": c.num_heads + 2 * c.num_kv_heads}, size, works)


def sample_case(shapes: ServedShapes, rows: int) -> Case:
    vocab = shapes.config.vocab_size
    size = rows * vocab * (shapes.dtype.itemsize + 1)  # logits, and a byte of what was seen
    logits = inputs(shapes, size, (rows, vocab))
    seen = torch.zeros(rows, vocab, dtype=torch.bool, device=shapes.device)
    slots = sampling_slots([SAMPLED[1]] * rows, seen, torch.zeros(rows, dtype=torch.int64))
    numbers = torch.arange(rows, device=shapes.device)
    methods = slots.methods(numbers.tolist())
    return Case(
        "sample",
        {"rows": rows, "vocab": vocab},
        size,
        lambda ops: [lambda x=x: ops.sample(x, slots, numbers, methods) for x in logits],
    )


def linear_case(shapes: ServedShapes, rows: int, width: int, depth: int, gated: bool) -> Case:
    size = width * depth * shapes.dtype.itemsize
    weights, x = inputs(shapes, size, (width, depth)), shapes.random(rows, depth)
    return Case(
        "linear",
        {"rows": rows, "width": width, "depth": depth, "gated": gated},
        size,
        lambda ops: [lambda w=w: ops.linear(x, w, None, gated) for w in weights],
    )


def norm_linear_case(shapes: ServedShapes) -> Case:
    width, depth = 2 * shapes.config.intermediate_size, shapes.config.hidden_size
    size = width * depth * shapes.dtype.itemsize
    weights, x, gain = inputs(shapes, size, (width, depth)), shapes.random(1, depth), shapes.random(depth)
    return Case(
        "norm_linear",
        {"rows": 1, "width": width, "depth": depth, "gated": True},
        size,
        lambda ops: [lambda w=w: ops.norm_linear(x, x, gain, EPS, w, None, True) for w in weights],
    )


def attention_case(shapes: ServedShapes, lengths: list[int]) -> Case:
    c = shapes.config
    size = 2 * sum(lengths) * c.kv_size * shapes.dtype.itemsize
    problems = [decode_problem(shapes, lengths) for _ in range(min(4, sets_needed(size, shapes.device)))]

    def works(ops: Ops) -> list[Work]:
        # Planned once a step and used in every layer: not part of the time.
        planned = [
            (q, k, v, ops.plan_decode(batch.block_tables, batch.slots, batch.lengths, k)) for q, k, v, batch in problems
        ]
        return [lambda p=p: ops.decode_attention(*p, c.head_dim**-0.5) for p in planned]

    return Case(
        "decode_attention", {"rows": len(lengths), "longest": max(lengths), "tokens": sum(lengths)}, size, works
    )


def inputs(shapes: ServedShapes, size: int, shape: tuple[int, ...]) -> list[torch.Tensor]:
    """Input sets that together exceed the cache."""
    return [shapes.random(*shape) for _ in range(sets_needed(size, shapes.device))]


def report(case: Case, ops: Ops, bandwidth: float, device: torch.device) -> dict[str, object]:
    """One line of the output."""
    ours, plain = seconds(case.works(ops), device), seconds(case.works(Ops()), device)
    return {
        "kernel": case.kernel,
        **case.shape,
        "microseconds": round(ours * 1e6, 2),
        "torch_microseconds": round(plain * 1e6, 2),
        "gb_per_s": round(case.size / ours / 1e9, 2),
        "of_limit": round(case.size / bandwidth / ours, 3),
    }


def sweep(shapes: ServedShapes, *, tiny: bool) -> Iterator[dict[str, object]]:
    """Every launch choice that compiles, by its time over the model's matrices or over two contexts; best last."""
    from service.engine.kernels.decode_attention import PagedDecodeAttention
    from service.engine.kernels.few_rows import FewRowsLinear
    from service.engine.kernels.gemv import OneRowLinear

    c, device = shapes.config, shapes.device
    overlaps = device.type == "cuda" and tuning_for(torch.cuda.get_device_capability(device)).overlaps
    units = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
    one = [LinearTuning(*v) for v in itertools.product((2, 4, 8, 16), (512, 1024, 2048, 4096), (4, 8), (1,))]
    few = [LinearTuning(*v) for v in itertools.product((32, 64, 128), (64, 128, 256), (4, 8), (3, 4, 5))]
    attend = [AttentionTuning(*v) for v in itertools.product((32, 64), (4, 8), (3, 4, 5), (2, 3, 4))]
    if tiny:
        one, few, attend = one[:2], few[:2], attend[:2]
    wide = linear_case(shapes, 1, 2 * c.intermediate_size, c.hidden_size, False)
    contexts = [attention_case(shapes, lengths) for lengths in ([[40]] if tiny else [[2048], [4096] * 64])]
    yield from ranked(
        "one_row", one, lambda t: Ops(one_row_linear=OneRowLinear(t, overlaps=overlaps).linear), [wide], device
    )
    for rows in (16,) if tiny else (16, 32, 64):
        shaped = [linear_case(shapes, rows, *matrix) for matrix in matrices(c)[:-1]]

        def few_ops(tuning: LinearTuning, most: int = rows) -> Ops:
            return Ops(few_rows_linear=FewRowsLinear({most: tuning}, units, overlaps=overlaps).linear, few_rows=(most,))

        yield from ranked(f"few_rows_{rows}", few, few_ops, shaped, device)

    def attention_ops(tuning: AttentionTuning) -> Ops:
        kernel = PagedDecodeAttention(tuning, units, overlaps=overlaps)
        return Ops(plan_decode=kernel.plan, decode_attention=kernel.attend)

    yield from ranked("attention", attend, attention_ops, contexts, device)


def ranked(
    name: str, choices: list[object], make: Callable[..., Ops], timed: list[Case], device: torch.device
) -> Iterator[dict[str, object]]:
    """The choices that work, slowest first."""
    found: list[tuple[float, dict[str, object]]] = []
    for choice in choices:
        try:
            took = sum(seconds(case.works(make(choice)), device) for case in timed)
        except Exception as error:  # too much shared memory, or no such tile: what is raised is Triton's affair
            found.append((float("inf"), {"sweep": name, **asdict(choice), "error": str(error).splitlines()[0]}))  # type: ignore[call-overload]
        else:
            found.append((took, {"sweep": name, **asdict(choice), "microseconds": round(took * 1e6, 2)}))  # type: ignore[call-overload]
    yield from (line for _, line in sorted(found, key=lambda entry: -entry[0]))


def serving_ops(shapes: ServedShapes) -> tuple[Ops, list[str]]:
    """What would serve on this device; without a GPU the kernels themselves, in Triton's interpreter."""
    if shapes.device.type == "cuda":
        proof = prove(shapes)
        return proof.ops, proof.degraded
    try:
        from service.engine.kernels.candidates import candidates
    except ImportError as error:
        return Ops(), [f"triton: {error}"]
    wide = LinearTuning(block_n=64, block_k=64, warps=1, stages=1)
    tuning = Tuning("the interpreter", one_row=wide, few_rows=dict.fromkeys((16, 32, 64), wide))
    return Ops(**{name: kernel for c in candidates(tuning, 4) for name, kernel in c.fields.items()}), []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--sweep", action="store_true")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        if not options.tiny:
            parser.error("no GPU here; --tiny shows that the command runs")
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported, which nothing above does
    dtype = torch.float32 if device.type == "cpu" else getattr(torch, options.dtype)
    shapes = ServedShapes(TINY if options.tiny else INTERNLM3_8B, 16 if options.tiny else 64, dtype, device)
    with torch.inference_mode():
        if options.sweep:
            for line in sweep(shapes, tiny=options.tiny):
                print(json.dumps(line), flush=True)
            return
        ops, degraded = serving_ops(shapes)
        bandwidth = read_bandwidth(device, 2**20 if options.tiny else 2**31)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        print(json.dumps({"device": name, "gb_per_s": round(bandwidth / 1e9, 1), "degraded": degraded}), flush=True)
        for case in cases(shapes, tiny=options.tiny):
            print(json.dumps(report(case, ops, bandwidth, device)), flush=True)


if __name__ == "__main__":
    main()
