"""What models with a transformer module share: queries, each with a mask."""

from __future__ import annotations

from typing import Any

import keras

from kmaskformer.layers.mlp import MLP
from kmaskformer.models.segmentation_model import SegmentationModel, unpack_inputs


class QueryModel(SegmentationModel):
    """A pixel-level module, a transformer module, and what a subclass predicts from the embeddings of both.

    A subclass gives `_predict`; where it has more heads than `mask_head`, it makes them in `_make_heads` and lists them
    in `_heads`.

    Args:
        backbone: Layer from `(batch, height, width, 3)` to `{"res2", "res3", "res4", "res5"}`.
        pixel_decoder: Layer from that pyramid to `{"pixel_embedding", ...}`.
        transformer_decoder: Layer from the feature it names (`in_feature`) to a list of query embeddings.
        num_classes: Number of classes, without no-object.
        deep_supervision: Whether the earlier decoder layers are outputs too.
        **kwargs: `size_divisibility`, `pixel_mean`, `pixel_std` and `dataset_info` of `SegmentationModel`.
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
        self._make_heads()

    def _make_heads(self) -> None:
        dims = self.transformer_decoder.hidden_dim, self.pixel_decoder.mask_dim
        self.mask_head = MLP(*dims, 3, dtype=self.dtype_policy, name="mask_head")

    def _heads(self) -> tuple[keras.layers.Layer, ...]:
        """Layers on the query embeddings."""
        return (self.mask_head,)

    def _predict(self, queries: Any, pixel_embedding: Any) -> dict[str, Any]:
        """Outputs of one decoder layer, from `(batch, queries, hidden)` and `(batch, h, w, mask_dim)`."""
        raise NotImplementedError

    def build(self, input_shape: Any = None) -> None:
        """Create all weights; they depend on the configuration alone, so `input_shape` is not read."""
        if self.built:
            return
        self.transformer_decoder.build(self._source(self._build_pixel_module()))
        for head in self._heads():
            head.build((None, None, self.transformer_decoder.hidden_dim))
        self._finish_build()

    def call(self, images: Any, image_sizes: Any = None, training: bool | None = None) -> dict[str, Any]:
        """Predictions for a batch of images.

        Args:
            images: `(batch, height, width, 3)`, RGB 0..255, uint8 or float, any height and width; or a `ModelInputs`
                dict.
            image_sizes: `(batch, 2)` int32, height and width of each image in a padded batch.
            training: Whether dropout and trainable normalisations act as in training.

        Returns:
            What the subclass predicts from the last decoder layer; with deep supervision also `aux_outputs`, a list of
            the same keys for the earlier ones. All float32.
        """
        features = self.features(*unpack_inputs(images, image_sizes), training=training)
        queries = self.transformer_decoder(self._source(features), training=training)
        if not self.deep_supervision:
            return self._predict(queries[-1], features["pixel_embedding"])
        *earlier, final = [self._predict(query, features["pixel_embedding"]) for query in queries]
        return {**final, "aux_outputs": earlier}

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "deep_supervision": self.deep_supervision}
