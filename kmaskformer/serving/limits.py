"""How much a server takes on."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds that keep a server alive whatever it is sent.

    Args:
        body_bytes: Largest request body; 413 beyond.
        image_pixels: Largest image, judged by the file's header before it is decoded; 413 beyond.
        image_side: Longest side of an image; 413 beyond. What restores masks grows with the square of it.
        pending: Requests that may be decoded, waiting or computed at a time; 503 beyond.
        connections: Open connections; 503 beyond.
        idle_seconds: A client that sends nothing for so long gets 408.
        upload_seconds: Longest upload of a request; 408 beyond.
        batch_images: Images of one size that the network sees at once, at most.
        batch_pixels: Their pixels together, at most (one image may have more).
        batch_seconds: How long the first image of a batch waits for others.
        stop_seconds: How long requests that are under way may take after the server was asked to stop.

    Raises:
        ValueError: If a bound is not positive.
    """

    body_bytes: int = 32 * 2**20
    image_pixels: int = 16 * 2**20
    image_side: int = 8192
    pending: int = 64
    connections: int = 512
    idle_seconds: float = 10.0
    upload_seconds: float = 60.0
    batch_images: int = 8
    batch_pixels: int = 4 * 2**20
    batch_seconds: float = 0.004
    stop_seconds: float = 30.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value <= 0:
                raise ValueError(f"`{field.name}` must be positive. Received: {field.name}={value}")
