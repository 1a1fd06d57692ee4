"""Weights averaged over the updates (EMA), which the optimizer keeps beside those it trains."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras


@contextlib.contextmanager
def averaged_weights(model: keras.Model) -> Iterator[None]:
    """Puts the averages in place of the weights for a while: to evaluate, to draw, to save for use.

    Nothing happens where the optimizer keeps none (`use_ema`), or has not made an update yet.

    Args:
        model: A compiled model.
    """
    optimizer = getattr(model, "optimizer", None)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if not getattr(optimizer, "use_ema", False) or int(keras.ops.convert_to_numpy(optimizer.iterations)) == 0:
        yield
        return
    variables, averages = model.trainable_variables, optimizer._model_variables_moving_average
    trained = _values(variables)
    _assign(variables, _values(averages))
    try:
        yield
    finally:
        _assign(variables, trained)


def _values(variables: list[Any]) -> list[Any]:
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


def _assign(variables: list[Any], values: list[Any]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
