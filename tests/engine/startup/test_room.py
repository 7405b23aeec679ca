"""Room for a model on a GPU that only exists as two numbers: refused at once, waited for, or given up by name."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from service.engine.base import EngineConfig
from service.engine.startup.predecessor import NEIGHBOUR_SECONDS, POLL_SECONDS, PREDECESSOR_SECONDS
from service.engine.startup.room import OWN_CONTEXT_BYTES, require_room
from service.errors import ConfigurationError, EngineFailed
from tests.support.checkpoints import Shape, write_checkpoint

GIB = 1 << 30
SHAPE = Shape()


@pytest.fixture
def config(tmp_path: Path) -> EngineConfig:
    write_checkpoint(tmp_path, SHAPE)
    return EngineConfig(kind="native", model_dir=str(tmp_path), max_context=512, max_running=2)


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def room(config: EngineConfig, readings: Iterator[int] | list[int], total: int = 8 * GIB) -> tuple[Any, Clock]:
    clock, free = Clock(), iter(readings)
    return require_room(config, 2, lambda: (next(free), total), clock, clock.sleep), clock


def test_a_model_that_fits_is_let_in_at_once(config: EngineConfig) -> None:
    fit, clock = room(config, [7 * GIB])
    assert clock.now == 0
    assert fit.tokens > 512


def test_a_predecessors_memory_is_waited_for(config: EngineConfig) -> None:
    _, clock = room(config, [0, 0, 0, 7 * GIB])
    assert clock.now == 3 * POLL_SECONDS


def almost_whole(config: EngineConfig) -> int:
    """Free bytes with one too few for a request of the whole context."""
    spare = -room(config, [7 * GIB])[0].missing
    return int(7 * GIB - spare - 1)


def test_it_is_waited_for_where_only_the_whole_context_has_no_room_beside_it(config: EngineConfig) -> None:
    fit, clock = room(config, [almost_whole(config), 7 * GIB])
    assert clock.now == POLL_SECONDS
    assert fit.is_whole


def test_one_that_stays_is_lived_with_where_a_shorter_context_has_room(config: EngineConfig) -> None:
    fit, clock = room(config, iter(lambda: almost_whole(config), 1))
    assert clock.now == NEIGHBOUR_SECONDS
    assert fit.is_enough
    assert not fit.is_whole


def test_a_predecessor_that_never_goes_is_named_after_a_minute(config: EngineConfig) -> None:
    with pytest.raises(EngineFailed, match=r"another process holds the GPU's memory: .* weights"):
        room(config, iter(lambda: 0, 1))


def test_the_wait_is_bounded(config: EngineConfig) -> None:
    clock = Clock()
    with pytest.raises(EngineFailed):
        require_room(config, 2, lambda: (0, 8 * GIB), clock, clock.sleep)
    assert PREDECESSOR_SECONDS <= clock.now <= PREDECESSOR_SECONDS + POLL_SECONDS


def test_a_model_too_large_for_the_empty_gpu_is_refused_with_the_gpu_that_helps(config: EngineConfig) -> None:
    with pytest.raises(ConfigurationError, match=r"does not fit the GPU: .*; no setting makes it fit: use a GPU of 2"):
        room(config, [GIB // 2], total=GIB // 2)


def test_a_cache_too_large_for_the_gpu_is_refused_before_the_weights_are_read_with_the_size_that_fits(
    config: EngineConfig,
) -> None:
    asked = msgspec.structs.replace(config, kv_cache_tokens=10**12)
    with pytest.raises(ConfigurationError, match="the cache asked for, 1,000,000,000,000 tokens") as refused:
        room(asked, [7 * GIB])
    tokens = int(str(refused.value).partition("set INTERNLM_KV_CACHE_TOKENS=")[2].partition(",")[0])
    fit, _ = room(msgspec.structs.replace(config, kv_cache_tokens=tokens), [8 * GIB - OWN_CONTEXT_BYTES])
    assert fit.tokens == tokens


def test_this_processs_own_context_is_not_held_against_it(config: EngineConfig) -> None:
    """The fit counts a CUDA context as still to come; it has come already."""
    fit, _ = room(config, [4 * GIB])
    assert fit.usable == int(4 * GIB + OWN_CONTEXT_BYTES - 8 * GIB * (1 - config.gpu_memory_fraction))


def test_a_directory_that_is_no_model_is_a_configuration_error(tmp_path: Path) -> None:
    config = EngineConfig(kind="native", model_dir=str(tmp_path))
    with pytest.raises(ConfigurationError, match=str(tmp_path)):
        room(config, [7 * GIB])
