"""The paper's per-pixel baselines: the same pixel-level module, and a classification of every pixel."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kmaskformer.layers.convolution import Convolution
from kmaskformer.models.query_model import QueryModel
from kmaskformer.models.segmentation_model import SegmentationModel, unpack_inputs


@keras.saving.register_keras_serializable(package="kmaskformer")
class PerPixelBaseline(SegmentationModel):
    """A linear classifier on every pixel embedding.

    Args:
        backbone: Layer from `(batch, height, width, 3)` to `{"res2", "res3", "res4", "res5"}`.
        pixel_decoder: Layer from that pyramid to `{"pixel_embedding", ...}`.
        num_classes: Number of classes.
        **kwargs: `size_divisibility`, `pixel_mean`, `pixel_std` and `dataset_info` of `SegmentationModel`. The
            published models with a ResNet do not pad (`size_divisibility=0`).

    Raises:
        ValueError: If `num_classes` is not positive.

    Example:
        ```python
        model = PerPixelBaseline(ResNet(50), FPNPixelDecoder(), num_classes=150)
        logits = model(images)["logits"]  # images: (batch, height, width, 3), RGB 0..255
        ```

    References:
        - Cheng, Schwing and Kirillov, Per-Pixel Classification is Not All You Need for Semantic Segmentation,
          arXiv 2107.06278, per-pixel baselines of the experiments.
    """

    TASKS = ("semantic",)

    def __init__(
        self, backbone: keras.layers.Layer, pixel_decoder: keras.layers.Layer, num_classes: int, **kwargs: Any
    ) -> None:
        super().__init__(num_classes, **kwargs)
        self.backbone = backbone
        self.pixel_decoder = pixel_decoder
        self.classifier = Convolution(num_classes, 1, dtype=self.dtype_policy, name="classifier")

    def build(self, input_shape: Any = None) -> None:
        """Create all weights; they depend on the configuration alone, so `input_shape` is not read."""
        if self.built:
            return
        self.classifier.build(self._build_pixel_module()["pixel_embedding"])
        self._finish_build()

    def call(self, images: Any, image_sizes: Any = None, training: bool | None = None) -> dict[str, Any]:
        """Classify the pixels of a batch of images.

        Args:
            images: `(batch, height, width, 3)`, RGB 0..255, uint8 or float, any height and width; or a `ModelInputs`
                dict.
            image_sizes: `(batch, 2)` int32, height and width of each image in a padded batch.
            training: Whether dropout and trainable normalisations act as in training.

        Returns:
            `{"logits": (batch, h, w, classes)}`, float32, with h and w those of `res2`.
        """
        embedding = self.features(*unpack_inputs(images, image_sizes), training=training)["pixel_embedding"]
        return {"logits": ops.cast(self.classifier(embedding), "float32")}


@keras.saving.register_keras_serializable(package="kmaskformer")
class PerPixelBaselinePlus(QueryModel):
    """MaskFormer's own transformer module, trained to classify pixels: query i is class i.

    A pixel's logit of a class is the inner product of its embedding with an MLP of the query's embedding. No query has
    a class head, and nothing is matched.

    Called on images, it gives `logits` `(batch, h, w, classes)`, float32, with h and w those of `res2`; with deep
    supervision also `aux_outputs`, a list of the same key for the earlier decoder layers.

    Args:
        backbone: Layer from `(batch, height, width, 3)` to `{"res2", "res3", "res4", "res5"}`.
        pixel_decoder: Layer from that pyramid to `{"pixel_embedding", ...}`.
        transformer_decoder: Layer from the feature it names (`in_feature`) to a list of query embeddings; it has one
            query per class.
        num_classes: Number of classes.
        deep_supervision: Whether the earlier decoder layers are outputs too.
        **kwargs: `size_divisibility`, `pixel_mean`, `pixel_std` and `dataset_info` of `SegmentationModel`. The
            published models with a ResNet do not pad (`size_divisibility=0`).

    Raises:
        ValueError: If `num_classes` is not positive, or not the number of queries.

    Example:
        ```python
        decoder = QueryDecoder(num_queries=150)
        model = PerPixelBaselinePlus(ResNet(50), FPNPixelDecoder(), decoder, num_classes=150)
        ```

    References:
        - Cheng, Schwing and Kirillov, Per-Pixel Classification is Not All You Need for Semantic Segmentation,
          arXiv 2107.06278, per-pixel baselines of the experiments.
    """

    TASKS = ("semantic",)

    def _make_heads(self) -> None:
        num_queries = self.transformer_decoder.num_queries
        if num_queries != self.num_classes:
            raise ValueError(
                "`transformer_decoder` must have one query per class. "
                f"Received: num_queries={num_queries}, num_classes={self.num_classes}"
            )
        super()._make_heads()

    def _predict(self, queries: Any, pixel_embedding: Any) -> dict[str, Any]:
        logits = ops.einsum("bqc,bhwc->bhwq", self.mask_head(queries), pixel_embedding)
        return {"logits": ops.cast(logits, "float32")}
