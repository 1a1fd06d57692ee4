"""Every kind of export of what is no MaskFormer over a backbone of ours: adapted backbones and per-pixel models."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import kmaskformer as kmf
from kmaskformer.backbones.adapters import KerasModelBackbone
from kmaskformer.export.litert import export_litert
from kmaskformer.models.pixel_decoder import FPNPixelDecoder
from kmaskformer.models.transformer_decoder import QueryDecoder

INFO = kmf.DatasetInfo.numbered(5)
DTYPES = (tf.bfloat16, tf.float32)
OPTIONS = {"num_queries": 5, "hidden_dim": 16, "num_heads": 2, "feedforward_dim": 24, "decoder_layers": 1}


def adapted_backbone():
    """A plain Keras model with batch norm and images 0..255, as most published backbones are."""
    maps = []
    x = inputs = keras.Input((None, None, 3), name="images")
    for index, strides in enumerate((4, 2, 2, 2), start=1):
        x = keras.layers.Conv2D(4 * index, 3, strides, padding="same", name=f"stage{index}_conv")(x)
        x = keras.layers.BatchNormalization(name=f"stage{index}_norm")(x)
        x = keras.layers.ReLU(name=f"stage{index}_out")(x)
        maps.append(x)
    return KerasModelBackbone(keras.Model(inputs, maps, name="toy"), input_scaling="bytes")


def adapted_maskformer():
    return kmf.MaskFormer(adapted_backbone(), FPNPixelDecoder(32, 24), QueryDecoder(**OPTIONS), 5, dataset_info=INFO)


def per_pixel():
    return kmf.PerPixelBaseline(adapted_backbone(), FPNPixelDecoder(32, 24), 5, dataset_info=INFO)


def per_pixel_plus():
    return kmf.PerPixelBaselinePlus(
        adapted_backbone(), FPNPixelDecoder(32, 24), QueryDecoder(**OPTIONS), 5, dataset_info=INFO
    )


@pytest.fixture(scope="module", params=[adapted_maskformer, per_pixel, per_pixel_plus])
def model(request):
    keras.utils.set_random_seed(4)
    model = request.param()
    model.build((None, None, None, 3))
    rng = np.random.default_rng(0)
    for variable in model.variables:
        # Larger, so that classes change within an image; norms of random statistics, to see that they are there.
        if "query_embedding" in variable.path:
            variable.assign(rng.normal(size=variable.shape) * 3)
        elif "class_head" in variable.path or "mask_head" in variable.path:
            variable.assign(variable * 4)
        elif variable.path.endswith(("moving_mean", "moving_variance")):
            variable.assign(rng.uniform(0.5, 2, variable.shape))
    return model


@pytest.fixture(scope="module")
def expected(model, scene):
    """The segmenter's maps, and their image."""
    image = scene(45, 70)
    result = kmf.Segmenter(model, task="semantic")(image)
    assert len(result.segments) > 1, "the test should see more than one class"
    return image, result


def check_map(class_map, result):
    assert class_map.shape == result.segmentation.shape and class_map.dtype == np.int32
    assert np.mean(class_map != result.segmentation) < 1e-3  # rounding moves a pixel on an edge


def test_saved_model(model, expected, tmp_path):
    image, result = expected
    folder = kmf.export_saved_model(model, tmp_path / "model", task="semantic")
    loaded = tf.saved_model.load(str(folder))
    outputs = loaded.signatures["serving_default"](images=image[None])
    np.testing.assert_array_equal(outputs["class_map"][0], result.segmentation)
    logits = {key: value for key, value in model(image[None], training=False).items() if key != "aux_outputs"}
    raw = loaded.signatures["raw"](images=image[None])
    assert set(raw) == set(logits) & {"class_logits", "mask_logits", "logits"}
    for key, value in raw.items():
        np.testing.assert_allclose(value, logits[key], atol=1e-4)


def test_onnx(model, expected, tmp_path):
    pytest.importorskip("tf2onnx", reason="tf2onnx is not installed (extra `onnx`)")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra `onnx`)")
    image, result = expected
    path = kmf.export_onnx(model, tmp_path / "model.onnx", task="semantic")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (class_map,) = session.run(["class_map"], {"images": np.stack([image, image[::-1]])})
    check_map(class_map[0], result)


def test_litert(model, expected, tmp_path):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason="ai-edge-litert is not installed")
    image, result = expected
    path = export_litert(model, tmp_path / "model.tflite", image.shape[:2], task="semantic")
    run = interpreter.Interpreter(model_path=str(path)).get_signature_runner()
    check_map(run(images=image[None])["class_map"][0], result)


def test_half_precision(model, expected, tmp_path):
    """The export returns what was asked for alone, stores 16 bits, and its logits are near."""
    image, _ = expected
    folder = kmf.export_saved_model(model, tmp_path / "half", "semantic", outputs=("class_map",), dtype="bfloat16")
    loaded = tf.saved_model.load(str(folder))
    outputs = loaded.signatures["serving_default"](images=image[None])
    assert set(outputs) == {"class_map"} and outputs["class_map"].shape == (1, *image.shape[:2])
    logits = model(image[None], training=False)
    for key, value in loaded.signatures["raw"](images=image[None]).items():
        assert np.corrcoef(np.ravel(value), np.ravel(logits[key]))[0, 1] > 0.98, key
    sizes = {dtype: sum(v.shape.num_elements() for v in loaded.weights if v.dtype == dtype) for dtype in DTYPES}
    assert sizes[tf.bfloat16] > 20 * sizes[tf.float32], "all but statistics of norms"


def test_per_pixel_models_have_one_task(tmp_path):
    model = per_pixel()
    with pytest.raises(ValueError, match=r"A PerPixelBaseline can do: semantic\. Received: task='panoptic'"):
        kmf.export_saved_model(model, tmp_path / "model", task="panoptic")
