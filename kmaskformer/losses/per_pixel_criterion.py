"""The loss of per-pixel classification: softmax cross-entropy of every labelled pixel at the size of the targets."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kmaskformer.losses.set_criterion import CE_NORMALIZATIONS
from kmaskformer.ops.masks import MASK_STRIDE, pad_targets
from kmaskformer.ops.replicas import num_replicas, sum_over_replicas
from kmaskformer.ops.resize import interpolation_matrix
from kmaskformer.structures import VOID, ModelOutputs, Targets

Tensor = Any


@keras.saving.register_keras_serializable(package="kmaskformer")
class PerPixelCriterion:
    """Cross-entropy of the logits, enlarged bilinearly to the targets' size, as a mean over the labelled pixels.

    Pixels of no segment, and padding, have no loss: here they are unlabelled, where `SetCriterion` takes them for
    background.

    **Several replicas.** As in `SetCriterion`: each returns its own sum divided by the *mean over replicas* of the
    number of labelled pixels, so that the mean over replicas of a term is the term of the global batch. With
    `ce_normalization="per_replica"` each divides by its own number, as the reference does.

    Args:
        num_classes: Checked against the predictions if given; otherwise they tell.
        weight: Weight of every term.
        deep_supervision: Whether earlier decoder layers have losses too.
        ce_normalization: `"global"` or `"per_replica"`.

    Raises:
        ValueError: If the weight is negative or `ce_normalization` is unknown.

    References:
        - Cheng et al., arXiv 2107.06278, section 3, per-pixel classification formulation.
    """

    supports_jit = True

    def __init__(
        self,
        num_classes: int | None = None,
        weight: float = 1.0,
        deep_supervision: bool = True,
        ce_normalization: str = "global",
    ) -> None:
        if weight < 0:
            raise ValueError(f"`weight` must not be negative. Received: weight={weight}")
        if ce_normalization not in CE_NORMALIZATIONS:
            raise ValueError(
                f"`ce_normalization` must be one of {CE_NORMALIZATIONS}. "
                f"Received: ce_normalization={ce_normalization!r}"
            )
        self.num_classes = num_classes
        self.weight = weight
        self.deep_supervision = deep_supervision
        self.ce_normalization = ce_normalization

    def __call__(self, outputs: ModelOutputs, targets: Targets, normalizers: Tensor | None = None) -> dict[str, Tensor]:
        """The weighted terms of the loss; the total is their sum.

        Args:
            outputs: `logits` `(batch, h, w, classes)` at stride 4 and, of models with deep supervision, `aux_outputs`,
                a list of the same key; any floating dtype. Losses are computed in float32.
            targets: A batch of targets, of the images' size or padded as the model pads them (see `pad_targets`). Its
                labels are classes; where masks overlap, the last row of the table has the pixel.
            normalizers: Denominator to use instead of that of `targets`, for batches that are worked off in parts.

        Returns:
            Scalars `loss_sem_seg` of the last layer and, with deep supervision, `loss_sem_seg_0`, ... of the earlier
            ones in order. Without any labelled pixel they are 0.

        Raises:
            ValueError: If the predictions are not those of a per-pixel model or have another number of classes than
                the criterion, keys are missing, or the targets are larger than the padded image.
        """
        self._check(outputs, targets)
        layers = [outputs, *(outputs.get("aux_outputs") or ())] if self.deep_supervision else [outputs]
        targets = pad_targets(targets, ops.shape(outputs["logits"])[1:3])
        class_map = target_class_map(targets)
        scale = self.weight / (self._num_pixels(class_map) if normalizers is None else normalizers)
        return {
            "loss_sem_seg" if index == 0 else f"loss_sem_seg_{index - 1}": (
                scale * upsampled_cross_entropy(layer["logits"], class_map)
            )
            for index, layer in enumerate(layers)
        }

    def normalizers(self, targets: Targets, num_queries: int = 0) -> Tensor:
        """Labelled pixels of a batch of targets, per replica; `num_queries` plays no part."""
        return self._num_pixels(target_class_map(targets))

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {
            "num_classes": self.num_classes,
            "weight": self.weight,
            "deep_supervision": self.deep_supervision,
            "ce_normalization": self.ce_normalization,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PerPixelCriterion:
        """The criterion that `get_config` described."""
        return cls(**config)

    def _num_pixels(self, class_map: Tensor) -> Tensor:
        """Labelled pixels, per replica."""
        count = ops.sum(ops.cast(class_map != VOID, "float32"))
        if self.ce_normalization == "per_replica":
            return ops.maximum(count, 1.0)
        return ops.maximum(sum_over_replicas(count), 1.0) / num_replicas()

    def _check(self, outputs: ModelOutputs, targets: Targets) -> None:
        if "logits" not in outputs:
            raise ValueError(
                "`PerPixelCriterion` trains models whose outputs have 'logits'. "
                f"Received: outputs {sorted(outputs)}. Train a MaskFormer with `SetCriterion`."
            )
        if {"labels", "valid"} - set(targets):
            raise ValueError(f"`targets` must have 'labels' and 'valid'. Received: keys {sorted(targets)}")
        if self.num_classes is not None and outputs["logits"].shape[-1] != self.num_classes:
            raise ValueError(
                f"`logits` must have num_classes={self.num_classes} entries. "
                f"Received: logits.shape={tuple(outputs['logits'].shape)}. "
                "Build model and criterion with the same number of classes."
            )


def target_class_map(targets: Targets) -> Tensor:
    """Class of every pixel.

    Args:
        targets: A batch of targets with `segment_map` or `masks`.

    Returns:
        `(batch, height, width)` int32 class ids, `structures.VOID` where a pixel is in no valid segment.
    """
    labels = ops.where(ops.cast(targets["valid"], "bool"), ops.cast(targets["labels"], "int32"), VOID)
    num_segments = ops.shape(labels)[1]
    if "masks" in targets:
        rows = ops.arange(num_segments, dtype="int32")[None, :, None, None]
        inside = ops.cast(targets["masks"], "bool") & (labels != VOID)[:, :, None, None]
        segment_map = ops.max(ops.where(inside, rows, VOID), axis=1, initial=VOID)
    else:
        segment_map = ops.cast(targets["segment_map"], "int32")
    # Pixels of no segment read one more entry of the table.
    labels = ops.pad(labels, ((0, 0), (0, 1)), constant_values=VOID)
    index = ops.reshape(ops.where(segment_map < 0, num_segments, segment_map), (ops.shape(segment_map)[0], -1))
    return ops.reshape(ops.take_along_axis(labels, index, axis=1), ops.shape(segment_map))


def upsampled_cross_entropy(logits: Tensor, class_map: Tensor) -> Tensor:
    """Cross-entropy between a class map and the logits enlarged to its size (bilinearly), summed over the pixels.

    The logits are enlarged by their stride and then cut to the map, as at inference.

    Args:
        logits: `(batch, h, w, classes)`.
        class_map: `(batch, height, width)` int32, `structures.VOID` where there is no loss.

    Returns:
        Scalar float32.
    """
    rows, columns = (_enlarging_matrix(ops.shape(logits)[axis], ops.shape(class_map)[axis]) for axis in (1, 2))
    logits = _multiply_rows_and_columns(ops.cast(logits, "float32"), rows, columns)
    nll = ops.sparse_categorical_crossentropy(ops.maximum(class_map, 0), logits, from_logits=True)
    return ops.sum(ops.where(class_map == VOID, 0.0, nll))


def _enlarging_matrix(length: Any, target_length: Any) -> Tensor:
    """`(target, length)` weights of one axis: enlarged by the stride and cut to the target.

    A target that is not as long as the stride makes it has logits of another stride (see `pad_targets`).
    """
    is_strided = target_length > MASK_STRIDE * (length - 1)
    if isinstance(is_strided, bool):
        enlarged = MASK_STRIDE * length if is_strided else target_length
    else:
        enlarged = ops.where(is_strided, MASK_STRIDE * length, target_length)
    return interpolation_matrix(length, enlarged)[:target_length]


def _multiply_rows_and_columns(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """`rows @ x @ columnsᵀ` over the height and width of `(batch, height, width, channels)`."""
    batch, height, width, channels = ops.shape(x)
    new_height, new_width = ops.shape(rows)[0], ops.shape(columns)[0]
    x = ops.matmul(rows, ops.reshape(x, (batch, height, width * channels)))
    x = ops.matmul(columns, ops.reshape(x, (batch * new_height, width, channels)))
    return ops.reshape(x, (batch, new_height, new_width, channels))
