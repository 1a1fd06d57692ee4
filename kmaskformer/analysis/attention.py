"""Where a query looks: the weights of its attention to the image, layer by layer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from keras import ops

from kmaskformer.layers.attention import MultiHeadAttention


def attention_maps(model: Any, image: np.ndarray) -> np.ndarray:
    """Attention of every query to one image.

    Args:
        model: A MaskFormer or PerPixelBaselinePlus.
        image: `(height, width, 3)` RGB 0..255.

    Returns:
        `(decoder layers, queries, h, w)`, averaged over the heads; h and w are those of the feature that the
        transformer decoder reads, padding included, and each map sums to 1.

    Raises:
        TypeError: If the model has no queries.
    """
    decoder = getattr(model, "transformer_decoder", None)
    if decoder is None:
        raise TypeError(f"{type(model).__name__} has no queries, and so no attention of theirs")
    with contextlib.ExitStack() as stack:
        layers = decoder.decoder.layers
        records = [stack.enter_context(_recorded(layer.cross_attention)) for layer in layers]
        feature = model.features(np.asarray(image)[None], training=False)[decoder.in_feature]
        decoder(feature, training=False)
    height, width = feature.shape[1:3]
    weights = np.stack([ops.convert_to_numpy(record[0])[0].mean(axis=0) for record in records])
    return weights.reshape(*weights.shape[:2], height, width)


@contextlib.contextmanager
def _recorded(attention: MultiHeadAttention) -> Iterator[list[Any]]:
    """The weights that the layer computes meanwhile: Keras layers have no hooks to ask for them."""
    records: list[Any] = []
    compute = attention.attention_weights

    def record(query: Any, key: Any) -> Any:
        records.append(compute(query, key))
        return records[-1]

    attention.attention_weights = record
    try:
        yield records
    finally:
        del attention.attention_weights
