"""Records device work as CUDA graphs that share one memory pool."""

from collections.abc import Callable

import torch

from service.engine.device_errors import require_usable


class CudaRecorder:
    """`Recorder` on one GPU. Graphs of one pool reuse each other's memory, so they must be replayed one at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        # One for all: the allocator keeps the memory of each stream for that stream.
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def rehearse(self, body: Callable[[], None]) -> None:
        """Run `body` once, so that kernels are compiled and libraries hold their workspaces."""
        self._side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._side):
            body()
        torch.cuda.synchronize(self._device)

    def capture(self, body: Callable[[], None]) -> Callable[[], None]:
        """Capture `body`, which was rehearsed, and launch the capture once; its replay."""
        serving = torch.cuda.current_stream(self._device)
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: the listener's and the readers' threads may go on meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._side, capture_error_mode="thread_local"):
                body()
        except BaseException:
            self._leave_broken_pool()
            raise
        finally:
            # A capture that fails at its end stays on its stream, whose memory is the graphs'.
            torch.cuda.set_stream(serving)
        replay: Callable[[], None] = graph.replay
        # The driver makes a recording ready with its first launch: not while somebody waits for a token.
        replay()
        torch.cuda.synchronize(self._device)
        return replay

    def _leave_broken_pool(self) -> None:
        """When a capture fails at its end, the allocator still takes it to be running, and refuses any new one in its
        pool (torch 2.11 and 2.13, CUDAGraph::capture_end): so it is ended by hand, and a new pool taken."""
        try:
            torch._C._cuda_endAllocateToPool(self._device.index or 0, self._pool)
        except RuntimeError:  # the allocator knows: the capture failed before its end
            return
        self._pool = torch.cuda.graph_pool_handle()

    def require_usable(self) -> None:
        """Raise EngineFailed when the CUDA context is poisoned."""
        require_usable(self._device, "a failed CUDA graph")
