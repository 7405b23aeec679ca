"""Sections about requests from arrival to end: many at once, long ones, chats, and long ones beside others."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median

from service.engine.base import GenerationRequest
from service.engine.steps.pace import CROWD
from tests.bench.load import Rates, percentile, serve
from tests.bench.measures import ENGINE, LIMIT, Measure, measures_of
from tests.bench.run import Run
from tests.bench.stall import measure_stall

Serve = Callable[[list[GenerationRequest]], Rates]
"""Whoever answers requests, all of them at once: the engine or one that it is held against."""
LONG_NEW_TOKENS = 32
CHATS = 3


def throughput(run: Run) -> None:
    """Many requests at once, by how many."""
    for count in run.scale.concurrency:
        requests = concurrent(run, count)
        put_limits(run, "concurrent", count, requests)
        run.requests_beside("concurrent", count, ENGINE, serve(run.core, requests))


def concurrent(run: Run, count: int) -> list[GenerationRequest]:
    """New requests of the lengths that everybody is given."""
    return run.prompts.spread(count, run.scale.prompts, run.scale.new_tokens)


def long(run: Run) -> None:
    """One long conversation."""
    for context in run.scale.long_contexts:
        put_limits(run, "context", context, [run.prompts.request(context, LONG_NEW_TOKENS)])
    long_requests(run, ENGINE, partial(serve, run.core))


def long_requests(run: Run, who: str, serve_them: Serve) -> None:
    """The long conversations of anybody."""
    for context in run.scale.long_contexts:
        rates = serve_them([run.prompts.request(context, LONG_NEW_TOKENS)])
        run.requests_beside("context", context, who, rates)


def prefix(run: Run) -> None:
    """The second turn of a chat, whose first turn is in the prefix cache, beside the same prompt cold."""
    shared, tokens = run.scale.shared_prefix, run.scale.shared_prefix + run.scale.turn
    run.table.put(turn_2(run), LIMIT, run.floor.prefill(run.scale.turn, cached=shared))
    warm = second_turn(run, ENGINE, partial(serve, run.core))
    cold = median(serve(run.core, [run.prompts.request(tokens, 2)]).ttft_p50 for _ in range(CHATS))
    run.figure("prefix_ttft_of_cold", warm / cold)
    run.say(shared=shared, warm_ttft_ms=warm * 1e3, cold_ttft_ms=cold * 1e3, of_cold=warm / cold)


def turn_2(run: Run) -> Measure:
    """The time to the first token of a chat's second turn."""
    return Measure("turn_2_ttft", "shared_prefix", run.scale.shared_prefix)


def second_turn(run: Run, who: str, serve_them: Serve) -> float:
    """Seconds to the first token of anybody's second turn, the first one being through: the median of some chats."""
    times = []
    for _ in range(CHATS):
        shared, tail = run.prompts.tokens(run.scale.shared_prefix), run.prompts.tokens(run.scale.turn)
        serve_them([run.prompts.request(shared, 2)])
        times.append(serve_them([run.prompts.request(shared + tail, 2)]).ttft_p50)
    took = median(times)
    run.beside(turn_2(run), who, took)
    return took


def put_limits(run: Run, size: str, value: int, requests: list[GenerationRequest]) -> None:
    """What nobody could exceed with these requests; lines of whoever is measured show it."""
    floor, prompts, new_tokens = run.floor, [len(r.prompt_ids) for r in requests], requests[0].max_new_tokens
    firsts = floor.first_tokens(prompts)
    step = floor.step(len(prompts), sum(prompts) // len(prompts) + new_tokens // 2)
    best = Rates(
        tokens_per_second=len(prompts) * new_tokens / floor.requests(prompts, new_tokens),
        ttft_p50=percentile(firsts, 0.5),
        ttft_p99=firsts[-1],
        tpot_p50=step,
        tpot_p99=step,
    )
    for measure, figure in measures_of(best, size, value):
        run.table.put(measure, LIMIT, figure)


def stall(run: Run) -> None:
    """Time between the tokens of running streams, before and while a long prompt is computed beside them: alone, which
    is judged, and with a crowd of short ones behind it."""
    # Not measured: the first steps of their kind take pinned memory for their inputs, milliseconds each.
    measure_stall(run.core, run.prompts, replace(run.scale, stall_steps=1), run.config.max_positions)
    run.figure("stalled_gap_of_before", _stalled(run, behind=0))
    _stalled(run, behind=2 * CROWD)


def _stalled(run: Run, behind: int) -> float:
    """The p99 beside long prompts over the one before them."""
    found = measure_stall(run.core, run.prompts, run.scale, run.config.max_positions, behind)
    before, during = percentile(found.before, 0.99), percentile(found.during, 0.99)
    run.say(
        prompt=run.scale.stall_prompt,
        behind=behind,
        streams=run.scale.stall_streams,
        steps_before=len(found.before) // run.scale.stall_streams,
        steps_during=len(found.during) // run.scale.stall_streams,
        before_ms_p99=before * 1e3,
        during_ms_p99=during * 1e3,
        of_before=during / before,
        ttft_seconds=found.ttft,
        ttft_behind_seconds=found.ttft_behind,
    )
    return during / before
