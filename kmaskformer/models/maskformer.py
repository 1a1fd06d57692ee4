"""MaskFormer: semantic, instance and panoptic segmentation as the prediction of (class, mask) pairs."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kmaskformer.layers.initializers import linear_bias, linear_kernel
from kmaskformer.layers.mlp import MLP
from kmaskformer.models.segmentation_model import SegmentationModel, unpack_inputs


@keras.saving.register_keras_serializable(package="kmaskformer")
class MaskFormer(SegmentationModel):
    """N queries, each with a distribution over classes and a mask.

    The pixel-level module (backbone, pixel decoder) embeds each pixel; the transformer module embeds each query; a
    query's class is linear in its embedding, and its mask is the inner product of the pixel embeddings with an MLP of
    its embedding.

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

    PARTS = ("backbone", "pixel_decoder", "transformer_decoder")

    def __init__(
        self,
        backbone: keras.layers.Layer,
        pixel_decoder: keras.layers.Layer,
        transformer_decoder: keras.layers.Layer,
        num_classes: int,
        deep_supervision: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)
        self.backbone = backbone
        self.pixel_decoder = pixel_decoder
        self.transformer_decoder = transformer_decoder
        self.deep_supervision = deep_supervision
        hidden_dim = transformer_decoder.hidden_dim
        self.class_head = keras.layers.Dense(
            num_classes + 1,
            kernel_initializer=linear_kernel(),
            bias_initializer=linear_bias(hidden_dim),
            dtype=self.dtype_policy,
            name="class_head",
        )
        self.mask_head = MLP(hidden_dim, pixel_decoder.mask_dim, 3, dtype=self.dtype_policy, name="mask_head")

    def build(self, input_shape: Any = None) -> None:
        """Create all weights; they depend on the configuration alone, so `input_shape` is not read."""
        if self.built:
            return
        self.transformer_decoder.build(self._source(self._build_pixel_module()))
        query_shape = (None, None, self.transformer_decoder.hidden_dim)
        self.class_head.build(query_shape)
        self.mask_head.build(query_shape)
        self.built = True

    def call(self, images: Any, image_sizes: Any = None, training: bool | None = None) -> dict[str, Any]:
        """Predict the (class, mask) pairs of a batch of images.

        Args:
            images: `(batch, height, width, 3)`, RGB 0..255, uint8 or float, any height and width; or a `ModelInputs`
                dict.
            image_sizes: `(batch, 2)` int32, height and width of each image in a padded batch.
            training: Whether dropout and trainable normalisations act as in training.

        Returns:
            `class_logits` `(batch, queries, classes + 1)`, last = no-object; `mask_logits` `(batch, queries, h, w)`,
            with h and w those of `res2`; with deep supervision `aux_outputs`, a list of the same two keys for
            the earlier decoder layers. All float32.
        """
        images, image_sizes = unpack_inputs(images, image_sizes)
        features = self.backbone(self.preprocessing(images, image_sizes), training=training)
        decoded = self.pixel_decoder(features, training=training)
        queries = self.transformer_decoder(self._source({**features, **decoded}), training=training)
        if not self.deep_supervision:
            return self._predict(queries[-1], decoded["pixel_embedding"])
        *earlier, final = [self._predict(query, decoded["pixel_embedding"]) for query in queries]
        return {**final, "aux_outputs": earlier}

    def _predict(self, queries: Any, pixel_embedding: Any) -> dict[str, Any]:
        mask_logits = ops.einsum("bqc,bhwc->bqhw", self.mask_head(queries), pixel_embedding)
        return {
            "class_logits": ops.cast(self.class_head(queries), "float32"),
            "mask_logits": ops.cast(mask_logits, "float32"),
        }

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "deep_supervision": self.deep_supervision}
