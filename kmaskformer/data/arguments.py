"""Checks of arguments that several functions take."""

from __future__ import annotations

import numbers
from typing import Any


def refuse_negative(**values: int) -> None:
    """Refuses numbers below 0, of which the message gives the names.

    Raises:
        ValueError: If there is one.
    """
    for name, value in values.items():
        if value < 0:
            raise ValueError(f"`{name}` must not be negative. Received: {name}={value}.")


def require_size(**values: Any) -> None:
    """Refuses what is neither a pair of positive whole numbers nor empty (None, `()`).

    Raises:
        ValueError: If there is such a value.
    """
    for name, value in values.items():
        if not _is_empty(value) and not _is_size(value):
            raise ValueError(
                f"`{name}` must be a pair (height, width) of positive whole numbers. Received: {name}={value!r}."
            )


def _is_empty(value: Any) -> bool:
    return value is None or (hasattr(value, "__len__") and len(value) == 0)


def _is_size(value: Any) -> bool:
    if not hasattr(value, "__len__") or len(value) != 2:
        return False
    return all(isinstance(side, numbers.Integral) and side > 0 for side in value)
