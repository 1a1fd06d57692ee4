"""An HTTP server on this machine that behaves as badly as a test asks for."""

from __future__ import annotations

import contextlib
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any


class LocalServer(http.server.ThreadingHTTPServer):
    """Serves `content` by path.

    `behaviours` maps a path to a list of functions, one for each answer in turn, that get the request's handler and
    the content; after them come honest answers. `requests` lists the method, path and range that were asked for.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content: dict[str, bytes] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.behaviours: dict[str, list[Callable[[Any, bytes], None]]] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.stop_stalling = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.requests.append((self.command, self.path, self.headers.get("Range")))
        path = self.path.partition("?")[0]
        content = self.server.content.get(path)
        behaviours = self.server.behaviours.get(path, [])
        with contextlib.suppress(ConnectionError):
            if behaviours:
                behaviours.pop(0)(self, content or b"")
            elif content is None:
                self.send_error(404)
            else:
                honest(self, content)

    do_HEAD = do_GET

    def log_message(self, *arguments: Any) -> None:
        pass


def honest(handler: Any, content: bytes, ranges: bool = True) -> None:
    """The file, or the part of it that was asked for."""
    wanted = handler.headers.get("Range") if ranges else None
    start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
    if start >= len(content) > 0:
        handler.send_response(416)
        handler.send_header("Content-Range", f"bytes */{len(content)}")
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    handler.send_response(206 if wanted else 200)
    if wanted:
        handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    _send(handler, content[start:], len(content) - start)


def without_ranges(handler: Any, content: bytes) -> None:
    """The whole file, whatever was asked for."""
    honest(handler, content, ranges=False)


def truncated(size: int) -> Callable[[Any, bytes], None]:
    """The first `size` bytes of the file, announced as all of it."""

    def answer(handler: Any, content: bytes) -> None:
        handler.send_response(200)
        _send(handler, content[:size], len(content))

    return answer


def stalling(size: int) -> Callable[[Any, bytes], None]:
    """The first `size` bytes of the file, and then nothing, for as long as the test lasts."""

    def answer(handler: Any, content: bytes) -> None:
        truncated(size)(handler, content)
        handler.wfile.flush()
        handler.server.stop_stalling.wait(30)

    return answer


def status(code: int) -> Callable[[Any, bytes], None]:
    """An error."""
    return lambda handler, content: handler.send_error(code)


def lying(text: bytes) -> Callable[[Any, bytes], None]:
    """Another file."""
    return lambda handler, content: honest(handler, text)


def wrong_part(handler: Any, content: bytes) -> None:
    """The end of the file, whatever part was asked for."""
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes {len(content) - 1}-{len(content) - 1}/{len(content)}")
    _send(handler, content[-1:], 1)


def chunked(size: int) -> Callable[[Any, bytes], None]:
    """The first `size` bytes without saying how many there are, and an end in the middle of a chunk."""

    def answer(handler: Any, content: bytes) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(f"{len(content):x}\r\n".encode() + content[:size])
        handler.close_connection = True

    return answer


def slow(seconds: float) -> Callable[[Any, bytes], None]:
    """The honest answer, later."""

    def answer(handler: Any, content: bytes) -> None:
        time.sleep(seconds)
        honest(handler, content)

    return answer


@contextlib.contextmanager
def running() -> Iterator[LocalServer]:
    """A server in a thread of its own."""
    server = LocalServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.stop_stalling.set()
        server.shutdown()
        thread.join()
        server.server_close()


def _send(handler: Any, body: bytes, length: int) -> None:
    for name, value in handler.server.headers.get(handler.path.partition("?")[0], {}).items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(length))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)
