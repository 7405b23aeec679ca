"""A kernel that ends the engine's process is not tried again, on a real process that really ends."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from service.engine.kernels.candidate import Candidate, Disagreement, ServedShapes
from service.engine.kernels.ops import Ops
from service.engine.kernels.selfcheck import REASON_LENGTH, prove_candidates
from service.engine.kernels.trials import Trials
from service.errors import EngineFailed
from tests.engine.kernels.test_selfcheck import CPU


def passes(ops: Ops, shapes: ServedShapes) -> None: ...


def poisons(ops: Ops, shapes: ServedShapes) -> None:
    raise RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")


def disagrees(ops: Ops, shapes: ServedShapes) -> None:
    raise Disagreement("off by one")


def is_told_to_end(ops: Ops, shapes: ServedShapes) -> None:
    raise SystemExit


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ServedShapes:
    """A device that stays poisoned after the rogue, and is only asked about after a kernel that raised."""

    def synchronize(_: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    return replace(CPU, device=torch.device("cuda"))


@pytest.fixture
def served(gpu: ServedShapes, tmp_path: Path) -> ServedShapes:
    return replace(gpu, trials=Trials(tmp_path / "kernel-on-trial"))


def degraded(served: ServedShapes, *wanted: Candidate) -> list[str]:
    return [reason.split(":")[0] for reason in prove_candidates(wanted, served, Ops()).degraded]


ROGUE, HONEST = Candidate("rogue", {}, poisons), Candidate("honest", {}, passes)


def test_a_kernel_that_left_the_device_unusable_is_left_out_of_the_next_start(served: ServedShapes) -> None:
    with pytest.raises(EngineFailed):
        prove_candidates([HONEST, ROGUE, HONEST], served, Ops())
    for _ in range(2):
        (reason,) = prove_candidates([HONEST, ROGUE, HONEST], served, Ops()).degraded
        wanted = f"rogue: it ended an engine process; to try it again, delete {served.trials.convictions}"
        assert reason == wanted[:REASON_LENGTH]
    assert served.trials.convictions is not None
    served.trials.convictions.unlink()
    with pytest.raises(EngineFailed):
        prove_candidates([ROGUE], served, Ops())


def test_each_of_several_rogues_costs_one_start(served: ServedShapes) -> None:
    wanted = [replace(ROGUE, name=name) for name in ("first", "second")]
    for _ in wanted:
        with pytest.raises(EngineFailed):
            prove_candidates([*wanted, HONEST], served, Ops())
    assert degraded(served, *wanted, HONEST) == ["first", "second"]


@pytest.mark.parametrize("check", [passes, disagrees, is_told_to_end])
def test_nothing_else_convicts(served: ServedShapes, check: object) -> None:
    """Neither a wrong result, which costs no process, nor an end that has another reason."""
    served = replace(served, device=CPU.device)
    suspect = Candidate("suspect", {}, check)  # type: ignore[arg-type]
    if check is is_told_to_end:
        with pytest.raises(SystemExit):
            prove_candidates([suspect], served, Ops())
    else:
        prove_candidates([suspect], served, Ops())
    assert served.trials.convicted() == frozenset()
    assert degraded(served, replace(suspect, check=passes)) == []


def test_without_a_file_nothing_is_noted(gpu: ServedShapes) -> None:
    for _ in range(2):
        with pytest.raises(EngineFailed):
            prove_candidates([ROGUE], gpu, Ops())
    assert gpu.trials == Trials(None)
    assert gpu.trials.convicted() == frozenset()


PROCESS = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from service.engine.kernels.candidate import Candidate
from service.engine.kernels.ops import Ops
from service.engine.kernels.selfcheck import prove_candidates
from service.engine.kernels.trials import Trials
from tests.engine.kernels.test_selfcheck import CPU
served = replace(CPU, trials=Trials(Path(sys.argv[1])))
killing = Candidate("killing", {}, lambda ops, shapes: os.kill(os.getpid(), signal.SIGKILL))
print(prove_candidates([killing], served, Ops()).degraded)
"""


def test_a_kernel_that_kills_the_process_is_left_out_of_the_next_one(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROCESS, str(tmp_path / "kernel-on-trial")]
    runs = [subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path.cwd()) for _ in range(2)]
    assert [run.returncode for run in runs] == [-signal.SIGKILL, 0], runs[1].stderr
    assert runs[1].stdout.startswith("['killing: it ended an engine process")
