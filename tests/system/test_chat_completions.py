"""What the official client asks of the real small model besides text, through the production server: log-probabilities,
and several answers to choose from."""

import math
from typing import Any

import openai
import pytest

ASKED: list[Any] = [{"role": "user", "content": "What is the capital of France? 🌍"}]


def ask(client: openai.OpenAI, **options: Any) -> Any:
    model = client.models.list().data[0].id
    return client.chat.completions.create(model=model, messages=ASKED, max_tokens=40, logprobs=True, **options)


def bytes_of(content: list[Any]) -> bytes:
    return b"".join(bytes(each.bytes or []) for each in content)


def test_a_greedy_answer_is_the_likeliest_token_by_token(client: openai.OpenAI) -> None:
    (choice,) = ask(client, temperature=0, top_logprobs=5, extra_body={"repetition_penalty": 1}).choices
    content = choice.logprobs.content
    assert bytes_of(content).decode() == choice.message.content
    assert any(each.token.strip() == "Paris" for each in content)
    for each in content:
        assert len(each.top_logprobs) == 5
        assert each.top_logprobs[0].logprob == pytest.approx(each.logprob, abs=1e-3)
        values = [other.logprob for other in each.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert 0 < sum(map(math.exp, values)) <= 1.0001


def test_a_drawn_answer_is_reported_as_the_model_saw_it(client: openai.OpenAI) -> None:
    """Before the temperature: some of its tokens are none of the likeliest, and none is impossible."""
    (choice,) = ask(client, temperature=2, top_p=1, seed=3, extra_body={"top_k": 0}).choices
    assert bytes_of(choice.logprobs.content).decode(errors="replace") == choice.message.content
    values = [each.logprob for each in choice.logprobs.content]
    assert all(-60 < value < 0 for value in values)
    assert min(values) < -3
    assert all(each.top_logprobs == [] for each in choice.logprobs.content)


def test_a_stream_reports_every_piece_beside_its_text(client: openai.OpenAI) -> None:
    whole = ask(client, temperature=0, top_logprobs=2).choices[0]
    pieces = [chunk.choices[0] for chunk in ask(client, temperature=0, top_logprobs=2, stream=True)]
    told = [each for piece in pieces if piece.logprobs for each in piece.logprobs.content]
    assert [each.token for each in told] == [each.token for each in whole.logprobs.content]
    for piece in pieces[:-1]:
        assert bytes_of(piece.logprobs.content).decode() == piece.delta.content
    assert pieces[-1].logprobs is None


def test_answers_to_choose_from_are_those_of_seeds_one_after_the_other(client: openai.OpenAI) -> None:
    drawn: dict[str, Any] = {"temperature": 1.5, "top_p": 1, "seed": 5}
    together = [choice.message.content for choice in ask(client, **drawn, n=3).choices]
    alone = [ask(client, **(drawn | {"seed": seed})).choices[0].message.content for seed in (5, 6, 7)]
    assert together == alone
    assert len(set(together)) == 3


def test_who_does_not_ask_is_told_nothing(client: openai.OpenAI) -> None:
    model = client.models.list().data[0].id
    (choice,) = client.chat.completions.create(model=model, messages=ASKED, max_tokens=2).choices
    assert choice.logprobs is None
