"""Greedy tokens of the native engine are transformers' own: alone, batched, chunked, with and without prefix reuse."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from service.engine.base import Core, EngineConfig, GenerationRequest, SamplingParams
from service.engine.startup.build import build_core
from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.driving import drain, tokens_of
from tests.support.engines import a_request

GROUPINGS = [
    Shape(heads=16, kv_heads=1, head_dim=16, shards=2),
    Shape(heads=4, kv_heads=1, tied=True),
    Shape(heads=4, kv_heads=4),
    Shape(heads=16, kv_heads=1, qkv_bias=True, bias=True),
    Shape(heads=4, kv_heads=1, qkv_bias=True, bias=True, tied=True),
    Shape(heads=4, kv_heads=4, qkv_bias=True, bias=True),
]
NEW_TOKENS = 24


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


def core(model_dir: Path, kind: str = "native", **changes: object) -> Core:
    fields = {"kind": kind, "model_dir": str(model_dir), "device": "cpu", "threads": 1, "block_size": 16}
    return build_core(EngineConfig(**(fields | changes)), lambda message: None)  # type: ignore[arg-type]


def answers(engine: Core, requests: list[GenerationRequest], batch: int) -> list[list[int]]:
    """The tokens of each request, served `batch` at a time."""
    served: dict[str, list[int]] = {}
    for start in range(0, len(requests), batch):
        served |= tokens_of(drain(engine, requests[start : start + batch]))
    return [served[request.id] for request in requests]


def random_prompts(vocab: int) -> list[list[int]]:
    """Unequal lengths; the last four begin with the same 40 tokens."""
    lengths = [1, 2, 15, 16, 17, 33, 90, 64]
    unshared = [[(7 * i * (row + 3) + row) % vocab for i in range(length)] for row, length in enumerate(lengths)]
    shared = [(11 * i + 5) % vocab for i in range(40)]
    return unshared + [shared + [row + 50] * (4 * row + 1) for row in range(4)]


GREEDY = SamplingParams(temperature=0.0, top_k=0, top_p=1.0, repetition_penalty=1.0)
PENALIZED = SamplingParams(temperature=0.0, top_k=40, top_p=0.8, repetition_penalty=1.1)
TAKEN_OFF = SamplingParams(
    temperature=0.0, repetition_penalty=1.1, frequency_penalty=0.3, presence_penalty=0.7, min_p=0.1
)
BIASED = SamplingParams(
    temperature=0.0, repetition_penalty=1.3, logit_bias=tuple((token, 0.5 * (token % 5) - 1) for token in range(1, 90))
)


@pytest.mark.parametrize("shape", GROUPINGS, ids=lambda shape: shape.name)
def test_greedy_tokens_equal_transformers_on_every_head_grouping(tmp_path: Path, shape: Shape) -> None:
    write_checkpoint(tmp_path, shape)
    requests = [
        a_request(prompt, new=24, sampling=(PENALIZED, GREEDY, TAKEN_OFF, BIASED)[row % 4])
        for row, prompt in enumerate(random_prompts(shape.vocab))
    ]
    expected = answers(core(tmp_path, "reference"), requests, 1)
    for prefix_cache in (True, False):
        for step_tokens in (16, 512):
            engine = core(tmp_path, prefix_cache=prefix_cache, step_tokens=step_tokens)
            assert answers(engine, requests, 1) == expected
            assert answers(engine, requests, 8) == expected
            assert bool(engine.stats().cached_tokens) == prefix_cache


QUESTIONS = [
    "What is the capital of France?",
    "Hi",
    "Name three colours.",
    "Write a haiku about the sea, then explain in two sentences why you chose its images.",
    "2+2=",
    "Translate 'good morning' into Spanish.",
    "Give me a recipe for pancakes. I have eggs, flour, milk, a little butter, and no sugar at all.",
    "Who wrote Hamlet?",
    "List the planets of the solar system in order of their distance from the sun.",
    "Explain gravity to a child.",
]
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face."


def chat_ids(tokenizer: Tokenizer, question: str, system: str | None) -> list[int]:
    before = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    text = f"{before}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


@pytest.fixture(scope="module")
def small_model_requests(smollm2_dir: Path) -> list[GenerationRequest]:
    """Twenty chat prompts, half of them behind one system message, in lengths from 8 to 60."""
    tokenizer = Tokenizer.from_file(str(smollm2_dir / "tokenizer.json"))
    return [
        a_request(chat_ids(tokenizer, question, system), new=NEW_TOKENS, stop=[2], sampling=GREEDY)
        for question in QUESTIONS
        for system in (SYSTEM, None)
    ]


@pytest.fixture(scope="module")
def small_model_answers(smollm2_dir: Path, small_model_requests: list[GenerationRequest]) -> list[list[int]]:
    """transformers' tokens, computed once for every test below."""
    return answers(core(smollm2_dir, "reference"), small_model_requests, 1)


def test_the_oracle_answers_in_words(smollm2_dir: Path, small_model_answers: list[list[int]]) -> None:
    """Guards the tests below: equal tokens prove little if both engines babble."""
    tokenizer = Tokenizer.from_file(str(smollm2_dir / "tokenizer.json"))
    assert "Paris" in tokenizer.decode(small_model_answers[0])
    assert len({len(tokens) for tokens in small_model_answers}) > 1, "some answers end early, by their stop id"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "prefix_cache", "step_tokens"),
    [(1, True, 512), (8, True, 16), (8, False, 512)],
)
def test_greedy_tokens_equal_transformers_on_the_small_model(
    smollm2_dir: Path,
    small_model_requests: list[GenerationRequest],
    small_model_answers: list[list[int]],
    batch: int,
    prefix_cache: bool,
    step_tokens: int,
) -> None:
    engine = core(smollm2_dir, prefix_cache=prefix_cache, step_tokens=step_tokens, kv_cache_tokens=4096)
    assert answers(engine, small_model_requests, batch) == small_model_answers
    assert bool(engine.stats().cached_tokens) == prefix_cache


def mixed_requests(vocab: int) -> list[GenerationRequest]:
    settings = [
        SamplingParams(temperature=1.0, top_k=40, top_p=0.8, repetition_penalty=1.005, seed=1),
        SamplingParams(temperature=1.7, top_k=0, top_p=1.0, repetition_penalty=1.3, seed=2),
        SamplingParams(temperature=0.0, repetition_penalty=1.2),
        SamplingParams(temperature=0.8, top_k=0, top_p=0.9, repetition_penalty=1.0, seed=4),
        SamplingParams(temperature=1.2, top_k=200, top_p=0.95, repetition_penalty=1.1, seed=5),
        SamplingParams(temperature=1.0, top_k=40, top_p=0.8, repetition_penalty=1.005, seed=6),
    ]
    prompts = random_prompts(vocab)[2:]
    return [a_request(prompt, new=24, sampling=p) for prompt, p in zip(prompts, settings, strict=False)]


def test_two_concurrent_requests_give_what_each_gives_alone(tmp_path: Path) -> None:
    shape = Shape(heads=4, kv_heads=2)
    write_checkpoint(tmp_path, shape)
    requests = mixed_requests(shape.vocab)
    engine = core(tmp_path)
    alone = answers(engine, requests, 1)
    for first in range(len(requests)):
        for second in range(first + 1, len(requests)):
            pair = [requests[first], requests[second]]
            assert answers(engine, pair, 2) == [alone[first], alone[second]]


@pytest.mark.parametrize("step_tokens", [16, 512])
def test_a_seed_decides_the_answer_whatever_the_neighbours(tmp_path: Path, step_tokens: int) -> None:
    shape = Shape(heads=4, kv_heads=2)
    write_checkpoint(tmp_path, shape)
    requests = mixed_requests(shape.vocab)
    alone = answers(core(tmp_path, prefix_cache=False), requests, 1)
    assert answers(core(tmp_path, step_tokens=step_tokens), requests, 8) == alone
    assert answers(core(tmp_path, max_running=2), requests, 8) == alone
    assert len({tuple(tokens) for tokens in alone}) == len(alone)


def test_two_concurrent_requests_to_the_small_model_give_what_each_gives_alone(
    smollm2_dir: Path, small_model_requests: list[GenerationRequest]
) -> None:
    settings = (
        SamplingParams(temperature=1.0, top_k=40, top_p=0.8, repetition_penalty=1.005, seed=3),
        SamplingParams(temperature=1.3, top_k=0, top_p=0.95, repetition_penalty=1.2, seed=4),
    )
    pair = [
        a_request(request.prompt_ids, new=16, stop=[2], sampling=p)
        for request, p in zip(small_model_requests[6:8], settings, strict=True)
    ]
    engine = core(smollm2_dir, kv_cache_tokens=1024)
    alone = answers(engine, pair, 1)
    assert answers(engine, pair, 2) == alone
    assert alone[0] != alone[1]
