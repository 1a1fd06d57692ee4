"""The error of a checkpoint that cannot be read."""

from __future__ import annotations

from os import PathLike


class CheckpointError(ValueError):
    """A checkpoint is missing, truncated, corrupt, hostile, or not what it should be.

    Args:
        path: The file, or the part of it, that is wrong.
        expected: What belongs there.
        found: What is there.
        advice: A sentence that says what to do.
    """

    def __init__(self, path: str | PathLike[str], expected: str, found: str, advice: str) -> None:
        super().__init__(f"{path}: expected {expected}. Found: {found}. {advice}")


def clip(value: object, length: int = 120) -> str:
    """A value from a file, for a message: on one line, escaped, not longer than `length`.

    Only strings and bytes are shown: the text of a nested container can be longer than any memory.
    """
    if not isinstance(value, str | bytes | int | float | None):
        return type(value).__name__
    if isinstance(value, str | bytes):
        value = value[: length + 1]
    text = ascii(value)
    return text if len(text) <= length else text[:length] + "..."
