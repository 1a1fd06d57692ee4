"""Learning-rate schedules of the published recipes: poly and multi-step decay, each with a linear warm-up.

A schedule gives the rate of the base group; the optimizer multiplies it for the backbone. Both schedules are counted
in optimizer updates from 0, and the decay runs from update 0, not from the end of the warm-up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops


class _Warmup(keras.optimizers.schedules.LearningRateSchedule):
    """A decay factor times a linear warm-up factor; subclasses give the decay.

    Args:
        base_lr: Learning rate that the factors multiply, greater than 0.
        warmup_steps: Updates until the warm-up factor reaches 1; 0 for none.
        warmup_factor: Factor at update 0, in 0..1.

    Raises:
        ValueError: If an argument is outside its range.
    """

    def __init__(self, base_lr: float, warmup_steps: int = 0, warmup_factor: float = 1.0) -> None:
        super().__init__()
        if not base_lr > 0:
            raise ValueError(f"`base_lr` must be greater than 0. Received: base_lr={base_lr}")
        if warmup_steps < 0:
            raise ValueError(f"`warmup_steps` must be 0 (no warm-up) or more. Received: warmup_steps={warmup_steps}")
        if not 0 <= warmup_factor <= 1:
            raise ValueError(f"`warmup_factor` must lie in 0..1. Received: warmup_factor={warmup_factor}")
        self.base_lr = float(base_lr)
        self.warmup_steps = int(warmup_steps)
        self.warmup_factor = float(warmup_factor)

    def __call__(self, step: Any) -> Any:
        """Learning rate of the update `step` (scalar, from 0), a float32 scalar."""
        step = ops.cast(step, "float32")
        return self.base_lr * self._warmup(step) * self.decay(step)

    def decay(self, step: Any) -> Any:
        """Factor of the float32 scalar `step`, in 0..1."""
        raise NotImplementedError

    def _warmup(self, step: Any) -> Any:
        if self.warmup_steps == 0:
            return 1.0
        alpha = ops.minimum(step / self.warmup_steps, 1.0)
        return self.warmup_factor * (1.0 - alpha) + alpha

    def get_config(self) -> dict[str, Any]:
        return {"base_lr": self.base_lr, "warmup_steps": self.warmup_steps, "warmup_factor": self.warmup_factor}


@keras.saving.register_keras_serializable(package="kmaskformer")
class WarmupPoly(_Warmup):
    """`base_lr * warmup(step) * (1 - step / total_steps) ** power`, the schedule of all semantic recipes.

    Args:
        base_lr: Learning rate at update 0 but for the warm-up.
        total_steps: Updates of the whole run; the rate is that of `end` from then on.
        power: Exponent of the decay.
        warmup_steps: Updates until the warm-up factor reaches 1; 0 for none.
        warmup_factor: Warm-up factor at update 0, in 0..1.
        end: Fraction of `base_lr`, in 0..1, below which the decay does not fall.

    Raises:
        ValueError: If an argument is outside its range.
    """

    def __init__(
        self,
        base_lr: float,
        total_steps: int,
        power: float = 0.9,
        warmup_steps: int = 0,
        warmup_factor: float = 1.0,
        end: float = 0.0,
    ) -> None:
        super().__init__(base_lr, warmup_steps, warmup_factor)
        if total_steps < 1:
            raise ValueError(f"`total_steps` must be at least 1. Received: total_steps={total_steps}")
        if not power > 0:
            raise ValueError(f"`power` must be greater than 0. Received: power={power}")
        if not 0 <= end <= 1:
            raise ValueError(f"`end` must be a fraction of `base_lr` in 0..1. Received: end={end}")
        self.total_steps = int(total_steps)
        self.power = float(power)
        self.end = float(end)

    def decay(self, step: Any) -> Any:
        # Whole numbers are subtracted before the division, which keeps the last steps exact in float32.
        left = ops.maximum(self.total_steps - step, 0.0) / self.total_steps
        return ops.maximum(ops.power(left, self.power), self.end)

    def get_config(self) -> dict[str, Any]:
        own = {"total_steps": self.total_steps, "power": self.power, "end": self.end}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="kmaskformer")
class WarmupMultiStep(_Warmup):
    """`base_lr * warmup(step) * gamma ** (milestones reached)`, the schedule of the COCO panoptic recipes.

    Args:
        base_lr: Learning rate at update 0 but for the warm-up.
        milestones: Increasing update numbers; the update with that number is the first with the smaller rate.
        gamma: Factor of each milestone.
        warmup_steps: Updates until the warm-up factor reaches 1; 0 for none.
        warmup_factor: Warm-up factor at update 0, in 0..1.

    Raises:
        ValueError: If an argument is outside its range or the milestones do not increase.
    """

    def __init__(
        self,
        base_lr: float,
        milestones: Sequence[int],
        gamma: float = 0.1,
        warmup_steps: int = 0,
        warmup_factor: float = 1.0,
    ) -> None:
        super().__init__(base_lr, warmup_steps, warmup_factor)
        milestones = [int(milestone) for milestone in milestones]
        if milestones != sorted(set(milestones)) or any(milestone < 1 for milestone in milestones):
            raise ValueError(f"`milestones` must be increasing and at least 1. Received: milestones={milestones}")
        if not gamma > 0:
            raise ValueError(f"`gamma` must be greater than 0. Received: gamma={gamma}")
        self.milestones = milestones
        self.gamma = float(gamma)

    def decay(self, step: Any) -> Any:
        factor = ops.ones_like(step)
        for milestone in self.milestones:
            factor = ops.where(step >= milestone, factor * self.gamma, factor)
        return factor

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "milestones": list(self.milestones), "gamma": self.gamma}
