"""The random model that a benchmark runs on: whole, of the shape that is asked for, written once."""

from pathlib import Path

import pytest
import torch

from service.engine.config import read_config
from service.engine.weights import load_weights, open_checked
from service.tokenizer.loading import load_tokenizer
from tests.bench.scale import FULL, TINY, Scale, ready_model, write_random_model
from tests.bench.sections.steps import step_prompt


def test_the_random_model_is_one_that_loads_whole(tmp_path: Path) -> None:
    write_random_model(tmp_path, TINY.shape)
    config = read_config(tmp_path)
    weights, report = load_weights(open_checked(tmp_path, config), config, torch.device("cpu"), torch.float32)
    assert report.bytes_read > 0
    first, second = weights.layers[0].qkv, weights.layers[1].qkv
    assert not torch.equal(first, second), "every tensor has numbers of its own"
    assert torch.isfinite(first).all()


def test_nearly_every_id_that_a_random_model_says_has_a_text_of_its_own(tmp_path: Path) -> None:
    """The server sends no event for an id without text; how fast it is over HTTP would be how fast it is idle."""
    write_random_model(tmp_path, TINY.shape)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.vocab_size == TINY.shape.vocab
    texts = [tokenizer.decode([token]) for token in range(TINY.shape.vocab)]
    whole = {text for text in texts if text and "\ufffd" not in text}
    assert len(whole) > 0.98 * TINY.shape.vocab
    ids = tokenizer.encode_text("A text of words w421 w16383.")
    assert max(ids) < 421, "a prompt's tokens are those of a text"
    assert tokenizer.decode(ids) == "A text of words w421 w16383."


def test_a_random_model_is_the_same_every_time(tmp_path: Path) -> None:
    written = [write_random_model(tmp_path / name, TINY.shape) for name in ("one", "other")]
    one, other = (next(path.glob("model-*.safetensors")).read_bytes() for path in written)
    assert one == other


def test_a_random_model_is_written_once_and_again_if_it_was_cut_off(tmp_path: Path) -> None:
    model = ready_model(tmp_path / "model", TINY.shape)
    shard = next(model.glob("model-*.safetensors"))
    shard.write_bytes(b"mine")
    assert ready_model(model, TINY.shape) == model
    assert shard.read_bytes() == b"mine"
    (model / "model.safetensors.index.json").unlink()
    ready_model(model, TINY.shape)
    assert shard.read_bytes() != b"mine"


@pytest.mark.parametrize("scale", [FULL, TINY])
def test_the_timed_steps_of_any_scale_begin_with_a_prompt(scale: Scale) -> None:
    """Also of the tiny one on a GPU, where its context is shorter than the steps that were timed there."""
    for batch in scale.step_batches:
        assert 0 < step_prompt(scale, batch) <= scale.step_context - scale.timed_steps // 2
