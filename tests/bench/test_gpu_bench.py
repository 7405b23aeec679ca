"""The GPU benchmark runs from end to end without a GPU; its arithmetic and its verdicts are right."""

import json
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from service.engine.base import EngineConfig
from service.engine.config import read_config
from service.engine.weights import load_weights
from tests.bench import gpu, limits
from tests.bench.gpu import SECTIONS, Bench, main, parse
from tests.bench.kernels import INTERNLM3_8B
from tests.bench.limits import matrix_numbers, prefill_flop, step_bytes
from tests.bench.load import Prompts, Timeline, percentile
from tests.bench.results_file import Results, results_path
from tests.bench.scale import FULL, TINY, ready_model, write_random_model
from tests.bench.targets import TARGETS, verdicts


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the dry run is for hosts without a GPU")
def test_a_tiny_run_prints_every_section_and_every_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tiny", "--results", str(tmp_path)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert not [line for line in lines if "error" in line]
    printed = {line["section"] for line in lines if "section" in line}
    assert printed == {"machine", "limits", *SECTIONS}
    by_target = {line["target"]: line for line in lines if "target" in line}
    assert by_target.keys() == {target.what for target in TARGETS}
    measured = {target.what for target in TARGETS if not {"64", "256"} & set(target.ratio.split("_")[:2])}
    assert {by_target[what]["verdict"] for what in measured} == {"not judged"}
    by_section = {line["section"]: line for line in lines if "section" in line and "figures" not in line}
    assert by_section["limits"].keys() >= {"memory_gb_per_s", "matmul_tflop_per_s"}
    assert by_section["continuous_batching"]["auto_switch_to_flash"] is False
    assert min(by_section["stall"]["steps_before"], by_section["stall"]["steps_during"]) >= TINY.stall_steps
    (written,) = tmp_path.iterdir()
    assert [json.loads(line) | {"run": ""} for line in written.read_text().splitlines()] == [
        line | {"run": ""} for line in lines
    ]
    torch.set_num_threads(1)


def test_the_random_model_is_one_that_loads_whole(tmp_path: Path) -> None:
    write_random_model(tmp_path, TINY.shape)
    weights, report = load_weights(tmp_path, read_config(tmp_path), torch.device("cpu"), torch.float32)
    assert report.bytes_read > 0
    first, second = weights.layers[0].qkv, weights.layers[1].qkv
    assert not torch.equal(first, second), "every tensor has numbers of its own"
    assert torch.isfinite(first).all()


def test_the_full_scale_is_the_8b_model() -> None:
    assert FULL.shape.layers == INTERNLM3_8B.num_layers
    numbers = matrix_numbers(INTERNLM3_8B) + 2 * INTERNLM3_8B.vocab_size * INTERNLM3_8B.hidden_size
    assert numbers == pytest.approx(8.804e9, rel=0.001)
    assert step_bytes(INTERNLM3_8B, 1, 0, 2) == pytest.approx(16.55e9, rel=0.001)
    assert step_bytes(INTERNLM3_8B, 64, 512, 2) - step_bytes(INTERNLM3_8B, 64, 511, 2) == 64 * 48 * 1024
    assert prefill_flop(INTERNLM3_8B, 1000) == pytest.approx(15.5e12, rel=0.05)


def test_every_target_asks_for_what_the_product_promises() -> None:
    assert [(target.ratio, target.is_least, target.bound) for target in TARGETS] == [
        ("decode_1_of_limit", True, 0.88),
        ("decode_1_over_reference", True, 7),
        ("decode_64_of_limit", True, 0.78),
        ("decode_256_of_limit", True, 0.68),
        ("engine_64_over_serial", True, 300),
        ("engine_64_over_continuous_batching", True, 1.5),
        ("prefill_of_matmul", True, 0.65),
        ("prefix_ttft_of_cold", False, 0.15),
        ("web_of_engine", True, 0.93),
        ("load_of_files", True, 0.8),
        ("stalled_gap_of_before", False, 2),
    ]


@pytest.mark.parametrize(
    ("figures", "target", "verdict"),
    [
        ({"decode_1_of_limit": 0.88}, 0, "pass"),
        ({"decode_1_of_limit": 0.87}, 0, "fail"),
        ({}, 0, "missing"),
        ({"prefix_ttft_of_cold": 0.15}, 7, "pass"),
        ({"prefix_ttft_of_cold": 0.16}, 7, "fail"),
    ],
)
def test_a_verdict_says_what_was_asked_and_what_was_found(figures: dict[str, float], target: int, verdict: str) -> None:
    line = verdicts(figures)[target]
    assert line["verdict"] == verdict
    assert str(TARGETS[target].bound) in str(line["must_be"])


@pytest.mark.parametrize(
    ("arguments", "complaint"), [([], "say --all"), (["--tiny", "--only", "nothing"], "no such section: nothing")]
)
def test_a_command_that_asks_for_nothing_is_refused(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)
    assert complaint in capsys.readouterr().err


def test_the_results_of_a_day_are_one_file_named_after_the_gpu(tmp_path: Path) -> None:
    path = results_path(tmp_path, "NVIDIA H100 80GB HBM3")
    assert path.name.startswith("nvidia-h100-80gb-hbm3-20")
    assert results_path(tmp_path, "NVIDIA H100 80GB HBM3") == path


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run_of(path: Path, memory: float, **figures: float) -> Results:
    """A run that left one section, named after what it measured."""
    results = Results(path)
    results.add({"section": "limits", "memory": memory})
    for name, value in figures.items():
        results.add({"section": name, "figures": {name: value}})
    return results


def test_sections_that_are_run_one_by_one_are_judged_together(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "results.json"
    run_of(path, 1.0, decode_1_of_limit=0.9)
    results = run_of(path, 2.0, prefix_ttft_of_cold=0.5)
    verdicts_by_target = {line["target"]: line["verdict"] for line in read(path) if "target" in line}
    assert verdicts_by_target[TARGETS[0].what] == "pass"
    assert verdicts_by_target[TARGETS[7].what] == "fail"
    assert verdicts_by_target[TARGETS[2].what] == "missing"
    assert verdicts_by_target == {line["target"]: line["verdict"] for line in results.verdicts()}
    assert [line["memory"] for line in read(path) if line.get("section") == "limits"] == [1.0, 2.0]


def test_a_section_run_again_replaces_its_lines_and_the_limits_it_was_held_against(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    run_of(path, 1.0, decode_1_of_limit=0.5)
    run_of(path, 2.0, decode_1_of_limit=0.9)
    sections = [line for line in read(path) if "section" in line]
    assert [(line["section"], line.get("memory")) for line in sections] == [
        ("limits", 2.0),
        ("decode_1_of_limit", None),
    ]
    assert read(path)[len(sections)]["verdict"] == "pass"


def test_a_run_that_is_cut_off_keeps_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results = Results(path)
    results.add({"section": "limits", "memory": 1.0})
    results.add({"section": "decode", "figures": {"decode_1_of_limit": 0.9}})
    assert [line.get("section") for line in read(path)[:2]] == ["limits", "decode"]


def test_without_a_path_nothing_is_written_and_the_run_is_judged_all_the_same() -> None:
    results = Results(None)
    results.add({"section": "decode", "figures": {"decode_1_of_limit": 0.9}})
    assert results.verdicts()[0]["verdict"] == "pass"


def test_a_run_that_judges_nothing_says_so_of_what_it_measured(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    Results(path, judges=False).add({"section": "decode", "figures": {"decode_1_of_limit": 0.9, "web_of_engine": 0.1}})
    shown = {line["target"]: line["verdict"] for line in read(path) if "target" in line}
    measured = {target.what for target in TARGETS if target.ratio in ("decode_1_of_limit", "web_of_engine")}
    assert {what for what, verdict in shown.items() if verdict == "not judged"} == measured
    assert {verdict for what, verdict in shown.items() if what not in measured} == {"missing"}


def test_a_load_is_held_against_a_reading_that_came_right_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one of the two waits for the disk and the other reads what it left in the page cache."""
    done: list[str] = []
    rates = iter([1e9, 4e9])  # a cold disk, then the page cache

    def read_files(_: Path) -> float:
        done.append("files")
        return next(rates)

    def load(config: EngineConfig, say: object) -> SimpleNamespace:
        done.append("load")
        return SimpleNamespace(info=SimpleNamespace(startup_seconds={"weights": 0.5}, degraded=[]))

    model_dir = tmp_path / "model"
    bench = Bench(TINY, ready_model(model_dir, TINY.shape), torch.device("cpu"), lambda line: None)
    monkeypatch.setattr(gpu, "file_rate", read_files)
    monkeypatch.setattr(gpu, "build_core", load)
    monkeypatch.setattr(gpu, "serve", lambda core, requests: {})
    bench.load()
    assert done == ["files", "files", "load"]
    size = sum(path.stat().st_size for path in model_dir.glob("*.safetensors"))
    assert bench.figures["load_of_files"] == pytest.approx(size / 0.5 / 4e9)


def test_the_files_are_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PIECE", 1000)
    monkeypatch.setattr(limits, "_own", threading.local())
    (tmp_path / "a.safetensors").write_bytes(bytes(2500))
    (tmp_path / "b.safetensors").write_bytes(bytes(1000))
    ticks = iter([10.0, 12.0])
    monkeypatch.setattr(limits.time, "perf_counter", lambda: next(ticks))
    assert limits.file_rate(tmp_path) == 1750.0


def test_a_random_model_is_written_once_and_again_if_it_was_cut_off(tmp_path: Path) -> None:
    model = ready_model(tmp_path / "model", TINY.shape)
    shard = next(model.glob("model-*.safetensors"))
    shard.write_bytes(b"mine")
    assert ready_model(model, TINY.shape) == model
    assert shard.read_bytes() == b"mine"
    (model / "model.safetensors.index.json").unlink()
    ready_model(model, TINY.shape)
    assert shard.read_bytes() != b"mine"


def test_percentiles_and_gaps_are_those_of_the_tokens() -> None:
    line = Timeline(1.0, [5, 6, 7], [1.5, 1.75, 2.5])
    assert (line.ttft, line.gaps) == (0.5, [0.25, 0.75])
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([1.0] * 99 + [9.0], 0.99) == 9.0
    assert percentile([], 0.5) == 0.0


def test_no_two_prompts_begin_alike() -> None:
    prompts = Prompts(1000)
    first = [tuple(request.prompt_ids[:4]) for request in prompts.spread(20, (4, 64), 3)]
    assert len(set(first)) == 20
    assert {len(r.prompt_ids) for r in prompts.spread(3, (10, 20), 1)} == {10, 15, 20}
