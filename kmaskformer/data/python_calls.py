"""Python functions inside tf.data pipelines, which end before the interpreter does.

Pipelines call them from threads of TensorFlow's. While the interpreter shuts down, such a thread waits for Python's
lock without end, and who deletes the iterator waits for the thread: a script that still held an iterator when it ended
would hang. From the moment of exit on calls are therefore refused, and the exit waits until no pipeline calls any more.
"""

from __future__ import annotations

import atexit
import functools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

_QUIET_SECONDS = 0.1  # a pipeline that has not called for so long has filled its buffers
_PATIENCE_SECONDS = 10.0  # a reader that hangs must not hold up the exit


class _Calls:
    """How many functions run, when the last began or ended, and whether new ones may begin."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._last_change = 0.0
        self._closed = False

    def run(self, function: Callable[..., Any], *values: np.ndarray) -> Any:
        self._change(1)
        try:
            if self._closed:
                raise StopIteration  # for tf.data: the end of the sequence
            return function(*values)
        finally:
            self._change(-1)

    def close(self) -> None:
        """Refuses calls from now on, and returns when none runs or comes."""
        self._closed = True
        if not self._last_change:
            return
        deadline = time.monotonic() + _PATIENCE_SECONDS
        self._change(0)
        while not self._is_quiet() and time.monotonic() < deadline:
            time.sleep(_QUIET_SECONDS / 10)

    def _change(self, by: int) -> None:
        with self._lock:
            self._running += by
            self._last_change = time.monotonic()

    def _is_quiet(self) -> bool:
        with self._lock:
            return not self._running and time.monotonic() - self._last_change > _QUIET_SECONDS


_calls = _Calls()
atexit.register(_calls.close)


def python_function(function: Callable[..., Any], inputs: Sequence[tf.Tensor], types: Any) -> Any:
    """`tf.numpy_function` for stateless functions in pipelines.

    Args:
        function: From NumPy arrays to one array or a list of arrays.
        inputs: The tensors that it is called with.
        types: The result's type, or a list of types.
    """
    return tf.numpy_function(guarded(function), inputs, types, stateful=False)


def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which raises StopIteration once the interpreter has begun to exit."""
    return functools.partial(_calls.run, function)
