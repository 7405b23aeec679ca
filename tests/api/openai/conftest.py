"""The official client, pointed at a service on a real socket."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import openai
import pytest

from service.engine.base import Event, Finish, FinishReason, GenerationRequest, Token
from service.tokenizer.loading import load_tokenizer
from service.tokenizer.tokenizer import Tokenizer
from tests.api.conftest import Service, Start
from tests.support.tokenizers import write_sentencepiece_dir


def official_client(service: Service, key: str = "any") -> openai.AsyncOpenAI:
    """As its documentation has it made; it never tries again, so that a test sees the first answer."""
    return openai.AsyncOpenAI(base_url=f"{service.running.url}/v1", api_key=key, max_retries=0)


@pytest.fixture
async def client(service: Service) -> AsyncIterator[openai.AsyncOpenAI]:
    async with official_client(service) as made:
        yield made


@pytest.fixture
async def model(client: openai.AsyncOpenAI) -> str:
    """The name of the one model, found as a user interface finds it."""
    (only,) = (await client.models.list()).data
    return only.id


@dataclass
class Scripted:
    """Says `text`, and ends for `reason`; what it was asked."""

    tokenizer: Tokenizer
    text: str = ""
    reason: FinishReason = FinishReason.STOP
    asked: list[GenerationRequest] = field(default_factory=list)

    async def submit(self, request: GenerationRequest) -> AsyncGenerator[Event]:
        self.asked.append(request)
        for part in self.tokenizer.split(self.text):
            for token in [part] if isinstance(part, int) else self.tokenizer.encode_text(part):
                yield Token(request.id, token)
        yield Finish(request.id, self.reason)

    @property
    def prompt(self) -> str:
        """The last one, with its special tokens."""
        runs: list[list[int]] = [[]]
        for token in self.asked[-1].prompt_ids:
            if token in self.tokenizer.special_ids:
                runs += [[token], []]
            else:
                runs[-1].append(token)
        return "".join(self.tokenizer.special_name((*run, -1)[0]) or self.tokenizer.decode(run) for run in runs)

    @property
    def rules(self) -> str:
        (grammar,) = json.loads(self.asked[-1].grammar)["grammars"]
        return str(grammar["lark_grammar"])


@pytest.fixture(scope="session")
def internlm3_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sentencepiece_dir(tmp_path_factory.mktemp("internlm3"))


@pytest.fixture
async def calling(start: Start, internlm3_dir: Path) -> Service:
    """A service whose model's format has tools."""
    return await start(model_dir=internlm3_dir)


@pytest.fixture
def scripted(calling: Service, internlm3_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Scripted:
    """What its engine says."""
    engine = Scripted(load_tokenizer(internlm3_dir))
    monkeypatch.setattr(calling.engine, "submit", engine.submit)
    return engine
