"""The same requests through others: transformers' `generate()` one by one, and its continuous batching."""

import gc
from pathlib import Path
from typing import Any

import torch

from service.engine.base import Core, EngineConfig, GenerationRequest
from service.engine.startup.build import build_core
from tests.bench.load import Prompts, Rates, Timeline, rates_of, serve

CONTINUOUS_BATCHING_SETTINGS = {"auto_switch_to_flash": False}
"""What transformers' continuous batching is not left to its defaults in; the benchmark prints it. Left to switch to
flash attention by itself, it asks a hub for kernels, which a machine may not reach."""


def reference_engine(model_dir: Path, device: torch.device, prompts: Prompts) -> Core:
    """transformers as the tutorial uses it, warmed up."""
    config = EngineConfig(kind="reference", model_dir=str(model_dir), device=device.type, threads=1)
    core = build_core(config, lambda message: None)
    serve(core, [prompts.request(8, 2)])
    return core


class ContinuousBatching:
    """transformers' continuous batching, greedy. Raises whatever transformers raises: it may refuse a device."""

    def __init__(self, model_dir: Path, device: torch.device) -> None:
        from service.engine.generate import load_model

        on_gpu = device.type == "cuda"
        self._model: Any = load_model(model_dir, device, torch.bfloat16 if on_gpu else torch.float32)
        # Unset sizes take all of a CPU's memory.
        self._sizes = {} if on_gpu else {"num_blocks": 32, "max_batch_tokens": 256}

    def warmed_up(self, warm_up: list[GenerationRequest], requests: list[GenerationRequest]) -> Rates:
        """What `requests` see of a manager that was made for such ones and has served as many."""
        self.forget()
        self.serve(warm_up)
        return self.serve(requests)

    def serve(self, requests: list[GenerationRequest]) -> Rates:
        """All at once, from when they are handed in: neither starting nor stopping its thread is counted.

        Raises RuntimeError when some did not get all of their tokens: it ends with what it has when its thread dies.
        """
        from transformers import ContinuousBatchingConfig, GenerationConfig

        wanted = requests[0].max_new_tokens
        outputs = self._model.generate_batch(
            [request.prompt_ids for request in requests],
            GenerationConfig(max_new_tokens=wanted, do_sample=False, eos_token_id=-1),
            ContinuousBatchingConfig(**CONTINUOUS_BATCHING_SETTINGS, **self._sizes),
            record_timestamps=True,
            progress_bar=False,
            persistent_manager=True,
        ).values()
        lines = [Timeline(out.created_time, out.generated_tokens, out.timestamps[:wanted]) for out in outputs]
        whole = sum(len(line.tokens) == wanted for line in lines)
        if whole < len(requests):
            raise RuntimeError(f"continuous batching finished {whole} of {len(requests)} requests")
        return rates_of(lines, max(line.times[-1] for line in lines) - min(line.start for line in lines))

    def forget(self) -> None:
        """Drop the manager, which is as large as its first requests need; the next one is made for the next ones."""
        self._model.destroy_cached_continuous_batching_manager()


def free_memory() -> None:
    """Give a dropped engine's memory back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
