"""Backbones of other libraries: any Keras model with feature maps at strides 4, 8, 16 and 32."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kmaskformer.backbones.features import FEATURES, STRIDES
from kmaskformer.extras import missing_extra

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
# What a wrapped model expects, as (factor, offset) of the image in 0..255; None: what it is given.
INPUT_SCALINGS = {
    "imagenet": None,
    "bytes": (1.0, 0.0),
    "unit": (1.0 / 255.0, 0.0),
    "symmetric": (1.0 / 127.5, -1.0),
}
# A multiple of every stride, so that sizes of feature maps tell strides without rounding.
PROBE_SIZE = 512


@keras.saving.register_keras_serializable(package="kmaskformer")
class KerasModelBackbone(keras.layers.Layer):
    """A Keras model as backbone.

    Feature maps are found by their stride, measured, not by their name: libraries disagree about names (`P2` is the
    stride-4 level of a KerasCV ResNet and the stride-8 level of its MiT). The layers after the last feature map, such
    as a classifier, are left out. A model with `Lambda` layers (KerasCV's CSPDarkNet) is loaded again only with Keras'
    `safe_mode=False`.

    Args:
        model: A Keras model with one image input, channels last. A Keras Hub backbone (`pyramid_outputs`) or a KerasCV
            backbone (`pyramid_level_inputs`) offers its levels; of any other model, the outputs are taken. A model
            whose input has a fixed size only takes images of that size.
        outputs: Names of layers of `model` whose outputs to take instead. Of several with one stride, the last is used.
        input_scaling: Images that `model` was trained on: `imagenet` (mean and standard deviation of ImageNet removed,
            which is what this backbone receives and passes on), `bytes` (0..255), `unit` (0..1) or `symmetric`
            (-1..1). The last three undo the normalisation first; the padding of a batch, 0 after normalisation, then
            has ImageNet's mean colour.
        name: Name of the layer.

    Raises:
        ValueError: If the model has no feature map of one of the four strides, has several inputs, or an argument is
            unknown.

    Example:
        >>> resnet = keras.applications.ResNet50(weights=None, include_top=False)
        >>> levels = ("conv2_block3_out", "conv3_block4_out", "conv4_block6_out", "conv5_block3_out")
        >>> backbone = KerasModelBackbone(resnet, outputs=levels, input_scaling="bytes")
    """

    def __init__(
        self,
        model: keras.Model,
        outputs: tuple[str, ...] | None = None,
        input_scaling: str = "imagenet",
        name: str = "backbone",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        if input_scaling not in INPUT_SCALINGS:
            raise ValueError(
                f"`input_scaling` must be one of {tuple(INPUT_SCALINGS)}. Received: input_scaling={input_scaling!r}"
            )
        self.input_scaling = input_scaling
        self.extractor = _make_extractor(model, outputs)

    @property
    def feature_channels(self) -> dict[str, int]:
        """Number of channels of each feature map."""
        return {name: self.extractor.output[name].shape[-1] for name in FEATURES}

    @property
    def size_divisibility(self) -> int:
        """Multiple of the sides of images that it asks for: 32, since libraries round other sizes differently."""
        return max(STRIDES.values())

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """The wrapped model is built already."""

    def call(self, images: Any, training: bool | None = None) -> dict[str, Any]:
        """Features of images.

        Args:
            images: `(batch, height, width, 3)`, ImageNet's mean removed and divided by its standard deviation.
            training: Passed on to the wrapped model.

        Returns:
            `res2`, `res3`, `res4`, `res5`: `(batch, height/s, width/s, channels)` with s = 4, 8, 16, 32. How sides
            that are no multiple of s are rounded is up to the wrapped model.
        """
        features = self.extractor(self._rescale(images), training=training)
        return {name: features[name] for name in FEATURES}

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> dict[str, tuple[int | None, ...]]:
        shapes = self.extractor.compute_output_shape(input_shape)
        return {name: tuple(shapes[name]) for name in FEATURES}

    def get_config(self) -> dict[str, Any]:
        model = keras.saving.serialize_keras_object(self.extractor)
        return {**super().get_config(), "model": model, "input_scaling": self.input_scaling}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> KerasModelBackbone:
        return cls(**{**config, "model": keras.saving.deserialize_keras_object(config["model"])})

    def _rescale(self, images: Any) -> Any:
        scaling = INPUT_SCALINGS[self.input_scaling]
        if scaling is None:
            return images
        factor, offset = scaling
        # One multiply-add per channel: ((x * std + mean) * factor + offset).
        multiplier = [std * factor for std in IMAGENET_STD]
        addend = [mean * factor + offset for mean in IMAGENET_MEAN]
        return images * ops.array(multiplier, images.dtype) + ops.array(addend, images.dtype)


def keras_cv_backbone(
    class_name: str, input_scaling: str | None = None, name: str = "backbone", **arguments: Any
) -> KerasModelBackbone:
    """A backbone of KerasCV, with random weights.

    Args:
        class_name: Class in `keras_cv.models`, e.g. `ResNetV2Backbone`.
        input_scaling: See `KerasModelBackbone`. Defaults to `bytes` where KerasCV's own `include_rescaling` is on and
            to `unit` where it is off.
        name: Name of the layer.
        arguments: Arguments of the class, e.g. `stackwise_filters`.

    Raises:
        ImportError: If KerasCV is not installed.
        ValueError: If KerasCV has no such backbone, or it lacks one of the four strides.
    """
    try:
        import keras_cv
    except ImportError as error:
        raise missing_extra("keras-cv", f"The backbone {class_name}", error) from error
    known = sorted(key for key in dir(keras_cv.models) if key.endswith("Backbone"))
    if class_name not in known:
        raise ValueError(f"`class_name` must be a backbone of KerasCV, one of {known}. Received: {class_name!r}")
    if input_scaling is None:
        input_scaling = "bytes" if arguments.get("include_rescaling") else "unit"
    return KerasModelBackbone(getattr(keras_cv.models, class_name)(**arguments), input_scaling=input_scaling, name=name)


def _make_extractor(model: keras.Model, outputs: tuple[str, ...] | None) -> keras.Model:
    """The part of `model` that computes the four feature maps, as a model with outputs `res2` ... `res5`."""
    inputs, candidates = _candidates(model, outputs)
    by_stride = dict(zip(_strides(inputs, candidates), candidates, strict=True))
    missing = [stride for stride in STRIDES.values() if stride not in by_stride]
    if missing:
        found = sorted(stride for stride in by_stride if stride is not None)
        raise ValueError(
            f"`model` must have a feature map at each of the strides {tuple(STRIDES.values())}. Received: "
            f"model {model.name!r} with strides {found}, missing: {missing}. Name layers that have them in `outputs`, "
            'e.g. outputs=("stage1_out", "stage2_out", "stage3_out", "stage4_out").'
        )
    return keras.Model(inputs, {name: by_stride[stride] for name, stride in STRIDES.items()}, name=model.name)


def _candidates(model: keras.Model, outputs: tuple[str, ...] | None) -> tuple[Any, list[Any]]:
    """Symbolic input of the model and the tensors among which to look for feature maps."""
    if getattr(model, "inputs", None) is None:
        inputs = keras.Input((None, None, 3), name="images")
        return inputs, _maps(model(inputs))
    if len(model.inputs) != 1:
        raise ValueError(
            "`model` must have one input, a batch of images. Received: "
            f"model {model.name!r} with {len(model.inputs)} inputs"
        )
    if outputs is None and getattr(model, "pyramid_level_inputs", None):
        outputs = tuple(model.pyramid_level_inputs.values())
    if outputs is not None:
        return model.inputs[0], _maps([model.get_layer(layer).output for layer in outputs])
    return model.inputs[0], _maps(getattr(model, "pyramid_outputs", None) or model.outputs)


def _maps(tensors: Any) -> list[Any]:
    """The feature maps, tensors of rank 4, in a nested structure."""
    return [tensor for tensor in keras.tree.flatten(tensors) if len(tensor.shape) == 4]


def _strides(inputs: Any, candidates: list[Any]) -> list[int | None]:
    """Stride of each candidate, from its size for an image of known size; None where it does not divide."""
    if not candidates:
        return []
    _, height, width, channels = inputs.shape
    height, width = height or PROBE_SIZE, width or PROBE_SIZE
    shapes = keras.Model(inputs, candidates).compute_output_shape((1, height, width, channels))
    return [_stride((height, width), shape[1:3]) for shape in shapes]


def _stride(image: tuple[int, int], feature: tuple[int, int]) -> int | None:
    """The stride among the four that maps an image of that size onto that feature map, rounding up."""
    for stride in STRIDES.values():
        if all(-(-side // stride) == part for side, part in zip(image, feature, strict=True)):
            return stride
    return None
