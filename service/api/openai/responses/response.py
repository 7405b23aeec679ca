"""The wire models of a response: what was asked for, as it repeats it, and what was answered.

Sources: https://platform.openai.com/docs/api-reference/responses/object, and https://www.openresponses.org, by which
every field is there, also where it has nothing to say.
"""

from typing import Any, Literal

from pydantic import BaseModel

from service.chat.logprobs import TokenReport

Status = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputText(BaseModel):
    """The text of an answer; with `logprobs`, for a client that asked for them."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[None] = []
    logprobs: list[TokenReport] = []


class OutputMessage(BaseModel):
    """What an answer says."""

    id: str
    type: Literal["message"] = "message"
    status: Status
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class OutputCall(BaseModel):
    """The call of a tool that the client is asked to make. Its result goes into a function_call_output with this
    `call_id`. `arguments`: the text of a JSON object, unless the answer was cut."""

    id: str
    type: Literal["function_call"] = "function_call"
    status: Status
    call_id: str
    name: str
    arguments: str


class InputDetails(BaseModel):
    """Of the prompt's tokens, how many were found in the prefix cache. To keep some there costs nothing."""

    cached_tokens: int
    cache_write_tokens: Literal[0] = 0


class OutputDetails(BaseModel):
    """What a model thinks is a part of its answer here, and not counted apart."""

    reasoning_tokens: Literal[0] = 0


class ResponseUsage(BaseModel):
    """What the answer cost, in tokens."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails = OutputDetails()
    total_tokens: int


class Incomplete(BaseModel):
    """Why an answer is cut."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class Failure(BaseModel):
    """Why an answer failed half-way."""

    code: str
    message: str


class NoReasoning(BaseModel):
    """There is none apart from the answer."""

    effort: None = None
    summary: None = None


class Asked(BaseModel):
    """What was asked for."""

    instructions: str | None
    max_output_tokens: int | None
    temperature: float
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    top_logprobs: int
    text: dict[str, Any]
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    metadata: dict[str, str]
    user: str | None
    safety_identifier: str | None


class ModelResponse(Asked):
    """An answer, so far or whole. Nothing is kept of it."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Status = "in_progress"
    model: str
    output: list[OutputMessage | OutputCall] = []
    incomplete_details: Incomplete | None = None
    error: Failure | None = None
    usage: ResponseUsage | None = None
    background: Literal[False] = False
    max_tool_calls: None = None
    parallel_tool_calls: Literal[False] = False
    previous_response_id: None = None
    prompt_cache_key: None = None
    reasoning: NoReasoning = NoReasoning()
    service_tier: Literal["default"] = "default"
    store: Literal[False] = False
    truncation: Literal["disabled"] = "disabled"
