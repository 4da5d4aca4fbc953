"""What is counted, for Prometheus: requests, tokens, times to the first token and between tokens, slots and queue."""

import dataclasses

import prometheus_client
from prometheus_client import core

TIMES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)  # seconds, of the histograms
STATES = ("starting", "ready", "draining", "failed")


class Metrics:
    """more: functions that return lines of Prometheus' text format, which follow ours."""

    def __init__(self, more=()):
        self.registry, self._more = prometheus_client.CollectorRegistry(), tuple(more)
        here = {"registry": self.registry}
        histogram, counter = prometheus_client.Histogram, prometheus_client.Counter
        self.requests = counter("gptjax_requests", "Requests", ["route", "status"], **here)
        self.seconds = histogram(
            "gptjax_request_seconds", "From a request to the end of its answer", ["route"], buckets=TIMES, **here
        )
        self.first = histogram(
            "gptjax_first_token_seconds", "From a request to its first token", ["model"], buckets=TIMES, **here
        )
        self.next = histogram(
            "gptjax_next_token_seconds", "Between the tokens of an answer", ["model"], buckets=TIMES, **here
        )
        self.tokens = counter("gptjax_tokens", "Tokens of answers that were finished", ["model", "kind"], **here)
        self.cached = counter("gptjax_cached_tokens", "Of their prompts, not read again", ["model"], **here)

    def count_tokens(self, model: str, usage: dict) -> None:
        """usage: of an answer, as clients get it."""
        self.tokens.labels(model, "prompt").inc(usage["prompt_tokens"])
        self.tokens.labels(model, "completion").inc(usage["completion_tokens"])
        cached = usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
        self.cached.labels(model).inc(cached)

    def timings(self, model: str) -> "Timings":
        return Timings(self.first.labels(model), self.next.labels(model))

    def text(self, service) -> bytes:
        now = prometheus_client.CollectorRegistry()
        now.register(_Now(service))
        parts = [prometheus_client.generate_latest(self.registry), prometheus_client.generate_latest(now)]
        return b"".join(parts + [more().encode() for more in self._more])


@dataclasses.dataclass
class Timings:
    """Of the answers of one model."""

    first: prometheus_client.Histogram
    next: prometheus_client.Histogram

    def first_token(self, seconds: float) -> None:
        self.first.observe(seconds)

    def next_tokens(self, seconds: float, count: int) -> None:
        """count: tokens that came together."""
        for _ in range(count):
            self.next.observe(seconds / count)


class _Now:
    """What the batchers are doing while somebody looks."""

    def __init__(self, service):
        self._service = service

    def collect(self):
        served = self._service.models.all
        gauges = {
            "running": ("Texts that have a slot", lambda status: status.running),
            "waiting": ("Texts that wait for a slot", lambda status: status.waiting),
            "slots": ("Texts that are made at once", lambda status: status.slots),
        }
        for name, (help, value) in gauges.items():
            family = core.GaugeMetricFamily(f"gptjax_{name}", help, labels=["model"])
            for each in served:
                family.add_metric([each.name], value(each.batcher.status))
            yield family
        made = core.CounterMetricFamily(
            "gptjax_made_tokens", "Tokens made, also for clients that went", labels=["model"]
        )
        for each in served:
            made.add_metric([each.name], each.batcher.status.new_tokens)
        yield made
        state = core.GaugeMetricFamily("gptjax_state", "1 for the state a model is in", labels=["model", "state"])
        step = core.GaugeMetricFamily("gptjax_model_step", "Step of the checkpoint that answers", labels=["model"])
        for each in served:
            step.add_metric([each.name], each.step)
            for name in STATES:
                state.add_metric([each.name, name], float(each.batcher.status.state == name))
        yield from (state, step)
