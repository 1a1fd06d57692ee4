"""Parameters by part, and the tree of layers that all tables of this package are made over."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Mapping
from typing import Any

import keras


def count_parameters(model: keras.Model, trainable_only: bool = True) -> dict[str, int]:
    """Number of parameters below every path of a built model.

    Args:
        model: The model.
        trainable_only: Leave out constants, such as the statistics and affine parameters of frozen batch norms, as the
            counts published for detectron2 models do.

    Returns:
        Counts by path: `""` for the whole model, `"backbone"`, `"backbone/res2/0"`, ... down to single weights, in the
        order of the layers.
    """
    variables = model.trainable_variables if trainable_only else model.weights
    return sums_by_path((variable_path(model, variable), math.prod(variable.shape)) for variable in variables)


def variable_path(model: keras.Model, variable: Any) -> str:
    """The path of a weight within its model, `transformer_decoder/query_embedding` for instance."""
    return variable.path.removeprefix(f"{model.name}/")


def sums_by_path(values: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Adds each value to its own path and to all paths above it; the empty path has the sum of all."""
    sums: dict[str, int] = collections.defaultdict(int)
    sums[""] = 0
    for path, value in values:
        names = path.split("/") if path else []
        for depth in range(len(names) + 1):
            sums["/".join(names[:depth])] += value
    return dict(sums)


def at_depth(sums: Mapping[str, int], depth: int) -> dict[str, int]:
    """The paths of at most `depth` names, those without any value left out; the whole under `total`.

    Raises:
        ValueError: If `depth` is not positive.
    """
    if depth < 1:
        raise ValueError(f"`depth` must be at least 1. Received: depth={depth}")
    rows = {path: value for path, value in sums.items() if path and value and path.count("/") < depth}
    return {**rows, "total": sums[""]}


def structure(model: keras.Model) -> str:
    """The layers of a model as an indented tree, with class, name and number of all parameters of each."""
    counts = count_parameters(model, trainable_only=False)
    lines = [f"{type(model).__name__} {model.name}: {counts['']:,} parameters"]
    _add_layers(model, "", 1, counts, lines)
    return "\n".join(lines)


def _add_layers(parent: Any, prefix: str, depth: int, counts: dict[str, int], lines: list[str]) -> None:
    for layer in parent._flatten_layers(include_self=False, recursive=False):
        path = f"{prefix}/{layer.name}" if prefix else layer.name
        count = f": {counts[path]:,} parameters" if counts.get(path) else ""
        lines.append(f"{'  ' * depth}{type(layer).__name__} {layer.name}{count}")
        _add_layers(layer, path, depth + 1, counts, lines)
