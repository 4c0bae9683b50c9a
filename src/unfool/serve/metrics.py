"""The metrics of the service, for Prometheus."""

import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from unfool import __version__
from unfool.serve.batcher import Batcher

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The metrics of one service, in their own registry."""

    def __init__(self):
        own = self.registry = CollectorRegistry()
        self.requests = Counter(
            "unfool_requests", "Requests answered.", ("route", "status"), registry=own
        )
        self.latency = Histogram(
            "unfool_request_seconds", "Time to answer.", ("route",), buckets=SECONDS, registry=own
        )
        self.images = Counter("unfool_images", "Images answered.", ("route",), registry=own)
        self.batch = Histogram(
            "unfool_batch_passes", "Passes in one call of the model.", buckets=ROWS, registry=own
        )
        self.model_seconds = Counter("unfool_model_seconds", "Time in the model.", registry=own)
        self.queue = Gauge("unfool_queue_passes", "Passes accepted and not finished.", registry=own)
        self.info = Gauge("unfool_info", "Always 1.", ("model", "version"), registry=own)

    def observe_call(self, rows: int, seconds: float) -> None:
        """Record a call of the model."""
        self.batch.observe(rows)
        self.model_seconds.inc(seconds)

    def watch(self, batcher: Batcher, model: str) -> None:
        """Report the length of the queue at each scrape, and the name of the model."""
        self.queue.set_function(lambda: batcher.rows)
        self.info.labels(model, __version__).set(1)

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self.registry)


class CountRequests:
    """ASGI middleware that counts requests by route and status.

    A route is counted by its path template and an unknown path as `other`, so that clients cannot
    create labels.
    """

    def __init__(self, app: Any, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass the request on, and count its response."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, status = time.perf_counter(), 500

        async def listen(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, listen)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.latency.labels(route).observe(time.perf_counter() - began)
