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
        parts = [prometheus_client.generate_latest(self.registry), exposition(_families(service.models.all))]
        return b"".join(parts + [more().encode() for more in self._more])


@dataclasses.dataclass
class Timings:
    """The histograms of one model's answers."""

    first: prometheus_client.Histogram
    next: prometheus_client.Histogram

    def first_token(self, seconds: float) -> None:
        self.first.observe(seconds)

    def next_tokens(self, seconds: float, count: int) -> None:
        """count: tokens that came together."""
        for _ in range(count):
            self.next.observe(seconds / count)


def exposition(families) -> bytes:
    """Metric families that are made already, in Prometheus' text format."""
    registry = prometheus_client.CollectorRegistry()
    registry.register(_Collected(list(families)))
    return prometheus_client.generate_latest(registry)


@dataclasses.dataclass(eq=False)  # a registry keeps it in a dict
class _Collected:
    """What a registry asks for families."""

    families: list

    def collect(self) -> list:
        return self.families


def _families(served: list):
    """What the batchers of all models are doing at this moment."""
    status = {each.name: each.batcher.status for each in served}
    counts = {
        "running": "Texts that have a slot",
        "waiting": "Texts that wait for a slot",
        "slots": "Texts that are made at once",
    }
    for name, help in counts.items():
        family = core.GaugeMetricFamily(f"gptjax_{name}", help, labels=["model"])
        for model, now in status.items():
            family.add_metric([model], getattr(now, name))
        yield family
    made = core.CounterMetricFamily("gptjax_made_tokens", "Tokens made, also for clients that went", labels=["model"])
    state = core.GaugeMetricFamily("gptjax_state", "1 for the state a model is in", labels=["model", "state"])
    step = core.GaugeMetricFamily("gptjax_model_step", "Step of the checkpoint that answers", labels=["model"])
    for each in served:
        now = status[each.name]
        made.add_metric([each.name], now.new_tokens)
        step.add_metric([each.name], each.step)
        for name in STATES:
            state.add_metric([each.name, name], float(now.state == name))
    yield from (made, state, step)
