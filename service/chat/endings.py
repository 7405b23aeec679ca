"""What the way in which an answer ended means to its client."""

from typing import NamedTuple

from service.chat.stopwatch import Stopwatch
from service.engine.base import Finish, FinishReason
from service.errors import DeadlineExceeded, EngineFailed, InvalidRequest, NotReady, QueueFull, ServiceError
from service.lifecycle import RETRY_AFTER_SECONDS


class FieldNames(NamedTuple):
    """What a client calls the fields of its request: a complaint must name what it can change."""

    prompt: str = "prompt"
    max_new_tokens: str = "max_new_tokens"
    prompt_is: str = "conversation"


OURS = FieldNames()
"""Those of /v1/chat."""


def reason_of(watch: Stopwatch, request_timeout: float, fields: FieldNames, held_by: str) -> str:
    """The answer's finish_reason; raises the error that any other ending means. `held_by`: the field that the answer's
    grammar comes from."""
    finish = watch.finish
    if finish is None:
        raise EngineFailed("the engine ended the answer without a reason")
    if finish.reason in (FinishReason.STOP, FinishReason.LENGTH):
        return finish.reason.value
    if finish.of_grammar:
        raise InvalidRequest(finish.message, field=held_by)
    raise _error(finish, watch, request_timeout, fields)


def too_late(watch: Stopwatch, request_timeout: float, fields: FieldNames) -> DeadlineExceeded:
    """The error of an answer that was not done in time: where the time went, and what would help."""
    limit = f"{request_timeout:g} s, the most a request may take"
    waited = f"{watch.queue_seconds or 0:.0f} s in the queue"
    if watch.finish is not None and watch.finish.queued:
        return DeadlineExceeded(
            f"the request waited {waited} and was not begun within {limit}: more is asked of the service than it "
            "can do. Come back later, or send fewer requests at once."
        )
    if watch.tokens:
        return DeadlineExceeded(
            f"the answer was not done after {limit}: it had {watch.tokens} tokens, after {waited}. "
            f"Ask for fewer tokens ({fields.max_new_tokens})."
        )
    return DeadlineExceeded(
        f"the answer had not begun after {limit}. Shorten the {fields.prompt_is}, or come back later."
    )


def _error(finish: Finish, watch: Stopwatch, request_timeout: float, fields: FieldNames) -> ServiceError:
    if finish.reason is FinishReason.DEADLINE:
        return too_late(watch, request_timeout, fields)
    if finish.reason is FinishReason.REJECTED and finish.retry_after:
        return QueueFull(finish.message, retry_after=finish.retry_after)
    if finish.reason is FinishReason.REJECTED:
        return InvalidRequest(finish.message, field=fields.prompt)
    if finish.retry_after:
        return NotReady(finish.message, retry_after=finish.retry_after)
    return EngineFailed(finish.message or "the engine failed", retry_after=RETRY_AFTER_SECONDS)
