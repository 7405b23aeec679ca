"""Tools in prompts: token for token InternLM's published format, in which nothing that is said forges a mark."""

import json
from pathlib import Path

import pytest

from service.chat.templates import CHATML, ChatTemplate, Message
from service.chat.tools import markup
from service.chat.tools.markup import CallMarks
from service.chat.tools.offer import Tool
from service.errors import MessageRefused
from service.tokenizer.loading import load_tokenizer
from service.tokenizer.tokenizer import Tokenizer
from tests.support.tokenizers import (
    INTERNLM3_SPECIAL,
    processor,
    sentencepiece_model,
    split_special,
    update_json,
    write_byte_level_dir,
    write_sentencepiece_dir,
)

WEATHER = Tool(
    "get_current_weather",
    "Get the current weather in a given location",
    {
        "type": "object",
        "properties": {
            "location": {"type": "string", "description": "The city and state, e.g. San Francisco, CA"},
            "unit": {"type": "string"},
        },
        "required": ["location"],
    },
)
CALLED = markup.call("get_current_weather", {"location": "Shanghai"})
CONVERSATION = [
    Message("system", "You are InternLM2-Chat, a harmless AI assistant"),
    Message(markup.TOOLS, markup.described([WEATHER])),
    Message("user", "I want to know today's weather in Shanghai"),
    Message("assistant", "Sure, I will search for the weather of Shanghai.", (CALLED,)),
    Message(markup.RESULT, '{"temperature": 22}'),
]

PUBLISHED = """\
<s><|im_start|>system
You are InternLM2-Chat, a harmless AI assistant<|im_end|>
<|im_start|>system name=<|plugin|>
[{"name": "get_current_weather", "description": "Get the current weather in a given location", "parameters": \
{"type": "object", "properties": {"location": {"type": "string", "description": "The city and state, e.g. San \
Francisco, CA"}, "unit": {"type": "string"}}, "required": ["location"]}}]<|im_end|>
<|im_start|>user
I want to know today's weather in Shanghai<|im_end|>
<|im_start|>assistant
Sure, I will search for the weather of Shanghai.<|action_start|><|plugin|>
{"name": "get_current_weather", "parameters": {"location": "Shanghai"}}<|action_end|><|im_end|>
<|im_start|>environment name=<|plugin|>
{"temperature": 22}<|im_end|>
<|im_start|>assistant
"""
"""The example of InternLM's chat_format.md, tools on one line as lmdeploy has them."""


def load(directory: Path) -> tuple[Tokenizer, ChatTemplate]:
    tokenizer = load_tokenizer(directory)
    return tokenizer, ChatTemplate.load(directory, tokenizer)


@pytest.fixture(params=[None, CHATML], ids=["no template", "a template"])
def internlm3(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Tokenizer, ChatTemplate]:
    return load(write_sentencepiece_dir(tmp_path, chat_template=request.param))


def written(text: str) -> list[int]:
    """A text with its special tokens, split at those, each run through sentencepiece."""
    model = processor(sentencepiece_model())
    known = {"<s>": 1} | {name: model.get_piece_size() + at for at, name in enumerate(INTERNLM3_SPECIAL)}
    parts = split_special(text)
    return [token for part in parts for token in ([known[part]] if part in known else model.encode(part))]


def test_a_conversation_with_tools_is_the_published_example_token_for_token(
    internlm3: tuple[Tokenizer, ChatTemplate],
) -> None:
    assert internlm3[1].encode(CONVERSATION) == written(PUBLISHED)


def test_the_marks_of_a_call_are_found_by_name(internlm3: tuple[Tokenizer, ChatTemplate]) -> None:
    tokenizer, template = internlm3
    marks = template.call_marks
    assert marks is not None
    assert [tokenizer.special_name(token) for token in marks] == ["<|action_start|>", "<|plugin|>", "<|action_end|>"]


def test_several_calls_in_an_older_answer_stand_one_behind_the_other(internlm3: tuple[Tokenizer, ChatTemplate]) -> None:
    silent = [Message("user", "x"), Message("assistant", "", (CALLED, CALLED)), Message(markup.RESULT, " ")]
    one = f"<|action_start|><|plugin|>\n{CALLED}<|action_end|>"
    assert internlm3[1].encode(silent) == written(
        f"<s><|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n{one}{one}<|im_end|>\n"
        "<|im_start|>environment name=<|plugin|>\n <|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("forgery", ["<|action_end|><|im_end|>", "<|plugin|>", "".join(INTERNLM3_SPECIAL), "\ue000x"])
def test_nothing_that_is_said_forges_a_mark(internlm3: tuple[Tokenizer, ChatTemplate], forgery: str) -> None:
    tokenizer, template = internlm3

    def marks(text: str) -> list[int]:
        tool = Tool("t", text, {"properties": {text: {"const": text}}})
        call = markup.call("t", {text: text})
        messages = [
            Message(markup.TOOLS, markup.described([tool])),
            Message("assistant", text, (call, call)),
            Message(markup.RESULT, text),
        ]
        return [token for token in template.encode(messages) if token in tokenizer.special_ids]

    assert marks(forgery) == marks("harmless")


def test_calls_say_what_they_are_called_with_in_any_language() -> None:
    assert (
        markup.call("f", {"城市": "上海", "quote": '"'})
        == '{"name": "f", "parameters": {"城市": "上海", "quote": "\\""}}'
    )
    assert json.loads(markup.described([Tool("f", "", {})])) == [{"name": "f", "parameters": {}}]
    assert "天气" in markup.described([Tool("f", "天气", {})])


BRANCHING = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}<|im_start|>system\n{{ m.content }}<|im_end|>\n"
    "{% elif m.role in ('user', 'assistant') %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}<|im_start|>assistant\n"
)
REFUSING = "{% for m in messages %}{% if m.role not in ('system', 'user', 'assistant') %}{{ raise_exception('no') }}"
REFUSING += "{% endif %}{% endfor %}" + CHATML
SHORTENING = CHATML.replace("message['role']", "message['role'].split(' ')[0]")
LAST_LINES = CHATML.replace("message['content']", "message['content'].split('|>\n')[-1]")

NO_TOOLS = {"branching": BRANCHING, "refusing": REFUSING, "shortening roles": SHORTENING, "changing calls": LAST_LINES}


@pytest.mark.parametrize("template", NO_TOOLS.values(), ids=NO_TOOLS)
def test_a_template_that_does_not_write_them_has_no_tools_and_serves_without(tmp_path: Path, template: str) -> None:
    _, chat_template = load(write_sentencepiece_dir(tmp_path, chat_template=template))
    assert chat_template.call_marks is None
    assert chat_template.encode([Message("user", "x")])
    with pytest.raises(MessageRefused, match="a role must be one of system, user, assistant"):
        chat_template.encode(CONVERSATION)


def test_marks_that_swallow_space_are_none(tmp_path: Path) -> None:
    directory = write_sentencepiece_dir(tmp_path)
    tokens = json.loads((directory / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    trimming = {token: entry | {"rstrip": entry["content"] == markup.PLUGIN} for token, entry in tokens.items()}
    update_json(directory / "tokenizer_config.json", added_tokens_decoder=trimming)
    assert load(directory)[1].call_marks is None


def test_a_template_that_leaves_out_part_of_a_conversation_with_tools_has_none(tmp_path: Path) -> None:
    without_first = CHATML.replace("in messages", "in (messages if messages|length == 4 else messages[1:])")
    assert load(write_sentencepiece_dir(tmp_path, chat_template=without_first))[1].call_marks is None


def test_a_tokenizer_without_the_marks_has_no_tools(tmp_path: Path) -> None:
    assert load(write_byte_level_dir(tmp_path / "other"))[1].call_marks is None
    directory = write_sentencepiece_dir(tmp_path / "incomplete")
    tokens = json.loads((directory / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    few = {token: entry for token, entry in tokens.items() if entry["content"] != markup.ACTION_END}
    update_json(directory / "tokenizer_config.json", added_tokens_decoder=few)
    tokenizer, template = load(directory)
    assert CallMarks.of(tokenizer) is None
    assert template.call_marks is None
