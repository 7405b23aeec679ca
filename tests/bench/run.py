"""What a run's sections share: the model, the machine's limits, one engine at a time, and what was found so far."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import torch

from service.delivery.local import LocalModel
from service.engine.base import Core
from service.engine.config import ModelConfig, read_config
from service.engine.startup.build import build_core
from service.readiness import engine_config
from service.settings import Settings
from tests.bench.floor import Floor
from tests.bench.limits import Limits, measure_limits
from tests.bench.load import Prompts, Rates, serve
from tests.bench.measures import Measure, Table, measures_of
from tests.bench.peers import free_memory
from tests.bench.results_file import Line
from tests.bench.scale import Scale, ready_model


class Run:
    """Sections print lines with `say` and `beside`, and their targets' ratios with `figure`.

    A model of random weights is written to `directory` when a section first needs one and none is there. `trial_file`:
    where the engine notes what it tries, for the process that comes after one that a kernel has ended.
    """

    def __init__(
        self,
        scale: Scale,
        directory: Path,
        device: torch.device,
        emit: Callable[[Line], None],
        trial_file: Path | None = None,
    ) -> None:
        self.scale, self.device, self.emit = scale, device, emit
        self.dtype = torch.bfloat16 if self.on_gpu else torch.float32
        self.directory, self.trial_file = directory, trial_file
        self.table = Table()
        self.section = "limits"
        self._core: Core | None = None
        self._asked: dict[str, Any] = {}

    @cached_property
    def model_dir(self) -> Path:
        started = time.perf_counter()
        found = ready_model(self.directory, self.scale.shape)
        self.say(model_written_seconds=time.perf_counter() - started)
        return found

    @cached_property
    def config(self) -> ModelConfig:
        return read_config(self.model_dir)

    @cached_property
    def prompts(self) -> Prompts:
        return Prompts(self.config.vocab_size)

    @cached_property
    def limits(self) -> Limits:
        """The machine's; asked for once before any engine is there."""
        found = measure_limits(self.device, self.dtype)
        free_memory()  # the engine measures what is left
        self.say(memory_gb_per_s=found.memory / 1e9, matmul_tflop_per_s=found.matmul / 1e12)
        return found

    @property
    def floor(self) -> Floor:
        """What the model's work takes at those, with weights as the engine is asked to keep them."""
        is_quantized = Settings(**self.settings).quantization != "none"
        return Floor(self.config, self.limits, self.dtype.itemsize, 1 if is_quantized else self.dtype.itemsize)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def settings(self) -> dict[str, Any]:
        """What the benchmark asks of every engine and server of ours; a CPU's small machine has little room."""
        on_cpu = {} if self.on_gpu else {"threads": 1, "kv_cache_tokens": 8192}
        return {"device": self.device.type} | on_cpu | self._asked

    @contextmanager
    def asking(self, **settings: Any) -> Iterator[None]:
        """Have the engine built anew with these settings, and without them afterwards."""
        self.drop_core()
        self._asked = settings
        try:
            yield
        finally:
            self._asked = {}
            self.drop_core()

    @property
    def core(self) -> Core:
        """The native engine, built when a section first needs it."""
        if self._core is None:
            # As the server of the section `web` has it: by the environment's settings.
            config = engine_config(Settings(**self.settings), LocalModel(self.model_dir, "random"))
            config = msgspec.structs.replace(config, trial_file=str(self.trial_file or ""))
            self._core = build_core(config, lambda message: None)
            serve(self._core, self.prompts.spread(2, self.scale.prompts, 2))
        return self._core

    def drop_core(self) -> None:
        """Free the device for others."""
        self._core = None
        free_memory()

    def say(self, **numbers: float) -> None:
        """A line of the section that runs."""
        self.emit({"section": self.section, **{name: round(value, 4) for name, value in numbers.items()}})

    def figure(self, name: str, value: float) -> float:
        """A target's ratio, in a line of its own at once: whoever cuts the section off later does not lose it."""
        self.emit({"section": self.section, "figures": {name: value}})
        return value

    def beside(self, measure: Measure, who: str, figure: float) -> None:
        """What somebody reached, in a line with everybody's figures of this measure so far."""
        self.table.put(measure, who, figure)
        self.emit({"section": self.section, **self.table.line(measure)})

    def requests_beside(self, size: str, value: int, who: str, rates: Rates) -> None:
        """A line for each figure of some requests."""
        for measure, figure in measures_of(rates, size, value):
            self.beside(measure, who, figure)
