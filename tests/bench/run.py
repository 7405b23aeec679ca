"""What a run's sections share: the model, the machine's limits, one engine at a time, and what was found so far."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from service.delivery.local import LocalModel
from service.engine.base import Core
from service.engine.build import build_core
from service.engine.config import read_config
from service.readiness import engine_config
from service.settings import Settings
from tests.bench.floor import Floor
from tests.bench.limits import measure_limits
from tests.bench.load import Prompts, Rates, serve
from tests.bench.measures import Measure, Table, measures_of
from tests.bench.peers import free_memory
from tests.bench.results_file import Line
from tests.bench.scale import Scale


class Run:
    """Sections print lines with `say` and `beside`, and their targets' ratios with `figure`."""

    def __init__(self, scale: Scale, model_dir: Path, device: torch.device, emit: Callable[[Line], None]) -> None:
        self.scale, self.model_dir, self.device, self.emit = scale, model_dir, device, emit
        self.config = read_config(model_dir)
        self.prompts = Prompts(self.config.vocab_size)
        self.table = Table()
        self.section = "limits"
        self._core: Core | None = None

    @cached_property
    def floor(self) -> Floor:
        """The limits are measured once, before any engine is there."""
        dtype = torch.bfloat16 if self.on_gpu else torch.float32
        found = measure_limits(self.device, dtype)
        free_memory()  # the engine measures what is left
        self.say(memory_gb_per_s=found.memory / 1e9, matmul_tflop_per_s=found.matmul / 1e12)
        return Floor(self.config, found, dtype.itemsize)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def settings(self) -> dict[str, Any]:
        """What the benchmark asks of every engine and server of ours; a CPU's small machine has little room."""
        return {"device": self.device.type} | ({} if self.on_gpu else {"threads": 1, "kv_cache_tokens": 8192})

    @property
    def core(self) -> Core:
        """The native engine, built when a section first needs it."""
        if self._core is None:
            # As the server of the section `web` has it: by the environment's settings.
            config = engine_config(Settings(**self.settings), LocalModel(self.model_dir, "random"))
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
