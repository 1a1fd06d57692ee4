from __future__ import annotations

import keras
import numpy as np
import pytest

from kmaskformer.export.litert import export_litert
from kmaskformer.inference.postprocess import Postprocess

interpreter = pytest.importorskip(
    "ai_edge_litert.interpreter", reason="ai-edge-litert is not installed (extra `litert`)"
)

THRESHOLDS = {"object_mask_threshold": 0.1, "overlap_threshold": 0.1, "score_threshold": 0.1}
SIZE = (45, 70)


def eager_results(model, images, task, **options):
    outputs = model(images, training=False)
    if task == "raw":
        outputs = {name: outputs[name] for name in ("class_logits", "mask_logits")}
    else:
        size = images.shape[1:3]
        postprocess = Postprocess(task, thing_ids=model.dataset_info.thing_ids, **options)
        outputs = postprocess(outputs, model.padded_size(*size), size, size)
    return {name: keras.ops.convert_to_numpy(value) for name, value in outputs.items()}


def run(path, images):
    # A plain interpreter knows LiteRT's own operators alone.
    return interpreter.Interpreter(model_path=str(path)).get_signature_runner()(images=images)


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_results_are_those_of_the_eager_model(make_model, scene, tmp_path, task):
    model = make_model()
    path = export_litert(model, tmp_path / "new" / "model.tflite", SIZE, task=task, **THRESHOLDS)
    images = scene(*SIZE)[None]
    actual, expected = run(path, images), eager_results(model, images, task, **THRESHOLDS)
    assert set(actual) == set(expected)
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        tolerance = 1e-4 if value.dtype == "float32" else 0
        np.testing.assert_allclose(actual[name], value, rtol=0, atol=tolerance, err_msg=name)
    assert task == "semantic" or actual["valid"].any(), "the test finds no segment to compare"


def test_int8_weights_make_a_small_file_with_near_results(make_model, scene, tmp_path):
    model, images = make_model("swin"), np.stack([scene(*SIZE, seed) for seed in range(2)]).astype("float32")
    path = export_litert(
        model, tmp_path / "m.tflite", SIZE, "raw", quantization="dynamic", batch_size=2, input_dtype="float32"
    )
    # Small layers stay in float32, so a model this small does not reach a byte per weight.
    assert path.stat().st_size < 3 * model.count_params()
    results = run(path, images)
    for name, value in eager_results(model, images, "raw").items():
        assert np.abs(results[name] - value).mean() < 0.1 * np.abs(value).mean(), name


def test_says_what_cannot_be_exported(make_model, tmp_path):
    model, path = make_model(), tmp_path / "model.tflite"
    with pytest.raises(ValueError, match=r"`quantization` must be one of none, dynamic\. Received: 'int4'"):
        export_litert(model, path, SIZE, quantization="int4")
    with pytest.raises(ValueError, match=r"positive integers\. Received: batch_size=1, image_size=\(45, None\)"):
        export_litert(model, path, (45, None))
    assert not path.exists()
