"""Everything about the engine on this machine's GPU, beside the machine's limits and beside its peers.

    python -m tests.bench.gpu --all            on a GPU host: measure, verify, judge
    python -m tests.bench.gpu --only web,load  some sections; their lines replace those of the day's earlier runs
    python -m tests.bench.gpu --tiny           the same from end to end on a CPU, in seconds; judges nothing

Random weights of the 8B model (17.6 GB) are written to a temporary directory, or to --model-dir, where later runs find
them. Prints JSON lines and writes them to tests/bench/results/<gpu>-<date>.json. Every target is a ratio of two figures
of the same run. Exit status 1 when a verification or a target failed. README.md beside this file says more, and how
long it all takes.
"""

import argparse
import json
import logging
import os
import platform
import sys
import tempfile
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import torch

from service.engine.device_errors import require_usable
from service.errors import EngineFailed
from tests.bench.results_file import Line, Results, results_path
from tests.bench.run import Run
from tests.bench.scale import FULL, TINY
from tests.bench.sections import SECTIONS, with_needs

RESULTS = Path(__file__).parent / "results"
SWITCHES = ("INTERNLM_", "TORCH_BLAS_", "CUBLAS_", "PYTORCH_")
"""How the names of variables begin that change what is measured, unless they name a place on this machine."""


def run_sections(run: Run, names: list[str]) -> list[str]:
    """Every section in order, and which of them failed: that is printed and does not keep the others from running.

    The last line of a section says how long it took; one without was cut off. Raises EngineFailed after one that leaves
    this process no use of the GPU, as an illegal access does; `run.section` is still that one.
    """
    failed = []
    _ = run.limits
    for run.section in names:
        started = time.perf_counter()
        succeeds = _succeeds(run)
        run.say(took_seconds=time.perf_counter() - started)
        if not succeeds:
            failed.append(run.section)
            require_usable(run.device, run.section)
            run.drop_core()  # not before: until it was handled, the error held all that its section had on the GPU
    return failed


def _succeeds(run: Run) -> bool:
    try:
        SECTIONS[run.section].run(run)
    except Exception as error:
        run.emit({"section": run.section, "error": _shortened(f"{type(error).__name__}: {error}")})
        traceback.print_exc(file=sys.stderr)
        return False
    return True


def _shortened(text: str) -> str:
    """Its beginning and its end: an error begins with what it says, what another program printed ends with it."""
    return text if len(text) <= 600 else f"{text[:200]} ... {text[-400:]}"


def machine(name: str) -> Line:
    """What the figures were measured on and with; settings and torch's switches change them."""
    installed = {package: _version(package) for package in ("triton", "transformers") if find_spec(package)}
    versions = {"python": platform.python_version(), "torch": torch.__version__} | installed
    switches = {key: value for key, value in os.environ.items() if key.startswith(SWITCHES) and "/" not in value}
    return {"section": "machine", "gpu": name, **versions, "switches": switches}


def _version(package: str) -> str:
    """Some builds of Triton are of another name."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="every section")
    parser.add_argument("--tiny", action="store_true", help="a few layers, on a CPU too; nothing is judged")
    parser.add_argument("--only", help=f"some of {','.join(SECTIONS)}")
    parser.add_argument("--without", default="", help="sections to leave out, and whatever is held against them")
    parser.add_argument("--trials", type=Path, help=argparse.SUPPRESS)  # of the process that this one goes on for
    parser.add_argument("--model-dir", type=Path, help="a model directory; random weights are written where none is")
    parser.add_argument("--results", type=Path, help="where the lines are written; a tiny run writes nothing by itself")
    options = parser.parse_args(arguments)
    if not (options.all or options.tiny or options.only):
        parser.error("say --all, --tiny or --only")
    if not (options.tiny or torch.cuda.is_available()):
        parser.error("no GPU here; --tiny shows that the command runs")
    unknown = {*_listed(options.only), *_listed(options.without)} - SECTIONS.keys()
    if unknown:
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    return options


def _listed(names: str | None) -> list[str]:
    return names.split(",") if names else []


def main(arguments: list[str] | None = None) -> int:
    """Run, print, write, judge."""
    options = parse(arguments)
    # What a start says of its kernels explains the figures.
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    directory = options.results or (None if options.tiny else RESULTS)
    results = Results(results_path(directory, name) if directory else None, judges=not options.tiny)

    def emit(line: Line) -> None:
        results.add(line)
        print(json.dumps(line), flush=True)

    scale = TINY if options.tiny else FULL
    names = with_needs(_listed(options.only) or list(SECTIONS), _listed(options.without))
    with tempfile.TemporaryDirectory() as temporary:
        trials = options.trials or Path(temporary) / "kernel-on-trial"
        run = Run(scale, options.model_dir or Path(temporary) / "random", device, emit, trials)
        emit(machine(name) | {"tiny": options.tiny})
        try:
            failed = run_sections(run, names)
        except EngineFailed:
            traceback.print_exc(file=sys.stderr)
            failed = [run.section]
            if left := sections_left(run.section, names, options):
                go_on(left, options, run)
        else:
            run.drop_core()
    judged = results.verdicts()
    for line in judged:
        print(json.dumps(line), flush=True)
    bad = {"fail"} if options.only or options.tiny else {"fail", "missing"}
    missed = [line for line in judged if line["verdict"] in bad]
    return int(bool(failed or missed or options.trials))


def sections_left(lost: str, names: list[str], options: argparse.Namespace) -> list[str]:
    """Those behind the one that the device was lost in, and what they need, but for whoever is held against that."""
    return with_needs(names[names.index(lost) + 1 :], [*_listed(options.without), lost])


def go_on(left: list[str], options: argparse.Namespace, run: Run) -> NoReturn:
    """Run the sections that are left in another process, which has the GPU's memory once this one is gone. A model that
    was written for this run alone stays where it is."""
    print(f"{run.section}: what is left runs in another process, with the model in {run.directory}", file=sys.stderr)
    without = ",".join([*_listed(options.without), run.section])
    places = ["--model-dir", str(run.directory), "--trials", str(run.trial_file)]
    flags = ["--tiny"] * options.tiny + ["--results", str(options.results)] * bool(options.results)
    command = ["--only", ",".join(left), "--without", without, *places, *flags]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "tests.bench.gpu", *command])


if __name__ == "__main__":
    sys.exit(main())
