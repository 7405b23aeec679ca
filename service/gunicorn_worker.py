"""gunicorn's worker: uvicorn with our drain, and an end that says whether the model could be served."""

import sys

from gunicorn.arbiter import Arbiter
from uvicorn_worker import UvicornWorker

from service.lifecycle import State
from service.server import DrainingServer, uvicorn_options


class Worker(UvicornWorker):  # type: ignore[misc]
    """One web process. A model that cannot be served ends the master too, so that the container's end tells why."""

    CONFIG_KWARGS = UvicornWorker.CONFIG_KWARGS | uvicorn_options()

    async def _serve(self) -> None:
        self.config.app = self.wsgi
        state = self.wsgi.state
        server = DrainingServer(self.config, state.lifecycle, state.settings)
        self._install_sigquit_handler()
        await server.serve(sockets=self.sockets)
        if not server.started or state.lifecycle.state is State.FAILED:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
