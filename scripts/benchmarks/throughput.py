"""Images a second, and how long answers take, under several clients at a time."""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import http.client
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.server_process import ask, jpeg, serve


def measure(model: Any, folder: Path, options: argparse.Namespace) -> None:
    """Prints one line for each number of clients."""
    picture = jpeg(*options.size)
    with serve(folder) as port:
        _work(port, picture, time.perf_counter() + 2)  # the first pictures of a size take longer
        for clients in options.clients:
            end = time.perf_counter() + options.seconds
            with concurrent.futures.ThreadPoolExecutor(clients) as pool:
                start = time.perf_counter()
                work = [pool.submit(_work, port, picture, end) for _ in range(clients)]
                seconds = [one for future in work for one in future.result()]
                passed = time.perf_counter() - start
            middle, late = 1000 * np.percentile(seconds, (50, 99))
            rate = len(seconds) / passed
            print(
                f"{clients:3} clients: {rate:7.2f} images/s   p50 {middle:8.1f} ms   p99 {late:8.1f} ms   "
                f"({len(seconds)} answers)",
                flush=True,
            )


def _work(port: int, picture: bytes, end: float) -> list[float]:
    """Seconds of each answer of one client, which asks again as soon as it has one."""
    record = []
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=600)) as connection:
        while time.perf_counter() < end:
            start = time.perf_counter()
            status = ask(connection, picture)
            if status != 200:
                raise RuntimeError(f"the server answered {status}")
            record.append(time.perf_counter() - start)
    return record
