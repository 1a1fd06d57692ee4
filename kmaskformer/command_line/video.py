"""Frames of videos, in and out, by PyAV: bindings to FFmpeg that bring it along (extra `video`)."""

from __future__ import annotations

import fractions
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np

from kmaskformer.extras import missing_extra

CODEC = "libx264"
"""Every browser and player shows it."""

RATE_WHERE_UNKNOWN = 25


def import_av() -> ModuleType:
    """PyAV.

    Raises:
        ImportError: If it is not installed, with what to do.
    """
    try:
        import av
    except ImportError as error:
        raise missing_extra("video", "Reading and writing videos", error) from error
    return av


class VideoFrames:
    """The frames of a video, one after the other: `for seconds, image in VideoFrames(path)`.

    Args:
        path: The file.
        step: Take every `step`-th frame.

    Attributes:
        rate: Frames per second that come out.
        count: About how many come out, by the file's header; None where it does not say.

    Raises:
        ImportError: If PyAV is not installed.
        ValueError: If the file is no video. Iteration raises it too, where the file is damaged.
    """

    def __init__(self, path: str | os.PathLike, step: int = 1) -> None:
        self.path, self.step = Path(path), step
        with self._reading() as container:
            stream = _video_stream(container, self.path)
            self.rate = fractions.Fraction(stream.average_rate or RATE_WHERE_UNKNOWN) / step
            self.count = -(-stream.frames // step) or None

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        """Seconds from the start, and `(height, width, 3)` uint8 RGB, upright as players show it."""
        av = import_av()
        try:
            with self._reading() as container:
                frames = container.decode(_video_stream(container, self.path))
                for number, frame in enumerate(frames):
                    if number % self.step == 0:
                        seconds = frame.time if frame.time is not None else number / float(self.rate * self.step)
                        turns = round((frame.rotation or 0) / 90) % 4
                        yield seconds, np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
        except av.FFmpegError as error:
            raise ValueError(f"{self.path}: the video is damaged or incomplete: {error}") from error

    def _reading(self):
        av = import_av()
        try:
            return av.open(str(self.path))
        except av.FFmpegError as error:
            raise ValueError(f"{self.path}: cannot be read as a video: {error}") from error


class VideoWriter:
    """Writes frames as an H.264 file; a context manager.

    Args:
        path: File to write, `.mp4`.
        rate: Frames per second.
    """

    def __init__(self, path: str | os.PathLike, rate: fractions.Fraction) -> None:
        self._container = import_av().open(str(path), "w")
        self._stream = self._container.add_stream(CODEC, rate=rate)
        self._stream.pix_fmt = "yuv420p"
        self._started = False

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *error: object) -> None:
        if self._started:
            self._container.mux(self._stream.encode())
        self._container.close()

    def add(self, image: np.ndarray) -> None:
        """Adds a frame.

        Args:
            image: `(height, width, 3)` uint8 RGB, as large as the first; an odd side loses its last row or column,
                as colours are stored for two at a time.
        """
        even = np.ascontiguousarray(image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2])
        if not self._started:
            self._stream.height, self._stream.width = even.shape[:2]
            self._started = True
        frame = import_av().VideoFrame.from_ndarray(even, format="rgb24")
        self._container.mux(self._stream.encode(frame))


def _video_stream(container: object, path: Path) -> object:
    if not container.streams.video:
        raise ValueError(f"{path}: holds no video")
    return container.streams.video[0]
