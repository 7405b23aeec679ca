"""A card where every kernel of ours failed: flash attention, larger blocks and recorded torch operations serve."""

import inspect
from collections.abc import Callable

import pytest
from torch.nn.attention.varlen import varlen_attn

from service.engine.cuda import choose_paths
from service.engine.cuda.flash import FLASH_PAGE
from service.engine.cuda.segments import shapes_for
from service.engine.kernels.candidate import ServedShapes
from service.engine.kernels.ops import Ops
from service.engine.kernels.selfcheck import Proof
from service.engine.model import Model
from service.engine.runner import TorchRunner
from tests.gpu.conftest import Make
from tests.gpu.test_engine import answers, prompts, require_best, runner_of
from tests.support.engines import GREEDY, a_request

READS_PAGES = "block_table" in inspect.signature(varlen_attn).parameters
"""Not that of torch 2.11: where the operator beneath it does not either, decodes are plain and launched one by one."""


@pytest.fixture(autouse=True)
def no_kernel_proves_right(monkeypatch: pytest.MonkeyPatch) -> None:
    def prove(shapes: ServedShapes, **options: object) -> Proof:
        return Proof(Ops(), ["all: off"], 0.0)

    monkeypatch.setattr(choose_paths, "prove", prove)


def plans_decode(runner: TorchRunner) -> bool:
    return runner.block_size == FLASH_PAGE


def test_decodes_are_recorded_with_flash_attention_and_what_is_missing_is_named(make: Make) -> None:
    core = make()
    runner = runner_of(core)
    assert plans_decode(runner) or not READS_PAGES
    assert core.info.degraded[0] == "all: off"
    missing = {reason.split(":")[0] for reason in core.info.degraded[1:]}
    assert missing == (set() if plans_decode(runner) else {"flash_decode"})
    buckets = () if runner.graphs is None else runner.graphs.buckets
    shapes = [] if runner.segments is None else runner.segments.shapes
    assert buckets == ((1, 2, 4, 8, 16, 24, 32) if plans_decode(runner) else ())
    assert shapes == (shapes_for(32, 2048) if plans_decode(runner) else [])


def test_its_tokens_are_the_exact_models_up_to_ties(make: Make, exact: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 100 beside decodes, then decodes alone, by recordings where there are any."""
    core = make(step_tokens=100, prefix_cache=False)
    requests = [a_request(prompt, new=24, sampling=GREEDY) for prompt in prompts()[:7]]
    with monkeypatch.context() as watching:
        ran = recordings_run(runner_of(core), watching)
        given = answers(core, requests)
    for request, tokens in zip(requests, given, strict=True):
        require_best(exact, request, tokens)
    assert ran == ({"decodes", "prompts", "both"} if plans_decode(runner_of(core)) else set())


def recordings_run(runner: TorchRunner, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What recordings compute from now on."""
    ran: set[str] = set()

    def noting(part: object, method: str, kind: Callable[..., str]) -> None:
        original = getattr(part, method)

        def call(*arguments: object) -> object:
            ran.add(kind(*arguments))
            return original(*arguments)

        monkeypatch.setattr(part, method, call)

    if runner.graphs is not None:
        noting(runner.graphs, "run", lambda slots: "decodes")
    if runner.segments is not None:
        noting(runner.segments, "forward", lambda shape, *_: "both" if shape.decodes else "prompts")
    return ran
