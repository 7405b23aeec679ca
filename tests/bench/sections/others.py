"""Sections that give transformers the same work, beside the engine's figures of this run."""

from functools import partial

from tests.bench.load import serve
from tests.bench.measures import CONTINUOUS_BATCHING, REFERENCE, Measure
from tests.bench.peers import CONTINUOUS_BATCHING_SETTINGS, ContinuousBatching, reference_engine
from tests.bench.run import Run
from tests.bench.sections.product import weights_load
from tests.bench.sections.requests import concurrent, long_requests, second_turn
from tests.bench.sections.steps import decode_step


def reference(run: Run) -> None:
    """transformers as the tutorial uses it: one request at a time, so at one rate however many wait."""
    scale = run.scale
    run.drop_core()
    core = reference_engine(run.model_dir, run.device, run.prompts)
    run.beside(weights_load(run), REFERENCE, core.info.startup_seconds["weights"])
    around = run.prompts.request(scale.step_context - scale.serial_tokens // 2, scale.serial_tokens)
    run.beside(decode_step(1), REFERENCE, serve(core, [around]).tpot_p50)
    run.figure("decode_1_over_reference", run.table.ratio(decode_step(1), REFERENCE))
    rates = serve(core, [run.prompts.request(sum(scale.prompts) // 2, scale.new_tokens)])
    run.requests_beside("concurrent", 1, REFERENCE, rates)
    for count in scale.concurrency[1:]:
        run.beside(tokens_per_second(count), REFERENCE, rates.tokens_per_second)
    run.figure("engine_64_over_serial", run.table.ratio(tokens_per_second(scale.streams), REFERENCE))
    second_turn(run, REFERENCE, partial(serve, core))
    long_requests(run, REFERENCE, partial(serve, core))


def continuous_batching(run: Run) -> None:
    """transformers' continuous batching; the comparison that is judged comes first."""
    scale, judged = run.scale, tokens_per_second(run.scale.streams)
    run.drop_core()
    run.emit({"section": run.section, **CONTINUOUS_BATCHING_SETTINGS})
    peer = ContinuousBatching(run.model_dir, run.device)
    for count in sorted(scale.concurrency, key=lambda count: count != scale.streams):
        rates = peer.warmed_up(concurrent(run, count), concurrent(run, count))
        run.requests_beside("concurrent", count, CONTINUOUS_BATCHING, rates)
        if count == scale.streams:
            run.figure("engine_64_over_continuous_batching", run.table.ratio(judged, CONTINUOUS_BATCHING))
    peer.forget()
    second_turn(run, CONTINUOUS_BATCHING, peer.serve)
    peer.forget()
    long_requests(run, CONTINUOUS_BATCHING, peer.serve)


def tokens_per_second(count: int) -> Measure:
    """The rate of so many requests at once."""
    return Measure("tokens_per_second", "concurrent", count, is_time=False)
