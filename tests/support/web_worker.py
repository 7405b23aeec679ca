"""A web worker to be killed: joins the engine of a run directory, opens a request without end, says the engine's pid.

Arguments: the run directory, the engine's configuration as JSON, seconds until an orphaned engine ends.
"""

import asyncio
import sys
import time
from pathlib import Path

import msgspec

from service.engine.base import EngineConfig, GenerationRequest
from service.engine.client import EngineClient, Patience


async def main(run_dir: str, config: str, orphan: str) -> None:
    engine = EngineClient(
        msgspec.json.decode(config, type=EngineConfig), Path(run_dir), patience=Patience(orphan=float(orphan))
    )
    await engine.start()
    request = GenerationRequest(
        id="endless", prompt_ids=[1], max_new_tokens=30_000, stop_ids=[], deadline=time.monotonic() + 600
    )
    said = False
    async for _ in engine.submit(request):
        if not said:
            print((Path(run_dir) / "engine.pid").read_text(), flush=True)
            said = True


asyncio.run(main(*sys.argv[1:]))
