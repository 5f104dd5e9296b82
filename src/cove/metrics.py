"""What is counted, cheaply enough for the request path: plain numbers, rendered when scraped."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Histogram:
    """Durations in seconds, in fixed buckets."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative, as Prometheus wants them."""
        out: list[tuple[str, float]] = []
        running = 0
        for bound, number in zip((*BUCKETS, float("inf")), self.counts, strict=True):
            running += number
            out.append(("+Inf" if bound == float("inf") else str(bound), running))
        return out


class FunctionStats:
    """What one function's requests and starts were."""

    __slots__ = ("queued", "requests", "seconds", "starts")

    def __init__(self) -> None:
        self.requests: dict[int, int] = {}
        self.seconds = Histogram()
        self.queued = Histogram()
        self.starts = Histogram()

    def answered(self, status: int, seconds: float) -> None:
        self.requests[status] = self.requests.get(status, 0) + 1
        self.seconds.observe(seconds)


Gauges = Callable[[], Iterable[tuple[str, str, dict[str, float]]]]
"""Names, help texts and values by function of what is read rather than counted."""


class Metrics(Collector):
    """All of Cove's metrics. `gauges` is asked at every scrape."""

    def __init__(self, gauges: Gauges) -> None:
        self._gauges = gauges
        self._functions: dict[str, FunctionStats] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def function(self, name: str) -> FunctionStats:
        """The numbers of a function, kept until `forget`."""
        return self._functions.setdefault(name, FunctionStats())

    def forget(self, name: str) -> None:
        self._functions.pop(name, None)

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "cove_requests", "Requests answered", labels=["function", "status"]
        )
        families = {
            "seconds": ("cove_request_seconds", "Time from a request's head to its answer's end"),
            "queued": ("cove_queue_seconds", "Time that requests waited for an instance"),
            "starts": ("cove_start_seconds", "Time from the need of an instance to its readiness"),
        }
        histograms = {
            key: HistogramMetricFamily(name, text, labels=["function"])
            for key, (name, text) in families.items()
        }
        for name, stats in self._functions.items():
            for status, number in stats.requests.items():
                requests.add_metric([name, str(status)], number)
            for key, family in histograms.items():
                histogram: Histogram = getattr(stats, key)
                family.add_metric([name], histogram.buckets(), sum_value=histogram.total)
        yield requests
        yield from histograms.values()
        for gauge, text, values in self._gauges():
            family_ = GaugeMetricFamily(gauge, text, labels=["function"])
            for name, value in values.items():
                family_.add_metric([name], value)
            yield family_
