"""Everything about the engine on this machine's GPU, beside the machine's limits and beside its peers.

    python -m tests.bench.gpu --all            on a GPU host: verify, measure, judge; about a quarter of an hour
    python -m tests.bench.gpu --only web,load  some sections; their lines replace those of the day's earlier runs
    python -m tests.bench.gpu --tiny           the same from end to end on a CPU, in seconds; judges nothing

Random weights of the 8B model (17.6 GB) are written to a temporary directory, or to --model-dir, where later runs find
them. Prints JSON lines and writes them to tests/bench/results/<gpu>-<date>.json. Every target is a ratio of two figures
of the same run. Exit status 1 when a verification or a target failed. README.md beside this file says more.
"""

import argparse
import asyncio
import json
import logging
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch

from service.engine.base import Core, EngineConfig, GenerationRequest
from service.engine.build import build_core
from service.engine.config import read_config
from tests.bench import web
from tests.bench.limits import Limits, file_rate, matrix_numbers, measure_limits, prefill_flop, step_bytes
from tests.bench.load import Drive, Prompts, percentile, serve
from tests.bench.peers import CONTINUOUS_BATCHING_SETTINGS, continuous_batching_rate, free_memory, serial_rate
from tests.bench.results_file import Line, Results, results_path
from tests.bench.scale import FULL, TINY, Scale, ready_model
from tests.bench.stall import measure_stall
from tests.bench.verify import run_gpu_tests

RESULTS = Path(__file__).parent / "results"
SECTIONS = (
    "verify_kernels",
    "verify_engine",
    "web",
    "load",
    "decode",
    "throughput",
    "long",
    "prefill",
    "prefix",
    "stall",
    "reference",
    "continuous_batching",
)


class Bench:
    """One run. Each section prints lines and leaves its ratios in `figures`; one engine lives at a time."""

    def __init__(self, scale: Scale, model_dir: Path, device: torch.device, emit: Callable[[Line], None]) -> None:
        self.scale, self.model_dir, self.device, self.emit = scale, model_dir, device, emit
        self.config = read_config(model_dir)
        self.prompts = Prompts(self.config.vocab_size)
        self.figures: dict[str, float] = {}
        self.failed: list[str] = []
        self._core: Core | None = None

    @cached_property
    def limits(self) -> Limits:
        """Measured once, before any engine is there."""
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        found = measure_limits(self.device, dtype)
        free_memory()  # the engine measures what is left
        self._line("limits", memory_gb_per_s=found.memory / 1e9, matmul_tflop_per_s=found.matmul / 1e12)
        return found

    @property
    def core(self) -> Core:
        """The native engine, built when a section first needs it."""
        if self._core is None:
            settings = {} if self.device.type == "cuda" else {"threads": 1, "kv_cache_tokens": 8192}
            config = EngineConfig(kind="native", model_dir=str(self.model_dir), device=self.device.type, **settings)
            self._core = build_core(config, lambda message: None)
            serve(self._core, self.prompts.spread(2, self.scale.prompts, 2))
        return self._core

    def drop_core(self) -> None:
        """Free the device for others."""
        self._core = None
        free_memory()

    def run(self, sections: list[str]) -> None:
        """Every section in order; one that fails is printed and does not keep the others from running."""
        _ = self.limits
        for name in sections:
            before = dict(self.figures)
            try:
                getattr(self, name)()
            except Exception as error:
                self.failed.append(name)
                self.emit({"section": name, "error": f"{type(error).__name__}: {error}"[:500]})
                traceback.print_exc(file=sys.stderr)
                self.drop_core()
            found = {figure: value for figure, value in self.figures.items() if figure not in before}
            self.emit({"section": name, "figures": found})

    def verify_kernels(self) -> None:
        """Every kernel, compiled, against its exact reference; on a CPU all are skipped, which is what this prints."""
        self._verify("verify_kernels", "tests/engine/kernels")

    def verify_engine(self) -> None:
        """The whole engine on the GPU against the exact model."""
        self._verify("verify_engine", "tests/gpu")

    def _verify(self, section: str, tests: str) -> None:
        self.drop_core()
        found = run_gpu_tests(tests)
        counts = {"passed": found.passed, "failed": found.failed, "not_run": dict(found.not_run)}
        self.emit({"section": section, **counts})
        if self.device.type == "cuda":
            found.require_a_gpu_ran_them()
        else:
            found.require_no_failure()

    def web(self) -> None:
        """The product over HTTP, and the engine alone with the very same lengths."""
        self.drop_core()
        settings: dict[str, object] = {"DEVICE": self.device.type}
        if self.device.type != "cuda":
            settings |= {"THREADS": 1, "KV_CACHE_TOKENS": 8192}
        with tempfile.TemporaryDirectory() as cache, web.server(self.model_dir, settings | {"CACHE_DIR": cache}) as url:
            words = self.scale.prompts[1] // 16
            found = asyncio.run(web.load(url, self.scale.streams, words, self.scale.http_new_tokens))
        requests = [
            self.prompts.request(length, max(new, 1))
            for length, new in zip(found.prompt_lengths, found.new_tokens, strict=True)
        ]
        alone = serve(self.core, requests)["tokens_per_second"]
        self.figures["web_of_engine"] = found.tokens_per_second / alone
        self._line("web", streams=self.scale.streams, tokens_per_second=found.tokens_per_second, engine=alone)

    def load(self) -> None:
        """How long a start takes, and the weights' share of it against reading the same files into nothing: both right
        after the files were read, so that neither waits for a disk that the other was spared."""
        self.drop_core()
        first, files = file_rate(self.model_dir), file_rate(self.model_dir)
        seconds = self.core.info.startup_seconds
        size = sum(path.stat().st_size for path in self.model_dir.glob("*.safetensors"))
        rate = size / seconds["weights"]
        self.figures["load_of_files"] = rate / files
        rates = {"gb_per_s": rate / 1e9, "files_gb_per_s": files / 1e9, "files_first_read_gb_per_s": first / 1e9}
        self._line("load", **rates, **seconds, **self._free())
        self.emit({"section": "load", "degraded": self.core.info.degraded})

    def _free(self) -> dict[str, float]:
        """What a start left of the GPU's memory: it was asked to leave a tenth, recordings and all."""
        if self.device.type != "cuda":
            return {}
        free, total = torch.cuda.mem_get_info(self.device)
        return {"free_share_after_start": free / total}

    def decode(self) -> None:
        """Steps of nothing but decodes, beside the time their bytes take at the measured bandwidth."""
        for batch in self.scale.step_batches:
            took, context = self._step(batch)
            size = step_bytes(self.config, batch, context, self._itemsize)
            of_limit = size / self.limits.memory / took
            self.figures[f"decode_{batch}_of_limit"] = of_limit
            self.figures[f"decode_{batch}_per_second"] = batch / took
            self._line("decode", batch=batch, context=context, milliseconds=took * 1e3, of_limit=of_limit)

    def throughput(self) -> None:
        """Many requests at once, by how many."""
        for count in self.scale.concurrency:
            requests = self.prompts.spread(count, self.scale.prompts, self.scale.new_tokens)
            found = serve(self.core, requests)
            self.figures[f"engine_{count}_per_second"] = found["tokens_per_second"]
            self._line("throughput", concurrent=count, **found)

    def long(self) -> None:
        """One long conversation."""
        for context in self.scale.long_contexts:
            self._line("long", context=context, **serve(self.core, [self.prompts.request(context, 32)]))

    def prefill(self) -> None:
        """One prompt's TTFT, beside the dense product's rate."""
        tokens = self.scale.prefill
        took = min(serve(self.core, [self.prompts.request(tokens, 1)])["ttft_ms_p50"] for _ in range(3)) / 1e3
        rate = prefill_flop(self.config, tokens) / took
        self.figures["prefill_of_matmul"] = rate / self.limits.matmul
        self._line("prefill", tokens=tokens, seconds=took, tflop_per_s=rate / 1e12)

    def prefix(self) -> None:
        """The second turn of a chat, whose first turn is in the prefix cache, beside the same prompt cold."""
        shared, tail = self.prompts.tokens(self.scale.shared_prefix), self.prompts.tokens(16)
        serve(self.core, [self.prompts.request(shared, 2)])
        warm = serve(self.core, [self.prompts.request(shared + tail, 2)])["ttft_ms_p50"]
        cold = serve(self.core, [self.prompts.request(len(shared + tail), 2)])["ttft_ms_p50"]
        self.figures["prefix_ttft_of_cold"] = warm / cold
        self._line("prefix", shared=len(shared), warm_ttft_ms=warm, cold_ttft_ms=cold)

    def stall(self) -> None:
        """Time between the tokens of running streams, before and while a long prompt is computed beside them."""
        found = measure_stall(self.core, self.prompts, self.scale, self.config.max_positions)
        before, during = percentile(found.before, 0.99), percentile(found.during, 0.99)
        self.figures["stalled_gap_of_before"] = during / before
        self._line(
            "stall",
            prompt=self.scale.stall_prompt,
            streams=self.scale.stall_streams,
            steps_before=len(found.before) // self.scale.stall_streams,
            steps_during=len(found.during) // self.scale.stall_streams,
            before_ms_p99=before * 1e3,
            during_ms_p99=during * 1e3,
            ttft_seconds=found.ttft,
        )

    def reference(self) -> None:
        """transformers as the tutorial uses it: one request at a time."""
        scale, (_, ours) = self.scale, self.streams
        alone = 1 / self._step(1)[0]
        self.drop_core()
        serial = serial_rate(
            self.model_dir, self.device.type, scale.step_context, scale.serial_tokens, self.config.vocab_size
        )
        self.figures["engine_64_over_serial"] = ours / serial
        self.figures["decode_1_over_reference"] = alone / serial
        self._line("reference", tokens_per_second=serial, engine_64=ours, engine_1=alone)

    def continuous_batching(self) -> None:
        """transformers' continuous batching over the very same requests."""
        requests, ours = self.streams
        self.drop_core()
        batched = continuous_batching_rate(self.model_dir, self.device, requests)
        self.figures["engine_64_over_continuous_batching"] = ours / batched
        rates = {"tokens_per_second": round(batched, 4), "engine": round(ours, 4)}
        self.emit({"section": "continuous_batching", **rates, **CONTINUOUS_BATCHING_SETTINGS})

    @cached_property
    def streams(self) -> tuple[list[GenerationRequest], float]:
        """The requests of the comparisons with peers, and the engine's tokens per second over them."""
        requests = self.prompts.spread(self.scale.streams, self.scale.prompts, self.scale.new_tokens)
        return requests, serve(self.core, requests)["tokens_per_second"]

    @property
    def _itemsize(self) -> int:
        return 4 if self.device.type == "cpu" else 2

    def _step(self, batch: int) -> tuple[float, int]:
        """Seconds of the median step of a full batch with full sampling, and the sequences' mean length in it.

        The first streams run on while the last ones' prompts are computed, so a large batch begins with shorter ones.
        They are to outlast that, and all of them are to fit the KV cache at once.
        """
        drive = Drive(self.core)
        steps = 64 if self.device.type == "cuda" else 4
        prompt = self.scale.step_context * 7 // 8 if batch > 4 else self.scale.step_context - steps // 2
        new_tokens = min(1024, self.config.max_positions - prompt)
        lines = [drive.add(self.prompts.request(prompt, new_tokens)) for _ in range(batch)]
        while not all(line.times for line in lines):
            drive.step()
        began = len(drive.steps) + 2
        while len(drive.steps) < began + steps:
            drive.step()
        context = prompt + sum(len(line.tokens) for line in lines) // batch - steps // 2
        for request_id in drive.timelines:
            self.core.cancel(request_id)
        drive.run()
        full = [seconds for seconds, count in drive.steps[began : began + steps] if count == batch]
        if not full:
            raise RuntimeError(f"{batch} sequences never ran at once")
        return percentile(full, 0.5), context

    def _line(self, section: str, **numbers: float) -> None:
        self.emit({"section": section, **{name: round(value, 4) for name, value in numbers.items()}})


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="every section")
    parser.add_argument("--tiny", action="store_true", help="a few layers, on a CPU too; nothing is judged")
    parser.add_argument("--only", help=f"some of {','.join(SECTIONS)}")
    parser.add_argument("--model-dir", type=Path, help="a model directory; random weights are written where none is")
    parser.add_argument("--results", type=Path, help="where the lines are written; a tiny run writes nothing by itself")
    options = parser.parse_args(arguments)
    if not (options.all or options.tiny or options.only):
        parser.error("say --all, --tiny or --only")
    if not (options.tiny or torch.cuda.is_available()):
        parser.error("no GPU here; --tiny shows that the command runs")
    unknown = set((options.only or "").split(",")) - {"", *SECTIONS}
    if unknown:
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    return options


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
    with tempfile.TemporaryDirectory() as temporary:
        model_dir = ready_model(options.model_dir or Path(temporary) / "random", scale.shape)
        config = read_config(model_dir)
        billions = (matrix_numbers(config) + 2 * config.vocab_size * config.hidden_size) / 1e9
        versions = {"torch": torch.__version__, "parameters_billion": round(billions, 3), "tiny": options.tiny}
        emit({"section": "machine", "gpu": name, **versions})
        bench = Bench(scale, model_dir, device, emit)
        bench.run([s for s in SECTIONS if not options.only or s in options.only.split(",")])
        bench.drop_core()
    judged = results.verdicts()
    for line in judged:
        print(json.dumps(line), flush=True)
    bad = {"fail"} if options.only or options.tiny else {"fail", "missing"}
    missed = [line for line in judged if line["verdict"] in bad]
    return int(bool(bench.failed or missed))


if __name__ == "__main__":
    sys.exit(main())
