"""Answers that begin with their prompts, which an engine that knows probabilities reports as it says them again."""

import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from service.engine.base import Event, Finish, FinishReason, GenerationRequest, Logprobs, Token
from service.tokenizer.loading import load_tokenizer
from service.tokenizer.tokenizer import Tokenizer
from tests.api.conftest import Service
from tests.api.test_failures import samples

TEXT = "the quick 你好 brown"


@dataclass
class Scoring:
    """Says what it is forced to, then `text`, each token as likely as it comes late."""

    tokenizer: Tokenizer
    text: str = "fox"
    asked: list[GenerationRequest] = field(default_factory=list)

    async def submit(self, request: GenerationRequest) -> AsyncGenerator[Event]:
        self.asked.append(request)
        answer = [*self.tokenizer.encode_text(self.text), self.tokenizer.stop_ids[0]]
        for at, token in enumerate([*request.forced, *answer][: request.max_new_tokens]):
            logprobs = None if request.logprobs is None else Logprobs(-float(at), [token, 5], [-float(at), -99.0])
            yield Token(request.id, token, queue_time=2.0 if at == 0 else 0.0, logprobs=logprobs)
        ended = request.max_new_tokens > len(request.forced) + len(answer) - 1
        yield Finish(request.id, FinishReason.STOP if ended else FinishReason.LENGTH)


@pytest.fixture
def scoring(calling: Service, internlm3_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Scoring:
    engine = Scoring(load_tokenizer(internlm3_dir))
    monkeypatch.setattr(calling.engine, "submit", engine.submit)
    return engine


async def choice_of(service: Service, **body: Any) -> Any:
    answer = await service.http.post("/v1/completions", json={"prompt": TEXT, "echo": True} | body)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


async def test_the_prompt_stands_before_its_answer(scoring: Scoring, calling: Service) -> None:
    """As it was sent, with its markup: clients cut it off by its length."""
    for prompt in (TEXT, "<|im_start|>user\nthe  <|im_end|>\n"):
        choice = await choice_of(calling, prompt=prompt)
        assert (choice["text"], choice["logprobs"], choice["finish_reason"]) == (f"{prompt} fox", None, "stop")
        body = {"prompt": [prompt, "the"], "echo": True, "stream": True, "n": 2}
        events = (await calling.http.post("/v1/completions", json=body)).text.splitlines()
        texts = [""] * 4
        for event in events:
            if event.startswith("data: {"):
                (piece,) = json.loads(event.removeprefix("data: "))["choices"]
                texts[piece["index"]] += piece["text"]
        assert texts == [f"{prompt} fox"] * 2 + ["the fox"] * 2
    assert all(asked.forced == [] for asked in scoring.asked)


async def test_token_ids_are_given_back_with_what_is_told_of_them_alone(scoring: Scoring, calling: Service) -> None:
    answer = await calling.http.post("/v1/completions", json={"prompt": [[5, 6]], "echo": True})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "echo")


async def test_a_prompt_that_ends_without_text_is_told_whole_before_a_stop_string(
    scoring: Scoring, calling: Service
) -> None:
    told = (await choice_of(calling, prompt="the<|im_end|>", stop=" fox", logprobs=0))["logprobs"]
    assert told["tokens"][:3] == ["<s>", "the", "<|im_end|>"]
    assert "fox" not in "".join(told["tokens"])


async def test_the_bound_is_on_what_all_prompts_have_together(scoring: Scoring, calling: Service) -> None:
    uneven = [[5] * 1600, *[[5] * 20] * 63]
    answer = await calling.http.post(
        "/v1/completions", json={"prompt": uneven, "echo": True, "logprobs": 1, "max_tokens": 1}
    )
    assert answer.status_code == 200, answer.text
    assert [len(each["logprobs"]["tokens"]) for each in answer.json()["choices"]] == [1601, *[21] * 63]


async def test_every_token_is_told_from_the_prompts_first(scoring: Scoring, calling: Service) -> None:
    """One for each of the prompt's and of the answer's, its end among them: who measures models counts on it."""
    choice = await choice_of(calling, logprobs=1)
    assert choice["text"] == f"{TEXT} fox"
    told, ids = choice["logprobs"], [1, *scoring.tokenizer.encode_text(TEXT)]
    answer = [*scoring.tokenizer.encode_text("fox"), scoring.tokenizer.stop_ids[0]]
    assert {len(column) for column in told.values()} == {len(ids) + len(answer)}
    assert (told["tokens"][0], told["tokens"][-1]) == ("<s>", scoring.tokenizer.special_name(answer[-1]))
    assert "".join(told["tokens"][1:-1]) == choice["text"]
    assert told["token_logprobs"] == [None, *(-float(at) for at in range(len(ids) + len(answer) - 1))]
    assert told["top_logprobs"][0] is None
    assert all(told["tokens"][at] in told["top_logprobs"][at] for at in range(1, len(ids)))
    for at, token in zip(told["text_offset"][1:-1], told["tokens"][1:-1], strict=True):
        assert choice["text"].startswith(token, at)


async def test_the_engine_is_asked_for_the_prompts_tokens_one_by_one(scoring: Scoring, calling: Service) -> None:
    await choice_of(calling, prompt=[5, 6, 2, 7], logprobs=0, max_tokens=3)
    asked = scoring.asked[-1]
    assert (asked.prompt_ids, asked.forced, asked.max_new_tokens) == ([5], [6, 2, 7], 6)


async def test_a_stream_has_the_prompt_first(scoring: Scoring, calling: Service) -> None:
    whole = await choice_of(calling, logprobs=1)
    body = {"prompt": TEXT, "echo": True, "logprobs": 1, "stream": True}
    answer = await calling.http.post("/v1/completions", json=body)
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    choices = [json.loads(each)["choices"][0] for each in events[:-1]]
    assert "".join(each["text"] for each in choices) == whole["text"]
    for name, column in whole["logprobs"].items():
        assert [value for each in choices for value in each["logprobs"][name]] == column


async def test_only_the_answer_is_counted_as_one(scoring: Scoring, calling: Service) -> None:
    """Neither tokens nor times of what is said again are the answer's."""
    body = {"prompt": TEXT, "echo": True, "logprobs": 0}
    usage = (await calling.http.post("/v1/completions", json=body)).json()["usage"]
    assert usage["prompt_tokens"] == 1 + len(scoring.tokenizer.encode_text(TEXT))
    assert usage["completion_tokens"] == len(scoring.tokenizer.encode_text("fox")) + 1
    found = samples(calling)
    assert found["internlm_request_generation_tokens_sum", ""] == usage["completion_tokens"]
    assert found["internlm_request_queue_time_seconds_sum", ""] == 2.0
    assert found["internlm_time_to_first_token_seconds_count", ""] == 0


@pytest.mark.parametrize("logprobs", [None, 0])
async def test_a_stop_string_in_the_prompt_is_none(scoring: Scoring, calling: Service, logprobs: int | None) -> None:
    scoring.text = "fox and quick"
    choice = await choice_of(calling, stop="quick", logprobs=logprobs)
    assert choice["text"] == f"{TEXT} fox and "
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("prompt", ["", [5]])
async def test_a_prompt_of_one_token_has_nothing_to_be_said_again(
    scoring: Scoring, calling: Service, prompt: Any
) -> None:
    told = (await choice_of(calling, prompt=prompt, logprobs=0))["logprobs"]
    assert told["token_logprobs"][:2] == [None, 0.0]
    assert scoring.asked[-1].forced == []


@pytest.mark.parametrize(
    "body", [{"response_format": {"type": "json_object"}}, {"frequency_penalty": 0.5}, {"presence_penalty": -0.5}]
)
async def test_what_would_take_the_prompt_for_the_answer_is_refused(
    scoring: Scoring, calling: Service, body: dict[str, Any]
) -> None:
    asked = {"prompt": TEXT, "echo": True, "logprobs": 0} | body
    answer = await calling.http.post("/v1/completions", json=asked)
    (field_,) = body
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field_)
    assert (await calling.http.post("/v1/completions", json=asked | {"logprobs": None})).status_code == 200
    plain = {"response_format": {"type": "text"}, "frequency_penalty": 0, "presence_penalty": 0}
    assert (await calling.http.post("/v1/completions", json=asked | plain)).status_code == 200


async def test_the_prompts_reports_are_among_those_that_are_sent_at_once(scoring: Scoring, calling: Service) -> None:
    asked = {"prompt": [5] * 1500, "echo": True, "logprobs": 20, "n": 8}
    answer = await calling.http.post("/v1/completions", json=asked)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "logprobs")
    assert "or for a stream" in answer.json()["error"]["message"]
