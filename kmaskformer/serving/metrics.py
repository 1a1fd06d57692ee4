"""Counters for Prometheus; one registry per server, so that tests and several servers do not share numbers."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

BATCH_BUCKETS = (1, 2, 4, 8, 16, 32)


class ServerMetrics:
    """What a server counts: requests by route and status, their seconds, sizes of batches, and requests under way."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "kmaskformer_requests", "Requests answered.", ("route", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "kmaskformer_request_seconds", "Seconds from header to answer.", ("route",), registry=self.registry
        )
        self.batches = Histogram(
            "kmaskformer_batch_images",
            "Images that the network saw at once.",
            ("model",),
            buckets=BATCH_BUCKETS,
            registry=self.registry,
        )
        self.pending = Gauge(
            "kmaskformer_pending_requests", "Requests that are decoded, waiting or computed.", registry=self.registry
        )

    def text(self) -> tuple[bytes, str]:
        """All numbers in Prometheus' format, and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST
