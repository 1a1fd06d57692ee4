"""MaskFormer: semantic, instance and panoptic segmentation as the prediction of (class, mask) pairs."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kmaskformer.layers.dense import linear
from kmaskformer.models.query_model import QueryModel


@keras.saving.register_keras_serializable(package="kmaskformer")
class MaskFormer(QueryModel):
    """N queries, each with a distribution over classes and a mask.

    The pixel-level module (backbone, pixel decoder) embeds each pixel; the transformer module embeds each query; a
    query's class is linear in its embedding, and its mask is the inner product of the pixel embeddings with an MLP of
    its embedding.

    Called on images, it gives `class_logits` `(batch, queries, classes + 1)`, last = no-object, and `mask_logits`
    `(batch, queries, h, w)`, with h and w those of `res2`; with deep supervision also `aux_outputs`, a list of the same
    two keys for the earlier decoder layers. All float32.

    Args:
        backbone: Layer from `(batch, height, width, 3)` to `{"res2", "res3", "res4", "res5"}`.
        pixel_decoder: Layer from that pyramid to `{"pixel_embedding", ...}`.
        transformer_decoder: Layer from the feature it names (`in_feature`) to a list of query embeddings.
        num_classes: Number of classes, without no-object.
        deep_supervision: Whether the earlier decoder layers are outputs too.
        **kwargs: `size_divisibility`, `pixel_mean`, `pixel_std` and `dataset_info` of `SegmentationModel`.

    Raises:
        ValueError: If `num_classes` is not positive.

    Example:
        ```python
        model = MaskFormer(ResNet(50), FPNPixelDecoder(), QueryDecoder(), num_classes=150)
        outputs = model(images)  # images: (batch, height, width, 3), RGB 0..255
        ```

    References:
        - Cheng, Schwing and Kirillov, Per-Pixel Classification is Not All You Need for Semantic Segmentation,
          arXiv 2107.06278, figure 2.
    """

    def _make_heads(self) -> None:
        hidden_dim = self.transformer_decoder.hidden_dim
        self.class_head = linear(self.num_classes + 1, hidden_dim, "class_head", self.dtype_policy)
        super()._make_heads()

    def _heads(self) -> tuple[keras.layers.Layer, ...]:
        return self.class_head, self.mask_head

    def _predict(self, queries: Any, pixel_embedding: Any) -> dict[str, Any]:
        mask_logits = ops.einsum("bqc,bhwc->bqhw", self.mask_head(queries), pixel_embedding)
        return {
            "class_logits": ops.cast(self.class_head(queries), "float32"),
            "mask_logits": ops.cast(mask_logits, "float32"),
        }
