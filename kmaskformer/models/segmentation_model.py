"""What every segmentation model of the package shares: image preparation, label space, and the training step."""

from __future__ import annotations

import contextlib
from typing import Any

import keras
from keras import ops

from kmaskformer.models.gradients import agree_on_finite, terms_and_gradients, total
from kmaskformer.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD, ImagePreprocessing
from kmaskformer.ops import replicas
from kmaskformer.ops.masks import pad_bottom_right, truth_key
from kmaskformer.structures import TASKS, DatasetInfo


class SegmentationModel(keras.Model):
    """A model that is trained by `criterion(outputs, targets)`, a function from tensors to a dict of loss terms.

    `PARTS` names the layers that a subclass takes as arguments, `TASKS` what its outputs can be used for.

    Args:
        num_classes: Number of classes, without no-object.
        size_divisibility: Images are padded to a multiple of it; 0 for none.
        pixel_mean: Mean of each RGB channel, 0..255.
        pixel_std: Standard deviation of each RGB channel, 0..255.
        dataset_info: Names, colours and things of the classes, a `DatasetInfo` or its dict.

    Raises:
        ValueError: If `num_classes` is not positive, or `dataset_info` describes another number of classes.
    """

    PARTS: tuple[str, ...] = ("backbone", "pixel_decoder")
    TASKS: tuple[str, ...] = TASKS

    def __init__(
        self,
        num_classes: int,
        size_divisibility: int = 32,
        pixel_mean: tuple[float, float, float] = IMAGENET_MEAN,
        pixel_std: tuple[float, float, float] = IMAGENET_STD,
        dataset_info: DatasetInfo | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # Without autocast, float images reach the normalisation in float32 whatever the precision policy.
        super().__init__(autocast=False, **kwargs)
        if num_classes < 1:
            raise ValueError(f"`num_classes` must be a positive integer. Received: num_classes={num_classes}")
        self.num_classes = num_classes
        self.preprocessing = ImagePreprocessing(
            pixel_mean,
            pixel_std,
            size_divisibility,
            autocast=False,
            dtype=self.dtype_policy,
            name="preprocessing",
        )
        self.dataset_info = dataset_info
        self.criterion = None
        self.accumulation_steps = 1
        self.mean_loss = keras.metrics.Mean(name="mean_loss")

    @property
    def dataset_info(self) -> DatasetInfo | None:
        """The label space, or `None` where it is unknown."""
        return self._dataset_info

    @dataset_info.setter
    def dataset_info(self, info: DatasetInfo | dict[str, Any] | None) -> None:
        info = DatasetInfo.from_dict(info) if isinstance(info, dict) else info
        if info is not None and info.num_classes != self.num_classes:
            raise ValueError(
                f"`dataset_info` must describe the model's {self.num_classes} classes. "
                f"Received: {info.num_classes} classes ({info.name})"
            )
        self._dataset_info = info

    def padded_size(self, height: Any, width: Any) -> tuple[Any, Any]:
        """Size that images of `(height, width)` have inside the model, after padding."""
        return self.preprocessing.padded_size(height, width)

    def _build_pixel_module(self) -> dict[str, tuple]:
        """Create the weights of backbone and pixel decoder; gives the shape of every feature that they offer."""
        image_shape = (None, None, None, 3)
        self.preprocessing.build(image_shape)
        self.backbone.build(image_shape)
        for variable in self.backbone.variables:
            # Optimizers know the backbone by this mark: an adapted model's weights keep the paths of their own model.
            variable.parameter_group = "backbone"
        features = self.backbone.compute_output_shape(image_shape)
        self.pixel_decoder.build(features)
        return {**features, **self.pixel_decoder.compute_output_shape(features)}

    def _finish_build(self) -> None:
        """To be called when all weights exist."""
        # Keras hands `trainable=False` on to what a layer has when it is set, which was nothing yet. Assigning it again
        # would do nothing: TensorFlow passes over attributes that do not change.
        for part in (getattr(self, name) for name in self.PARTS):
            if not part.trainable:
                keras.layers.Layer.trainable.fset(part, False)
        self.built = True

    def features(self, images: Any, image_sizes: Any = None, training: bool | None = None) -> dict[str, Any]:
        """What backbone and pixel decoder compute of a batch of images.

        Args:
            images: `(batch, height, width, 3)`, RGB 0..255, uint8 or float, any height and width.
            image_sizes: `(batch, 2)` int32, height and width of each image in a padded batch.
            training: Whether dropout and trainable normalisations act as in training.

        Returns:
            `res2` to `res5`, `pixel_embedding`, and what else the pixel decoder gives, `(batch, h, w, channels)` each.
        """
        pyramid = self.backbone(self.preprocessing(images, image_sizes), training=training)
        return {**pyramid, **self.pixel_decoder(pyramid, training=training)}

    def _source(self, features: dict[str, Any]) -> Any:
        """The feature, or its shape, that the transformer decoder reads."""
        name = self.transformer_decoder.in_feature
        if name not in features:
            raise ValueError(
                f"The transformer decoder reads `{name}`, which neither the backbone nor the pixel decoder offers. "
                f"Received features: {sorted(features)}"
            )
        return features[name]

    def compile(
        self,
        optimizer: Any = "adamw",
        criterion: Any = None,
        jit_compile: bool = False,
        accumulation_steps: int = 1,
        **kwargs: Any,
    ) -> None:
        """Set up training; then `fit` works on datasets of `(ModelInputs, Targets)`.

        Args:
            optimizer: Any Keras optimizer; the reference's is `kmaskformer.build_optimizer`.
            criterion: Callable `(outputs, targets) -> {term: weighted scalar}`; the loss is the terms' sum.
            jit_compile: Compile the step with XLA. Worth it when all batches have one shape.
            accumulation_steps: Each batch is worked off in so many parts, whose gradients are added up before the one
                update: the same update with the memory of a part (but batch norms see the part only). It needs a
                criterion with `normalizers(targets, num_queries)`, as those of this package have.
            **kwargs: `run_eagerly`, `steps_per_execution` and `auto_scale_loss` of Keras.

        Raises:
            ValueError: If `jit_compile` is asked for with a criterion that leaves the graph, or
                `accumulation_steps` is not positive or the criterion does not allow it.
        """
        if accumulation_steps < 1 or (accumulation_steps > 1 and not hasattr(criterion, "normalizers")):
            raise ValueError(
                "`accumulation_steps` must be a positive integer, and 1 for a criterion without `normalizers`. "
                f"Received: accumulation_steps={accumulation_steps}, criterion={type(criterion).__name__}"
            )
        if jit_compile and not getattr(criterion, "supports_jit", True):
            raise ValueError(
                "`jit_compile=True` needs a criterion inside the graph, but its matcher calls SciPy. "
                'Use the matcher "in_graph" or jit_compile=False.'
            )
        super().compile(optimizer=optimizer, jit_compile=jit_compile, **kwargs)
        self.criterion = criterion
        self.accumulation_steps = accumulation_steps

    def train_step(self, data: tuple[Any, Any]) -> dict[str, Any]:
        """One update; returns the loss, every weighted term of it, and the gradient's norm where it is known.

        With loss scaling (`mixed_float16`) also `loss_scale`; an update that it leaves out has the `gradient_norm` 0.
        """
        inputs, targets = _unpacked(data)
        # Denominators follow from the targets alone: they are those of the whole batch, of all replicas.
        options = {}
        if self.accumulation_steps > 1:
            options = {"normalizers": self.criterion.normalizers(targets, self.num_queries)}
        terms, gradients = terms_and_gradients(
            lambda part: self._loss_terms(*part, training=True, **options),
            # A replica's terms average to the global loss, and the optimizer sums gradients over replicas.
            lambda loss: self.optimizer.scale_loss(loss / replicas.num_replicas()),
            (inputs, targets),
            self.trainable_variables,
            self.accumulation_steps,
        )
        loss = total(terms)
        gradients = agree_on_finite(loss, gradients, check_gradients=self._is_scaled)
        updates_before = self.optimizer.iterations + 0
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss, **terms, **self._update_logs(updates_before)}

    @property
    def _is_scaled(self) -> bool:
        return isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)

    def _update_logs(self, updates_before: Any) -> dict[str, Any]:
        """The gradient's norm where the optimizer knows it; with loss scaling also the scale.

        An update that loss scaling leaves out, for a gradient that is not finite in float16, has the norm 0.
        """
        norm = getattr(getattr(self.optimizer, "inner_optimizer", self.optimizer), "gradient_norm", None)
        logs = {} if norm is None else {"gradient_norm": norm}
        if not self._is_scaled:
            return logs
        is_updated = self.optimizer.iterations > updates_before
        # The optimizer keeps the norm of the last update that it made.
        logs = {name: ops.where(is_updated, value, 0.0) for name, value in logs.items()}
        return {**logs, "loss_scale": self.optimizer.dynamic_scale + 0.0}

    def test_step(self, data: tuple[Any, Any]) -> dict[str, Any]:
        """The mean loss of the batches so far, without dropout or update."""
        inputs, targets = _unpacked(data)
        self.mean_loss.update_state(total(self._loss_terms(inputs, targets, training=False)))
        return {"loss": self.mean_loss.result()}

    @property
    def num_queries(self) -> int:
        """Queries of the transformer decoder; 0 for a model without one."""
        return getattr(getattr(self, "transformer_decoder", None), "num_queries", 0)

    def _make_function(self, step_function: Any) -> Any:
        # Several workers: Keras reduces logs along their first axis, which scalars lack.
        if self.distribute_strategy.extended._in_multi_worker_mode():
            return super()._make_function(lambda data: {k: v[None] for k, v in step_function(data).items()})
        return super()._make_function(step_function)

    def _loss_terms(self, inputs: Any, targets: Any, training: bool, **options: Any) -> dict[str, Any]:
        if self.criterion is None:
            raise ValueError("The model has no criterion. Call `model.compile(optimizer=..., criterion=...)` first.")
        outputs = self(inputs, training=training)
        return self.criterion(outputs, self.pad_targets(targets), **options)

    def pad_targets(self, targets: dict[str, Any]) -> dict[str, Any]:
        """Targets grown to the padded size, so that they cover what the mask logits cover.

        Padding belongs to no segment: it is a negative of every mask, as in the reference.

        Args:
            targets: `Targets` with `segment_map` or `masks` of the images' height and width.

        Raises:
            ValueError: If they hold neither.
        """
        key, fill = truth_key(targets)
        values = ops.convert_to_tensor(targets[key])
        if keras.backend.standardize_dtype(values.dtype) == "bool":
            values = ops.cast(values, "uint8")
        return {**targets, key: pad_bottom_right(values, self.padded_size(*ops.shape(values)[-2:]), fill)}

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        # Keras would average a whole batch over replicas to learn its shape, which fails on bool targets and on
        # replicas of different sizes. The model needs no example: its weights depend on the configuration alone.
        strategy = getattr(self, "distribute_strategy", None)  # which TensorFlow's trainer alone has
        with strategy.scope() if strategy else contextlib.nullcontext():
            if not self.built:
                self.build((None, None, None, 3))
            self._build_optimizer()

    def get_build_config(self) -> dict[str, Any]:
        """Nothing is needed to build the model but its configuration."""
        return {"input_shape": (None, None, None, 3)}

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Create the weights of a model that was read from a file."""
        self.build(config["input_shape"])

    def get_compile_config(self) -> dict[str, Any] | None:
        """Optimizer and criterion, serialised, so that a loaded model trains on."""
        if not self.compiled or self.optimizer is None:
            return None
        return {
            "optimizer": keras.saving.serialize_keras_object(self.optimizer),
            "criterion": keras.saving.serialize_keras_object(self.criterion),
            "jit_compile": self.jit_compile,
            "accumulation_steps": self.accumulation_steps,
        }

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile as `get_compile_config` says."""
        config = dict(config)
        for key in ("optimizer", "criterion"):
            config[key] = keras.saving.deserialize_keras_object(config[key])
        self.compile(**config)
        if self.built:
            self._build_optimizer()

    def _build_optimizer(self) -> None:
        # Keras' loss scaling makes its variables anew each time.
        if self.optimizer is not None and not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)

    def get_config(self) -> dict[str, Any]:
        info = self.dataset_info
        parts = {part: _serialize_unbuilt(getattr(self, part)) for part in self.PARTS}
        return {
            "name": self.name,
            "trainable": self.trainable,
            "dtype": keras.saving.serialize_keras_object(self.dtype_policy),
            "num_classes": self.num_classes,
            "size_divisibility": self.preprocessing.size_divisibility,
            "pixel_mean": list(self.preprocessing.mean),
            "pixel_std": list(self.preprocessing.std),
            "dataset_info": None if info is None else info.to_dict(),
            **parts,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> SegmentationModel:
        config = dict(config)
        for key in (*cls.PARTS, "dtype"):
            config[key] = keras.saving.deserialize_keras_object(config[key], custom_objects=custom_objects)
        return cls(**config)


def unpack_inputs(images: Any, image_sizes: Any) -> tuple[Any, Any]:
    """Images and sizes, given as two arguments or as one `ModelInputs` dict."""
    if isinstance(images, dict):
        return images["images"], images.get("image_sizes", image_sizes)
    return images, image_sizes


def _serialize_unbuilt(layer: keras.layers.Layer) -> dict[str, Any]:
    """Class and configuration of a part; the model builds it, so that its weights' paths begin with the model's."""
    serialized = keras.saving.serialize_keras_object(layer)
    serialized.pop("build_config", None)
    return serialized


def _unpacked(data: Any) -> tuple[Any, Any]:
    """Inputs and targets of what Keras hands to a step; `train_on_batch` adds a place for sample weights."""
    inputs, targets, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    if targets is None or sample_weight is not None:
        raise ValueError(
            "Batches must be pairs of inputs and targets, as the datasets of this package yield; segments have no "
            f"sample weights. Received: {'no targets' if targets is None else 'a sample weight'}"
        )
    return inputs, targets
