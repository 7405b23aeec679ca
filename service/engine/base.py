"""The engine's nouns and its interface. A request ends in exactly one `Finish`; nothing here imports torch.

Everything that crosses the socket between web worker and engine process is a `msgspec.Struct` of this file.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from service.engine.defaults import BLOCK_TOKENS, Quantization

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How the next token is drawn. temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 switch that filter off.
    `logit_bias`: ids of tokens, each once and at most MOST_BIASED of them, and what is added to their logits.

    The order is that of transformers' processors: repetition penalty (over prompt and answer), temperature, top_k,
    top_p, min_p. What is added comes right after the repetition penalty, which would make more or less of it, and then
    frequency and presence penalty, over the answer alone.
    """

    temperature: float = 1.0
    top_k: int = 40
    top_p: float = 0.8
    min_p: float = 0.0
    repetition_penalty: float = 1.005
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt to answer. `deadline` is a reading of `time.monotonic()`, which Linux keeps machine-wide.

    `grammar`: what the answer must keep to, as `grammars.schema` writes it; empty for nothing. The answer ends with one
    of `stop_ids` when it is complete, and not before. `logprobs`: each token comes with its `Logprobs`, and those of so
    many of the likeliest ones; None: without. `forced`: tokens that the answer begins with, whatever the model would
    say: of a text that is there already, they come with their `Logprobs`. None of them ends it. Not with a grammar.
    """

    id: str
    prompt_ids: list[int]
    max_new_tokens: int
    stop_ids: list[int]
    deadline: float
    sampling: SamplingParams = msgspec.field(default_factory=SamplingParams)
    grammar: str = ""
    logprobs: int | None = None
    forced: list[int] = []


class FinishReason(StrEnum):
    """Why a request ended."""

    STOP = "stop"  # the model said so, with one of `stop_ids`
    LENGTH = "length"  # max_new_tokens reached
    CANCELLED = "cancelled"  # the client went away, or a stop string was found
    DEADLINE = "deadline"  # took longer than it may
    REJECTED = "rejected"  # the queue was full, the request can never fit, or its grammar can't be kept to
    ERROR = "error"  # the engine failed


class Logprobs(msgspec.Struct, frozen=True):
    """The natural logarithm of a token's probability, and the likeliest tokens in its place, in order, with theirs: as
    the model gives them, before bias, penalties, temperature, filters and grammar."""

    own: float
    tokens: list[int] = []
    values: list[float] = []


class Token(msgspec.Struct, frozen=True, tag=True):
    """One new token. `queue_time` (seconds) and `cached_tokens` are true of the request and sent with the first token.

    A stop id is sent too, as the last token before its Finish: it counts as generated and carries no text.
    """

    id: str
    token: int
    queue_time: float = 0.0
    cached_tokens: int = 0
    logprobs: Logprobs | None = None


class Finish(msgspec.Struct, frozen=True, tag=True):
    """The one terminal event of a request. `message` explains rejected and error; `retry_after`, in seconds, is not 0
    where nothing was done for the request, and it may be sent again.

    `queued`: its deadline passed while it still waited for its turn. `of_grammar`: what the request's grammar asks for
    cannot be done.
    """

    id: str
    reason: FinishReason
    message: str = ""
    retry_after: int = 0
    queued: bool = False
    of_grammar: bool = False


Event = Token | Finish


class GpuMemory(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes on one GPU: of the device (NVML) and of this process (torch's allocator)."""

    index: int
    name: str
    total: int
    used: int
    allocated: int
    reserved: int


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine is doing now. Totals count since its start."""

    running: int = 0
    waiting: int = 0
    kv_blocks_total: int = 0
    kv_blocks_used: int = 0  # held by running requests
    kv_blocks_cached: int = 0  # free for use, but holding a prefix that may be found again
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generation_tokens: int = 0
    steps: int = 0
    gpus: list[GpuMemory] = []


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What was loaded, fixed from then on. `degraded` names every fast path that was replaced by a slower one."""

    kind: str
    device: str
    dtype: str
    quantization: str = "none"
    max_context: int
    max_running: int
    vocab_size: int
    versions: dict[str, str] = {}
    degraded: list[str] = []
    startup_seconds: dict[str, float] = {}
    weights_bytes_per_second: float = 0.0  # at which they were read; 0 for an engine without any


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the engine is built from; fields named as in `Settings` mean what that says of them."""

    kind: str
    model_dir: str
    manifest: str = ""  # digest of what lies there; empty: not known
    device: str = "auto"
    dtype: str = "auto"
    quantization: Quantization = "none"
    threads: int = 0
    max_context: int = 32_768
    max_running: int = 0
    max_queue: int = 256
    step_tokens: int = 0
    block_size: int = BLOCK_TOKENS
    kv_cache_tokens: int = 0
    gpu_memory_fraction: float = 0.9
    prefix_cache: bool = True
    step_timeout: float = 60.0
    log_level: str = "info"
    log_format: str = "json"
    trial_file: str = ""  # in the run directory, set by the engine process; see kernels.trials. Empty: nothing is noted


class EngineState(StrEnum):
    """Where an engine is in its life."""

    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    ASLEEP = "asleep"  # nobody asked for long, so its process has ended; a request starts it again
    WAKING = "waking"  # it is being started again for a request
    STUCK = "stuck"  # a step or the whole process makes no progress
    RESTARTING = "restarting"  # it died and is being started again
    FAILED = "failed"  # dead beyond repair
    STOPPED = "stopped"

    @property
    def takes_requests(self) -> bool:
        """Whether a request is served, at once or after a wait."""
        return self in {EngineState.READY, EngineState.ASLEEP, EngineState.WAKING}


class EngineStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot for probes and metrics; taking it costs nothing and never waits."""

    state: EngineState
    reason: str = ""
    info: EngineInfo | None = None
    stats: EngineStats = msgspec.field(default_factory=EngineStats)
    restarts: int = 0


class Engine(Protocol):
    """What the web side knows of an engine."""

    @property
    def status(self) -> EngineStatus:
        """The latest snapshot."""
        ...

    async def start(self) -> None:
        """Bring the engine up and return once it can generate. Raises EngineFailed when it cannot."""
        ...

    def submit(self, request: GenerationRequest) -> AsyncGenerator[Event]:
        """Events of one request: tokens, then exactly one Finish. Closing the iterator early cancels the request.

        Never raises for what the engine decides (a full queue is a Finish with reason REJECTED).
        """
        ...

    async def stop(self) -> None:
        """End the engine; requests still open get a Finish with reason ERROR."""
        ...


class StepFailed(Exception):
    """A step broke, and the device's state is unknown. `events` holds what is still to be sent off, among it the
    Finish of every request that was open. The cause is chained.

    `unfinished`, steps that were in flight, lives as long as the error: torch asks the device before it frees pinned
    memory, in a destructor, where the answer of a broken one aborts the process (2.13, CachingHostAllocator)."""

    def __init__(self, message: str, events: list[Event], unfinished: Sequence[object] = ()) -> None:
        super().__init__(message)
        self.events = events
        self.unfinished = unfinished


class Core(Protocol):
    """The synchronous heart inside the engine process: the worker feeds it, steps it and sends off its events."""

    @property
    def info(self) -> EngineInfo: ...

    @property
    def idle(self) -> bool:
        """True when a step would have nothing to do."""
        ...

    def add(self, request: GenerationRequest) -> list[Event]:
        """Take a request in. Returns [] or its Finish with reason REJECTED."""
        ...

    def cancel(self, request_id: str) -> list[Event]:
        """Stop a request and free what it holds. Returns its Finish, or [] if it is unknown or has ended."""
        ...

    def step(self) -> list[Event]:
        """Do one step of work for all requests; blocks for as long as it takes.

        Raises StepFailed when the step broke; every open request has ended then.
        """
        ...

    def stats(self) -> EngineStats: ...


class Matcher(Protocol):
    """Where an answer stands in its grammar. `problem` says why it can't go on, and is empty while it can; `is_ours`:
    it was the engine that went wrong, and not the grammar."""

    @property
    def problem(self) -> str: ...

    @property
    def is_ours(self) -> bool: ...

    def advance(self, token: int) -> None:
        """The answer goes on with `token`."""
        ...


Allowed = Callable[[list[Any]], "NDArray[np.uint8]"]
"""What each of some matchers [N] of one kind may go on with: [N, bytes], a bit a token, the lowest first."""


class MatchingCore(Core, Protocol):
    """A core whose answers keep to grammars."""

    def add(self, request: GenerationRequest, matcher: Matcher | None = None) -> list[Event]:
        """Take a request in, with its compiled grammar if it has one. Returns [] or its Finish with reason REJECTED."""
        ...
