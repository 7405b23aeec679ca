"""A tiny random model that has a tokenizer: it can say what a grammar allows, if nothing else."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from service.engine.base import Core, EngineConfig, GenerationRequest, SamplingParams
from service.engine.grammars.schema import json_grammar
from service.engine.startup.build import build_core
from service.tokenizer.loading import load_tokenizer
from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.engines import GREEDY, a_request
from tests.support.tokenizers import write_sentencepiece_dir

VOCAB = 1050
"""Some rows more than the tokenizer's own, as InternLM3 has."""

CITY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "people": {"type": "integer", "minimum": 0, "maximum": 999},
        "rivers": {"type": "array", "items": {"enum": ["Seine", "Thames", "黄浦江"]}, "maxItems": 2},
    },
    "required": ["name", "people", "rivers"],
    "additionalProperties": False,
}
"""A schema whose answers end, whatever the model wants."""


def write_speaking_checkpoint(directory: Path, shape: Shape) -> Path:
    """Weights of that shape behind InternLM3's kind of tokenizer."""
    config = (write_checkpoint(directory, shape) / "config.json").read_text()
    write_sentencepiece_dir(directory)
    (directory / "config.json").write_text(config)
    return directory


def core(model_dir: Path, kind: str = "native", **changes: Any) -> Core:
    """An engine on one core of the CPU."""
    fields = {"kind": kind, "model_dir": str(model_dir), "device": "cpu", "threads": 1, "block_size": 16}
    built = build_core(EngineConfig(**(fields | changes)), lambda message: None)
    torch.set_num_threads(1)
    return built


class Speaker:
    """Asks and reads in a checkpoint's own tokens."""

    def __init__(self, model_dir: Path) -> None:
        self.tokenizer = load_tokenizer(model_dir)

    def request(
        self,
        prompt: str,
        schema: dict[str, Any] | None = None,
        *,
        new: int = 400,
        sampling: SamplingParams = GREEDY,
        logprobs: int | None = None,
        id_: str | None = None,
    ) -> GenerationRequest:
        """`prompt` to be answered: by JSON of `schema`, if there is one."""
        return a_request(
            self.tokenizer.encode_text(prompt),
            new=new,
            stop=self.tokenizer.stop_ids,
            sampling=sampling,
            grammar="" if schema is None else json_grammar(schema),
            logprobs=logprobs,
            id_=id_,
        )

    def text(self, tokens: Iterable[int]) -> str:
        return self.tokenizer.decode([token for token in tokens if token not in self.tokenizer.stop_ids])
