"""What every segmentation model of the package shares: image preparation, label space, and the training step."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kmaskformer.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD, ImagePreprocessing
from kmaskformer.ops import replicas
from kmaskformer.structures import VOID, DatasetInfo


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
    TASKS: tuple[str, ...] = ("semantic", "instance", "panoptic")

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
        self, optimizer: Any = "adamw", criterion: Any = None, jit_compile: bool = False, **kwargs: Any
    ) -> None:
        """Set up training; then `fit` works on datasets of `(ModelInputs, Targets)`.

        Args:
            optimizer: Any Keras optimizer; the reference's is `kmaskformer.build_optimizer`.
            criterion: Callable `(outputs, targets) -> {term: weighted scalar}`; the loss is the terms' sum.
            jit_compile: Compile the step with XLA. Worth it when all batches have one shape.
            **kwargs: `run_eagerly`, `steps_per_execution` and `auto_scale_loss` of Keras.

        Raises:
            ValueError: If `jit_compile` is asked for with a criterion that leaves the graph.
        """
        if jit_compile and not getattr(criterion, "supports_jit", True):
            raise ValueError(
                "`jit_compile=True` needs a criterion inside the graph, but its matcher calls SciPy. "
                'Use the matcher "in_graph" or jit_compile=False.'
            )
        super().compile(optimizer=optimizer, jit_compile=jit_compile, **kwargs)
        self.criterion = criterion

    def train_step(self, data: tuple[Any, Any]) -> dict[str, Any]:
        """One optimisation step; returns the loss and every weighted term of it."""
        import tensorflow as tf

        inputs, targets = data
        with tf.GradientTape() as tape:
            terms = self._loss_terms(inputs, targets, training=True)
            loss = sum(terms.values())
            # A replica's terms average to the global loss, and the optimizer sums gradients over replicas.
            scaled_loss = self.optimizer.scale_loss(loss / replicas.num_replicas())
        gradients = tape.gradient(scaled_loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss, **terms}

    def test_step(self, data: tuple[Any, Any]) -> dict[str, Any]:
        """The mean loss of the batches so far, without dropout or update."""
        inputs, targets = data
        self.mean_loss.update_state(sum(self._loss_terms(inputs, targets, training=False).values()))
        return {"loss": self.mean_loss.result()}

    def _loss_terms(self, inputs: Any, targets: Any, training: bool) -> dict[str, Any]:
        if self.criterion is None:
            raise ValueError("The model has no criterion. Call `model.compile(optimizer=..., criterion=...)` first.")
        outputs = self(inputs, training=training)
        return self.criterion(outputs, self.pad_targets(targets))

    def pad_targets(self, targets: dict[str, Any]) -> dict[str, Any]:
        """Targets grown to the padded size, so that they cover what the mask logits cover.

        Padding belongs to no segment: it is a negative of every mask, as in the reference.

        Args:
            targets: `Targets` with `segment_map` or `masks` of the images' height and width.
        """
        key = "segment_map" if "segment_map" in targets else "masks"
        values = targets[key]
        height, width = ops.shape(values)[-2:]
        padded_height, padded_width = self.padded_size(height, width)
        margins = [(0, 0)] * (len(values.shape) - 2) + [(0, padded_height - height), (0, padded_width - width)]
        fill = VOID if key == "segment_map" else 0
        if keras.backend.standardize_dtype(values.dtype) == "bool":
            values = ops.cast(values, "uint8")
        return {**targets, key: ops.pad(values, margins, constant_values=fill)}

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        # Keras would average a whole batch over replicas to learn its shape, which fails on bool targets and on
        # replicas of different sizes. The model needs no example: its weights depend on the configuration alone.
        if not self.built:
            self.build((None, None, None, 3))
        if self.optimizer is not None:
            self.optimizer.build(self.trainable_variables)

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
        }

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile as `get_compile_config` says."""
        config = dict(config)
        for key in ("optimizer", "criterion"):
            config[key] = keras.saving.deserialize_keras_object(config[key])
        self.compile(**config)
        if self.built:
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
