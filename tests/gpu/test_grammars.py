"""Answers that keep to grammars on a real GPU: by recorded decodes, beside answers that are free."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.engine.base import FinishReason, SamplingParams
from tests.gpu.conftest import SHAPE, Make
from tests.gpu.test_engine import runner_of
from tests.support.driving import drain, reasons_of, tokens_of
from tests.support.speaking import CITY, Speaker, write_speaking_checkpoint


@pytest.fixture(scope="module")
def speaking_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("llguidance")
    return write_speaking_checkpoint(tmp_path_factory.mktemp("model"), replace(SHAPE, max_positions=2048))


def assert_city(said: dict[str, Any]) -> None:
    """By hand: a GPU host need not have what validates by a schema."""
    assert said.keys() == {"name", "people", "rivers"}
    assert isinstance(said["name"], str)
    assert len(said["name"]) <= 6
    assert said["people"] in range(1000)
    assert len(said["rivers"]) <= 2
    assert set(said["rivers"]) <= {*CITY["properties"]["rivers"]["items"]["enum"]}


@pytest.mark.parametrize("recorded", [True, False])
def test_a_random_model_says_nothing_but_what_fits_beside_answers_that_are_free(
    make: Make, speaking_dir: Path, recorded: bool
) -> None:
    speaker = Speaker(speaking_dir)
    drawn = [
        SamplingParams(seed=n, top_k=k, top_p=p) for n, k, p in ((1, 40, 0.8), (2, 0, 1.0), (3, 0, 0.9), (4, 5, 1))
    ]
    kept = [speaker.request(f"City {n}?", CITY, sampling=each) for n, each in enumerate(drawn)]
    free = [speaker.request(f"Number {n}.", new=60, sampling=each) for n, each in enumerate(drawn)]
    core = make(model_dir=str(speaking_dir))
    if not recorded:
        runner_of(core).graphs = runner_of(core).segments = None
    events = drain(core, [*kept, *free])
    assert {reasons_of(events)[each.id] for each in kept} == {FinishReason.STOP}
    for request in kept:
        assert_city(json.loads(speaker.text(tokens_of(events)[request.id])))
    again = drain(core, free)  # launched ahead, in slots that were restricted: nothing is forbidden any more
    said = {token for each in free for token in tokens_of(again)[each.id]}
    assert len(said) > 20
