"""One transformers `generate()` call as a stream of tokens that can be stopped. Only the reference engine uses it."""

import queue
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging as transformers_logging

from service.engine.base import Allowed, GenerationRequest, Logprobs, Matcher
from service.engine.logprobs import logprobs_of
from service.engine.sampling import MOST_COUNTED, frequency_of
from service.errors import ConfigurationError


def load_model(model_dir: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """transformers' model of the checkpoint, on `device`; code that lies beside the weights is never run.

    Raises ConfigurationError when transformers cannot load it.
    """
    transformers_logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, StrictDataclassError) as error:
        raise ConfigurationError(f"{model_dir}: transformers cannot load it: {error}") from error
    # A request says everything itself: what the checkpoint's own defaults would add must not leak in.
    model.generation_config = GenerationConfig()
    return model.to(device).eval()


def generation_config(request: GenerationRequest) -> GenerationConfig:
    """The request in transformers' words."""
    p = request.sampling
    drawn = {
        "do_sample": True,
        "temperature": p.temperature,
        "top_k": p.top_k,
        "top_p": p.top_p,
        "min_p": p.min_p or None,
    }
    return GenerationConfig(
        max_new_tokens=request.max_new_tokens,
        repetition_penalty=p.repetition_penalty,
        eos_token_id=None if request.forced else request.stop_ids or None,  # none of the forced ones ends it
        pad_token_id=0,  # one prompt at a time is never padded; unset, transformers warns
        **(drawn if p.temperature > 0 else {"do_sample": False}),
    )


class KeepsToGrammar(LogitsProcessor):  # type: ignore[misc]  # transformers has no types
    """Leaves of one answer's logits those of tokens that its grammar allows next."""

    def __init__(self, matcher: Matcher, allowed: Allowed) -> None:
        self._matcher = matcher
        self._allowed = allowed
        self._is_begun = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores [1, vocab], with what is forbidden at minus infinity."""
        if self._is_begun:
            self._matcher.advance(int(input_ids[0, -1]))
        self._is_begun = True
        bits = np.unpackbits(self._allowed([self._matcher]), axis=1, count=scores.shape[1], bitorder="little")
        return scores.masked_fill(torch.from_numpy(bits).to(scores.device) == 0, float("-inf"))


class Adds(LogitsProcessor):  # type: ignore[misc]  # transformers has no types
    """OpenAI's bias. transformers' own, `sequence_bias`, comes before the repetition penalty, which changes it."""

    def __init__(self, request: GenerationRequest) -> None:
        self._tokens, self._added = zip(*request.sampling.logit_bias, strict=True)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores [1, vocab], with what the request adds."""
        tokens = torch.tensor([self._tokens], device=scores.device)
        return scores.scatter_add(1, tokens, scores.new_tensor([self._added]))


class TakesOff(LogitsProcessor):  # type: ignore[misc]  # transformers has no types
    """OpenAI's penalties, which transformers has not: see `sampling.amount_off`."""

    def __init__(self, request: GenerationRequest) -> None:
        self._begins = len(request.prompt_ids)
        self._frequency, self._presence = frequency_of(request.sampling), request.sampling.presence_penalty

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores [1, vocab], less what tokens of the answer cost."""
        count = torch.bincount(input_ids[0, self._begins :], minlength=scores.shape[1])
        return scores - (count.clamp(max=MOST_COUNTED) * self._frequency + (count > 0) * self._presence)


class Reported(NamedTuple):
    """A token, and what it is reported with, if that was asked for."""

    token: int
    logprobs: Logprobs | None


class GenerateCall(BaseStreamer, StoppingCriteria):  # type: ignore[misc]  # transformers has no types
    """One `generate()` call on its own thread, read token by token."""

    def __init__(self, model: Any, request: GenerationRequest, processors: list[LogitsProcessor]) -> None:
        self._model = model
        self._request = request
        p = request.sampling
        adds = [Adds(request)] if p.logit_bias else []
        takes_off = [TakesOff(request)] if p.frequency_penalty or p.presence_penalty else []
        self._processors = LogitsProcessorList([*adds, *takes_off, *processors])
        self._stop = threading.Event()
        self._prompt_is_through = False
        self._logits: torch.Tensor
        # One token ahead: the next is computed while the last is handed on, and a cancelled request costs no more.
        self._items: queue.Queue[Reported | BaseException | None] = queue.Queue(maxsize=1)
        self._has_ended = False
        self._thread = threading.Thread(target=self._run, name="generate", daemon=True)
        self._thread.start()

    def next(self) -> Reported:
        """The next token, once it is there. Raises what `generate()` raised."""
        item = self._take()
        if isinstance(item, BaseException):
            raise item
        assert item is not None, "generate() ended before the request did"
        return item

    def close(self) -> None:
        """Stop after the token that is being computed, and wait for that."""
        self._stop.set()
        while not self._has_ended:
            self._take()
        self._thread.join()

    def _take(self) -> Reported | BaseException | None:
        item = self._items.get()
        self._has_ended = not isinstance(item, Reported)
        return item

    def put(self, value: torch.Tensor) -> None:
        """transformers hands over the prompt first, then each token."""
        if self._prompt_is_through:
            self._items.put(self._reported(int(value)))
        self._prompt_is_through = True

    def _reported(self, token: int) -> Reported:
        count = self._request.logprobs
        return Reported(token, None if count is None else logprobs_of(self._logits, token, count))

    def _keep_logits(self, _: object, __: object, output: Any) -> None:
        """Of the model's last pass, before a processor changes them."""
        self._logits = output.logits[0, -1]

    def end(self) -> None:
        """transformers is done; `_run` says so."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Whether each sequence is to end now."""
        return torch.full((input_ids.shape[0],), self._stop.is_set(), dtype=torch.bool, device=input_ids.device)

    def _run(self) -> None:
        try:
            torch.manual_seed(self._request.sampling.seed % (1 << 63))
            ids = torch.tensor([self._request.prompt_ids], device=self._model.device)
            with self._model.register_forward_hook(self._keep_logits):
                self._model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    generation_config=generation_config(self._request),
                    streamer=self,
                    logits_processor=self._processors,
                    stopping_criteria=StoppingCriteriaList([self]),
                )
            self._items.put(None)
        except Exception as error:
            self._items.put(error)
