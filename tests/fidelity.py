"""How far a model is from a golden case: errors of its features, logits, losses, gradients and results.

Every function gives a dict from the name of what is compared to its error, in the measure of `golden/README.md`, so
that a test can name the worst and `scripts/check_fidelity.py` can print the largest. Loaded like `golden.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from golden import GoldenCase, sample
from keras import ops

from kmaskformer.build import build_criterion, build_model
from kmaskformer.checkpoints.reference_names import load_reference_weights, reference_parameter
from kmaskformer.inference.panoptic import panoptic_inference
from kmaskformer.inference.postprocess import Postprocess
from kmaskformer.inference.restore import restore_mask_logits

FEATURES = ("res2", "res3", "res4", "res5")
LAYERS = ("final", "aux0", "aux1", "aux2", "aux3", "aux4")
# The largest error of each comparison, or the least agreement; the original's own rounding noise is several times
# smaller.
LIMITS = {
    "features": 1e-4,
    "logits": 5e-4,
    "losses": 1e-4,
    "gradient_norms": 1e-3,
    "gradient_samples": 1e-2,
    "matching": 1.0,
    "argmax": 0.999,
    "panoptic": 0.999,
}
# "A ReLU whose input is within rounding of 0 moves a whole gradient path, so a few tensors of another implementation
# may be further off": with oneDNN's convolutions this happens in one of the cases (1.0e-2; without them 5e-6).
MOVED_TENSORS, MOVED_LIMIT = 3, 0.1
AGREEMENTS = ("matching", "argmax", "panoptic")


class TrainingStep(NamedTuple):
    """Weighted loss terms, and each gradient under the original's parameter name and in its layout."""

    terms: dict[str, float]
    gradients: dict[str, np.ndarray]


def load_model(case: GoldenCase) -> Any:
    """A model of the case's recipe with its weights, through the name map."""
    model = build_model(case.model_config())
    load_reference_weights(model, case.state_dict())
    return model


def all_errors(case: GoldenCase) -> dict[str, dict[str, float]]:
    """Everything that can be compared in a case: one dict of errors for each key of `LIMITS` that applies to it."""
    model = load_model(case)
    outputs = model(case.pair())
    errors = {"features": feature_errors(model, case), "logits": logit_errors(outputs, case, "pair")}
    for index in range(2):
        single = model(case.arrays[f"image{index}"][None])
        errors["logits"].update(logit_errors(single, case, f"single{index}"))
    step = training_step(model, case)
    errors["losses"] = loss_errors(step.terms, case)
    errors["gradient_norms"], errors["gradient_samples"] = gradient_errors(step.gradients, case)
    errors["matching"] = {} if case.is_per_pixel else matching_agreement(model, outputs, case)
    errors["argmax"] = argmax_agreement(outputs, case)
    errors["panoptic"] = panoptic_agreement(outputs, case)
    return {name: values for name, values in errors.items() if values}


def worst(errors: dict[str, dict[str, float]]) -> dict[str, float]:
    """The largest error, or the least agreement, of each kind."""
    return {
        kind: min(values.values()) if kind in AGREEMENTS else max(values.values()) for kind, values in errors.items()
    }


def violations(errors: dict[str, dict[str, float]]) -> list[str]:
    """Whatever is beyond its limit, in words."""
    found = []
    for kind, values in errors.items():
        sign = -1 if kind in AGREEMENTS else 1
        beyond = {name: value for name, value in values.items() if not sign * value <= sign * LIMITS[kind]}
        is_moved = max(beyond.values(), default=0) < MOVED_LIMIT and len(beyond) <= MOVED_TENSORS
        if kind == "gradient_samples" and is_moved:
            continue
        found += [f"{kind}: {name}: {value:.3g}, limit {LIMITS[kind]:g}" for name, value in beyond.items()]
    return found


def feature_errors(model: Any, case: GoldenCase) -> dict[str, float]:
    """Largest error of each intermediate tensor of the pair, as part of the tensor's largest magnitude."""
    actual, errors = _features(model, case), {}
    if set(actual) != set(case.meta["features"]):
        raise ValueError(f"{case.folder}: other features than the model's: {sorted(case.meta['features'])}")
    for name, value in actual.items():
        facts = case.meta["features"][name]
        if list(value.shape) != facts["shape"]:
            raise ValueError(f"{case.folder}: {name} must have shape {facts['shape']}. Received: {value.shape}")
        difference = _largest_difference(sample(value), case.arrays[f"pair/{name}_sample"])
        errors[name] = max(difference, abs(float(np.abs(value).max()) - facts["absmax"])) / facts["absmax"]
    return errors


def _features(model: Any, case: GoldenCase) -> dict[str, np.ndarray]:
    pair = case.pair()
    features = model.backbone(model.preprocessing(pair["images"], pair["image_sizes"]))
    decoded = model.pixel_decoder(features)
    actual = {name: np.moveaxis(np.asarray(features[name]), -1, 1) for name in FEATURES}
    actual["mask_features"] = np.moveaxis(np.asarray(decoded["pixel_embedding"]), -1, 1)
    if "transformer_encoder" in decoded:
        actual["encoder_out"] = np.moveaxis(np.asarray(decoded["transformer_encoder"]), -1, 1)
    if hasattr(model, "transformer_decoder"):
        queries = model.transformer_decoder({**features, **decoded}[model.transformer_decoder.in_feature])
        actual["decoder_hs"] = np.stack([np.asarray(query) for query in queries])
    return actual


def logit_errors(outputs: dict[str, Any], case: GoldenCase, prefix: str) -> dict[str, float]:
    """Largest absolute error of each kind of logits of a forward pass, `pair`, `single0` or `single1`."""
    names = {"logits": "logits"} if case.is_per_pixel else {"pred_logits": "class_logits", "pred_masks": "mask_logits"}
    errors = {}
    for name, key in names.items():
        final = _channels_first(outputs, key)
        for stored, actual in ((name, final), (f"{name}_q5", final[:, ::5]), (f"{name}_stats", _statistics(final))):
            if f"{prefix}/{stored}" in case.arrays:
                errors[f"{prefix}/{stored}"] = _largest_difference(actual, case.arrays[f"{prefix}/{stored}"])
        for index, layer in enumerate(outputs.get("aux_outputs", ())):
            stored = f"{prefix}/aux{index}/{name}_sample"
            errors[stored] = _largest_difference(sample(_channels_first(layer, key)), case.arrays[stored])
    return errors


def _channels_first(outputs: dict[str, Any], key: str) -> np.ndarray:
    values = np.asarray(outputs[key])
    return np.moveaxis(values, -1, 1) if key == "logits" else values


def _statistics(values: np.ndarray) -> np.ndarray | None:
    if values.ndim < 4:
        return None
    return np.stack([values.mean((2, 3)), values.std((2, 3)), np.abs(values).max((2, 3))], axis=-1)


def training_step(model: Any, case: GoldenCase) -> TrainingStep:
    """Loss and gradients of the case's training step."""
    criterion = build_criterion(case.loss_config())
    with tf.GradientTape() as tape:
        terms = criterion(model(case.training_pair(), training=True), model.pad_targets(case.targets()))
        total = sum(terms.values())
    gradients = tape.gradient(total, model.trainable_variables)
    return TrainingStep({name: float(value) for name, value in terms.items()}, _reference_gradients(model, gradients))


def _reference_gradients(model: Any, gradients: list[Any]) -> dict[str, np.ndarray]:
    thirds: dict[str, dict[int, np.ndarray]] = {}
    packed = {}
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        path = variable.path.partition("/")[2]
        parameter = reference_parameter(path)
        value = np.asarray(tf.convert_to_tensor(gradient))  # a table's gradient comes as slices
        if path.endswith("kernel"):
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        if parameter.third is None:
            packed[parameter.key] = value
        else:
            thirds.setdefault(parameter.key, {})[parameter.third] = value
    packed.update({key: np.concatenate([parts[i] for i in range(3)]) for key, parts in thirds.items()})
    return packed


def loss_errors(terms: dict[str, float], case: GoldenCase) -> dict[str, float]:
    """Relative error of each weighted term and of their sum."""
    expected = {**case.meta["losses_weighted"], "total": case.meta["loss_total"]}
    actual = {**terms, "total": sum(terms.values())}
    if set(actual) != set(expected):
        raise ValueError(f"{case.folder}: other loss terms than the model's: {sorted(expected)}")
    return {name: abs(actual[name] - value) / abs(value) for name, value in expected.items()}


def gradient_errors(gradients: dict[str, np.ndarray], case: GoldenCase) -> tuple[dict[str, float], dict[str, float]]:
    """Relative error of the norm of each parameter's gradient, and of its samples as part of its rms.

    A gradient that is zero in exact arithmetic is measured by the largest one of the model instead, for its norm only.
    """
    if set(gradients) != set(case.meta["grad_keys"]):
        raise ValueError(f"{case.folder}: other parameters with a gradient than the model's")
    negligible = set(case.meta["float64_check"]["grad_keys_below_1e-6_of_largest"])
    largest = float(case.arrays["grad_norm_f64"].max())
    norms, samples = {}, {}
    for index, key in enumerate(case.meta["grad_keys"]):
        gradient, norm = gradients[key], float(case.arrays["grad_norm_f64"][index])
        error = abs(float(np.linalg.norm(gradient)) - norm)
        if key in negligible:
            norms[key] = error / largest
            continue
        norms[key] = error / norm
        positions = (np.arange(8) * 1000003 + 12345) % gradient.size
        kept = _nonzero_parts(key, gradient.size, positions)
        difference = gradient.ravel()[positions] - case.arrays["grad_sample_f64"][index]
        samples[key] = float(np.abs(difference[kept]).max(initial=0)) / (norm / gradient.size**0.5)
    return norms, samples


def _nonzero_parts(key: str, size: int, positions: np.ndarray) -> np.ndarray:
    """Which entries are not those of packed biases whose gradient is zero in exact arithmetic, and noise in float32."""
    if not key.endswith(("in_proj_bias", "qkv.bias")):
        return np.ones(len(positions), bool)
    third = size // 3
    first = key.endswith("decoder.layers.0.self_attn.in_proj_bias")
    return (positions >= 2 * third) | ((positions < third) & (not first))


def matching_agreement(model: Any, outputs: dict[str, Any], case: GoldenCase) -> dict[str, float]:
    """1 for each decoder layer and image whose segments are matched to the same queries, else 0."""
    layers = [outputs, *outputs["aux_outputs"]]
    matcher = build_criterion(case.loss_config()).matcher
    matched = np.asarray(matcher.match_layers(layers, model.pad_targets(case.targets())))
    agreement = {}
    for name, queries in zip(LAYERS, matched, strict=True):
        for image in (0, 1):
            prefix = f"match/{name}/img{image}"
            expected = dict(zip(case.arrays[f"{prefix}/target"], case.arrays[f"{prefix}/query"], strict=True))
            actual = {target: query for target, query in enumerate(queries[image]) if query >= 0}
            agreement[prefix] = float(actual == expected)
    return agreement


def argmax_agreement(outputs: dict[str, Any], case: GoldenCase) -> dict[str, float]:
    """Part of the pixels with the same class, for each order of inference and image."""
    orders = {"default": False} if case.is_per_pixel else {"after": False, "before": True}
    agreement = {}
    for order, before in orders.items():
        postprocess = Postprocess("semantic", before_inference=before)
        for image in (0, 1):
            result = postprocess(_of_image(outputs, image), *_sizes(case, image))
            expected = case.arrays[f"semantic_{order}/img{image}/argmax"]
            agreement[f"semantic_{order}/img{image}"] = _equal_part(result["class_map"][0], expected)
    return agreement


def panoptic_agreement(outputs: dict[str, Any], case: GoldenCase) -> dict[str, float]:
    """Part of the pixels in the same segment for each pair of thresholds and image; 0 where the tables differ."""
    facts, agreement = case.meta["panoptic"], {}
    for tag, limits in facts["thresholds"].items() if facts else ():
        for image in (0, 1):
            one = _of_image(outputs, image)
            masks = restore_mask_logits(one["mask_logits"], *_sizes(case, image))
            result = panoptic_inference(one["class_logits"], masks, facts["thing_ids"], **limits)
            result = {key: ops.convert_to_numpy(value)[0] for key, value in result.items()}
            columns = (result[key][result["valid"]].tolist() for key in ("segment_ids", "is_thing", "category_ids"))
            rows = [(row["id"], row["isthing"], row["category_id"]) for row in facts["segments_info"][tag][image]]
            part = _equal_part(result["panoptic_map"], case.arrays[f"panoptic_{tag}/img{image}/map"])
            agreement[f"panoptic_{tag}/img{image}"] = part * (list(zip(*columns, strict=True)) == rows)
    return agreement


def _of_image(outputs: dict[str, Any], image: int) -> dict[str, Any]:
    return {key: value[image : image + 1] for key, value in outputs.items() if key != "aux_outputs"}


def _sizes(case: GoldenCase, image: int) -> tuple[tuple[int, ...], ...]:
    """Padded, image and output size."""
    return tuple(case.meta["padded_pair_shape"][2:]), tuple(case.meta["sizes"][image]), case.meta["out_sizes"][image]


def _equal_part(actual: Any, expected: np.ndarray) -> float:
    return float((np.asarray(actual) == expected).mean())


def _largest_difference(actual: Any, expected: np.ndarray) -> float:
    actual = np.asarray(actual)
    if actual.shape != expected.shape:
        raise ValueError(f"Shapes must be equal. Received: {actual.shape}, golden {expected.shape}")
    return float(np.abs(actual - expected).max())
