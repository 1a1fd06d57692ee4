"""A process that serves: uvicorn with a bound on how long a client may take to send its headers."""

from __future__ import annotations

import asyncio

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from kmaskformer.serving.app import SegmentationServer

TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


def make_server(segmentation: SegmentationServer, host: str = "127.0.0.1", port: int = 8501) -> uvicorn.Server:
    """A server that `run()` starts, and that SIGINT and SIGTERM stop: requests under way are still answered.

    Args:
        segmentation: What to serve.
        host: Address to listen on; "0.0.0.0" for every network that the machine is in.
        port: Port; 0 for any that is free. TensorFlow Serving's is 8501.
    """
    limits = segmentation.limits
    config = uvicorn.Config(
        segmentation.app,
        host=host,
        port=port,
        http=_protocol(limits.idle_seconds),
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=max(1, int(limits.idle_seconds)),
        timeout_graceful_shutdown=int(limits.stop_seconds),
        server_header=False,
    )
    return uvicorn.Server(config)


def _protocol(seconds: float) -> type[H11Protocol]:
    """uvicorn's protocol, which waits for headers for ever, with a bound on that."""

    class BoundedProtocol(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._wait_for_headers()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is not h11.IDLE:
                self._stop_waiting()
            elif self._deadline is None:  # the beginning of a further request on this connection
                self._wait_for_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _wait_for_headers(self) -> None:
            self._deadline = self.loop.call_later(seconds, self._give_up)

        def _stop_waiting(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _give_up(self) -> None:
            if not self.transport.is_closing():
                self.transport.write(TOO_SLOW)
                self.transport.close()

    return BoundedProtocol
