"""The use case without a server: how long a prompt may take before the engine has even seen it."""

from pathlib import Path

import pytest

from service.chat.generation import AnswerLimits, Chat, Generation
from service.chat.loading import load_tokenizer
from service.chat.templates import ChatTemplate, Message
from service.engine.base import SamplingParams
from service.errors import ContextTooLong, DeadlineExceeded, ServiceError
from service.lifecycle import Lifecycle
from service.metrics import Metrics
from tests.support.local_engine import FakeEngine
from tests.support.tokenizers import write_byte_level_dir

LONG = "the quick brown fox 你好世界 " * 10_000


def generation(model_dir: Path, request_timeout: float) -> Generation:
    write_byte_level_dir(model_dir)
    tokenizer, engine = load_tokenizer(model_dir), FakeEngine()
    limits = AnswerLimits(max_context=64, default_new_tokens=8, request_timeout=request_timeout)
    template = ChatTemplate.load(model_dir, tokenizer)
    return Generation(engine, tokenizer, template, limits, Lifecycle(), Metrics(lambda: engine.status, lambda: True))


@pytest.mark.parametrize(
    ("request_timeout", "problem"), [(0.001, DeadlineExceeded), (300, ContextTooLong)], ids=["too late", "in time"]
)
async def test_tokenizing_counts_among_the_seconds_of_a_request(
    tmp_path: Path, request_timeout: float, problem: type[ServiceError]
) -> None:
    """That the prompt is too long for the context is known only once it is tokenized."""
    chat = Chat([Message("user", LONG)], SamplingParams())
    with pytest.raises(problem):
        async for _ in generation(tmp_path, request_timeout).answer(chat):
            pass
