"""Every Prometheus series of the server, declared here alone; those of the download: `delivery/reporting/metrics.py`.

Counters and histograms are fed by the code that knows; what the engine reports about itself is read from its
latest snapshot at scrape time, so that a scrape never waits for the engine or touches the GPU.
"""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from service import __version__
from service.engine.base import EngineState, EngineStats, EngineStatus, FinishReason, GpuMemory

# An answer takes seconds to minutes; buckets that stop at ten seconds hide every slow one.
REQUEST_BUCKETS = (0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)
FIRST_TOKEN_BUCKETS = (0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60, 120, 300, 600)
# Those that OpenTelemetry's semantic conventions propose for gen_ai.server.time_per_output_token.
OUTPUT_TOKEN_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
TOKEN_BUCKETS = (1, 8, 32, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)

OUTCOMES = tuple(reason.value for reason in FinishReason)


class Metrics:
    """The service's series in a registry of their own. `status` gives the engine's latest snapshot."""

    def __init__(self, status: Callable[[], EngineStatus], ready: Callable[[], bool]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series per series, which nobody reads
        self.registry = registry = CollectorRegistry()
        self.http_requests = Counter(
            "internlm_http_requests",
            "HTTP requests by route and status.",
            ["route", "method", "status"],
            registry=registry,
        )
        self.requests = Counter(
            "internlm_requests", "Generation requests by how they ended.", ["outcome"], registry=registry
        )
        for outcome in OUTCOMES:
            self.requests.labels(outcome)  # a rate must work from the first scrape on
        self.request_seconds = Histogram(
            "internlm_request_duration_seconds",
            "From request to end of answer.",
            registry=registry,
            buckets=REQUEST_BUCKETS,
        )
        self.first_token_seconds = Histogram(
            "internlm_time_to_first_token_seconds",
            "From request to its first token (TTFT).",
            registry=registry,
            buckets=FIRST_TOKEN_BUCKETS,
        )
        self.output_token_seconds = Histogram(
            "internlm_time_per_output_token_seconds",
            "Mean time between an answer's tokens after its first (TPOT).",
            registry=registry,
            buckets=OUTPUT_TOKEN_BUCKETS,
        )
        self.queue_seconds = Histogram(
            "internlm_request_queue_time_seconds",
            "From request to admission by the scheduler; to the end of one that gave up before.",
            registry=registry,
            buckets=FIRST_TOKEN_BUCKETS,
        )
        self.prompt_tokens = Histogram(
            "internlm_request_prompt_tokens", "Tokens of a prompt.", registry=registry, buckets=TOKEN_BUCKETS
        )
        self.generation_tokens = Histogram(
            "internlm_request_generation_tokens", "Tokens of an answer.", registry=registry, buckets=TOKEN_BUCKETS
        )
        Gauge("internlm_ready", "1 while the model answers.", registry=registry).set_function(lambda: float(ready()))
        build = Gauge("internlm_build_info", "Version of the service.", ["version"], registry=registry)
        build.labels(__version__).set(1)
        self._model = Gauge(
            "internlm_model_info",
            "Which model was found: its manifest is the same where every file is.",
            ["model", "revision", "manifest"],
            registry=registry,
        )
        registry.register(EngineCollector(status))
        ProcessCollector(registry=registry)  # of the web process, under the names that every dashboard knows

    def model_found(self, model: str, revision: str | None, manifest: str | None) -> None:
        """Of a directory without a manifest neither of the latter is known."""
        self._model.clear()
        self._model.labels(model, revision or "", manifest or "").set(1)


class EngineCollector(Collector):
    """The engine's own numbers, from its latest snapshot."""

    def __init__(self, status: Callable[[], EngineStatus]) -> None:
        self._status = status

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        yield from _state(status)
        yield from _load(status.stats)
        yield from _totals(status.stats)
        if status.stats.gpus:
            yield from _gpu_memory(status.stats.gpus)


def _state(status: EngineStatus) -> Iterator[Metric]:
    state = GaugeMetricFamily("internlm_engine_state", "1 for the state the engine is in.", labels=["state"])
    for each in EngineState:
        state.add_metric([each.value], float(each is status.state))
    yield state
    yield CounterMetricFamily("internlm_engine_restarts", "Times the engine was started again.", value=status.restarts)
    if status.info is None:
        return
    info = status.info
    loaded = {name: getattr(info, name) for name in ("kind", "device", "dtype", "quantization")}
    labels = loaded | info.versions
    engine = GaugeMetricFamily("internlm_engine_info", "What was loaded.", labels=list(labels))
    engine.add_metric(list(labels.values()), 1)
    yield engine
    phases = GaugeMetricFamily("internlm_startup_seconds", "Seconds each phase of the start took.", labels=["phase"])
    for phase, seconds in info.startup_seconds.items():
        phases.add_metric([phase], seconds)
    yield phases
    if info.weights_bytes_per_second:
        yield GaugeMetricFamily(
            "internlm_weights_bytes_per_second",
            "Rate at which the start read the weights.",
            value=info.weights_bytes_per_second,
        )
    degraded = GaugeMetricFamily(
        "internlm_engine_degraded", "1 per fast path replaced by a slower one.", labels=["path"]
    )
    # Its name alone: a reason is a sentence, and `GET /` has it.
    for path in sorted({reason.partition(":")[0] for reason in info.degraded}):
        degraded.add_metric([path], 1)
    yield degraded


def _load(stats: EngineStats) -> Iterator[Metric]:
    yield GaugeMetricFamily("internlm_num_requests_running", "Requests being computed.", value=stats.running)
    yield GaugeMetricFamily("internlm_num_requests_waiting", "Requests that wait for a slot.", value=stats.waiting)
    yield GaugeMetricFamily("internlm_kv_blocks", "KV blocks there are.", value=stats.kv_blocks_total)
    blocks = GaugeMetricFamily("internlm_kv_blocks_in_use", "KV blocks by use.", labels=["use"])
    blocks.add_metric(["running"], stats.kv_blocks_used)
    blocks.add_metric(["prefix_cache"], stats.kv_blocks_cached)
    yield blocks


def _totals(stats: EngineStats) -> Iterator[Metric]:
    yield CounterMetricFamily("internlm_prompt_tokens", "Prompt tokens taken in.", value=stats.prompt_tokens)
    yield CounterMetricFamily("internlm_cached_prompt_tokens", "Prompt tokens found cached.", value=stats.cached_tokens)
    yield CounterMetricFamily("internlm_generation_tokens", "Tokens generated.", value=stats.generation_tokens)
    yield CounterMetricFamily("internlm_engine_steps", "Engine steps done.", value=stats.steps)


def _gpu_memory(gpus: list[GpuMemory]) -> Iterator[Metric]:
    labels = ["gpu", "name"]
    total = GaugeMetricFamily("internlm_gpu_memory_total_bytes", "Memory of the GPU.", labels=labels)
    used = GaugeMetricFamily(
        "internlm_gpu_memory_used_bytes", "Memory in use: by the device, or by this process.", labels=[*labels, "scope"]
    )
    for gpu in gpus:
        where = [str(gpu.index), gpu.name]
        total.add_metric(where, gpu.total)
        used.add_metric([*where, "device"], gpu.used)
        used.add_metric([*where, "process_allocated"], gpu.allocated)
        used.add_metric([*where, "process_reserved"], gpu.reserved)
    yield total
    yield used
