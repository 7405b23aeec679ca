"""gunicorn's worker: uvicorn with our drain, and an end that says whether the model could be served."""

import asyncio
import logging
import os
import signal
import sys

from gunicorn.arbiter import Arbiter
from uvicorn_worker import UvicornWorker

from service.lifecycle import State
from service.server import DrainingServer, background, uvicorn_options

logger = logging.getLogger(__name__)

MASTER_CHECK_SECONDS = 1.0


class Worker(UvicornWorker):  # type: ignore[misc]
    """One web process. A model that cannot be served ends the master too, so that the container's end tells why."""

    CONFIG_KWARGS = UvicornWorker.CONFIG_KWARGS | uvicorn_options()

    async def _serve(self) -> None:
        self.config.app = self.wsgi
        state = self.wsgi.state
        server = DrainingServer(self.config, state.lifecycle, state.settings)
        # The master's way to pass SIGINT and SIGQUIT on; the handler of uvicorn's own worker sets what nobody reads.
        asyncio.get_running_loop().add_signal_handler(signal.SIGQUIT, server.begin_drain, 0.0)
        async with background(self._outlive_no_master(server)):
            await server.serve(sockets=self.sockets)
        if not server.started or state.lifecycle.state is State.FAILED:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)

    async def _outlive_no_master(self, server: DrainingServer) -> None:
        """Without its master nobody could end or replace this process, and the port and the GPU would stay taken."""
        while True:
            await asyncio.sleep(MASTER_CHECK_SECONDS)
            if os.getppid() != self.ppid:
                logger.error("the gunicorn master is gone: this worker drains and ends")
                return server.begin_drain(0.0)
