"""Python functions inside tf.data pipelines: they have names, and end before the interpreter does.

A pipeline that runs in other processes is sent there as a graph, which refers to Python functions by name. So those
in the graph of a pipeline are offered under fixed names, in every process that imports this package.

Pipelines call them from threads of TensorFlow's. While the interpreter shuts down, such a thread waits for Python's
lock without end, and who deletes the iterator waits for the thread: a script that still held an iterator when it ended
would hang. The exit therefore waits until no pipeline calls any more, since its buffers are full; where that takes
long, calls are refused.
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

_QUIET_SECONDS = 0.3  # a pipeline that has not called for so long has filled its buffers, as a rule
_FILLING_SECONDS = 3.0  # what pipelines have to fill their buffers; TensorFlow prints errors of calls that are refused
_ENDING_SECONDS = 10.0  # a reader that hangs must not hold up the exit


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
        """Returns when no function runs or comes; where that takes long, after refusing those that come."""
        if not self._last_change:
            return
        self._change(0)  # quiet is counted from now on: a thread may be between two calls
        if not self._becomes_quiet(_FILLING_SECONDS):
            self._closed = True
            self._becomes_quiet(_ENDING_SECONDS)

    def _becomes_quiet(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not (is_quiet := self._is_quiet()) and time.monotonic() < deadline:
            time.sleep(_QUIET_SECONDS / 30)
        return is_quiet

    def _change(self, by: int) -> None:
        with self._lock:
            self._running += by
            self._last_change = time.monotonic()

    def _is_quiet(self) -> bool:
        with self._lock:
            return not self._running and time.monotonic() - self._last_change > _QUIET_SECONDS


_calls = _Calls()
atexit.register(_calls.close)


_offered: dict[str, Callable[..., Any]] = {}


def offer(name: str, function: Callable[..., Any]) -> None:
    """Makes a stateless function of NumPy arrays callable by `call_offered` in graphs that this process runs."""
    from tensorflow.python.ops import script_ops  # there is no public way to choose the name

    _offered[name] = functools.partial(_calls.run, function)  # TensorFlow keeps a weak reference only
    script_ops._py_funcs._funcs[name] = _offered[name]


def call_offered(name: str, inputs: Sequence[Any], types: Sequence[tf.DType]) -> list[tf.Tensor]:
    """Calls the Python function that the process which runs the graph has offered under `name`.

    Args:
        name: The name.
        inputs: The tensors that it is called with; a string arrives as bytes.
        types: Types of the arrays that it returns, as a list.
    """
    return tf.raw_ops.PyFuncStateless(input=list(inputs), token=name, Tout=list(types))


def call_here(function: Callable[..., Any], inputs: Sequence[tf.Tensor], types: Any) -> Any:
    """Calls a function in graphs that run in this process only, such as one that reads from a reader.

    Args:
        function: From NumPy arrays to one array or a list of arrays.
        inputs: The tensors that it is called with.
        types: The result's type, or a list of types.
    """
    return tf.numpy_function(functools.partial(_calls.run, function), inputs, types, stateful=False)
