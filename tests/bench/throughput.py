"""Tokens per second of the native engine under concurrent requests, beside transformers serving them one by one.

    python -m tests.bench.throughput [--model-dir DIR] [--tokens N] [--requests N] [--threads N]

Same run, same threads, same prompts, greedy, both without stop ids. Prints one line of JSON.
"""

import argparse
import json
import time
from pathlib import Path

from service.delivery.reporting.progress import LogProgress
from service.delivery.small_model.smollm2 import ensure_small_model
from service.engine.base import Core, EngineConfig, GenerationRequest, SamplingParams
from service.engine.config import read_config
from service.engine.startup.build import build_core
from service.settings import Settings
from tests.support.driving import drain, tokens_of

PROMPT_LENGTHS = (16, 24, 32, 48, 64, 80, 96, 128)
"""Short chat turns of unequal lengths."""
WARM_UP_TOKENS = 4


def measure(core: Core, requests: list[GenerationRequest], *, one_by_one: bool) -> float:
    """New tokens per second over all requests, prefill included."""
    started = time.perf_counter()
    batches = [[request] for request in requests] if one_by_one else [requests]
    count = sum(len(tokens) for batch in batches for tokens in tokens_of(drain(core, batch)).values())
    return count / (time.perf_counter() - started)


def make_requests(count: int, tokens: int, vocab_size: int) -> list[GenerationRequest]:
    """Greedy requests whose prompts are arbitrary but fixed ids, no two with a common beginning."""
    return [
        GenerationRequest(
            id=f"bench-{index}",
            prompt_ids=[(index * 7919 + i * 104_729 + 11) % vocab_size for i in range(length)],
            max_new_tokens=tokens,
            stop_ids=[],
            deadline=time.monotonic() + 3600,
            sampling=SamplingParams(temperature=0, repetition_penalty=1.0),
        )
        for index, length in enumerate(PROMPT_LENGTHS[i % len(PROMPT_LENGTHS)] for i in range(count))
    ]


def run(model_dir: Path, tokens: int, count: int, threads: int) -> dict[str, object]:
    """Both engines on the same requests, one after the other."""
    vocab_size = read_config(model_dir).vocab_size
    requests = make_requests(count, tokens, vocab_size)
    warm_up = make_requests(count, WARM_UP_TOKENS, vocab_size)
    rates: dict[str, float] = {}
    for kind in ("reference", "native"):
        # Without prefix reuse: the warm-up must not spare the measured run its prefill.
        config = EngineConfig(
            kind=kind, model_dir=str(model_dir), threads=threads, max_running=count, max_queue=count, prefix_cache=False
        )
        core = build_core(config, lambda message: None)
        is_reference = kind == "reference"
        measure(core, warm_up[:1] if is_reference else warm_up, one_by_one=is_reference)
        rates[kind] = measure(core, requests, one_by_one=is_reference)
    return {
        "model": model_dir.name,
        "threads": threads,
        "concurrent": count,
        "new_tokens_each": tokens,
        "reference_tokens_per_second": round(rates["reference"], 2),
        "native_tokens_per_second": round(rates["native"], 2),
        "ratio": round(rates["native"] / rates["reference"], 3),
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.throughput", description=__doc__.splitlines()[0])
    parser.add_argument("--model-dir", type=Path, help="model directory; unset: the small real model")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of each request")
    parser.add_argument("--requests", type=int, default=8, help="concurrent requests")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of either engine")
    given = parser.parse_args(arguments)
    model_dir = given.model_dir or ensure_small_model(Settings().cache, LogProgress())
    print(json.dumps(run(model_dir, given.tokens, given.requests, given.threads)))


if __name__ == "__main__":
    main()
