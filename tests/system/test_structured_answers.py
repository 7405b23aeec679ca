"""Answers of the real small model that keep to a schema, through the production server and the official client."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field

from tests.system.conftest import Server


class Animal(BaseModel):
    """What the model is asked for. Without more fields, or a small model finds ever more to say."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=30)
    legs: int = Field(ge=0, le=100)
    kind: Literal["mammal", "bird", "insect"]


ASKED: list[Any] = [{"role": "user", "content": "Describe a spider as JSON with name, legs and kind."}]
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "Animal", "schema": Animal.model_json_schema()}}


@pytest.fixture
def model(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


def test_the_official_client_parses_an_answer_into_a_class(client: openai.OpenAI, model: str) -> None:
    """Its `parse` makes a strict schema of the class and reads the answer as one."""
    completion = client.chat.completions.parse(model=model, messages=ASKED, response_format=Animal, temperature=0)
    animal = completion.choices[0].message.parsed
    assert isinstance(animal, Animal)
    assert completion.choices[0].finish_reason == "stop"


def test_a_stream_is_the_same_answer(client: openai.OpenAI, model: str) -> None:
    asked: Any = {"model": model, "messages": ASKED, "response_format": FORMAT, "temperature": 0}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    pieces = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**asked, stream=True)]
    assert len(pieces) > 5
    assert "".join(pieces) == whole
    Animal.model_validate_json(whole or "")


def test_our_own_route_does_it_as_well(shared: Server) -> None:
    answer = shared.ask("Describe a spider as JSON.", response_format=FORMAT).json()
    Animal.model_validate_json(answer["response"])
    assert answer["finish_reason"] == "stop"
    anything = shared.ask("Give me JSON about Paris.", response_format={"type": "json_object"}, max_new_tokens=200)
    text = anything.json()["response"]
    assert isinstance(json.loads(text), dict) if anything.json()["finish_reason"] == "stop" else text.startswith("{")


@pytest.mark.parametrize("temperature", [0.7, 2.0])
def test_drawn_answers_fit_as_well_beside_others_that_are_free(shared: Server, temperature: float) -> None:
    plain = {"temperature": 0, "max_new_tokens": 30}
    alone = shared.ask("Count from one to ten.", **plain).json()["response"]
    with ThreadPoolExecutor(6) as pool:
        kept = [
            pool.submit(shared.ask, "An animal?", response_format=FORMAT, temperature=temperature, seed=n)
            for n in range(5)
        ]
        free = pool.submit(shared.ask, "Count from one to ten.", **plain)
        animals = {Animal.model_validate_json(each.result().json()["response"]).name for each in kept}
        assert free.result().json()["response"] == alone
    assert len(animals) > 1


def test_a_schema_that_cannot_be_kept_to_is_the_clients_error(client: openai.OpenAI, model: str) -> None:
    bad: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=model, messages=ASKED, response_format=bad)
    assert refused.value.param == "response_format.json_schema.schema"
    assert '"not"' in refused.value.message


def test_an_answer_that_is_cut_says_so(client: openai.OpenAI, model: str) -> None:
    completion = client.chat.completions.create(
        model=model, messages=ASKED, response_format=FORMAT, max_tokens=3, temperature=0
    )
    assert completion.choices[0].finish_reason == "length"
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model=model, messages=ASKED, response_format=Animal, max_tokens=3)


def test_a_choice_is_one_of_its_texts(client: openai.OpenAI, model: str) -> None:
    """Also drawn from a flat distribution, and as a stream; by both kinds of completions."""
    moods = ["positive", "negative", "not/sure: 你好"]
    asked: Any = {"model": model, "extra_body": {"structured_outputs": {"choice": moods}}, "temperature": 2.0}
    question: Any = [{"role": "user", "content": "Is the sentence positive or negative? I like spiders."}]
    answers = [client.chat.completions.create(messages=question, **asked, seed=seed).choices[0] for seed in range(4)]
    said = {answer.message.content for answer in answers}
    assert said <= set(moods)
    assert len(said) > 1
    assert {answer.finish_reason for answer in answers} == {"stop"}
    stream = client.chat.completions.create(messages=question, **asked, seed=1, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == answers[1].message.content
    assert client.completions.create(prompt="I feel", **asked).choices[0].text in moods


def test_a_pattern_is_matched_from_end_to_end(client: openai.OpenAI, model: str) -> None:
    for seed in range(2):
        answer = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "When was the moon landing?"}],
            extra_body={"structured_outputs": {"regex": r"(19|20)\d\d-[01]\d|unknown\."}},
            seed=seed,
        )
        assert re.fullmatch(r"(19|20)\d\d-[01]\d|unknown\.", answer.choices[0].message.content or "")
        assert answer.choices[0].finish_reason == "stop"
