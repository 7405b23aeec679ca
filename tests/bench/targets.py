"""What the engine must reach, each as a ratio of two figures of the same run; and the verdict on a run."""

from collections.abc import Mapping
from dataclasses import dataclass

Figures = Mapping[str, float]
"""Ratios by name, as the benchmark's sections report them; a section that failed leaves its ratios out."""


@dataclass(frozen=True)
class Target:
    """`ratio` must be at least, or at most, `bound`."""

    what: str
    ratio: str
    bound: float
    is_least: bool = True

    def met(self, value: float) -> bool:
        return value >= self.bound if self.is_least else value <= self.bound


TARGETS = (
    Target("decode at batch 1 of the memory limit", "decode_1_of_limit", 0.88),
    Target("decode at batch 1 over the reference engine", "decode_1_over_reference", 7),
    Target("decode at batch 64 of the memory limit", "decode_64_of_limit", 0.78),
    Target("decode at batch 256 of the memory limit", "decode_256_of_limit", 0.68),
    Target("64 requests over one at a time", "engine_64_over_serial", 300),
    Target("64 requests over transformers' continuous batching", "engine_64_over_continuous_batching", 1.5),
    Target("prefill of one prompt of the dense product's rate", "prefill_of_matmul", 0.65),
    Target("TTFT of turn 2 with a shared prefix of the cold one", "prefix_ttft_of_cold", 0.15, is_least=False),
    Target("tokens per second over HTTP of the engine's own", "web_of_engine", 0.93),
    Target("weights load of the files' raw read rate", "load_of_files", 0.8),
    Target("p99 between tokens beside a long prompt, of before", "stalled_gap_of_before", 2, is_least=False),
)


def verdicts(figures: Figures, judges: bool = True) -> list[dict[str, object]]:
    """A line per target: pass, fail, or missing when its section failed; "not judged" of a run that judges nothing."""
    return [_verdict(target, figures.get(target.ratio), judges) for target in TARGETS]


def _verdict(target: Target, value: float | None, judges: bool) -> dict[str, object]:
    shown = "missing" if value is None else "not judged" if not judges else "pass" if target.met(value) else "fail"
    sign = ">=" if target.is_least else "<="
    return {
        "target": target.what,
        "must_be": f"{sign} {target.bound}",
        "is": None if value is None else round(value, 4),
        "verdict": shown,
    }
