"""What a request can be refused for, with the HTTP status that says so."""

from __future__ import annotations


class RequestError(Exception):
    """A request that is not answered.

    Args:
        status: HTTP status: 400 broken, 404 unknown, 405 another method, 408 too slow, 413 too large, 415 no image,
            503 busy.
        message: What was expected, what came and what to do.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
