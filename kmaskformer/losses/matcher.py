"""Bipartite matching between queries and ground-truth segments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from kmaskformer.losses.mask_losses import ALPHA
from kmaskformer.ops.assignment import solve_assignment, solve_assignment_on_host
from kmaskformer.ops.masks import pad_targets, target_masks, void_pixels
from kmaskformer.structures import ModelOutputs, Targets

Tensor = Any

SOLVERS = {"in_graph": solve_assignment, "scipy": solve_assignment_on_host}


@keras.saving.register_keras_serializable(package="kmaskformer")
class HungarianMatcher:
    """Matches each ground-truth segment to one query, at the lowest total cost per image.

    The cost of a pair is `cost_class · (-p(class)) + cost_mask · focal + cost_dice · dice`, the mask terms at the size
    of the mask logits. Class probabilities enter as they are rather than as a log-likelihood; the constant 1 that would
    make the term a loss changes no matching.

    Everything is computed in float32, under any precision policy, and no gradient flows through the matching.

    Args:
        cost_class: Weight of the class term.
        cost_mask: Weight of the focal term.
        cost_dice: Weight of the dice term.
        solver: `"in_graph"` (exact, compiles under XLA) or `"scipy"` (on the host). With TensorFlow, the second is a
            Python function in the graph, which XLA cannot compile: see `supports_jit`.
        ignore_void: Whether pixels of no segment are left out of the mask terms; see `SetCriterion`.

    Raises:
        ValueError: If the solver is unknown or all weights are 0.
    """

    def __init__(
        self,
        cost_class: float = 1.0,
        cost_mask: float = 20.0,
        cost_dice: float = 1.0,
        solver: str = "in_graph",
        ignore_void: bool = False,
    ) -> None:
        self.ignore_void = ignore_void
        if solver not in SOLVERS:
            raise ValueError(f"`solver` must be one of {sorted(SOLVERS)}. Received: solver={solver!r}")
        if not any((cost_class, cost_mask, cost_dice)):
            raise ValueError(
                "At least one of `cost_class`, `cost_mask` and `cost_dice` must not be 0. "
                f"Received: {cost_class}, {cost_mask}, {cost_dice}"
            )
        self.cost_class = cost_class
        self.cost_mask = cost_mask
        self.cost_dice = cost_dice
        self.solver = solver

    @property
    def supports_jit(self) -> bool:
        """Whether a step with this matcher can be compiled with `jit_compile=True`."""
        return self.solver == "in_graph" or keras.backend.backend() == "jax"

    def __call__(self, outputs: ModelOutputs, targets: Targets) -> Tensor:
        """Matches the last layer's predictions.

        Args:
            outputs: `class_logits` `(batch, queries, classes + 1)` and `mask_logits` `(batch, queries, h, w)`.
            targets: A batch of targets; see `pad_targets` for their size.

        Returns:
            `(batch, segments)` int32: the query of each segment; -1 for padding of the table and, where an image has
            more segments than there are queries, for the segments left over.
        """
        return self.match_layers([outputs], targets)[0]

    def count_matched(self, targets: Targets, num_queries: Any) -> Tensor:
        """`(batch,)` float32, how many segments will be matched: all for which there is a query.

        So it is known before the matching, and the class losses' denominator with it.
        """
        num_segments = ops.sum(ops.cast(targets["valid"], "float32"), axis=1)
        return ops.minimum(num_segments, ops.cast(num_queries, "float32"))

    def match_layers(self, layers: Sequence[ModelOutputs], targets: Targets) -> Tensor:
        """Matches the predictions of several decoder layers, all solved as one batch.

        Args:
            layers: Outputs of each layer; their masks have one size.
            targets: A batch of targets.

        Returns:
            `(layers, batch, segments)` int32, as `__call__` returns it.
        """
        mask_size = ops.shape(layers[0]["mask_logits"])[-2:]
        targets = pad_targets(targets, mask_size)
        masks = target_masks(targets, mask_size, dtype="float32")
        counted = ops.logical_not(void_pixels(targets, mask_size)) if self.ignore_void else None
        valid = ops.cast(targets["valid"], "bool")
        labels = ops.where(valid, ops.cast(targets["labels"], "int32"), 0)
        costs = ops.concatenate([self.costs(layer, labels, masks, counted) for layer in layers], axis=0)
        queries = SOLVERS[self.solver](costs, ops.tile(valid, (len(layers), 1)))
        return ops.reshape(queries, (len(layers), *ops.shape(valid)))

    def costs(self, outputs: ModelOutputs, labels: Tensor, masks: Tensor, counted: Tensor | None = None) -> Tensor:
        """Cost of every pair of a query and a segment.

        Args:
            outputs: `class_logits` `(batch, queries, classes + 1)` and `mask_logits` `(batch, queries, h, w)`.
            labels: `(batch, segments)` int32, each a class.
            masks: `(batch, segments, h, w)` float32, 0 or 1.
            counted: `(batch, h, w)` bool, the pixels that count; all if None.

        Returns:
            `(batch, queries, segments)` float32.
        """
        class_logits, mask_logits = (
            ops.cast(ops.stop_gradient(outputs[key]), "float32") for key in ("class_logits", "mask_logits")
        )
        batch, _, height, width = ops.shape(mask_logits)
        mask_logits = ops.reshape(mask_logits, (batch, -1, height * width))
        masks = ops.reshape(ops.cast(masks, "float32"), (batch, -1, height * width))
        if counted is not None:
            counted = ops.reshape(ops.cast(counted, "float32"), (batch, 1, height * width))
        return (
            self.cost_class * class_cost(class_logits, labels)
            + self.cost_mask * focal_cost(mask_logits, masks, counted)
            + self.cost_dice * dice_cost(mask_logits, masks, counted)
        )

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {
            "cost_class": self.cost_class,
            "cost_mask": self.cost_mask,
            "cost_dice": self.cost_dice,
            "solver": self.solver,
            "ignore_void": self.ignore_void,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> HungarianMatcher:
        """The matcher that `get_config` described."""
        return cls(**config)


@keras.saving.register_keras_serializable(package="kmaskformer")
class FixedMatcher:
    """Matches each ground-truth segment to the query of its class: query i is class i.

    The alternative to bipartite matching in the paper's ablation. It suits semantic targets, where an image has at most
    one segment per class; of several segments of a class the first is matched and the others are not.

    References:
        - Cheng et al., arXiv 2107.06278, ablation of bipartite against fixed matching.
    """

    supports_jit = True

    def __call__(self, outputs: ModelOutputs, targets: Targets) -> Tensor:
        """As `HungarianMatcher.__call__`."""
        return self.match_layers([outputs], targets)[0]

    def count_matched(self, targets: Targets, num_queries: Any) -> Tensor:
        """As `HungarianMatcher.count_matched`: one segment of each class that occurs."""
        return ops.sum(ops.cast(self._queries(targets) >= 0, "float32"), axis=1)

    def match_layers(self, layers: Sequence[ModelOutputs], targets: Targets) -> Tensor:
        """As `HungarianMatcher.match_layers`; all layers have the same matching, which the labels alone decide.

        Raises:
            ValueError: If there are not as many queries as classes.
        """
        num_queries, num_logits = layers[0]["class_logits"].shape[-2:]
        if num_queries != num_logits - 1:
            raise ValueError(
                "Fixed matching needs one query per class. "
                f"Received: {num_queries} queries and {num_logits - 1} classes"
            )
        return ops.tile(ops.expand_dims(self._queries(targets), 0), (len(layers), 1, 1))

    def _queries(self, targets: Targets) -> Tensor:
        labels = ops.where(ops.cast(targets["valid"], "bool"), ops.cast(targets["labels"], "int32"), -1)
        # Earlier segments of the same class, counted along the table.
        is_same = ops.expand_dims(labels, 1) == ops.expand_dims(labels, 2)
        num_earlier = ops.sum(ops.tril(ops.cast(is_same, "int32"), k=-1), axis=2)
        return ops.where(num_earlier == 0, labels, -1)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments: none."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> FixedMatcher:
        """The matcher that `get_config` described."""
        return cls(**config)


def class_cost(class_logits: Tensor, labels: Tensor) -> Tensor:
    """`-softmax(class_logits)[query, label]`, `(batch, queries, segments)`."""
    probs = ops.softmax(class_logits, axis=-1)
    return -ops.take_along_axis(probs, ops.expand_dims(labels, 1), axis=-1)


def focal_cost(mask_logits: Tensor, masks: Tensor, counted: Tensor | None = None) -> Tensor:
    """Focal loss of every pair, mean over pixels.

    The loss is linear in the mask: `sum(background) + sum((foreground - background) · mask)`, one matrix product.

    Args:
        mask_logits: `(batch, queries, pixels)`.
        masks: `(batch, segments, pixels)`, 0 or 1.
        counted: `(batch, 1, pixels)`, 0 where a pixel shall not count, which then is in no mask; all count if None.

    Returns:
        `(batch, queries, segments)`.
    """
    probs, background_bce = ops.sigmoid(mask_logits), ops.softplus(mask_logits)
    foreground = ALPHA * ops.square(1.0 - probs) * (background_bce - mask_logits)
    background = (1.0 - ALPHA) * ops.square(probs) * background_bce
    pairs = ops.matmul(foreground - background, ops.swapaxes(masks, 1, 2))
    num_pixels = ops.cast(ops.shape(mask_logits)[-1], "float32")
    if counted is not None:
        background = background * counted
        num_pixels = ops.maximum(ops.sum(counted, axis=-1, keepdims=True), 1.0)
    return (pairs + ops.sum(background, axis=-1, keepdims=True)) / num_pixels


def dice_cost(mask_logits: Tensor, masks: Tensor, counted: Tensor | None = None) -> Tensor:
    """Dice loss of every pair; arguments and result as in `focal_cost`."""
    probs = ops.sigmoid(mask_logits)
    probs = probs if counted is None else probs * counted
    overlap = ops.matmul(probs, ops.swapaxes(masks, 1, 2))
    total = ops.sum(probs, axis=-1)[:, :, None] + ops.sum(masks, axis=-1)[:, None, :]
    return 1.0 - (2.0 * overlap + 1.0) / (total + 1.0)
