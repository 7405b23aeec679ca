"""Every setting of the server, declared once: `INTERNLM_*` in the environment, nothing else.

The command line has subcommands, no per-setting flags. A name that starts with `INTERNLM_` and is no setting
refuses to start: a typo must not serve with a default.
"""

import re
import tempfile
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.engine.defaults import (
    LARGE_GPU_BYTES,
    RUNNING_ON_CPU,
    RUNNING_ON_GPU,
    STEP_TOKENS_ON_CPU,
    STEP_TOKENS_ON_GPU,
    STEP_TOKENS_ON_LARGE_GPU,
    Quantization,
)

PREFIX = "INTERNLM_"
SETTINGS = SettingsConfigDict(
    env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True, allow_inf_nan=False
)
"""Of the server's and the download's settings alike. No number is infinite: no timer counts to it."""
CONTEXT_CAP = 32_768
"""Beyond 32,768 positions InternLM3's dynamic-NTK RoPE depends on the longest sequence seen, so that one
request would change another's answer. Up to it the frequencies are constant (transformers, `rope_type` dynamic)."""
ORIGIN = r"(\*|[a-z][a-z0-9+.-]*://[a-z0-9.:\[\]_-]+)"
ORIGINS = rf"^({ORIGIN}(\s*,\s*{ORIGIN})*)?$"
"""For the chart, which refuses at template time what would end the server. Extensions and desktop apps have schemes of
their own."""
NAMELESS_PORTS = {"http": ":80", "https": ":443"}
"""Browsers leave them out."""


def _one_by_one(origins: str) -> list[str]:
    return [origin for origin in map(str.strip, origins.split(",")) if origin]


def _checked_origins(origins: str) -> str:
    """A validator: origins are compared to the letter with what browsers send, so another spelling would be none."""
    for origin in _one_by_one(origins):
        nameless = NAMELESS_PORTS.get(origin.partition("://")[0])
        if not re.fullmatch(ORIGIN, origin) or (nameless and origin.endswith(nameless)):
            raise PydanticCustomError(
                "no_origin",
                "{origin} is no origin as browsers spell it: scheme and host in lower case, and a port unless it is "
                "the scheme's own, as in https://chat.example.com",
                {"origin": origin},
            )
    return origins


def _checked_directory(directory: Path) -> Path:
    """A validator: with a line's end that came along with it, the name would be another directory's, and be made."""
    if str(directory) != str(directory).strip():
        raise PydanticCustomError("blank_around", "the name begins or ends with a blank or a line feed")
    try:
        directory.expanduser()
    except RuntimeError:
        raise PydanticCustomError("no_home", "nobody here has the home directory that ~ stands for") from None
    return directory


Directory = Annotated[Path, AfterValidator(_checked_directory)]
"""One that may be written with ~ for somebody's home."""


class Settings(BaseSettings):
    """What an operator can set. Units are in the names or the descriptions."""

    model_config = SettingsConfigDict(**SETTINGS)

    host: str = Field("0.0.0.0", description="Address the API listens on.")  # noqa: S104
    port: int = Field(6006, ge=0, le=65535, description="Port of the API.")
    metrics_port: int = Field(6007, ge=0, le=65535, description="Port of /metrics; 0 switches it off.")

    model_id: str = Field(
        "",
        description="Name under which the model is served; unset: the repository's it came from, or its directory's.",
    )
    model_dir: Directory | None = Field(
        None, description="Directory with config.json, safetensors, tokenizer. Unset, no GPU: the small real model."
    )
    cache_dir: Directory = Field(Path("~/.cache/internlm-chat"), description="Where the small real model is kept.")

    engine: Literal["native", "reference", "fake"] = Field(
        "native", description="native: continuous batching. reference: transformers, one at a time. fake: an echo."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where the model runs.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="auto: bfloat16 on Ampere and later, float16 on older GPUs, float32 on a CPU."
    )
    quantization: Quantization = Field(
        "none",
        description="int8: the weights' matrices are rounded to eight bits when they are read, which halves their "
        "memory and, on a GPU, what a decode reads; a CPU gets slower. The native engine's alone.",
    )
    threads: int = Field(0, ge=0, description="CPU threads of the engine; 0 takes every core it may use.")
    max_context: int = Field(
        CONTEXT_CAP, ge=16, le=CONTEXT_CAP, description="Most tokens of prompt and answer; the model may have less."
    )
    max_running: int = Field(
        0,
        ge=0,
        le=1024,
        description=f"Requests decoded at once; 0: {RUNNING_ON_GPU} on a GPU, {RUNNING_ON_CPU} on a CPU.",
    )
    max_queue: int = Field(256, ge=0, description="Requests that may wait; one more is answered 429.")
    step_tokens: int = Field(
        0,
        ge=0,
        description="Most tokens one engine step computes: the prefill chunk; "
        f"0: {STEP_TOKENS_ON_GPU} on a GPU, {STEP_TOKENS_ON_LARGE_GPU} on one of {LARGE_GPU_BYTES >> 30} GiB or more, "
        f"{STEP_TOKENS_ON_CPU} on a CPU.",
    )
    kv_cache_tokens: int = Field(0, ge=0, description="Tokens the KV cache holds; 0: what fits the memory.")
    gpu_memory_fraction: float = Field(0.9, gt=0, le=1, description="Share of the GPU's memory the engine may use.")
    prefix_cache: bool = Field(True, description="Reuse KV blocks of equal prompt beginnings.")

    request_timeout: float = Field(300, gt=0, description="Seconds a request may take, queue included; then 504.")
    sleep_after: float = Field(
        0,
        ge=0,
        description="Seconds without a request after which the engine ends and frees the GPU; the next request starts "
        "it again and waits for it. 0: never.",
    )
    drain_delay: float = Field(2, ge=0, description="Seconds after SIGTERM in which new connections still get a 503.")
    step_timeout: float = Field(60, gt=0, description="Seconds a step may take before the engine counts as stuck.")
    max_body_bytes: int = Field(4_194_304, ge=1024, description="Most bytes of a request body; more is answered 413.")
    body_timeout: float = Field(20, gt=0, description="Seconds in which a request body must have arrived.")

    api_keys_file: Path | None = Field(
        None, description="File of API keys, one a line, that /v1 asks for (Authorization: Bearer); unset: none."
    )
    cors_origins: Annotated[str, AfterValidator(_checked_origins)] = Field(
        "",
        description="Origins whose pages may ask from a browser, separated by commas, or *; unset: this server's own.",
        json_schema_extra={"pattern": ORIGINS},
    )

    ignore_tools: bool = Field(
        False,
        description="Answer in text where a client offers tools, as Open WebUI does by itself. Off: the model may call "
        "one; where its format has none, such requests are refused.",
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="auto: console on a terminal, json elsewhere."
    )
    log_prompts: bool = Field(False, description="Log prompts and answers. Off: no log line ever holds either.")
    run_dir: Path | None = Field(
        None, description="Directory of the engine's socket; unset: a new private one. Set by the gunicorn master."
    )

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.port and self.port == self.metrics_port:
            raise PydanticCustomError(
                "same_port",
                "{prefix}METRICS_PORT and {prefix}PORT are both {port}: the metrics have a port of their own, so that "
                "nothing which exposes the API exposes them; 0 switches them off",
                {"prefix": PREFIX, "port": self.port},
            )
        return self

    @model_validator(mode="after")
    def _engine_quantizes(self) -> Self:
        if self.quantization != "none" and self.engine != "native":
            raise PydanticCustomError(
                "not_quantized",
                "{prefix}QUANTIZATION={quantization} is the native engine's: leave it out, or set "
                "{prefix}ENGINE=native instead of {engine}",
                {"prefix": PREFIX, "quantization": self.quantization, "engine": self.engine},
            )
        return self

    @property
    def drain_timeout(self) -> float:
        """Seconds after SIGTERM in which running answers may finish: the delay, and the longest a request can take."""
        return self.request_timeout + self.drain_delay

    @property
    def allowed_origins(self) -> list[str]:
        """`cors_origins` one by one."""
        return _one_by_one(self.cors_origins)

    @property
    def cache(self) -> Path:
        """`cache_dir` with `~` resolved."""
        return self.cache_dir.expanduser()


def private_run_dir() -> Path:
    """A new directory only this user can enter, for the engine's socket."""
    return Path(tempfile.mkdtemp(prefix="internlm-chat-"))
