"""Concurrent requests through one network: images of one size that arrive together are computed together."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np

from kmaskformer.serving.errors import RequestError
from kmaskformer.serving.limits import Limits

Arrays = dict[str, np.ndarray]


class Batcher:
    """Computes images in batches, one batch at a time, and bounds how many requests are under way.

    Only images of one size share a batch: padding them to a common size would change their results.

    Args:
        run: From `(batch, height, width, 3)` uint8 to outputs whose first axis is the batch.
        limits: The server's bounds.
        observe: Called with the size of each batch.
    """

    def __init__(
        self, run: Callable[[np.ndarray], Arrays], limits: Limits, observe: Callable[[int], None] = lambda size: None
    ) -> None:
        self._run = run
        self._limits = limits
        self._observe = observe
        self._waiting: list[tuple[np.ndarray, asyncio.Future]] = []
        self._arrived = asyncio.Event()
        self._device = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="device")
        self._task: asyncio.Task | None = None
        self.pending = 0

    def start(self) -> None:
        """Begin to work; call within the event loop."""
        self._task = asyncio.get_running_loop().create_task(self._work())

    async def stop(self) -> None:
        """Stop working; requests that wait are refused."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for _, future in self._waiting:
            future.cancel()
        self._device.shutdown(wait=True, cancel_futures=True)

    @property
    def alive(self) -> bool:
        """Whether it works."""
        return self._task is not None and not self._task.done()

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Holds one of the places for requests; decode, compute and encode within.

        Raises:
            RequestError: 503 if all places are taken.
        """
        if self.pending >= self._limits.pending:
            raise RequestError(503, f"{self.pending} requests are under way already. Try again in a second.")
        self.pending += 1
        try:
            yield
        finally:
            self.pending -= 1

    async def compute(self, image: np.ndarray) -> Arrays:
        """Outputs of one image, `(height, width, 3)` uint8, without the batch axis."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((image, future))
        self._arrived.set()
        return await future

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Any other work on the device, in turn with the batches."""
        return await asyncio.get_running_loop().run_in_executor(self._device, function, *arguments)

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            await asyncio.sleep(self._limits.batch_seconds)
            while self._waiting:
                await self._compute_batch(self._take_batch())
            self._arrived.clear()

    def _take_batch(self) -> list[tuple[np.ndarray, asyncio.Future]]:
        """The image that has waited longest, and others of its size."""
        shape = self._waiting[0][0].shape
        most = max(1, min(self._limits.batch_images, self._limits.batch_pixels // (shape[0] * shape[1])))
        batch = [item for item in self._waiting if item[0].shape == shape][:most]
        taken = {id(item) for item in batch}
        self._waiting = [item for item in self._waiting if id(item) not in taken]
        return batch

    async def _compute_batch(self, batch: list[tuple[np.ndarray, asyncio.Future]]) -> None:
        self._observe(len(batch))
        try:
            outputs = await self.call(self._run, np.stack([image for image, _ in batch]))
        except Exception as error:  # whatever fails, these requests fail and the next batch is computed
            outputs = error
        for index, (_, future) in enumerate(batch):
            if future.done():
                continue
            if isinstance(outputs, Exception):
                future.set_exception(outputs)
            else:
                future.set_result({key: value[index] for key, value in outputs.items()})
