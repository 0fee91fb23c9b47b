"""What is counted: Prometheus text under vLLM's names, and exact percentiles as JSON.

vLLM's buckets begin at 10 ms a token; ours resolve models that need a hundredth of that. Histograms
only bound a percentile, so the last values are kept as well, and theirs are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from compress.runtime.ledger import PAGE_TOKENS
from compress.runtime.server.summary import (
    Facts,
    ModelSummary,
    Recent,
    Speculation,
    Step,
    Steps,
    Summaries,
)

if TYPE_CHECKING:
    from compress.runtime.request import Piece, Timings

ITL_SECONDS = (
    0.00025, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01, 0.0125,
    0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0,
    10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
TTFT_SECONDS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0,
    7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
REQUEST_SECONDS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0,
    30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
TOKENS = tuple(step * 10**power for power in range(6) for step in (1, 2, 5))
ITERATION_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
HISTOGRAMS: Mapping[str, tuple[str, Sequence[float]]] = {
    "time_to_first_token_seconds": ("From a request's arrival to its first token.", TTFT_SECONDS),
    "inter_token_latency_seconds": ("Between two steps that gave a request tokens.", ITL_SECONDS),
    "request_time_per_output_token_seconds": ("Mean over one request.", ITL_SECONDS),
    "e2e_request_latency_seconds": ("From arrival to the last token.", REQUEST_SECONDS),
    "request_queue_time_seconds": ("Before a request's first step.", REQUEST_SECONDS),
    "request_prefill_time_seconds": ("From its first step to its first token.", REQUEST_SECONDS),
    "request_decode_time_seconds": ("From its first token to its last.", REQUEST_SECONDS),
    "request_inference_time_seconds": ("From its first step to its last token.", REQUEST_SECONDS),
    "request_prompt_tokens": ("Tokens of a prompt.", TOKENS),
    "request_generation_tokens": ("Tokens of an answer.", TOKENS),
    "request_prefill_kv_computed_tokens": ("Tokens of a prompt, cached ones left out.", TOKENS),
    "request_max_num_generation_tokens": ("Tokens that an answer may have.", TOKENS),
    "request_params_n": ("Answers asked for.", (1, 2, 5, 10, 20)),
    "request_params_max_tokens": ("The parameter max_tokens.", TOKENS),
    "iteration_tokens_total": ("Tokens that a step computed.", ITERATION_TOKENS),
}
COUNTERS = {
    "prompt_tokens": "Tokens of prompts, cached ones too.",
    "prompt_tokens_cached": "Tokens of prompts that were found in the prefix cache.",
    "generation_tokens": "Tokens of answers.",
}
GAUGES: Mapping[str, tuple[str, Callable[[Any], float]]] = {
    "num_requests_running": ("Requests that take part in steps.", lambda s: s.running),
    "num_requests_waiting": ("Requests that wait for their first step.", lambda s: s.waiting),
    "kv_cache_usage_perc": (
        "Share of the pages of keys and values in use, 1 is all.",
        lambda s: s.used_pages / s.pages,
    ),
}
TOTALS: Mapping[str, tuple[str, Callable[[Any], float]]] = {
    "num_preemptions": ("Requests put back for want of pages.", lambda s: s.preemptions),
    "prefix_cache_queries": (
        "Tokens looked up in the prefix cache.",
        lambda s: s.prefix_queried_tokens,
    ),
    "prefix_cache_hits": ("Tokens found there.", lambda s: s.prefix_hit_tokens),
    "spec_decode_num_drafts": ("Times that tokens were proposed.", lambda s: s.drafts),
    "spec_decode_num_draft_tokens": ("Tokens proposed.", lambda s: s.draft_tokens),
    "spec_decode_num_accepted_tokens": (
        "Proposed tokens that were kept.",
        lambda s: s.kept_tokens,
    ),
}
PERCENTILES = {"ttft_seconds", "itl_seconds", "tpot_seconds", "e2e_seconds", "queue_seconds"}
LABELS = ("model_name", "engine")
_TYPICAL_SECONDS = 1.0  # of a request, before one has ended


@dataclass
class Times:
    """When one answer got its tokens, by `time.perf_counter`; 0: not yet."""

    first: float = 0.0
    last: float = 0.0
    tokens: int = 0


class Metrics:
    """The metrics of all models of a server."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # they would double the text
        self.registry = CollectorRegistry()
        self.histograms = {
            name: Histogram(f"vllm:{name}", text, LABELS, registry=self.registry, buckets=buckets)
            for name, (text, buckets) in HISTOGRAMS.items()
        }
        self.counters = {
            name: Counter(f"vllm:{name}", text, LABELS, registry=self.registry)
            for name, text in COUNTERS.items()
        }
        self.ended = Counter(
            "vllm:request_success", "Answers by how they ended.", (*LABELS, "finished_reason"),
            registry=self.registry,
        )  # fmt: skip
        self.rejections = Counter(
            "vllm:admission_rejections", "Requests that were refused.", (*LABELS, "reason"),
            registry=self.registry,
        )  # fmt: skip
        self.models: dict[str, ModelMetrics] = {}
        self.registry.register(_Engines(self.models))

    def model(self, name: str) -> ModelMetrics:
        """Begin to count a model."""
        self.models[name] = ModelMetrics(self, name)
        return self.models[name]

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)

    def summary(self) -> Summaries:
        """Exact percentiles of the last values of every model."""
        return Summaries(models={name: one.summary() for name, one in self.models.items()})


class ModelMetrics:
    """What is counted of one model; only the HTTP loop calls it."""

    def __init__(self, metrics: Metrics, name: str) -> None:
        """Made by `Metrics.model`."""
        labels = (name, "0")
        self._histograms = {k: one.labels(*labels) for k, one in metrics.histograms.items()}
        self._counters = {k: one.labels(*labels) for k, one in metrics.counters.items()}
        self._ended = {
            reason: metrics.ended.labels(*labels, reason)
            for reason in ("stop", "length", "abort", "error")
        }
        self._rejections = {
            reason: metrics.rejections.labels(*labels, reason)
            for reason in ("queue_full", "invalid")
        }
        self._recent = {name: Recent() for name in sorted(PERCENTILES)}
        self._steps = Steps()
        self.facts: Facts | None = None  # of the engine, once it is open
        self.status: Any = None  # of the engine after its last step

    def asked(self, n: int, max_tokens: int | None, limit: int) -> None:
        """Count a request that was taken; `limit` is what max_tokens comes to."""
        self._see("request_params_n", n)
        if max_tokens is not None:
            self._see("request_params_max_tokens", max_tokens)
        self._see("request_max_num_generation_tokens", limit)

    def rejected(self, reason: str) -> None:
        """Count a request that was refused."""
        self._rejections[reason].inc()

    def cancelled(self, choices: int) -> None:
        """Count answers that nobody waited for any more."""
        self._ended["abort"].inc(choices)

    def look(self, status: Any) -> None:
        """Take what the engine says of itself."""
        self.status = status

    def stepped(self, seconds: float, status: Any) -> None:
        """Count a step of the engine that took so long."""
        before, self.status = self.status, status
        tokens = status.computed_tokens - before.computed_tokens
        self._see("iteration_tokens_total", tokens)
        self._steps.add(Step(seconds, tokens, status.used_pages * PAGE_TOKENS))

    def observe(self, times: Times, piece: Piece, *, arrived: float, now: float) -> None:
        """Count a piece of an answer.

        Args:
            times: of this answer; brought up to date.
            piece: what came.
            arrived: when the request did, by `time.perf_counter`.
            now: when the step that made the piece ended.
        """
        if piece.tokens:
            self._counters["generation_tokens"].inc(len(piece.tokens))
            if not times.tokens:
                times.first = now
                self._see("time_to_first_token_seconds", now - arrived, recent="ttft_seconds")
            else:
                gap = now - times.last
                self._see("inter_token_latency_seconds", gap, recent="itl_seconds")
            times.last = now
            times.tokens += len(piece.tokens)
        if piece.finish_reason is not None:
            reason = "abort" if piece.finish_reason == "cancelled" else piece.finish_reason
            self._ended[reason].inc()
            if piece.timings is not None and times.tokens:
                self._finished(times, piece.timings, arrived)

    def typical_seconds(self) -> float:
        """Half of the last requests took no longer."""
        return self._recent["e2e_seconds"].percentile(0.5) or _TYPICAL_SECONDS

    def summary(self) -> ModelSummary:
        """Exact percentiles of the last values, and what the engine did."""
        status, work = self.status, None
        if self.facts is not None:
            work = self._steps.work(self.facts)
        return ModelSummary(
            **{name: recent.summary() for name, recent in self._recent.items()},
            work=work,
            speculation=None if status is None else _speculation(status),
            prefix_hit_share=status
            and _share(status.prefix_hit_tokens, status.prefix_queried_tokens),
            kv_usage=status and status.used_pages / status.pages,
        )

    def _finished(self, times: Times, timings: Timings, arrived: float) -> None:
        queue, decode = timings.queue_seconds, times.last - times.first
        self._counters["prompt_tokens"].inc(timings.prompt_tokens)
        self._counters["prompt_tokens_cached"].inc(timings.cached_tokens)
        self._see("request_prompt_tokens", timings.prompt_tokens)
        self._see("request_generation_tokens", timings.new_tokens)
        computed = timings.prompt_tokens - timings.cached_tokens
        self._see("request_prefill_kv_computed_tokens", computed)
        self._see("request_queue_time_seconds", queue, recent="queue_seconds")
        self._see("request_prefill_time_seconds", times.first - arrived - queue)
        self._see("request_decode_time_seconds", decode)
        self._see("request_inference_time_seconds", times.last - arrived - queue)
        self._see("e2e_request_latency_seconds", times.last - arrived, recent="e2e_seconds")
        if times.tokens > 1:
            each = decode / (times.tokens - 1)
            self._see("request_time_per_output_token_seconds", each, recent="tpot_seconds")

    def _see(self, name: str, value: float, *, recent: str | None = None) -> None:
        self._histograms[name].observe(value)
        if recent:
            self._recent[recent].add(value)


class _Engines(Collector):
    """What engines themselves count, asked when somebody looks."""

    def __init__(self, models: Mapping[str, ModelMetrics]) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        found = [((name, "0"), one.status) for name, one in self._models.items() if one.status]
        for name, (text, read) in GAUGES.items():
            gauge = GaugeMetricFamily(f"vllm:{name}", text, labels=LABELS)
            for labels, status in found:
                gauge.add_metric(labels, read(status))
            yield gauge
        for name, (text, read) in TOTALS.items():
            counter = CounterMetricFamily(f"vllm:{name}", text, labels=LABELS)
            for labels, status in found:
                counter.add_metric(labels, read(status))
            yield counter
        cache = GaugeMetricFamily(
            "vllm:cache_config_info",
            "Pages of keys and values, and tokens of each.",
            labels=(*LABELS, "block_size", "num_gpu_blocks"),
        )
        for labels, status in found:
            cache.add_metric((*labels, str(PAGE_TOKENS), str(status.pages)), 1)
        yield cache
        positions = CounterMetricFamily(
            "vllm:spec_decode_num_accepted_tokens_per_pos",
            "Proposed tokens that were kept, by their place.",
            labels=(*LABELS, "position"),
        )
        for labels, status in found:
            for place, kept in enumerate(status.kept_at):
                positions.add_metric((*labels, str(place)), kept)
        yield positions


def _speculation(status: Any) -> Speculation:
    return Speculation(
        drafts=status.drafts,
        draft_tokens=status.draft_tokens,
        accepted_tokens=status.kept_tokens,
        accepted_at=[_share(kept, status.drafts) or 0.0 for kept in status.kept_at],
    )


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
