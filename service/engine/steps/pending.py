"""Tokens on their way from the device to the host: the one place where a step is waited for."""

from collections.abc import Callable
from functools import partial

import torch

from service.engine.base import Logprobs
from service.engine.device_errors import in_room, is_out_of_memory
from service.engine.logprobs import Report, Scores
from service.engine.steps.plan import OutOfMemory


class PendingTokens:
    """`Pending` of a step that is queued on the device but for `draw`, which gives its tokens [B]. `report`: what some
    of them are reported with; None: none is."""

    def __init__(self, draw: Callable[[], torch.Tensor], report: Report | None = None) -> None:
        self._draw = draw
        self._report = report
        self._event: torch.cuda.Event | None = None
        self._tokens: torch.Tensor
        self._scores: Scores

    @torch.inference_mode()
    def sample(self) -> None:
        """Queue the drawing of its tokens and their way to the host. Raises OutOfMemory as `TorchRunner.begin` does."""
        if self._report is None:
            tokens = in_room(self._draw)
        else:
            tokens, scores = in_room(partial(self._report.around, self._draw))
            self._scores = Scores(*map(_on_the_way, scores))
        self._tokens = _on_the_way(tokens)
        if tokens.is_cuda:
            # Blocking: the next step is queued already, so that a core spent on spinning would be gained by nobody.
            self._event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._event.record()

    def tokens(self) -> list[int]:
        """Wait for the step; one token per entry of the plan's `sampled`.

        Raises OutOfMemory when the step turns out to have lacked memory; what it computed is lost then, and the
        allocator's spare memory is given back.
        """
        try:
            if self._event is not None:
                self._event.synchronize()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            torch.cuda.empty_cache()
            raise OutOfMemory(str(error)) from error
        values: list[int] = self._tokens.tolist()
        return values

    def logprobs(self) -> dict[int, Logprobs]:
        """After `tokens`: what those are reported with whose requests ask, by their places among them."""
        return {} if self._report is None else self._report.read(self._scores)


def _on_the_way(result: torch.Tensor) -> torch.Tensor:
    """`result` in the host's memory once the device has come so far; the next step may overwrite what it was."""
    return _host_memory(result).copy_(result, non_blocking=True) if result.is_cuda else result.clone()


def _host_memory(like: torch.Tensor) -> torch.Tensor:
    """Pinned memory, into which a copy is not waited for; if there is none left, any: the step is on its way, and to
    launch it again would draw two tokens where one was due."""
    try:
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return torch.empty(like.shape, dtype=like.dtype)
