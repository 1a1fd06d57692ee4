"""Pictures of what queries have learned; needs matplotlib (`pip install .[plots]`)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from keras import ops
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from kmaskformer.analysis.attention import attention_maps
from kmaskformer.analysis.queries import QueryStatistics, check_has_class_queries
from kmaskformer.structures import DatasetInfo


def draw_classes(statistics: QueryStatistics, info: DatasetInfo) -> Figure:
    """Which query predicts which class how often: queries as columns, sorted by their most frequent class."""
    counts = statistics.class_counts
    order = np.lexsort(
        (-counts.max(axis=1), np.where(counts.any(axis=1), counts.argmax(axis=1), len(info.class_names)))
    )
    size = (min(24, 3 + 0.18 * len(counts)), min(40, 2 + 0.22 * info.num_classes))
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    axes = figure.add_subplot()
    drawn = np.ma.masked_equal(counts[order].T, 0)
    image = axes.imshow(drawn, aspect="auto", interpolation="nearest", norm=LogNorm(1, max(2, counts.max())))
    axes.set_yticks(range(info.num_classes), info.class_names, fontsize=8)
    axes.set_xticks(range(len(order)), order, fontsize=6, rotation=90)
    axes.set_xlabel("query")
    axes.set_title(f"Predictions of each query in {statistics.num_images} images")
    figure.colorbar(image, label="images", shrink=0.8)
    return figure


def draw_positions(statistics: QueryStatistics, info: DatasetInfo, count: int = 48) -> Figure:
    """Where each query's masks lie: how often they cover a place of the image, and their centres.

    Args:
        statistics: What `query_statistics` gave.
        info: The label space.
        count: Number of queries to draw, those that predict most.
    """
    chosen = np.argsort(-statistics.num_predictions, kind="stable")[:count]
    columns = min(8, len(chosen))
    rows = math.ceil(len(chosen) / columns)
    figure = Figure(figsize=(1.9 * columns, 2.15 * rows), dpi=100, layout="constrained")
    for place, query in enumerate(chosen):
        axes = figure.add_subplot(rows, columns, place + 1)
        predictions = statistics.num_predictions[query]
        share = statistics.mask_counts[query] / max(1, predictions)
        axes.imshow(share, vmin=0, vmax=1, extent=(0, 1, 1, 0), interpolation="nearest", aspect="auto")
        centers = statistics.centers[query]
        axes.plot(centers[:, 1], centers[:, 0], ".", color="white", markersize=2, alpha=0.7)
        axes.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(1, 0))
        names = "\n".join(f"{name} {part:.0%}" for name, part in statistics.classes_of(int(query), info, 2))
        axes.set_title(f"query {query}: {predictions}x\n{names}", fontsize=7)
    return figure


def draw_attention(model: Any, image: np.ndarray, info: DatasetInfo, count: int = 6) -> Figure:
    """Masks of the surest queries, and where each of them looks in every decoder layer.

    Args:
        model: A MaskFormer.
        image: `(height, width, 3)` RGB uint8.
        info: The label space.
        count: Number of queries, those with the highest score of a class.

    Raises:
        TypeError: If the model has no queries with classes.
    """
    check_has_class_queries(model)
    height, width = image.shape[:2]
    outputs = model(image[None], training=False)
    scores = ops.convert_to_numpy(ops.softmax(outputs["class_logits"], axis=-1))[0, :, :-1]
    chosen = np.argsort(-scores.max(axis=1), kind="stable")[:count]
    padded = model.padded_size(height, width)
    masks = ops.convert_to_numpy(ops.sigmoid(outputs["mask_logits"]))[0]
    weights = attention_maps(model, image)
    figure = Figure(figsize=(2 * (2 + len(weights)), 2 * len(chosen) * height / width + 0.4), dpi=100)
    for row, query in enumerate(chosen):
        label = scores[query].argmax()
        panels = [("mask", masks[query])] + [(f"layer {i + 1}", layer[query]) for i, layer in enumerate(weights)]
        for column in range(1 + len(panels)):
            axes = figure.add_subplot(len(chosen), 1 + len(panels), row * (1 + len(panels)) + column + 1)
            axes.imshow(image, extent=(0, width, height, 0))
            if column:
                title, values = panels[column - 1]
                # The map covers the padded image; what lies outside the picture is cut off by the limits below.
                limits = {"vmin": 0, "vmax": 1} if title == "mask" else {}
                axes.imshow(values, extent=(0, padded[1], padded[0], 0), alpha=0.7, interpolation="nearest", **limits)
            axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
            if row == 0:
                axes.set_title(title if column else "image", fontsize=8)
            if column == 0:
                axes.set_ylabel(f"{query}: {info.class_names[label]}\n{scores[query, label]:.0%}", fontsize=7)
    figure.tight_layout(pad=0.3)
    return figure
