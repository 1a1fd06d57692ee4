from __future__ import annotations

import json
import sys

import keras
import numpy as np
import pytest

import kmaskformer as kmf
from kmaskformer.build import build_model
from kmaskformer.config import config_from_dict
from kmaskformer.export.onnx import DEFAULT_OPSET
from kmaskformer.inference.postprocess import Postprocess

pytest.importorskip("tf2onnx", reason="tf2onnx is not installed (extra `onnx`)")
onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra `onnx`)")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra `onnx`)")

THRESHOLDS = {"object_mask_threshold": 0.1, "overlap_threshold": 0.1, "score_threshold": 0.1}
"""An untrained model finds little, so that the usual ones would leave nothing to compare."""

MAPS = ("class_map", "panoptic_map", "masks")
TOLERANCES = {"confidence": 1e-3, "scores": 1e-3, "areas": 3, "boxes": 1}


def eager_results(model, images, task, **options):
    """Result and logits without any export."""
    outputs = {name: value for name, value in model(images, training=False).items() if name != "aux_outputs"}
    if task != "raw":
        size = images.shape[1:3]
        postprocess = Postprocess(task, thing_ids=model.dataset_info.thing_ids, **options)
        outputs |= postprocess(outputs, model.padded_size(*size), size, size)
    return {name: keras.ops.convert_to_numpy(value) for name, value in outputs.items()}


def run(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images}), strict=True))


def check_file(path, opset=DEFAULT_OPSET):
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert [(entry.domain, entry.version) for entry in proto.opset_import if entry.domain == ""] == [("", opset)]
    assert "Erfc" not in {node.op_type for node in proto.graph.node}
    return proto


def check_results(actual, expected):
    """Equal but for rounding, which may move a pixel on the edge of a segment."""
    assert set(actual) == set(expected)
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        if name in MAPS:
            assert np.mean(actual[name] != value) < 1e-3, name
            continue
        tolerance = 1e-4 * np.abs(value).max() if "logits" in name else TOLERANCES.get(name, 0)
        np.testing.assert_allclose(actual[name], value, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize(
    ("backbone", "task"), [("tiny", "instance"), pytest.param("swin", "panoptic", marks=pytest.mark.slow)]
)
def test_results_are_those_of_the_eager_model(make_model, scene, tmp_path, backbone, task):
    model = make_model(backbone, encoder_layers=int(backbone == "tiny"))
    path = kmf.export_onnx(model, tmp_path / "new" / "model.onnx", task=task, **THRESHOLDS)
    proto = check_file(path)
    for batch, height, width in ((1, 33, 47), (2, 45, 70)):
        images = np.stack([scene(height, width, seed) for seed in range(batch)])
        results = run(path, images)
        check_results(results, eager_results(model, images, task, **THRESHOLDS))
        assert results["valid"].any(), "the test finds no segment to compare"
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    assert metadata["task"] == task and metadata["kmaskformer_version"] == kmf.__version__
    assert kmf.DatasetInfo.from_dict(json.loads(metadata["dataset_info"])) == model.dataset_info


@pytest.mark.slow
def test_semantic_map_of_float_images_in_an_older_opset(make_model, scene, tmp_path):
    model = make_model("resnet")
    path = kmf.export_onnx(model, tmp_path / "model.onnx", opset=16, input_dtype="float32")
    proto = check_file(path, opset=16)
    images = scene(45, 70)[None].astype("float32")
    check_results(run(path, images), eager_results(model, images, "semantic"))
    axes = {
        tensor.name: [axis.dim_param or axis.dim_value for axis in tensor.type.tensor_type.shape.dim]
        for tensor in (*proto.graph.input, *proto.graph.output)
    }
    assert axes["images"] == ["batch", "height", "width", 3]
    assert axes["class_map"] == ["batch", "height", "width"]
    assert axes["mask_logits"] == ["batch", "queries", "mask_height", "mask_width"]


def test_says_what_cannot_be_exported(make_model, tmp_path, monkeypatch):
    model, path = make_model(), tmp_path / "model.onnx"
    with pytest.raises(ValueError, match=r"`opset` must be one of 16\.\.18\. Received: opset=9"):
        kmf.export_onnx(model, path, opset=9)
    with pytest.raises(ValueError, match=r"`input_dtype` must be one of uint8, float32\. Received: 'int64'"):
        kmf.export_onnx(model, path, input_dtype="int64")
    with pytest.raises(ValueError, match="`task` must be one of semantic, instance, panoptic"):
        kmf.export_onnx(model, path, task="depth")
    with pytest.raises(ValueError, match='`task="instance"` needs thing classes'):
        kmf.export_onnx(model, path, task="instance", dataset_info=kmf.DatasetInfo.numbered(5))
    with pytest.raises(ValueError, match=r"must describe the model's 5 classes\. Received: 4 classes"):
        kmf.export_onnx(model, path, dataset_info=kmf.DatasetInfo.numbered(4))
    with pytest.raises(ValueError, match=r"must compute in float32\. Received: bfloat16"):
        kmf.export_onnx(make_model(dtype="mixed_bfloat16"), path)
    with monkeypatch.context() as patch:
        patch.setattr(keras.backend, "backend", lambda: "jax")
        with pytest.raises(ValueError, match=r"exported from the TensorFlow backend\. Received: .* == 'jax'"):
            kmf.export_onnx(model, path)
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(ImportError, match=r"needs tf2onnx, .*install\.sh onnx"):
        kmf.export_onnx(model, path)
    assert not path.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "decoder", "task"),
    [("resnet50", "fpn", "semantic"), ("swin_tiny", "transformer_fpn", "panoptic"), ("resnet50", "fpn", "instance")],
)
def test_models_of_full_size(scene, tmp_path, backbone, decoder, task):
    config = {"num_classes": 133, "backbone": {"name": backbone}, "pixel_decoder": {"name": decoder}}
    info = {**kmf.DatasetInfo.numbered(133).to_dict(), "thing_ids": list(range(80))}
    model = build_model(config_from_dict({"model": config}).model, kmf.DatasetInfo.from_dict(info))
    model.class_head.kernel.assign(model.class_head.kernel * 10)
    path = kmf.export_onnx(model, tmp_path / "model.onnx", task=task, **THRESHOLDS)
    check_file(path)
    images = np.stack([scene(161, 223, seed) for seed in range(2)])
    check_results(run(path, images), eager_results(model, images, task, **THRESHOLDS))
