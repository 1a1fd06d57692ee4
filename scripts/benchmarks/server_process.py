"""`kmaskformer serve` in a process of its own, and a client for it."""

from __future__ import annotations

import contextlib
import http.client
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

START = "from kmaskformer.command_line.main import main; main()"


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[int]:
    """Port of a server of the export in `folder`; it has stopped afterwards."""
    command = [sys.executable, "-c", START, "serve", "--model", f"model={folder}", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield int(process.stdout.readline().rsplit(":", 1)[1])
        finally:
            process.terminate()


def ask(connection: http.client.HTTPConnection, picture: bytes) -> int:
    """Status of one answer, which has been read whole."""
    connection.request("POST", "/segment", picture)
    answer = connection.getresponse()
    answer.read()
    return answer.status


def jpeg(height: int, width: int) -> bytes:
    """A smooth picture as a file, so that reading it takes as long as with photographs."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
