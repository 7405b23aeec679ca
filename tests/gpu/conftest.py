"""The native engine on a GPU, on a small random model of the served head layout, and its oracle."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from service.engine.base import Core, EngineConfig
from service.engine.model import Model
from service.engine.startup.build import build_core
from tests.bench.scale import FULL
from tests.support.checkpoints import write_checkpoint
from tests.support.plans import load_native

HAS_GPU = torch.cuda.is_available()
SHAPE = replace(FULL.shape, hidden=1024, intermediate=2560, layers=4, vocab=4096, scale=0.05)
"""InternLM3-8B's heads, and little else of it."""
Make = Callable[..., Core]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each test is skipped under its own name, so that a report counts what was not run."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not HAS_GPU:
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), SHAPE)


@pytest.fixture(scope="session")
def exact(model_dir: Path) -> Model:
    """The same weights in fp32 on the CPU."""
    return load_native(model_dir, torch.float32)


@pytest.fixture
def make(model_dir: Path) -> Iterator[Make]:
    """Builds cores with settings of the test's; frees the GPU after it."""

    def build(**settings: object) -> Core:
        fields: dict[str, object] = {"kind": "native", "model_dir": str(model_dir), "device": "cuda"}
        fields |= {"max_running": 32, "kv_cache_tokens": 131_072, "gpu_memory_fraction": 0.5}
        return build_core(EngineConfig(**(fields | settings)), lambda message: None)  # type: ignore[arg-type]

    yield build
    gc.collect()  # a core that a test left in a cycle holds gigabytes
    torch.cuda.empty_cache()
