"""A device layer that records as a CUDA graph does: operations on tensors that stay, not the Python around them."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Tape(TorchDispatchMode):
    """Every operation with its arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.played: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.played.append((func, args, kwargs or {}, tree_leaves(result)))
        return result


class TapeRecorder:
    """`Recorder` whose replays run the recorded operations again on the same memory. What a body reads from anywhere
    else, a number of the host's or a tensor that it finds by name, is as it was when it was recorded.

    `recorded` and `replays` count.
    """

    def __init__(self) -> None:
        self.recorded = 0
        self.replays = 0

    def rehearse(self, body: Callable[[], None]) -> None:
        body()

    def capture(self, body: Callable[[], None]) -> Callable[[], None]:
        with _Tape() as tape:
            body()
        self.recorded += 1
        return lambda: self._replay(tape)

    def require_usable(self) -> None: ...

    def _replay(self, tape: _Tape) -> None:
        self.replays += 1
        for func, args, kwargs, recorded in tape.played:
            for again, before in zip(tree_leaves(func(*args, **kwargs)), recorded, strict=True):
                if isinstance(before, torch.Tensor) and again.data_ptr() != before.data_ptr():
                    before.copy_(again)
