"""The engine with quantized weights, beside itself without, in the same run, and beside the bytes it still reads."""

from dataclasses import replace

from tests.bench.load import serve
from tests.bench.measures import ENGINE, LIMIT, Measure
from tests.bench.run import Run
from tests.bench.sections.others import tokens_per_second
from tests.bench.sections.requests import concurrent
from tests.bench.sections.steps import decode_step, median_step, prefill_of, prefill_seconds

UNQUANTIZED = "unquantized"


def int8(run: Run) -> None:
    """Its load, decodes of each batch size, requests by how many, and one prompt: what it gains, and where it loses."""
    with run.asking(quantization="int8"):
        run.say(weights_seconds=run.core.info.startup_seconds["weights"], kernels_degraded=len(run.core.info.degraded))
        for batch in run.scale.step_batches:
            took, context = median_step(run, batch)
            run.table.put(_int8(decode_step(batch)), LIMIT, run.floor.step(batch, context))
            _beside(run, decode_step(batch), took)
        for count in run.scale.concurrency:
            _beside(run, tokens_per_second(count), serve(run.core, concurrent(run, count)).tokens_per_second)
        _beside(run, prefill_of(run.scale.prefill), prefill_seconds(run))


def _int8(measure: Measure) -> Measure:
    return replace(measure, name=f"{measure.name}_int8")


def _beside(run: Run, measure: Measure, figure: float) -> None:
    """What quantization makes of a figure that this run has without."""
    run.table.put(_int8(measure), UNQUANTIZED, run.table.figure(measure, ENGINE))
    run.beside(_int8(measure), ENGINE, figure)
