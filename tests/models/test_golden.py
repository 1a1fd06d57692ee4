"""Whole models against the original implementation, with the golden cases that lie beside the checkout.

Tolerances are those that `golden/README.md` suggests; the original's own rounding noise is several times smaller.
"""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from kmaskformer import config as configs
from kmaskformer.build import build_criterion, build_model
from kmaskformer.checkpoints.reference_names import load_reference_weights, reference_parameter

SLOW_CASES = ("maskformer_r50_6enc_coco_panoptic", "maskformer_r101c_cityscapes19", "maskformer_swin_t_ade20k150")
CASES = ("maskformer_r50_ade20k150", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_CASES))
FEATURES = ("res2", "res3", "res4", "res5")


@pytest.fixture(scope="module", params=CASES)
def case(golden, request):
    return golden.case(request.param)


@pytest.fixture(scope="module")
def model(case):
    model = build_model(case.model_config())
    load_reference_weights(model, case.state_dict())
    return model


@pytest.fixture(scope="module")
def pair_outputs(model, case):
    return model(case.pair())


def channels_first(x):
    return np.moveaxis(np.asarray(x), -1, 1)


def check_outputs(outputs, arrays, prefix, sample):
    expected = arrays[f"{prefix}/pred_logits"]
    np.testing.assert_allclose(outputs["class_logits"], expected, rtol=0, atol=5e-4)
    masks = np.asarray(outputs["mask_logits"])
    full = arrays.get(f"{prefix}/pred_masks")
    if full is None:
        np.testing.assert_allclose(masks[:, ::5], arrays[f"{prefix}/pred_masks_q5"], rtol=0, atol=5e-4)
    else:
        np.testing.assert_allclose(masks, full, rtol=0, atol=5e-4)
    stats = np.stack([masks.mean((2, 3)), masks.std((2, 3)), np.abs(masks).max((2, 3))], axis=-1)
    np.testing.assert_allclose(stats, arrays[f"{prefix}/pred_masks_stats"], rtol=0, atol=5e-4)
    assert len(outputs["aux_outputs"]) == 5
    for index, layer in enumerate(outputs["aux_outputs"]):
        for name, key in (("pred_logits", "class_logits"), ("pred_masks", "mask_logits")):
            expected = arrays[f"{prefix}/aux{index}/{name}_sample"]
            np.testing.assert_allclose(sample(layer[key]), expected, rtol=0, atol=5e-4)


def test_pair(pair_outputs, case, golden):
    """A batch of two sizes: normalised, zeroed outside each image, padded."""
    check_outputs(pair_outputs, case.arrays, "pair", golden.sample)


@pytest.mark.parametrize("index", [0, 1])
def test_single(model, case, golden, index):
    outputs = model(case.arrays[f"image{index}"][None])
    check_outputs(outputs, case.arrays, f"single{index}", golden.sample)


def test_intermediate_tensors(model, case, golden):
    pair = case.pair()
    features = model.backbone(model.preprocessing(pair["images"], pair["image_sizes"]))
    decoded = model.pixel_decoder(features)
    queries = model.transformer_decoder({**features, **decoded}[model.transformer_decoder.in_feature])
    actual = {name: channels_first(features[name]) for name in FEATURES}
    actual["mask_features"] = channels_first(decoded["pixel_embedding"])
    actual["decoder_hs"] = np.stack([np.asarray(query) for query in queries])
    if "transformer_encoder" in decoded:
        actual["encoder_out"] = channels_first(decoded["transformer_encoder"])
    assert set(actual) == set(case.meta["features"])
    for name, value in actual.items():
        assert list(value.shape) == case.meta["features"][name]["shape"]
        np.testing.assert_allclose(
            golden.sample(value), case.arrays[f"pair/{name}_sample"], rtol=0, atol=1e-4, err_msg=name
        )
        assert np.abs(value).max() == pytest.approx(case.meta["features"][name]["absmax"], rel=1e-4)


def test_matching(pair_outputs, case):
    """The same query for each segment as SciPy found in the original, in every decoder layer."""
    criterion = build_criterion(configs.LossConfig())
    layers = [pair_outputs, *pair_outputs["aux_outputs"]]
    matched = np.asarray(criterion.matcher.match_layers(layers, padded_targets(case)))
    for name, queries in zip(("final", *(f"aux{index}" for index in range(5))), matched, strict=True):
        for image in (0, 1):
            prefix = f"match/{name}/img{image}"
            expected = dict(zip(case.arrays[f"{prefix}/target"], case.arrays[f"{prefix}/query"], strict=True))
            actual = {target: query for target, query in enumerate(queries[image]) if query >= 0}
            assert actual == expected, prefix


@pytest.fixture(scope="module")
def step(model, case):
    """Loss terms, and each gradient under the original's parameter name and in its layout."""
    criterion = build_criterion(configs.LossConfig())
    with tf.GradientTape() as tape:
        terms = criterion(model(case.pair(), training=True), model.pad_targets(case.targets()))
        total = sum(terms.values())
    gradients = tape.gradient(total, model.trainable_variables)
    return {name: float(value) for name, value in terms.items()}, reference_gradients(model, gradients)


def padded_targets(case):
    """Targets at the size of the padded batch."""
    targets = case.targets()
    height, width = case.meta["padded_pair_shape"][2:]
    margins = ((0, 0), (0, 0), (0, height - targets["masks"].shape[2]), (0, width - targets["masks"].shape[3]))
    return {**targets, "masks": ops.pad(targets["masks"], margins)}


def reference_gradients(model, gradients):
    thirds, packed = {}, {}
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


def test_losses(step, case):
    terms, _ = step
    assert set(terms) == set(case.meta["losses_weighted"])
    for name, expected in case.meta["losses_weighted"].items():
        assert terms[name] == pytest.approx(expected, rel=1e-4), name
    assert sum(terms.values()) == pytest.approx(case.meta["loss_total"], rel=1e-4)


def test_gradients(step, case):
    _, gradients = step
    assert set(gradients) == set(case.meta["grad_keys"])
    negligible = set(case.meta["float64_check"]["grad_keys_below_1e-6_of_largest"])
    largest = case.arrays["grad_norm_f64"].max()
    for index, key in enumerate(case.meta["grad_keys"]):
        gradient, norm = gradients[key], case.arrays["grad_norm_f64"][index]
        if key in negligible:
            assert np.linalg.norm(gradient) < 1e-5 * largest, key
            continue
        assert np.linalg.norm(gradient) == pytest.approx(norm, rel=1e-3), key
        positions = (np.arange(8) * 1000003 + 12345) % gradient.size
        noise = 1e-2 * norm / np.sqrt(gradient.size)
        positions, expected = drop_zero_parts(key, gradient.size, positions, case.arrays["grad_sample_f64"][index])
        actual = gradient[np.unravel_index(positions, gradient.shape)]
        np.testing.assert_allclose(actual, expected, rtol=0, atol=noise, err_msg=key)


def drop_zero_parts(key, size, positions, expected):
    """Without the entries of packed biases whose gradient is zero in exact arithmetic, and noise in float32."""
    if not key.endswith(("in_proj_bias", "qkv.bias")):
        return positions, expected
    third = size // 3
    first = key.endswith("decoder.layers.0.self_attn.in_proj_bias")
    kept = (positions >= 2 * third) | ((positions < third) & (not first))
    return positions[kept], expected[kept]
