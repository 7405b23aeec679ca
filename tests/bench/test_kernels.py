"""The kernel benchmark runs from end to end without a GPU."""

import json
import subprocess
import sys
from typing import Any

import pytest
import torch

from service.engine.config import INTERNLM3_8B
from service.engine.defaults import MOST_BIASED
from service.engine.kernels.candidate import ServedShapes
from service.engine.kernels.ops import Ops
from service.engine.kernels.tuning import AttentionTuning
from tests.bench import sweep
from tests.bench.kernel_cases import Case
from tests.bench.scale import FULL
from tests.bench.sweep import Group

COMMAND = [sys.executable, "-m", "tests.bench.kernels", "--tiny"]


def lines(*options: str) -> list[dict[str, object]]:
    printed = subprocess.run([*COMMAND, *options], capture_output=True, text=True, check=False)
    assert printed.returncode == 0, printed.stderr
    return [json.loads(line) for line in printed.stdout.splitlines()]


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_a_tiny_run_times_every_kernel_beside_torch(quantization: str) -> None:
    device, *cases = lines("--quantization", quantization)
    assert float(str(device["gb_per_s"])) > 0
    kernels = {"add_rms_norm", "silu_mul", "rotate_and_cache", "sample", "linear", "norm_linear", "chain"}
    assert {case["kernel"] for case in cases} == kernels | {"decode_attention", "rotating_attention"}
    assert {(case["draw"], case["biased"]) for case in cases if case["kernel"] == "sample"} == {
        ("few", 0),
        ("few", MOST_BIASED),
        ("flat", 0),
        ("flat", MOST_BIASED),
    }
    for case in cases:
        assert float(str(case["microseconds"])) > 0, case
        assert float(str(case["torch_microseconds"])) > 0, case


def test_a_tiny_sweep_times_each_launch_choice_and_says_the_best_again() -> None:
    pytest.importorskip("triton")
    printed = lines("--sweep")
    for name in ("one_row", "few_rows_16", "decode_attention"):
        first, *choices, best = [line for line in printed if line["sweep"] == name]
        assert (first["choices"], len(choices)) == (2, 2)
        assert best == min(choices, key=lambda line: float(str(line["microseconds"]))) | {"best": True}
        assert all(len(line["of_cases"]) == len(first["cases"]) for line in choices)  # type: ignore[arg-type]


def test_a_sweep_of_some_kernels_times_no_others() -> None:
    pytest.importorskip("triton")
    assert {line["sweep"] for line in lines("--sweep", "--only", "decode_attention,one_row")} == {
        "decode_attention",
        "one_row",
    }


@pytest.mark.parametrize(
    ("options", "complaint"),
    [(["--only", "one_row"], "--sweep"), (["--sweep", "--only", "few_rows_17"], "there are one_row, few_rows_16, ")],
)
def test_a_choice_of_nothing_is_refused(options: list[str], complaint: str) -> None:
    pytest.importorskip("triton")
    refused = subprocess.run([*COMMAND, *options], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert complaint in refused.stderr


class Choices:
    """A group whose kernel takes so many seconds with each tile; a tile of 0 does not compile."""

    def __init__(self, *seconds: float) -> None:
        self.compiled: list[int] = []
        choices = [AttentionTuning(tile=number if took else 0) for number, took in enumerate(seconds, start=1)]
        self.seconds = dict(enumerate(seconds, start=1))
        self.group = Group("some", choices, self.ops, lambda: [Case("some", {"rows": 1}, 1, lambda ops: [ops])])

    def ops(self, choice: AttentionTuning) -> Any:
        if not choice.tile:
            raise OutOfMemoryError
        self.compiled.append(choice.tile)
        return choice.tile


class OutOfMemoryError(Exception):
    """Without a word, as some are."""


def test_a_line_comes_before_the_next_choice_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep that is cut off has told what it knew."""
    choices = Choices(0.3, 0.1, 0, 0.2)
    monkeypatch.setattr(sweep, "seconds", lambda works, device: choices.seconds[works[0]])
    found = sweep.timed(choices.group, torch.device("cpu"))
    assert next(found) == {"sweep": "some", "choices": 4, "cases": [{"rows": 1}]}
    for number, took in ((1, 300_000), (2, 100_000)):
        line = next(found)
        assert (line["tile"], line["microseconds"], line["of_cases"]) == (number, took, [took])
        assert choices.compiled[-1] == number
    failed, last, best = found
    assert failed["error"] == "OutOfMemoryError: "
    assert (last["tile"], best["tile"], best["best"]) == (4, 2, True)


def test_a_sweep_of_nothing_that_works_has_no_best() -> None:
    lines = list(sweep.timed(Choices(0, 0).group, torch.device("cpu")))
    assert [line.get("error") for line in lines] == [None, "OutOfMemoryError: ", "OutOfMemoryError: "]


def test_what_is_swept_is_what_a_decode_launches() -> None:
    """Attention with its rotation, and one row behind a norm, too: neither has the registers of its plain form."""
    pytest.importorskip("triton")
    shapes = ServedShapes(INTERNLM3_8B, 16, torch.bfloat16, torch.device("cpu"))
    names = ("one_row_linear", "one_row_norm_linear", "decode_attention", "rotating_attention")
    served: dict[str, list[str]] = {}
    for group in (sweep.one_row(shapes), sweep.decode_attention(shapes, [[40]])):
        ops, plain = group.ops(group.choices[0]), Ops()
        served[group.name] = [name for name in names if getattr(ops, name) is not getattr(plain, name)]
    assert served == {
        "one_row": ["one_row_linear", "one_row_norm_linear"],
        "decode_attention": ["rotating_attention"],
    }


def test_attention_is_swept_over_what_the_benchmark_judges() -> None:
    judged = {(FULL.step_context,) * batch for batch in FULL.step_batches[1:]}
    assert judged <= {tuple(lengths) for lengths in sweep.CONTEXTS}
