"""The reference engine: transformers' tokens one request at a time, with the ends every engine owes its requests."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

from service.engine.base import EngineConfig, FinishReason, GenerationRequest, SamplingParams, StepFailed, Token
from service.engine.generate import generation_config, load_model
from service.engine.reference import ReferenceCore
from service.engine.startup.build import build_core
from service.errors import ConfigurationError
from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.driving import behind_gate, drain, reasons_of, tokens_of
from tests.support.engines import a_request

SHAPE = Shape(max_positions=64)
PROMPT = [3, 7, 9, 200, 41]
SAMPLED = SamplingParams(temperature=1.5, top_k=40, top_p=0.9, repetition_penalty=1.1, seed=11)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), SHAPE)


@pytest.fixture
def make(model_dir: Path) -> Iterator[Callable[..., ReferenceCore]]:
    def build(**changes: object) -> ReferenceCore:
        fields = {"kind": "reference", "model_dir": str(model_dir), "device": "cpu", "threads": 1}
        core = behind_gate(build_core(EngineConfig(**(fields | changes)), lambda message: None))  # type: ignore[arg-type]
        assert isinstance(core, ReferenceCore)
        return core

    yield build
    torch.set_num_threads(1)


Make = Callable[..., ReferenceCore]


def generated(model_dir: Path, request: GenerationRequest, **settings: object) -> list[int]:
    """What a plain call of transformers answers."""
    model = load_model(model_dir, torch.device("cpu"), torch.float32)
    torch.manual_seed(request.sampling.seed)
    config = GenerationConfig(max_new_tokens=request.max_new_tokens, pad_token_id=0, **settings)
    ids = torch.tensor([request.prompt_ids])
    tokens: list[int] = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[0].tolist()
    return tokens[len(request.prompt_ids) :]


def test_greedy_tokens_are_those_of_a_plain_call(make: Make, model_dir: Path) -> None:
    request = a_request(PROMPT, new=12)
    events = drain(make(), [request])
    assert tokens_of(events)[request.id] == generated(model_dir, request, do_sample=False)
    assert reasons_of(events) == {request.id: FinishReason.LENGTH}


def test_sampling_values_and_seed_are_honoured(make: Make, model_dir: Path) -> None:
    request = a_request(PROMPT, new=12, sampling=SAMPLED)
    expected = generated(
        model_dir, request, do_sample=True, temperature=1.5, top_k=40, top_p=0.9, repetition_penalty=1.1
    )
    core = make()
    assert tokens_of(drain(core, [request]))[request.id] == expected
    assert expected != generated(model_dir, request, do_sample=False, repetition_penalty=1.1)
    other = a_request(PROMPT, new=12, sampling=SamplingParams(temperature=1.5, seed=12))
    assert tokens_of(drain(core, [other]))[other.id] != expected


def test_temperature_zero_is_greedy_after_the_penalty(make: Make, model_dir: Path) -> None:
    sampling = SamplingParams(temperature=0.0, top_k=40, top_p=0.5, repetition_penalty=1.3)
    request = a_request(PROMPT, new=12, sampling=sampling)
    expected = generated(model_dir, request, do_sample=False, repetition_penalty=1.3)
    assert tokens_of(drain(make(), [request]))[request.id] == expected


@pytest.mark.parametrize("at", [0, 3])
def test_either_stop_id_ends_the_answer_and_is_its_last_token(make: Make, model_dir: Path, at: int) -> None:
    request = a_request(PROMPT, new=12)
    whole = generated(model_dir, request, do_sample=False)
    stopped = a_request(PROMPT, new=12, stop=[319, whole[at]] if whole[at] != 319 else [whole[at]])
    events = drain(make(), [stopped])
    assert tokens_of(events)[stopped.id] == whole[: whole.index(whole[at]) + 1]
    assert reasons_of(events) == {stopped.id: FinishReason.STOP}


def test_the_checkpoints_own_eos_does_not_end_what_the_request_did_not_name(make: Make, model_dir: Path) -> None:
    assert generation_config(a_request(PROMPT)).eos_token_id is None
    model = load_model(model_dir, torch.device("cpu"), torch.float32)
    assert model.generation_config.eos_token_id is None


def test_a_step_yields_one_token_and_requests_run_in_order(make: Make) -> None:
    core = make()
    requests = [a_request(PROMPT, new=3), a_request(PROMPT[:2], new=2)]
    for request in requests:
        assert core.add(request) == []
    order = []
    while not core.idle:
        tokens = [event for event in core.step() if isinstance(event, Token)]
        assert len(tokens) == 1
        order.append(tokens[0].id)
    assert order == [requests[0].id] * 3 + [requests[1].id] * 2


def test_a_cancelled_request_ends_between_two_tokens_and_the_next_one_runs(make: Make, model_dir: Path) -> None:
    core = make()
    running, waiting, last = a_request(PROMPT, new=50), a_request(PROMPT, new=50), a_request(PROMPT, new=4)
    for request in (running, waiting, last):
        core.add(request)
    events = core.step() + core.cancel(running.id) + core.cancel(waiting.id)
    assert core.cancel(running.id) == []
    assert core.cancel("nobody") == []
    events += drain(core, [])
    assert reasons_of(events) == {
        running.id: FinishReason.CANCELLED,
        waiting.id: FinishReason.CANCELLED,
        last.id: FinishReason.LENGTH,
    }
    assert tokens_of(events)[last.id] == generated(model_dir, last, do_sample=False)
    assert waiting.id not in tokens_of(events)


def test_deadlines_end_running_and_waiting_requests(make: Make, model_dir: Path) -> None:
    built = make()
    now = 0.0
    core = ReferenceCore(
        load_model(model_dir, torch.device("cpu"), torch.float32),
        built.info,
        EngineConfig(kind="reference", model_dir=""),
        clock=lambda: now,
    )
    requests = [
        GenerationRequest(id=name, prompt_ids=PROMPT, max_new_tokens=40, stop_ids=[], deadline=deadline)
        for name, deadline in (("running", 10.0), ("waiting", 5.0), ("patient", 100.0))
    ]
    for request in requests:
        core.add(request)
    events = core.step()
    now = 5.0
    events += core.step()
    assert reasons_of(events) == {"waiting": FinishReason.DEADLINE}
    now = 11.0
    events += drain(core, [])
    assert reasons_of(events) == {
        "waiting": FinishReason.DEADLINE,
        "running": FinishReason.DEADLINE,
        "patient": FinishReason.LENGTH,
    }
    assert {name: len(tokens) for name, tokens in tokens_of(events).items()} == {"running": 2, "patient": 40}


def test_the_queue_is_bounded(make: Make) -> None:
    core = make(max_queue=1)
    running, waiting, surplus = (a_request(PROMPT, new=2) for _ in range(3))
    assert core.add(running) == []
    assert core.add(waiting) == []
    [refusal] = core.add(surplus)
    assert refusal.reason is FinishReason.REJECTED  # type: ignore[union-attr]
    assert refusal.retry_after > 0  # type: ignore[union-attr]
    assert "INTERNLM_MAX_QUEUE" in refusal.message  # type: ignore[union-attr]
    assert set(reasons_of(drain(core, []))) == {running.id, waiting.id}


def test_without_a_queue_one_request_at_a_time_is_served(make: Make) -> None:
    core = make(max_queue=0)
    first, second = a_request(PROMPT, new=2), a_request(PROMPT, new=2)
    assert core.add(first) == []
    assert reasons_of(core.add(second)) == {second.id: FinishReason.REJECTED}
    drain(core, [])
    assert reasons_of(drain(core, [second])) == {second.id: FinishReason.LENGTH}


@pytest.mark.parametrize(
    ("prompt", "new", "complaint"),
    [([], 4, "prompt_ids is empty"), (PROMPT, 60, "INTERNLM_MAX_CONTEXT"), ([320], 4, "vocabulary of 320")],
)
def test_what_can_never_run_is_rejected(make: Make, prompt: list[int], new: int, complaint: str) -> None:
    [refusal] = make().add(a_request(prompt, new=new))
    assert complaint in refusal.message  # type: ignore[union-attr]


def test_an_id_that_is_open_is_rejected(make: Make) -> None:
    core, request = make(), a_request(PROMPT, new=2)
    core.add(request)
    [refusal] = core.add(request)
    assert "open already" in refusal.message  # type: ignore[union-attr]
    drain(core, [])


def test_a_failure_in_transformers_ends_every_open_request(make: Make) -> None:
    core = make()
    # A penalty that transformers refuses, as a stand-in for whatever it may raise.
    broken = a_request(PROMPT, sampling=SamplingParams(temperature=0.0, repetition_penalty=-1.0))
    waiting = a_request(PROMPT)
    core.add(broken)
    core.add(waiting)
    with pytest.raises(StepFailed, match="ValueError") as failure:
        core.step()
    assert reasons_of(failure.value.events) == {broken.id: FinishReason.ERROR, waiting.id: FinishReason.ERROR}
    assert core.idle


def test_statistics_count_requests_and_tokens(make: Make) -> None:
    core = make()
    for request in (a_request(PROMPT, new=3), a_request(PROMPT[:2], new=2)):
        core.add(request)
    core.step()
    assert (core.stats().running, core.stats().waiting) == (1, 1)
    drain(core, [])
    stats = core.stats()
    assert (stats.running, stats.waiting, stats.prompt_tokens, stats.generation_tokens) == (0, 0, 7, 5)


def test_a_checkpoint_transformers_refuses_is_a_configuration_error(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, Shape(qkv_bias=True, bias=False))
    with pytest.raises(ConfigurationError, match="qkv_bias"):
        load_model(tmp_path, torch.device("cpu"), torch.float32)
