"""Runs of a day are one file; each target is judged by what all of them found."""

import json
from pathlib import Path

import pytest

from tests.bench.results_file import Results, results_path
from tests.bench.targets import TARGETS, verdicts


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


def test_a_run_that_is_killed_while_it_writes_keeps_what_others_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.json"
    run_of(path, 1.0, decode_1_of_limit=0.9)
    before = path.read_text()

    def is_killed(to: Path, text: str) -> None:
        with to.open("w") as file:
            file.write(text[:10])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", is_killed)
    with pytest.raises(KeyboardInterrupt):
        Results(path).add({"section": "web"})
    assert path.read_text() == before


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
