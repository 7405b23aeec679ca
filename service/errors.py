"""Every error the service answers with.

ServiceError                  500  what all have in common: status, code, message, field, retry_after
├── InvalidRequest            400  a field's value cannot be served
│   ├── ContextTooLong        400  prompt and answer do not fit the context
│   ├── ModelNotFound         404  another model than the one that is served is asked for
│   ├── MessageRefused        400  the model's chat template takes no such message, or no such order of them
│   ├── BodyTooLarge          413  more bytes than a request may have
│   ├── BodyTimeout           408  the body did not arrive in time
│   └── UnsupportedMediaType  415  not application/json
├── Unauthorized             401  no API key, or none that is known
├── QueueFull                 429  as many requests wait as may wait
├── NotReady                  503  starting, loading, draining or failed
├── DeadlineExceeded          504  the answer took longer than a request may take
├── EngineFailed              503  the engine died or broke while it worked on the request
└── ConfigurationError             a setting cannot work; refuses to start, never sent over HTTP
    └── UnknownModel               the model is not one that this service can compute
"""


class ServiceError(Exception):
    """An error with an HTTP status, a stable code and a sentence for the reader."""

    status = 500
    code = "internal_error"

    def __init__(self, message: str, *, field: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.message = _sendable(message)
        self.field = None if field is None else _sendable(field)
        self.retry_after = retry_after


class InvalidRequest(ServiceError):
    """A field's value cannot be served."""

    status = 400
    code = "invalid_request"


class ContextTooLong(InvalidRequest):
    """Prompt and answer do not fit the context."""

    code = "context_too_long"


class MessageRefused(InvalidRequest):
    """The model's chat template takes no such message, or no such order of them.

    `index`: which message of the conversation, from 0; None: all together.
    """

    code = "message_refused"

    def __init__(self, message: str, index: int | None) -> None:
        super().__init__(message)
        self.index = index


class ModelNotFound(InvalidRequest):
    """Another model than the one that is served is asked for."""

    status = 404
    code = "model_not_found"


class BodyTooLarge(InvalidRequest):
    """More bytes than a request may have."""

    status = 413
    code = "body_too_large"


class BodyTimeout(InvalidRequest):
    """The body did not arrive in time."""

    status = 408
    code = "body_timeout"


class UnsupportedMediaType(InvalidRequest):
    """The body is not application/json."""

    status = 415
    code = "unsupported_media_type"


class Unauthorized(ServiceError):
    """No API key, or none that is known."""

    status = 401
    code = "unauthorized"


class QueueFull(ServiceError):
    """As many requests wait as may wait."""

    status = 429
    code = "queue_full"


class NotReady(ServiceError):
    """The model does not answer now: starting, loading, draining or failed."""

    status = 503
    code = "not_ready"


class DeadlineExceeded(ServiceError):
    """The answer took longer than a request may take."""

    status = 504
    code = "deadline_exceeded"


class EngineFailed(ServiceError):
    """The engine died or broke while it worked on the request."""

    status = 503
    code = "engine_failed"


class ConfigurationError(ServiceError):
    """A setting cannot work."""

    code = "configuration_error"


class UnknownModel(ConfigurationError):
    """The model is not one that this service can compute."""

    code = "unknown_model"


def _sendable(text: str) -> str:
    """What a client is told may quote what it sent: half a surrogate pair, say."""
    return text.encode("utf-8", "replace").decode()


def first_line(error: BaseException) -> str:
    """What an error says; its type where it says nothing. CUDA adds further lines, which are for a debugger."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
