"""The loss of mask classification: classification of every query, focal and dice loss of the matched masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import ops

from kmaskformer.losses.mask_losses import mask_signs, upsampled_focal_and_dice
from kmaskformer.losses.matcher import FixedMatcher, HungarianMatcher
from kmaskformer.losses.point_sampling import PointSampling
from kmaskformer.ops.masks import pad_targets, target_masks, void_pixels
from kmaskformer.ops.replicas import num_replicas, sum_over_replicas
from kmaskformer.structures import ModelOutputs, Targets

Tensor = Any

DEFAULT_WEIGHTS = {"loss_ce": 1.0, "loss_mask": 20.0, "loss_dice": 1.0}
CE_NORMALIZATIONS = ("global", "per_replica")


class Normalizers(NamedTuple):
    """What the sums of the losses are divided by. Both follow from the targets alone.

    `num_masks`: scalar, ground-truth segments per replica, at least 1. `class_weight`: scalar, sum of the class weights
    over all queries, per replica; 1 where it would be 0.
    """

    num_masks: Tensor
    class_weight: Tensor


@keras.saving.register_keras_serializable(package="kmaskformer")
class SetCriterion:
    """Matches queries with segments and sums the losses of the pairs.

    - `loss_ce`: softmax cross-entropy over the classes and no-object, of all queries; unmatched ones are no-object,
      whose weight is `no_object_weight`. Weighted mean: `sum(w · nll) / sum(w)`.
    - `loss_mask`, `loss_dice`: focal and dice loss of the matched masks at the size of the targets, to which the logits
      are resized bilinearly; summed over the masks and divided by the number of segments. Segments beyond the number of
      queries have no loss but count. Pixels that are in no segment, and padding, are background. With
      `point_sampling` the losses are taken at points instead.

    **Several replicas.** Each returns its own sum divided by the *mean over replicas* of the denominator, so that the
    mean over replicas of a term is the term of the global batch (averaging gradients, or dividing a replica's loss by
    the number of replicas before they are summed, gives the global gradient). With `ce_normalization="per_replica"`
    the cross-entropy divides by the replica's own weights, as the reference does; on one device both are the same.

    Args:
        num_classes: Checked against the predictions if given; otherwise they tell.
        weights: Weight of each kind of loss; those not named keep their default (1, 20, 1).
        no_object_weight: Class weight of no-object.
        matcher: A `HungarianMatcher`, or a `FixedMatcher`; a `HungarianMatcher` with the default costs if None.
        deep_supervision: Whether earlier decoder layers have losses too, each with its own matching.
        ce_normalization: `"global"` or `"per_replica"`.
        mask_stride: The mask losses are taken at the targets' size divided by it: 1 as the paper does; 2 with a quarter
            of the work, which counts where there are many segments; 4 at the size of the mask logits.
        point_sampling: Takes the mask losses at sampled points instead. The matching is at the logits' size always.
        ignore_void: Whether pixels of no segment, padding among them, are left out of the mask losses. The paper takes
            them for background of every mask; where large parts of the images are unlabelled that teaches masks to
            avoid them. Give the matcher the same.

    Raises:
        ValueError: If a weight is negative or its name unknown, or `ce_normalization` is unknown.
    """

    def __init__(
        self,
        num_classes: int | None = None,
        weights: dict[str, float] | None = None,
        no_object_weight: float = 0.1,
        matcher: HungarianMatcher | FixedMatcher | None = None,
        deep_supervision: bool = True,
        ce_normalization: str = "global",
        mask_stride: int = 1,
        point_sampling: PointSampling | None = None,
        ignore_void: bool = False,
    ) -> None:
        weights = dict(weights or {})
        unknown = sorted(set(weights) - set(DEFAULT_WEIGHTS))
        if unknown:
            raise ValueError(f"`weights` may name {sorted(DEFAULT_WEIGHTS)}. Received: {unknown}")
        if min([*weights.values(), no_object_weight]) < 0:
            raise ValueError(
                f"Weights must not be negative. Received: weights={weights}, no_object_weight={no_object_weight}"
            )
        if ce_normalization not in CE_NORMALIZATIONS:
            raise ValueError(
                f"`ce_normalization` must be one of {CE_NORMALIZATIONS}. "
                f"Received: ce_normalization={ce_normalization!r}"
            )
        if mask_stride < 1:
            raise ValueError(f"`mask_stride` must be a positive integer. Received: mask_stride={mask_stride}")
        self.num_classes = num_classes
        self.weights = {**DEFAULT_WEIGHTS, **weights}
        self.no_object_weight = no_object_weight
        self.matcher = HungarianMatcher() if matcher is None else matcher
        self.deep_supervision = deep_supervision
        self.ce_normalization = ce_normalization
        self.mask_stride = mask_stride
        self.point_sampling = point_sampling
        self.ignore_void = ignore_void

    @property
    def seed_generator(self) -> keras.random.SeedGenerator | None:
        """State of the random points, which belongs to the state of a run; None without them."""
        return None if self.point_sampling is None else self.point_sampling.seed_generator

    @property
    def supports_jit(self) -> bool:
        """Whether a step with this criterion can be compiled with `jit_compile=True`; False with SciPy's matcher."""
        return self.matcher.supports_jit

    def __call__(
        self, outputs: ModelOutputs, targets: Targets, normalizers: Normalizers | None = None
    ) -> dict[str, Tensor]:
        """The weighted terms of the loss; the total is their sum.

        Args:
            outputs: The model's outputs, of any floating dtype; losses are computed in float32.
            targets: A batch of targets, of the images' size or padded as the model pads them (see `pad_targets`).
            normalizers: Denominators to use instead of those of `targets`, for batches that are worked off in parts.

        Returns:
            Scalars `loss_ce`, `loss_mask`, `loss_dice` of the last layer and, with deep supervision, `loss_ce_0`, ...
            of the earlier ones in order.

        Raises:
            ValueError: If the predictions have another number of classes than the criterion, keys are missing, or the
                targets are larger than the padded image.
        """
        self._check(outputs, targets)
        layers = [outputs, *(outputs.get("aux_outputs") or ())] if self.deep_supervision else [outputs]
        targets = pad_targets(targets, ops.shape(outputs["mask_logits"])[-2:])
        if normalizers is None:
            normalizers = self.normalizers(targets, ops.shape(outputs["class_logits"])[1])
        queries = self.matcher.match_layers(layers, targets)
        mask_losses = self._mask_losses(targets)
        terms: dict[str, Tensor] = {}
        for index, layer in enumerate(layers):
            suffix = "" if index == 0 else f"_{index - 1}"
            losses = self._layer_losses(layer, queries[index], targets["labels"], mask_losses, normalizers)
            terms.update({f"{name}{suffix}": self.weights[name] * value for name, value in losses.items()})
        return terms

    def normalizers(self, targets: Targets, num_queries: Any) -> Normalizers:
        """Denominators for a batch of targets, summed over the replicas and divided by their number.

        The matching need not be known, for its size is.
        """
        num_segments = ops.sum(ops.cast(targets["valid"], "float32"), axis=1)
        num_matched = self.matcher.count_matched(targets, num_queries)
        num_queries = ops.cast(num_queries, "float32")
        class_weight = ops.sum(num_matched + self.no_object_weight * (num_queries - num_matched))
        num_masks = sum_over_replicas(ops.sum(num_segments)) / num_replicas()
        if self.ce_normalization == "global":
            class_weight = sum_over_replicas(class_weight) / num_replicas()
        # With a `no_object_weight` of 0 no query counts where there is no segment: the loss is then 0, not 0/0.
        class_weight = ops.where(class_weight > 0, class_weight, 1.0)
        return Normalizers(ops.maximum(num_masks, 1.0), class_weight)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {
            "num_classes": self.num_classes,
            "weights": dict(self.weights),
            "no_object_weight": self.no_object_weight,
            "matcher": keras.saving.serialize_keras_object(self.matcher),
            "deep_supervision": self.deep_supervision,
            "ce_normalization": self.ce_normalization,
            "mask_stride": self.mask_stride,
            "point_sampling": keras.saving.serialize_keras_object(self.point_sampling),
            "ignore_void": self.ignore_void,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SetCriterion:
        """The criterion that `get_config` described."""
        parts = {key: config.get(key) for key in ("matcher", "point_sampling")}
        parts = {
            key: keras.saving.deserialize_keras_object(part) if isinstance(part, dict) else part
            for key, part in parts.items()
        }
        return cls(**{**config, **parts})

    def _mask_losses(self, targets: Targets) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Focal and dice loss, as a function of the mask logits of the segments' queries."""
        if self.point_sampling is not None:
            return lambda mask_logits: self.point_sampling(mask_logits, targets, self.ignore_void)
        size = None
        if self.mask_stride > 1:
            full_size = ops.shape(targets["masks" if "masks" in targets else "segment_map"])[-2:]
            size = tuple(-(-side // self.mask_stride) for side in full_size)
        void = void_pixels(targets, size) if self.ignore_void else None
        signs = mask_signs(target_masks(targets, size), void)  # made once for all layers
        return lambda mask_logits: upsampled_focal_and_dice(mask_logits, signs, self.ignore_void)

    def _layer_losses(
        self, layer: ModelOutputs, queries: Tensor, labels: Tensor, mask_losses: Callable, normalizers: Normalizers
    ) -> dict[str, Tensor]:
        """Unweighted losses of one layer, given the query of each segment `(batch, segments)` or -1."""
        is_matched = queries >= 0
        nll = weighted_nll(layer["class_logits"], queries, labels, self.no_object_weight)
        focal, dice = mask_losses(gather_queries(layer["mask_logits"], queries))
        return {
            "loss_ce": ops.sum(nll) / normalizers.class_weight,
            "loss_mask": ops.sum(ops.where(is_matched, focal, 0.0)) / normalizers.num_masks,
            "loss_dice": ops.sum(ops.where(is_matched, dice, 0.0)) / normalizers.num_masks,
        }

    def _check(self, outputs: ModelOutputs, targets: Targets) -> None:
        missing = {"labels", "valid"} - set(targets)
        if missing:
            raise ValueError(f"`targets` must have 'labels' and 'valid'. Received: keys {sorted(targets)}")
        if "class_logits" not in outputs:
            raise ValueError(
                "`SetCriterion` trains models whose outputs have 'class_logits' and 'mask_logits'. "
                f"Received: outputs {sorted(outputs)}. Train a per-pixel model with `PerPixelCriterion`."
            )
        num_logits = outputs["class_logits"].shape[-1]
        if self.num_classes is not None and num_logits != self.num_classes + 1:
            raise ValueError(
                f"`class_logits` must have {self.num_classes + 1} entries: num_classes={self.num_classes} and "
                f"no-object. Received: class_logits.shape={tuple(outputs['class_logits'].shape)}. "
                "Build model and criterion with the same number of classes."
            )


def weighted_nll(class_logits: Tensor, queries: Tensor, labels: Tensor, no_object_weight: float) -> Tensor:
    """Negative log-likelihood of each query's class, times the weight of the class.

    Args:
        class_logits: `(batch, queries, classes + 1)`.
        queries: `(batch, segments)` int32, the query of each segment or -1.
        labels: `(batch, segments)` int32.
        no_object_weight: Weight of the queries without a segment, whose class is the last.

    Returns:
        `(batch, queries)` float32.
    """
    class_logits = ops.cast(class_logits, "float32")
    num_queries, num_logits = ops.shape(class_logits)[1:]
    is_pair = ops.expand_dims(queries, 1) == ops.arange(num_queries, dtype="int32")[None, :, None]
    label = ops.max(ops.where(is_pair, ops.expand_dims(ops.cast(labels, "int32"), 1), -1), axis=2, initial=-1)
    is_object = label >= 0
    label = ops.where(is_object, label, num_logits - 1)
    nll = ops.sparse_categorical_crossentropy(label, class_logits, from_logits=True)
    return nll * ops.where(is_object, 1.0, no_object_weight)


def gather_queries(values: Tensor, queries: Tensor) -> Tensor:
    """Rows of `values` `(batch, queries, ...)` for each segment, `(batch, segments, ...)`; query 0 where it is -1."""
    batch, num_queries = ops.shape(values)[:2]
    rows = ops.arange(batch, dtype="int32")[:, None] * num_queries + ops.maximum(queries, 0)
    return ops.take(ops.reshape(values, (-1, *ops.shape(values)[2:])), rows, axis=0)
