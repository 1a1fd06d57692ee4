"""AdamW and SGD with the reference's parameter groups, its full-model gradient clip, and PyTorch's update.

Keras' own AdamW differs in three ways that change the training: it adds epsilon before the bias correction, which
under a clip of 0.01 shrinks the first steps; it has one learning rate for all variables; and with several replicas it
clips each replica's gradient before they are summed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

BACKBONE = "backbone"
"""Component of a variable's path, or value of its `parameter_group` attribute, that puts it into the backbone group."""

NORM_NAMES = ("gamma", "beta")
EMBEDDING_NAMES = ("query_embedding", "embeddings")
POSITION_TABLE_NAMES = ("relative_position_bias_table", "absolute_position_embedding", "absolute_pos_embed")


@dataclasses.dataclass(frozen=True)
class ParameterGroup:
    """The variables that share a learning rate and a weight decay, for logs and tests.

    `learning_rate_multiplier` multiplies the schedule's rate, `weight_decay` is the group's own, `paths` name the
    variables and `num_parameters` counts their elements.
    """

    learning_rate_multiplier: float
    weight_decay: float
    paths: tuple[str, ...]
    num_parameters: int


class GroupedOptimizer(keras.optimizers.Optimizer):
    """Base of the optimizers here: parameter groups by variable, and one clip of the whole gradient.

    A variable is in the backbone group when it carries the attribute `parameter_group = "backbone"`, which the models
    here set, or when a component of its path is `backbone`. The path alone does not do: a Keras variable keeps the
    path it was created with, so that of a backbone built by itself, and of any model read from a `.keras` file, lacks
    the outer names. Biases are decayed; scales and offsets of norms, embeddings and position tables are told by the
    names of their variables and have their own decay.

    Args:
        learning_rate: Float greater than 0 or a schedule of the update number.
        weight_decay: Weight decay of all variables but those below.
        weight_decay_norm: Weight decay of the scales and offsets of norm layers.
        weight_decay_embed: Weight decay of embeddings (the queries). Position tables are never decayed.
        backbone_multiplier: Factor of the learning rate in the backbone.
        clip_norm: Largest L2 norm of the gradient of all variables together; `None` to leave it as it is.
        skip_nonfinite: Whether an update whose gradient is not finite changes neither weights nor moments. It counts
            as an update all the same, so that schedules and the order of the data go on.
        **kwargs: `name`, `use_ema`, `ema_momentum` and `loss_scale_factor` of `keras.optimizers.Optimizer`. The
            averages of the weights stay beside them, in the optimizer: see `averaged_weights`.

    Raises:
        ValueError: If an argument is outside its range, or one of Keras' own clips is asked for.
    """

    def __init__(
        self,
        learning_rate: Any,
        weight_decay: float,
        weight_decay_norm: float = 0.0,
        weight_decay_embed: float = 0.0,
        backbone_multiplier: float = 0.1,
        clip_norm: float | None = 0.01,
        skip_nonfinite: bool = False,
        **kwargs: Any,
    ) -> None:
        for name in ("clipnorm", "clipvalue", "global_clipnorm"):
            if kwargs.pop(name, None) is not None:
                raise ValueError(f"`{name}` clips before replicas are summed; use `clip_norm`. Received: {name}")
        decays = {"weight_decay": weight_decay, "weight_decay_norm": weight_decay_norm}
        decays["weight_decay_embed"] = weight_decay_embed
        for name, value in {**decays, "backbone_multiplier": backbone_multiplier}.items():
            if not value >= 0:
                raise ValueError(f"`{name}` must be 0 or more. Received: {name}={value}")
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"`clip_norm` must be greater than 0, or None for no clip. Received: {clip_norm}")
        super().__init__(learning_rate=learning_rate, weight_decay=float(weight_decay), **kwargs)
        self.weight_decay_norm = float(weight_decay_norm)
        self.weight_decay_embed = float(weight_decay_embed)
        self.backbone_multiplier = float(backbone_multiplier)
        self.clip_norm = clip_norm if clip_norm is None else float(clip_norm)
        self.skip_nonfinite = bool(skip_nonfinite)

    def build(self, variables: Sequence[Any]) -> None:
        """Creates the state of `variables`, the model's trainable variables, and fixes their groups."""
        if self.built:
            return
        super().build(variables)
        # The update sees backend variables, which have no Keras path: groups are looked up by position.
        self._multipliers = tuple(self.learning_rate_multiplier(variable) for variable in variables)
        self._decays = tuple(self.weight_decay_of(variable) for variable in variables)
        self._gradient_norm = self.add_variable((), name="gradient_norm", aggregation="only_first_replica")

    @property
    def gradient_norm(self) -> Any:
        """L2 norm of the last update's whole gradient before the clip, a float32 scalar; 0 before the first update."""
        # The sum makes it a value: under a strategy the variable itself is a container of one per replica.
        return self._gradient_norm + 0.0 if self.built else ops.zeros(())

    def learning_rate_multiplier(self, variable: Any) -> float:
        """Factor of the learning rate of a model's `variable`."""
        marked = getattr(variable, "parameter_group", None) == BACKBONE
        return self.backbone_multiplier if marked or BACKBONE in variable.path.split("/") else 1.0

    def weight_decay_of(self, variable: Any) -> float:
        """Weight decay of a model's `variable`."""
        components = variable.path.split("/")
        if components[-1] in POSITION_TABLE_NAMES:
            return 0.0
        if components[-1] in NORM_NAMES:
            return self.weight_decay_norm
        if any(component in EMBEDDING_NAMES for component in components):
            return self.weight_decay_embed
        return self.weight_decay

    def parameter_groups(self, variables: Iterable[Any]) -> list[ParameterGroup]:
        """Census of a model's trainable `variables` by learning rate and weight decay, largest rates first."""
        groups: dict[tuple[float, float], list[Any]] = {}
        for variable in variables:
            key = (self.learning_rate_multiplier(variable), self.weight_decay_of(variable))
            groups.setdefault(key, []).append(variable)
        return [
            ParameterGroup(*key, tuple(v.path for v in members), sum(math.prod(v.shape) for v in members))
            for key, members in sorted(groups.items(), reverse=True)
        ]

    def get_config(self) -> dict[str, Any]:
        own = ("weight_decay_norm", "weight_decay_embed", "backbone_multiplier", "clip_norm", "skip_nonfinite")
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one `variable`, and what is kept about it, by its summed and clipped `gradient`."""
        index = self._get_variable_index(variable)
        gradient = ops.cast(gradient, variable.dtype)
        rate = ops.cast(learning_rate, "float32") * self._multipliers[index]
        self.apply_update(gradient, variable, index, rate)
        if self.use_ema:
            self._average(self._model_variables_moving_average[index], variable)

    def apply_update(self, gradient: Any, variable: Any, index: int, rate: Any) -> None:
        """Sets `variable` and what is kept about it, with the group's learning rate `rate`."""
        values = self.new_values(gradient, variable, index, rate)
        is_good = ops.isfinite(self._gradient_norm) if self.skip_nonfinite else None
        for target, value in values:
            self.assign(target, value if is_good is None else ops.where(is_good, value, target))

    def new_values(self, gradient: Any, variable: Any, index: int, rate: Any) -> list[tuple[Any, Any]]:
        """What an update sets: pairs of a variable and its new value, with the group's learning rate `rate`."""
        raise NotImplementedError

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """Nothing: Keras would replace the weights by their averages, and a resumed run would go on from those."""

    def _average(self, average: Any, variable: Any) -> None:
        momentum = ops.cast(ops.not_equal(self.iterations, 0), variable.dtype) * self.ema_momentum
        self.assign(average, momentum * average + (1 - momentum) * variable)

    def _update_model_variables_moving_average(self, trainable_variables: Sequence[Any]) -> None:
        """Nothing: the averages are part of `update_step`, since replicas may not write outside of it."""

    def _get_current_learning_rate(self) -> Any:
        # Keras hands schedules the number of batches, which differs from that of updates under accumulation.
        if isinstance(self._learning_rate, keras.optimizers.schedules.LearningRateSchedule):
            return self._learning_rate(self.iterations)
        return super()._get_current_learning_rate()

    def _apply_weight_decay(self, variables: Sequence[Any]) -> None:
        """Nothing: the decay has the learning rate of its group and is part of `update_step`."""

    def _clip_gradients(self, grads: Sequence[Any]) -> list[Any]:
        # On TensorFlow these are still one replica's gradients; they are clipped when they have been summed.
        return list(grads) if keras.backend.backend() == "tensorflow" else self._clip(grads)

    def _all_reduce_sum_gradients(self, grads_and_vars: Iterable[Any]) -> list[Any]:
        """Sums the gradients over replicas, then clips the sum; called on TensorFlow only."""
        import tensorflow as tf

        gradients, variables = zip(*super()._all_reduce_sum_gradients(grads_and_vars), strict=True)
        dense = [g if g is None else tf.convert_to_tensor(g) for g in gradients]
        return list(zip(self._clip(dense), variables, strict=True))

    def _clip(self, gradients: Sequence[Any]) -> list[Any]:
        """Scales all `gradients` by one factor so that their common L2 norm is at most `clip_norm`."""
        squares = [_sum_of_squares(ops.cast(g, "float32")) for g in gradients if g is not None]
        norm = ops.sqrt(ops.sum(ops.stack(squares)))
        self.assign(self._gradient_norm, norm)
        if self.clip_norm is None:
            return list(gradients)
        # As torch.nn.utils.clip_grad_norm_: with a clip of 0.01 its 1e-6 is seen in the fourth digit.
        scale = ops.minimum(self.clip_norm / (norm + 1e-6), 1.0)
        return [g if g is None else g * ops.cast(scale, g.dtype) for g in gradients]


def _sum_of_squares(x: Any) -> Any:
    if keras.backend.backend() != "tensorflow":
        return ops.sum(ops.square(x))
    import tensorflow as tf

    return 2.0 * tf.nn.l2_loss(x)  # one pass over the memory, where squares that are written first take three


@keras.saving.register_keras_serializable(package="kmaskformer")
class AdamW(GroupedOptimizer):
    """Adam with decoupled weight decay, as `torch.optim.AdamW` computes it.

    With the group's learning rate lr and the decay wd, at update t from 1:
    `p <- p - lr * wd * p - lr * m_hat / (sqrt(v_hat) + epsilon)`, `m_hat = m / (1 - beta_1 ** t)` and
    `v_hat = v / (1 - beta_2 ** t)`.

    Args:
        learning_rate: Float greater than 0 or a schedule of the update number.
        weight_decay: Weight decay of all variables but norms, embeddings and position tables.
        beta_1: Decay of the mean of gradients, in 0..1 without 1.
        beta_2: Decay of the mean of squared gradients, in 0..1 without 1.
        epsilon: Added to the root of the bias-corrected mean square.
        **kwargs: See `GroupedOptimizer`.

    Raises:
        ValueError: If an argument is outside its range.

    References:
        [Loshchilov and Hutter, Decoupled weight decay regularization](https://arxiv.org/abs/1711.05101)
    """

    def __init__(
        self,
        learning_rate: Any = 1e-4,
        weight_decay: float = 1e-4,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        **kwargs: Any,
    ) -> None:
        for name, value in {"beta_1": beta_1, "beta_2": beta_2}.items():
            if not 0 <= value < 1:
                raise ValueError(f"`{name}` must be at least 0 and less than 1. Received: {name}={value}")
        super().__init__(learning_rate, weight_decay, **kwargs)
        self.beta_1 = float(beta_1)
        self.beta_2 = float(beta_2)
        self.epsilon = float(epsilon)

    def build(self, variables: Sequence[Any]) -> None:
        if self.built:
            return
        super().build(variables)
        slots = self.add_optimizer_variables(variables, ["momentum", "velocity"])
        self._momentums, self._velocities = slots

    def apply_update(self, gradient: Any, variable: Any, index: int, rate: Any) -> None:
        # The kernel takes 1 - beta in the variable's type, which in bfloat16 would be 0.
        has_kernel = keras.backend.backend() == "tensorflow" and variable.dtype in ("float32", "float64")
        if has_kernel and not self.skip_nonfinite:
            self._apply_in_one_operation(gradient, variable, index, rate)
        else:
            super().apply_update(gradient, variable, index, rate)

    def _apply_in_one_operation(self, gradient: Any, variable: Any, index: int, rate: Any) -> None:
        """The same update by TensorFlow's kernel, which reads and writes each number once instead of in 15 passes.

        It computes `p <- p - lr * m / (sqrt(v) + epsilon)`. Its own bias correction is off by 1e-5 for the first steps:
        it is switched off, and put into the learning rate and epsilon.
        """
        import tensorflow as tf

        # The kernel takes 1 - beta of the rounded beta; for 0.999 that is off by 1.3e-5, as the correction must be.
        beta_1, beta_2 = (float(np.float32(beta)) for beta in (self.beta_1, self.beta_2))

        if self._decays[index] > 0:
            variable.assign_sub(ops.cast(rate * self._decays[index], variable.dtype) * variable)
        root = ops.sqrt(self._bias_correction(beta_2))
        constants = {
            "lr": rate * root / self._bias_correction(beta_1),
            "epsilon": self.epsilon * root,
            "beta1_power": 0.0,
            "beta2_power": 0.0,
            "beta1": beta_1,
            "beta2": beta_2,
        }
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            grad=gradient,
            use_locking=True,
            **{name: tf.cast(value, variable.dtype) for name, value in constants.items()},
        )

    def new_values(self, gradient: Any, variable: Any, index: int, rate: Any) -> list[tuple[Any, Any]]:
        dtype = variable.dtype
        mean, square = self._momentums[index], self._velocities[index]
        new_mean = mean * self.beta_1 + gradient * (1 - self.beta_1)
        new_square = square * self.beta_2 + ops.square(gradient) * (1 - self.beta_2)
        step_size = ops.cast(rate / self._bias_correction(self.beta_1), dtype)
        root = ops.cast(ops.sqrt(self._bias_correction(self.beta_2)), dtype)
        update = step_size * new_mean / (ops.sqrt(new_square) / root + self.epsilon)
        if self._decays[index] > 0:
            update = update + ops.cast(rate * self._decays[index], dtype) * variable
        return [(mean, new_mean), (square, new_square), (variable, variable - update)]

    def _bias_correction(self, beta: float) -> Any:
        """`1 - beta ** t`; by expm1, since the plain float32 difference is off by 1e-5 for the first steps."""
        update = ops.cast(self.iterations + 1, "float32")
        return -ops.expm1(update * (math.log(beta) if beta > 0 else -math.inf))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "beta_1": self.beta_1, "beta_2": self.beta_2, "epsilon": self.epsilon}


@keras.saving.register_keras_serializable(package="kmaskformer")
class SGD(GroupedOptimizer):
    """Gradient descent with momentum and coupled weight decay, as `torch.optim.SGD` computes it.

    `b <- momentum * b + g + wd * p`, `p <- p - lr * b`; with `nesterov`, `p <- p - lr * (g + wd * p + momentum * b)`.

    Args:
        learning_rate: Float greater than 0 or a schedule of the update number.
        weight_decay: Weight decay of all variables but norms, embeddings and position tables.
        momentum: Decay of the running sum of gradients, in 0..1 without 1.
        nesterov: Whether to look ahead.
        **kwargs: See `GroupedOptimizer`.

    Raises:
        ValueError: If an argument is outside its range.
    """

    def __init__(
        self,
        learning_rate: Any = 1e-2,
        weight_decay: float = 1e-4,
        momentum: float = 0.9,
        nesterov: bool = False,
        **kwargs: Any,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"`momentum` must be at least 0 and less than 1. Received: momentum={momentum}")
        super().__init__(learning_rate, weight_decay, **kwargs)
        self.momentum = float(momentum)
        self.nesterov = bool(nesterov)

    def build(self, variables: Sequence[Any]) -> None:
        if self.built:
            return
        super().build(variables)
        self._momentums = self.add_optimizer_variables(variables, "momentum")

    def new_values(self, gradient: Any, variable: Any, index: int, rate: Any) -> list[tuple[Any, Any]]:
        buffer, rate = self._momentums[index], ops.cast(rate, variable.dtype)
        gradient = gradient + self._decays[index] * variable
        new_buffer = buffer * self.momentum + gradient
        step = gradient + self.momentum * new_buffer if self.nesterov else new_buffer
        return [(buffer, new_buffer), (variable, variable - rate * step)]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "momentum": self.momentum, "nesterov": self.nesterov}
