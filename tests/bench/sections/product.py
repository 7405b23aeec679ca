"""Sections about the whole product: how it starts, and what its web side costs."""

import asyncio
import tempfile

import torch

from tests.bench import web as clients
from tests.bench.floor import parameters
from tests.bench.limits import file_rate
from tests.bench.load import serve
from tests.bench.measures import ENGINE, LIMIT, Measure
from tests.bench.run import Run


def web(run: Run) -> None:
    """The product over HTTP, and the engine alone with the very same lengths; both after as many short requests."""
    run.drop_core()
    scale = run.scale
    with (
        tempfile.TemporaryDirectory() as cache,
        clients.server(run.model_dir, run.settings | {"cache_dir": cache}) as url,
    ):
        found = asyncio.run(clients.load(url, scale.streams, scale.prompts[1] // 16, scale.http_new_tokens))
    serve(run.core, run.prompts.spread(scale.streams, scale.prompts, clients.WARM_UP_TOKENS))
    requests = [run.prompts.request(each.prompt_tokens, max(each.completion_tokens, 1)) for each in found.streams]
    alone = serve(run.core, requests).tokens_per_second
    share = run.figure("web_of_engine", found.tokens_per_second / alone)
    run.say(
        streams=scale.streams,
        tokens_per_second=found.tokens_per_second,
        texts_per_second=found.texts_per_second,
        engine=alone,
        of_engine=share,
    )


def load(run: Run) -> None:
    """How long a start takes, and the weights' share of it against reading the same files into nothing.

    Both come right after the files were read, so that neither waits for a disk that the other was spared.
    """
    run.drop_core()
    first, files = file_rate(run.model_dir), file_rate(run.model_dir)
    seconds = run.core.info.startup_seconds
    size = sum(path.stat().st_size for path in run.model_dir.glob("*.safetensors"))
    rate = size / seconds["weights"]
    run.figure("load_of_files", rate / files)
    run.say(parameters_billion=parameters(run.config) / 1e9)
    run.say(gb_per_s=rate / 1e9, files_gb_per_s=files / 1e9, files_first_read_gb_per_s=first / 1e9)
    run.say(**seconds, **_free(run.device))
    run.emit({"section": "load", "degraded": run.core.info.degraded})
    run.table.put(weights_load(run), LIMIT, size / files)
    run.beside(weights_load(run), ENGINE, seconds["weights"])


def weights_load(run: Run) -> Measure:
    """The time from files to weights on the device."""
    return Measure("weights_load", "layers", run.config.num_layers)


def _free(device: torch.device) -> dict[str, float]:
    """What a start left of the GPU's memory: it was asked to leave a tenth, recordings and all."""
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    return {"free_share_after_start": free / total}
