"""A request for completions as the use case has it: a chat for each prompt, though none is a conversation."""

from collections.abc import Sequence

from service.api.openai.completions.request import DEFAULT_NEW_TOKENS, CompletionRequest
from service.api.openai.limits import require_a_stream, require_an_end
from service.api.openai.logprobs import reported
from service.chat.endings import FieldNames
from service.chat.form import Form
from service.chat.generation import Chat
from service.chat.verbatim import Verbatim
from service.errors import InvalidRequest


def echoed(body: CompletionRequest, prompts: Sequence[str | list[int]]) -> list[str]:
    """What answers begin with where nothing is reported; the engine says it where something is. Raises InvalidRequest
    for prompts that are no texts."""
    if not body.echo or body.logprobs is not None:
        return []
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if len(texts) < len(prompts):
        raise InvalidRequest(
            "echo gives texts back; send one, or ask for logprobs, which tell its tokens", field="echo"
        )
    return texts


def to_chats(body: CompletionRequest, prompts: Sequence[tuple[str, str | list[int]]]) -> list[Chat]:
    """The wire's fields as the use case has them, for each prompt and the field that it comes from. Raises
    InvalidRequest for fields that exclude each other."""
    require_a_stream(has_options="stream_options" in body.model_fields_set, stream=body.stream)
    form = body.answer_form()
    scores = body.echo and body.logprobs is not None
    if scores:
        require_plain(body, form)
    require_an_end(body.end_is_moved_by, may_call=False, form=form)
    new_tokens = body.max_tokens or DEFAULT_NEW_TOKENS
    said = sum(tokens_about(content) for _, content in prompts) if scores else 0
    logprobs = reported(
        body.logprobs or 0,
        body.n * (said + len(prompts) * new_tokens),
        switch="logprobs",
        is_on=body.logprobs is not None,
        stream=body.stream,
        count_field="logprobs",
    )
    return [
        Chat(
            prompt=Verbatim(content, begins=body.add_special_tokens),
            sampling=body.sampling(),
            max_new_tokens=new_tokens,
            or_what_fits=body.max_tokens is None,
            stop=body.stop,
            stop_ids=body.stop_token_ids,
            ignore_eos=body.ignore_eos,
            form=form,
            logprobs=logprobs,
            echo=scores,
            fields=FieldNames(prompt=field, max_new_tokens="max_tokens", prompt_is="prompt"),
        )
        for field, content in prompts
    ]


def tokens_about(content: str | list[int]) -> int:
    """Of a prompt: as many as text of any language seldom has more of."""
    return len(content) // 2 if isinstance(content, str) else len(content)


def require_plain(body: CompletionRequest, form: Form | None) -> None:
    """Raises InvalidRequest for what would take a prompt that is reported, which the model says again, for its answer's
    beginning."""
    penalties = [name for name in ("frequency_penalty", "presence_penalty") if getattr(body, name) != 0]
    for field in [form.name, *penalties] if form else penalties:
        raise InvalidRequest(f"echo with logprobs goes without {field}; send one of them", field=field)
