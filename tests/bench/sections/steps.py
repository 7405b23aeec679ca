"""Sections about single steps beside the machine's limits: decodes of a full batch, one prompt's prefill."""

from statistics import median

from service.engine.steps.pace import CROWD_TOKENS
from tests.bench.floor import prefill_flop
from tests.bench.load import Drive, percentile, serve
from tests.bench.measures import ENGINE, LIMIT, Measure
from tests.bench.run import Run
from tests.bench.scale import Scale

PREFILLS = 5


def decode(run: Run) -> None:
    """Steps of nothing but decodes, beside the time their bytes take at the measured bandwidth."""
    for batch in run.scale.step_batches:
        took, context = median_step(run, batch)
        run.table.put(decode_step(batch), LIMIT, run.floor.step(batch, context))
        run.beside(decode_step(batch), ENGINE, took)
        run.say(batch=batch, context=context, tokens_per_second=batch / took)
        run.figure(f"decode_{batch}_of_limit", run.table.ratio(decode_step(batch), LIMIT))


def decode_step(batch: int) -> Measure:
    """A step of so many decodes."""
    return Measure("decode_step", "batch", batch)


def median_step(run: Run, batch: int) -> tuple[float, int]:
    """Seconds of the median step of a full batch with full sampling, and the sequences' mean length in it.

    The first streams run on while the last ones' prompts are computed, a crowd's tokens at a time, so a large batch
    begins with shorter ones. They are to outlast that, and all of them are to fit the KV cache at once. Raises
    RuntimeError where they never ran at once.
    """
    drive = Drive(run.core)
    steps, prompt = run.scale.timed_steps, step_prompt(run.scale, batch)
    new_tokens = min(1024, run.config.max_positions - prompt)
    lines = [drive.add(run.prompts.request(prompt, new_tokens)) for _ in range(batch)]
    while not all(line.times for line in lines):
        drive.step()
    began = len(drive.steps) + 2
    while len(drive.steps) < began + steps:
        drive.step()
    context = prompt + sum(len(line.tokens) for line in lines) // batch - steps // 2
    drive.cancel()
    full = [seconds for seconds, count in drive.steps[began : began + steps] if count == batch]
    if not full:
        raise RuntimeError(f"{batch} sequences never ran at once")
    return percentile(full, 0.5), context


def step_prompt(scale: Scale, batch: int) -> int:
    """Tokens of a prompt with which so many sequences are of the scale's context in the middle of its timed steps."""
    return int((scale.step_context - scale.timed_steps / 2) / (1 + batch / (2 * CROWD_TOKENS)))


def prefill(run: Run) -> None:
    """One prompt's TTFT, beside the dense product's rate: the median of several that follow one another, as what they
    are held against is a rate that is kept up."""
    tokens, took = run.scale.prefill, prefill_seconds(run)
    run.table.put(prefill_of(tokens), ENGINE, took)
    rate = prefill_flop(run.config, tokens) / took
    share = run.figure("prefill_of_matmul", rate / run.floor.limits.matmul)
    run.say(tokens=tokens, seconds=took, tflop_per_s=rate / 1e12, of_matmul=share)


def prefill_of(tokens: int) -> Measure:
    """A prompt of so many tokens, alone."""
    return Measure("prefill", "tokens", tokens)


def prefill_seconds(run: Run) -> float:
    """Its median."""
    return median(serve(run.core, [run.prompts.request(run.scale.prefill, 1)]).ttft_p50 for _ in range(PREFILLS))
