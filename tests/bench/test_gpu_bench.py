"""The GPU benchmark runs from end to end without a GPU, and each section measures what it says."""

import json
import os
import weakref
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from service.engine.base import EngineConfig
from service.errors import EngineFailed
from tests.bench import gpu
from tests.bench import run as benchmark_run
from tests.bench.floor import prefill_flop
from tests.bench.gpu import machine, main, parse, run_sections
from tests.bench.limits import Limits
from tests.bench.load import Rates
from tests.bench.measures import CONTINUOUS_BATCHING, ENGINE, LIMIT, REFERENCE
from tests.bench.results_file import Line, Results
from tests.bench.run import Run
from tests.bench.scale import TINY
from tests.bench.sections import OURS, SECTIONS, Section, product, steps, with_needs
from tests.bench.targets import TARGETS

ONE_AT_A_TIME = ("ttft_p50", "ttft_p99", "tpot_p50", "tpot_p99")
"""Measures of requests at once, which whoever takes one at a time has for one alone."""


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the dry run is for hosts without a GPU")
def test_a_tiny_run_prints_every_section_and_every_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tiny", "--results", str(tmp_path)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert not [line for line in lines if "error" in line]
    printed = {line["section"] for line in lines if "section" in line}
    assert printed == {"machine", "limits", *SECTIONS}
    assert not_beside_all(lines) == []
    by_target = {line["target"]: line for line in lines if "target" in line}
    assert by_target.keys() == {target.what for target in TARGETS}
    measured = {target.what for target in TARGETS if not {"64", "256"} & set(target.ratio.split("_")[:2])}
    assert {by_target[what]["verdict"] for what in measured} == {"not judged"}
    said = {key: value for line in lines if line.get("section") in ("limits", "stall") for key, value in line.items()}
    assert said.keys() >= {"memory_gb_per_s", "matmul_tflop_per_s"}
    assert min(said["steps_before"], said["steps_during"]) >= TINY.stall_steps
    assert [line["section"] for line in lines if "took_seconds" in line] == list(SECTIONS)
    assert {"section": "continuous_batching", "auto_switch_to_flash": False} in lines
    kept = [
        line["measure"].rpartition("_with_")[2]
        for line in lines
        if line.get("section") == "structured" and "free" in line
    ]
    assert kept == ["1_in_json", "2_in_json", "2_offered_tools"]
    (written,) = tmp_path.iterdir()
    assert [json.loads(line) | {"run": ""} for line in written.read_text().splitlines()] == [
        line | {"run": ""} for line in lines
    ]
    torch.set_num_threads(1)


def not_beside_all(lines: list[dict[str, object]]) -> list[str]:
    """Measures of requests whose last line lacks somebody, or a ratio to them."""
    lacking = []
    for size, values in {"concurrent": TINY.concurrency, "context": TINY.long_contexts}.items():
        for name in ("tokens_per_second", *ONE_AT_A_TIME):
            for value in values:
                line = [each for each in lines if each.get("measure") == name and each.get(size) == value][-1]
                others = [LIMIT, CONTINUOUS_BATCHING]
                if name == "tokens_per_second" or size == "context" or value == 1:
                    others.append(REFERENCE)
                unit = "" if name == "tokens_per_second" else "_ms"
                wanted = {f"{who}{unit}" for who in (ENGINE, *others)}
                wanted |= {"of_limit", *(f"over_{who}" for who in others if who != LIMIT)}
                lacking += [f"{name} at {value}: {key}" for key in wanted - line.keys()]
    return lacking


@pytest.mark.parametrize(
    ("arguments", "complaint"), [([], "say --all"), (["--tiny", "--only", "nothing"], "no such section: nothing")]
)
def test_a_command_that_asks_for_nothing_is_refused(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)
    assert complaint in capsys.readouterr().err


def test_who_is_held_against_the_engine_has_it_measured_in_the_same_run() -> None:
    assert with_needs(["web"]) == ["web"]
    assert with_needs(["reference"]) == [*OURS, "reference"]
    assert with_needs(["continuous_batching", "web"]) == ["throughput", "long", "prefix", "web", "continuous_batching"]
    assert with_needs(list(SECTIONS)) == list(SECTIONS)
    left = with_needs(["prefill", "reference", "structured"], without=["decode"])
    assert left == ["throughput", "prefill", "structured"], "not what is held against it"


def bench(directory: Path, lines: list[Line]) -> Run:
    return Run(TINY, directory, torch.device("cpu"), lines.append)


def test_the_model_is_written_for_whoever_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verifications do not, and writing 17.6 GB takes as long as some section."""
    monkeypatch.setitem(SECTIONS, "verify_kernels", Section(lambda run: None))
    monkeypatch.setitem(SECTIONS, "load", Section(lambda run: run.say(layers=run.config.num_layers)))
    lines: list[Line] = []
    run = bench(tmp_path / "model", lines)
    run_sections(run, ["verify_kernels"])
    assert not (tmp_path / "model").exists()
    run_sections(run, ["load"])
    assert {"section": "load", "layers": TINY.shape.layers} in lines


def test_a_section_that_fails_is_printed_and_does_not_keep_others_from_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(run: Run) -> None:
        run.figure("early", 1.0)
        raise ValueError("no such luck")

    monkeypatch.setitem(SECTIONS, "web", Section(fail))
    monkeypatch.setitem(SECTIONS, "load", Section(lambda run: run.say(late=2.0)))
    lines: list[Line] = []
    assert run_sections(bench(tmp_path, lines), ["web", "load"]) == ["web"]
    _, early, error, took, late, _ = lines
    assert [line["section"] for line in lines] == ["limits", "web", "web", "web", "load", "load"]
    assert early["figures"] == {"early": 1.0}
    assert error["error"] == "ValueError: no such luck"
    assert float(str(took["took_seconds"])) >= 0
    assert late["late"] == 2.0


def test_sections_behind_one_that_spoils_the_gpu_go_on_in_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An illegal access leaves a process no GPU, and the GPU no memory until that process is gone."""

    def spoil(run: Run) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def says_so(device: torch.device, culprit: str) -> None:
        raise EngineFailed(f"{culprit} left {device} unusable")

    def replaced(path: str, command: list[str]) -> None:
        commands.append(command)
        raise SystemExit

    commands: list[list[str]] = []
    monkeypatch.setitem(SECTIONS, "throughput", Section(spoil))
    monkeypatch.setattr(gpu, "require_usable", says_so)
    monkeypatch.setattr(os, "execv", replaced)
    model, results = tmp_path / "model", tmp_path / "results"
    asked = ["--tiny", "--only", "throughput,prefill,verify_engine,structured"]
    with pytest.raises(SystemExit):
        main([*asked, "--model-dir", str(model), "--results", str(results)])
    ((_, _, _, *arguments),) = commands
    trials = parse(arguments).trials
    places = ["--model-dir", str(model), "--trials", str(trials), "--tiny", "--results", str(results)]
    # Structured answers are held against what nobody has now.
    assert arguments == ["--only", "prefill,verify_engine", "--without", "throughput", *places]
    ran: list[tuple[str, Path | None]] = []
    for name in ("prefill", "verify_engine"):
        monkeypatch.setitem(SECTIONS, name, Section(lambda run: ran.append((run.section, run.trial_file))))
    assert main(arguments) == 1, "whatever the others do"
    assert ran == [("prefill", trials), ("verify_engine", trials)]
    monkeypatch.setattr(Run, "drop_core", lambda run: pytest.fail("a GPU of no use frees nothing, but raises"))
    assert main(["--tiny", "--only", "throughput", "--model-dir", str(model)]) == 1
    assert len(commands) == 1, "nothing is left"


def test_an_engine_notes_what_it_tries_where_the_next_process_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[EngineConfig] = []
    monkeypatch.setattr(benchmark_run, "build_core", lambda config, say: built.append(config))
    monkeypatch.setattr(benchmark_run, "serve", lambda core, requests: None)
    _ = Run(TINY, tmp_path / "model", torch.device("cpu"), print, tmp_path / "trial").core
    assert built[0].trial_file == str(tmp_path / "trial")


def test_a_triton_of_another_name_keeps_nothing_from_running(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(gpu, "version", unknown)
    assert machine("cpu")["transformers"] == "unknown"


def test_a_section_that_is_cut_off_keeps_the_ratios_it_had_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a command's time limit: nothing of the section runs any more, and nothing after it."""

    def is_cut_off(run: Run) -> None:
        run.figure(TARGETS[0].ratio, 0.9)
        raise KeyboardInterrupt

    monkeypatch.setitem(SECTIONS, "web", Section(is_cut_off))
    results = Results(tmp_path / "results.json")
    run = Run(TINY, tmp_path / "model", torch.device("cpu"), results.add)
    with pytest.raises(KeyboardInterrupt):
        run_sections(run, ["web"])
    written = [json.loads(line) for line in (tmp_path / "results.json").read_text().splitlines()]
    assert {"target": TARGETS[0].what, "must_be": ">= 0.88", "is": 0.9, "verdict": "pass"} in written


def test_a_long_error_keeps_its_beginning_and_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what pytest printed, the end names the tests that failed."""

    def fail(run: Run) -> None:
        raise ValueError(f"began so {'...' * 1000} and ended thus")

    monkeypatch.setitem(SECTIONS, "web", Section(fail))
    lines: list[Line] = []
    run_sections(bench(tmp_path, lines), ["web"])
    told = str(lines[1]["error"])
    assert told.startswith("ValueError: began so")
    assert told.endswith("and ended thus")
    assert len(told) < 700


def test_what_a_section_that_failed_held_is_gone_before_memory_is_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its error knows all its local variables, an engine among them: memory freed under it would not be free."""

    class Engine: ...

    held: list[weakref.ref[Engine]] = []

    def fail(run: Run) -> None:
        engine = Engine()
        held.append(weakref.ref(engine))
        raise ValueError

    run, seen = bench(tmp_path, []), []
    monkeypatch.setitem(SECTIONS, "web", Section(fail))
    monkeypatch.setattr(run, "drop_core", lambda: seen.append(held[0]()))
    run_sections(run, ["web"])
    assert seen == [None]


def test_the_engine_is_measured_with_the_settings_that_the_server_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INTERNLM_STEP_TOKENS", "96")
    monkeypatch.setenv("INTERNLM_CACHE_DIR", str(tmp_path))
    built: list[EngineConfig] = []
    monkeypatch.setattr(benchmark_run, "build_core", lambda config, say: built.append(config))
    monkeypatch.setattr(benchmark_run, "serve", lambda core, requests: None)
    _ = bench(tmp_path, []).core
    assert (built[0].step_tokens, built[0].device, built[0].kind) == (96, "cpu", "native")
    assert machine("cpu")["switches"] == {"INTERNLM_STEP_TOKENS": "96"}, "and the line says so"


def test_a_prefill_is_what_prompts_take_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first finds the GPU rested, and is held against a rate that no rested GPU has."""
    times, lines = iter([0.5, 1.0, 1.0, 4.0, 1.0]), list[Line]()
    run = bench(tmp_path, lines)
    run._core = SimpleNamespace()  # type: ignore[assignment]
    run.limits = Limits(memory=1.0, matmul=1e12)
    monkeypatch.setattr(steps, "serve", lambda core, requests: Rates(1, next(times), 1, 1, 1))
    steps.prefill(run)
    expected = prefill_flop(run.config, TINY.prefill) / 1.0 / 1e12
    assert [line["figures"] for line in lines if "figures" in line] == [{"prefill_of_matmul": expected}]


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
    lines: list[Line] = []
    run = bench(model_dir, lines)
    monkeypatch.setattr(product, "file_rate", read_files)
    monkeypatch.setattr(benchmark_run, "build_core", load)
    monkeypatch.setattr(benchmark_run, "serve", lambda core, requests: Rates(1, 1, 1, 1, 1))
    product.load(run)
    assert done == ["files", "files", "load"]
    size = sum(path.stat().st_size for path in model_dir.glob("*.safetensors"))
    (figures,) = (line["figures"] for line in lines if "figures" in line)
    assert figures == {"load_of_files": pytest.approx(size / 0.5 / 4e9)}


def test_the_floor_is_that_of_the_weights_as_they_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A share of twice the bytes that there are to read would flatter."""
    run = bench(tmp_path / "model", [])
    run.limits = Limits(memory=1e9, matmul=1e12)
    whole = run.floor.step(1, 0)
    with run.asking(quantization="int8"):
        assert run.settings["quantization"] == "int8"
        assert run.floor.step(1, 0) == whole / 4, "a byte instead of fp32's four"
    assert run.floor.step(1, 0) == whole
    monkeypatch.setenv("INTERNLM_QUANTIZATION", "int8")
    assert run.floor.step(1, 0) == whole / 4
