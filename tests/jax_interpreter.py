"""One Python process with Keras on JAX and without TensorFlow, in which many tests run their scripts.

To import JAX and Keras takes longer than most of the scripts. As a program it is the process: requests come as lines of
JSON on the standard input, replies leave as lines of JSON on the standard output.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import IO

ENVIRONMENT = {
    "KERAS_BACKEND": "jax",
    "JAX_PLATFORMS": "cpu",
    # The compiler's optimisations take longer than they save here.
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
}


class JaxInterpreter:
    """Starts the process; `close` ends it.

    Args:
        repository: Where `kmaskformer` is.
    """

    def __init__(self, repository: Path) -> None:
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes it
        environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(repository)}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            env=environment,
            text=True,
        )

    def run(self, script: str, *arguments: object) -> str:
        """What a script prints, which finds its arguments in `sys.argv[1:]`; fails with its traceback."""
        request = json.dumps({"script": script, "arguments": [str(argument) for argument in arguments]})
        print(request, file=self._process.stdin, flush=True)
        reply = self._process.stdout.readline()
        if not reply:
            self._messages.seek(0)
            raise AssertionError(f"the process has ended: {self._messages.read().decode()[-3000:]}")
        printed, failure = json.loads(reply)
        assert not failure, failure[-3000:]
        return printed

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()
        self._messages.close()


def serve(requests: IO[str], replies: IO[str]) -> None:
    """Runs one script after the other, each in a namespace of its own."""
    for line in requests:
        request = json.loads(line)
        sys.argv = ["script", *request["arguments"]]
        failure, printed = "", io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                exec(compile(request["script"], "<script>", "exec"), {"__name__": "script"})
        except Exception:
            failure = traceback.format_exc()
        print(json.dumps([printed.getvalue(), failure]), file=replies, flush=True)


if __name__ == "__main__":
    sys.modules["tensorflow"] = None  # importing it fails, as where it is not installed
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed must not be taken for a reply
    serve(sys.stdin, replies)
