"""What a client is told of an answer's tokens: each beside its text, none twice, none of a stop string."""

from pathlib import Path

import pytest

from service.chat.generation import Chat, Generation
from service.chat.logprobs import Likelihood, Reporter, Spelling, TokenReport
from service.chat.pieces import Done, TextDelta
from service.chat.templates import ChatTemplate, Message
from service.engine.base import EngineState, EngineStatus, Finish, FinishReason, Logprobs, SamplingParams, Token
from service.lifecycle import Lifecycle, State
from service.metrics import Metrics
from service.tokenizer.loading import load_tokenizer
from service.tokenizer.tokenizer import Tokenizer
from tests.support.tokenizers import write_byte_level_dir, write_sentencepiece_dir
from tests.unit.test_generation import ScriptedEngine

TEXT = "你好，世界 🌍 says the fox"


@pytest.fixture(params=["sentencepiece", "byte level"])
def model_dir(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    write = write_sentencepiece_dir if request.param == "sentencepiece" else write_byte_level_dir
    return write(tmp_path)


@pytest.fixture
def tokenizer(model_dir: Path) -> Tokenizer:
    return load_tokenizer(model_dir)


def reported(tokens: list[int]) -> list[Token]:
    """Tokens as an engine gives them, each with a value of its own."""
    return [Token("", token, logprobs=Logprobs(-float(at), [token], [-float(at)])) for at, token in enumerate(tokens)]


class Ask:
    """Has an answer of these tokens given by the use case; its pieces."""

    def __init__(self, model_dir: Path, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._template = ChatTemplate.load(model_dir, tokenizer)

    async def __call__(
        self,
        tokens: list[int],
        stop: list[str] | None = None,
        reason: FinishReason = FinishReason.STOP,
        ignore_eos: bool = False,
    ) -> list[TextDelta | Done]:
        engine, lifecycle = ScriptedEngine(*reported(tokens), Finish("", reason)), Lifecycle()
        lifecycle.move(State.READY)
        metrics = Metrics(lambda: EngineStatus(state=EngineState.READY), lambda: True)
        generation = Generation(engine, self._tokenizer, self._template, 300, lifecycle, metrics)
        chat = Chat(
            [Message("user", "hi")],
            SamplingParams(),
            max_new_tokens=8,
            or_what_fits=True,
            stop=stop or [],
            ignore_eos=ignore_eos,
            logprobs=1,
        )
        return [piece async for piece in generation.stream(chat)]


@pytest.fixture
def ask(model_dir: Path, tokenizer: Tokenizer) -> Ask:
    return Ask(model_dir, tokenizer)


def reports_of(pieces: list[TextDelta | Done]) -> list[TokenReport]:
    return [report for piece in pieces for report in piece.tokens]


def bytes_of(reports: list[TokenReport]) -> bytes:
    return b"".join(bytes(report.bytes or []) for report in reports)


async def test_the_bytes_of_the_tokens_are_those_of_the_answer_piece_by_piece(ask: Ask, tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode_text(TEXT)
    *pieces, done = await ask([*tokens, tokenizer.stop_ids[0]])
    assert isinstance(done, Done)
    assert done.tokens == []
    for piece in pieces:
        assert isinstance(piece, TextDelta)
        assert bytes_of(piece.tokens).decode() == piece.text
    assert [report.logprob for report in reports_of(pieces)] == [-float(at) for at in range(len(tokens))]
    for report in reports_of(pieces):
        assert report.top_logprobs == [Likelihood(report.token, report.logprob, report.bytes)]


async def test_half_a_character_waits_for_the_rest_with_its_report(ask: Ask, tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode_text("🌍")
    assert len(tokens) > 2, "it is one of bytes"
    pieces = await ask(tokens)
    first = next(piece for piece in pieces if "🌍" in getattr(piece, "text", ""))
    assert len(first.tokens) == len(tokens) - sum(len(piece.tokens) for piece in pieces if piece is not first)
    assert "\ufffd" in {report.token for report in first.tokens}


async def test_an_answer_that_is_cut_within_a_character_reports_its_half(ask: Ask, tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode_text("a🌍")[:-1]
    pieces = await ask(tokens, reason=FinishReason.LENGTH)
    assert len(reports_of(pieces)) == len(tokens)
    assert bytes_of(reports_of(pieces)) == b"a" + "🌍".encode()[:-1]


async def test_the_tokens_of_a_stop_string_are_none_of_the_answers(ask: Ask, tokenizer: Tokenizer) -> None:
    before, stop = tokenizer.encode_text("the fox"), "###"
    tokens = [*before, *(tokenizer.encode_text("x#")[-1:] * 5)]
    pieces = await ask(tokens, [stop])
    assert "".join(piece.text for piece in pieces if isinstance(piece, TextDelta)) == "the fox"
    assert bytes_of(reports_of(pieces)) == b"the fox"


async def test_a_token_that_ends_in_a_stop_string_is_reported_with_its_text(ask: Ask, tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode_text("the quick")
    last = tokenizer.token_bytes(tokens[-1]).decode()
    assert len(last) > 2
    pieces = await ask(tokens, [last[-1]])
    assert "".join(piece.text for piece in pieces if isinstance(piece, TextDelta)) == "the quick"[:-1]
    assert len(reports_of(pieces)) == len(tokens)


async def test_what_was_held_back_for_a_stop_string_that_did_not_come_is_reported(
    ask: Ask, tokenizer: Tokenizer
) -> None:
    tokens = tokenizer.encode_text("the fox")
    pieces = await ask(tokens, ["fox jumps"])
    assert bytes_of(reports_of(pieces)) == b"the fox"
    assert [report.logprob for report in reports_of(pieces)] == [-float(at) for at in range(len(tokens))]


async def test_special_tokens_go_by_their_names_and_have_no_bytes(ask: Ask, tokenizer: Tokenizer) -> None:
    name, token = next(item for item in tokenizer.special_tokens.items() if item[1] not in tokenizer.stop_ids)
    assert not tokenizer.token_bytes(token)
    pieces = await ask([token, *tokenizer.encode_text("fox"), token])
    first, *_, last = reports_of(pieces)
    assert (first.token, first.bytes, first.logprob) == (name, None, 0.0)
    assert (last.token, last.bytes) == (name, None)
    assert reports_of(pieces[-1:]) == [last], "behind the last text"


def test_rows_of_the_model_that_no_token_has_are_nothing(tokenizer: Tokenizer) -> None:
    reporter = Reporter(Spelling(tokenizer))
    reporter.push(tokenizer.vocab_size + 5, Logprobs(-1.0), first=False, at=0)
    assert reporter.take_all() == [TokenReport("", -1.0, [], [])]
    assert reporter.take_all() == []


def test_alternatives_to_an_answers_first_token_lose_the_same_space(tokenizer: Tokenizer) -> None:
    (one, other) = (tokenizer.encode_text(word)[0] for word in ("the", "fox"))
    reporter = Reporter(Spelling(tokenizer))
    for first in (True, False, True):
        reporter.push(one, Logprobs(-1.0, [other], [-2.0]), first=first, at=0)
    begun, later, again = reporter.take(1)
    assert again == begun
    for token, now, then in ((one, begun, later), (other, begun.top_logprobs[0], later.top_logprobs[0])):
        assert bytes(now.bytes or []) == tokenizer.token_bytes(token, first=True)
        assert bytes(then.bytes or []) == tokenizer.token_bytes(token)


CUT: dict[str, tuple[str, list[str], str]] = {
    "text that began like the stop string": ("\n\n\nUser", ["\n\nUser"], "\n"),
    "the same, letter by letter": ("aaab", ["aab"], "a"),
    "another stop string was under way": ("abcx", ["abcd", "cx"], "ab"),
    "another one, that did not come": ("abc", ["abcd", "bc"], "a"),
}


@pytest.mark.parametrize(("said", "stops", "text"), CUT.values(), ids=CUT)
async def test_text_that_is_released_late_brings_no_token_of_the_stop_string(
    ask: Ask, tokenizer: Tokenizer, said: str, stops: list[str], text: str
) -> None:
    """A character a token, behind one that is not cut."""
    spelled = {tokenizer.token_bytes(token): token for token in reversed(range(tokenizer.vocab_size))}
    tokens = [spelled[character.encode()] for character in f"x{said}"]
    pieces = await ask([*tokens, tokenizer.stop_ids[0]], stops)
    assert "".join(piece.text for piece in pieces if isinstance(piece, TextDelta)) == f"x{text}"
    assert bytes_of(reports_of(pieces)).decode() == f"x{text}"
    for piece in pieces[:-1]:
        assert isinstance(piece, TextDelta)
        assert bytes_of(piece.tokens).decode() == piece.text


async def test_an_answer_that_goes_on_past_its_end_reports_the_end_by_name(ask: Ask, tokenizer: Tokenizer) -> None:
    end, fox = tokenizer.stop_ids[0], tokenizer.encode_text("fox")
    pieces = await ask([*fox, end, *fox], ignore_eos=True, reason=FinishReason.LENGTH)
    names = [report.token for report in reports_of(pieces) if report.bytes is None]
    assert names == [tokenizer.special_name(end)]
    assert len(reports_of(pieces)) == 2 * len(fox) + 1
