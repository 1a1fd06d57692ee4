"""SavedModels: their answers against the `Segmenter`'s, where they run, and what they say about themselves."""

from __future__ import annotations

import base64
import io
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow.core.protobuf import saved_model_pb2

import kmaskformer as kmf
from kmaskformer.config import Config
from kmaskformer.export.saved_model import export_segmenter
from kmaskformer.export.signature import TASK_OUTPUTS
from kmaskformer.inference.tiles import Tiling

OPTIONS = {"object_mask_threshold": 0.3, "overlap_threshold": 0.3, "score_threshold": 0.3}
RESIZING = {"shortest_edge": 48, "longest_edge": 90}
EXPORTS = {
    "panoptic": ("panoptic", {}, {"backbone": "swin", "encoder_layers": 1}),
    "semantic": ("semantic", RESIZING, {"size_divisibility": 0}),
    "instance": ("instance", RESIZING, {"backbone": "resnet"}),
}
SIZES = ((33, 47), (64, 80))


@pytest.fixture(scope="module", params=sorted(EXPORTS))
def exported(request, make_model, tmp_path_factory):
    """A model's export, loaded, with the `Segmenter` that it must equal."""
    task, options, parts = EXPORTS[request.param]
    model = make_model(**parts)
    folder = kmf.export_saved_model(
        model,
        tmp_path_factory.mktemp("export") / "model",
        task=task,
        config=Config(),
        license="CC0",
        **OPTIONS,
        **options,
    )
    return folder, tf.saved_model.load(str(folder)), kmf.Segmenter(model, task=task, **OPTIONS, **options)


TIES = 2
"""Pixels of an image that may change sides in a batch of another size, which TensorFlow's kernels round otherwise."""


def count_differences(found, expected):
    assert found.shape == expected.shape
    return np.count_nonzero(found != expected)


def check_equal(outputs, index, expected, ties=0):
    """One image's part of an export's outputs against the segmenter's result, but for `ties` pixels."""
    height, width = expected.segmentation.shape
    outputs = {key: value[index].numpy() for key, value in outputs.items()}
    if expected.task == "semantic":
        found = outputs["class_map"][:height, :width]
        assert count_differences(found, expected.segmentation) <= ties
        for row in expected.segments:
            scores = outputs["confidence"][:height, :width][found == row["id"]]
            assert abs(scores.mean() - row["score"]) < 1e-5
        return
    count = outputs["num_segments" if expected.task == "panoptic" else "num_instances"]
    assert count == len(expected.segments)
    if expected.task == "panoptic":
        assert count_differences(outputs["panoptic_map"][:height, :width], expected.segmentation) <= ties
        assert outputs["segment_ids"][:count].tolist() == [row["id"] for row in expected.segments]
        assert outputs["is_thing"][:count].tolist() == [row["is_thing"] for row in expected.segments]
    else:
        assert count_differences(outputs["masks"][:count, :height, :width], expected.masks) <= ties
        assert not outputs["masks"][count:].any()
    assert outputs["category_ids"][:count].tolist() == [row["category_id"] for row in expected.segments]
    areas = np.array([row["area"] for row in expected.segments])
    np.testing.assert_allclose(outputs["areas"][:count], areas, rtol=0, atol=ties)
    boxes = np.reshape([row["box"] for row in expected.segments], (-1, 4))
    np.testing.assert_allclose(outputs["boxes"][:count], boxes, rtol=0, atol=ties)
    scores = np.array([row["score"] for row in expected.segments])  # a mean over the segment's pixels
    assert (np.abs(outputs["scores"][:count] - scores) <= 1e-5 + ties / areas).all()
    assert not outputs["scores"][count:].any() and not outputs["boxes"][count:].any()


def encode(image, file_format):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, file_format)
    return buffer.getvalue()


def nodes(folder):
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((folder / "saved_model.pb").read_bytes())
    graph = saved.meta_graphs[0].graph_def
    return [*graph.node, *(node for function in graph.library.function for node in function.node_def)]


def test_answers_equal_the_segmenters(exported, scene):
    _, loaded, segmenter = exported
    segments = 0
    for size in SIZES:
        images = np.stack([scene(*size, seed) for seed in range(4)])
        expected = segmenter(list(images))
        for batch in (1, 4):
            outputs = loaded.signatures["serving_default"](images=images[:batch])
            assert set(outputs) == set(TASK_OUTPUTS[segmenter.task])
            for index in range(batch):
                check_equal(outputs, index, expected[index], ties=0 if batch == 1 else TIES)
        segments += sum(len(result.segments) for result in expected)
    assert segments >= 8


def test_encoded_images_of_different_sizes(exported, scene):
    _, loaded, segmenter = exported
    images = [scene(33, 47), scene(64, 40, seed=1), scene(20, 90, seed=2)]
    files = [encode(image, file_format) for image, file_format in zip(images, ("PNG", "JPEG", "PNG"), strict=True)]
    outputs = loaded.signatures["serve_encoded"](image_bytes=tf.constant(files))
    sizes = outputs.pop("image_sizes")
    assert sizes.numpy().tolist() == [[33, 47], [64, 40], [20, 90]]
    for index, expected in enumerate(segmenter(files)):
        check_equal(outputs, index, expected)
    for name, void in (("panoptic_map", 0), ("class_map", -1)):
        if name in outputs:
            assert (outputs[name][0].numpy()[33:] == void).all() and (outputs[name][0].numpy()[:, 47:] == void).all()


def test_raw_logits_are_the_models(exported, scene):
    _, loaded, segmenter = exported
    image = scene(48, 61)[None]
    outputs = loaded.signatures["raw"](images=image)
    expected = segmenter.model(image, training=False)
    assert set(outputs) == {"class_logits", "mask_logits"}
    for key, value in outputs.items():
        np.testing.assert_allclose(value, expected[key], atol=1e-4)


def test_a_tiny_image(exported):
    _, loaded, segmenter = exported
    image = np.full((1, 1, 3), 90, np.uint8)
    check_equal(loaded.signatures["serving_default"](images=image[None]), 0, segmenter(image))


def test_nothing_in_the_graph_needs_python_or_a_compiler(exported):
    graph = nodes(exported[0])
    assert {node.op for node in graph} & {
        "PyFunc",
        "EagerPyFunc",
        "PyFuncStateless",
        "XlaLaunch",
        "NumpyFunction",
    } == set()
    assert not [node.name for node in graph if node.attr["_XlaMustCompile"].b]
    assert not [node.op for node in graph if ">" in node.op], "operations of an extension"
    convolutions = sum(node.op == "Conv2D" for node in graph)
    assert convolutions < 60, "the network should be in the file once"


def test_metadata(exported):
    folder, _, segmenter = exported
    record = json.loads((folder / "assets" / "metadata.json").read_text())
    assert record["task"] == segmenter.task and record["license"] == "CC0" and record["dtype"] == "float32"
    assert record["class_names"] == ["ball", "sky", "brick", "grass", "cart"] and record["thing_ids"] == [0, 2, 4]
    assert len(record["colors"]) == 5 and record["dataset"] == "toys"
    assert (record["object_mask_threshold"], record["shortest_edge"]) == (0.3, segmenter.shortest_edge)
    assert record["config"]["model"]["transformer_decoder"]["num_queries"] == 100
    signature = record["signatures"]["serving_default"]
    assert signature["inputs"] == {"images": {"dtype": "uint8", "shape": [-1, -1, -1, 3]}}
    assert set(signature["outputs"]) == set(TASK_OUTPUTS[segmenter.task])


FOREIGN = """
import json, sys
import numpy as np
import tensorflow as tf
from pathlib import Path
folder, images, results = sys.argv[1:]
loaded = tf.saved_model.load(folder)
outputs = loaded.signatures["serving_default"](images=np.load(images))
np.savez(results, **{key: value.numpy() for key, value in outputs.items()})
print(json.loads((Path(folder) / "assets" / "metadata.json").read_text())["class_names"])
assert not [name for name, module in sys.modules.items() if name.startswith("kmaskformer") and module is not None]
"""


def test_runs_where_neither_package_nor_keras_is_installed(exported, scene, run_without_package, tmp_path):
    folder, _, segmenter = exported
    if segmenter.task != "panoptic":
        pytest.skip("one start of TensorFlow is enough")
    images = np.stack([scene(33, 47, seed) for seed in range(2)])
    np.save(tmp_path / "images.npy", images)
    printed = run_without_package(FOREIGN, folder, tmp_path / "images.npy", tmp_path / "results.npz")
    assert "'grass'" in printed
    outputs = {key: tf.constant(value) for key, value in np.load(tmp_path / "results.npz").items()}
    for index, expected in enumerate(segmenter(list(images))):
        check_equal(outputs, index, expected)


def test_signatures_are_what_tensorflow_serving_serves(exported, scene):
    """Its REST protocol stacks `instances` into the one input, and splits all outputs along a common batch axis."""
    folder, loaded, segmenter = exported
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((folder / "saved_model.pb").read_bytes())
    assert "serve" in saved.meta_graphs[0].meta_info_def.tags
    definitions = saved.meta_graphs[0].signature_def
    pair = [scene(20, 30, seed) for seed in (0, 1)]
    requests = {  # as the protocol writes them
        "serving_default": {"instances": [image.tolist() for image in pair]},
        "raw": {"instances": [{"images": image.tolist()} for image in pair]},
        "serve_encoded": {"instances": [{"b64": base64.b64encode(encode(image, "PNG")).decode()} for image in pair]},
    }
    for name, request in requests.items():
        definition = definitions[name]
        assert definition.method_name == "tensorflow/serving/predict"
        ((alias, info),) = definition.inputs.items()
        assert info.dtype == (tf.string if name == "serve_encoded" else tf.uint8).as_datatype_enum
        assert info.tensor_shape.dim[0].size == -1
        values = _stack_as_the_protocol_says(
            json.loads(json.dumps(request))["instances"], alias, tf.as_dtype(info.dtype)
        )
        outputs = loaded.signatures[name](**{alias: values})
        assert set(outputs) == set(definition.outputs)
        assert {value.shape[0] for value in outputs.values()} == {2}
        assert all(output.tensor_shape.dim[0].size == -1 for output in definition.outputs.values())
    assert (outputs["image_sizes"].numpy() == (20, 30)).all()
    check_equal({k: v for k, v in outputs.items() if k != "image_sizes"}, 1, segmenter(pair[1]))


def _stack_as_the_protocol_says(instances, alias, dtype):
    rows = [row[alias] if isinstance(row, dict) and set(row) == {alias} else row for row in instances]
    rows = [base64.b64decode(row["b64"]) if isinstance(row, dict) else row for row in rows]
    return tf.constant(rows, dtype)


def test_reloads_as_a_keras_layer(exported, scene):
    folder, _, segmenter = exported
    if segmenter.task != "semantic":
        pytest.skip("one is enough")
    image = scene(33, 47)
    for endpoint in ({}, {"call_endpoint": "serving_default"}):
        layer = keras.layers.TFSMLayer(str(folder), **endpoint)
        check_equal(layer(tf.constant(image[None])), 0, segmenter(image))


def test_reduced_outputs_and_half_precision(make_model, scene, tmp_path):
    """The variant returns one map alone, stores 16-bit weights, and its logits are near."""
    model = make_model()
    folder = kmf.export_saved_model(model, tmp_path / "half", "semantic", outputs=("class_map",), dtype="bfloat16")
    assert model.dtype_policy.name == "float32" and model.variables[0].dtype == "float32"
    record = json.loads((folder / "assets" / "metadata.json").read_text())
    assert record["dtype"] == "bfloat16" and record["config"]["model"]["num_classes"] == 5
    loaded = tf.saved_model.load(str(folder))
    assert {variable.dtype for variable in loaded.weights if variable.dtype.is_floating} == {tf.bfloat16}
    image = scene(64, 80)[None]
    outputs = loaded.signatures["serving_default"](images=image)
    assert set(outputs) == {"class_map"} and outputs["class_map"].shape == (1, 64, 80)
    expected = model(image, training=False)
    for key, value in loaded.signatures["raw"](images=image).items():
        assert value.dtype == tf.float32
        assert np.corrcoef(np.ravel(value), np.ravel(expected[key]))[0, 1] > 0.98, key


def test_errors(make_model, tmp_path):
    model = make_model()
    with pytest.raises(ValueError, match=r"`outputs` must name outputs of the task semantic: class_map, confidence\."):
        kmf.export_saved_model(model, tmp_path / "a", task="semantic", outputs=("panoptic_map",))
    with pytest.raises(ValueError, match="`outputs` must name"):
        kmf.export_saved_model(model, tmp_path / "a", task="semantic", outputs=())
    with pytest.raises(ValueError, match="`task` must be one of"):
        kmf.export_saved_model(model, tmp_path / "a", task="depth")
    with pytest.raises(ValueError, match="`dtype` must be one of float32, bfloat16"):
        kmf.export_saved_model(model, tmp_path / "a", dtype="int8")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds files that are no SavedModel"):
        kmf.export_saved_model(model, tmp_path)
    with pytest.raises(ValueError, match=r"sees each image whole and once\. Received: a segmenter with a tiling"):
        kmf.export_saved_model(model, tmp_path / "a", tiling=Tiling(32))
    with pytest.raises(FileExistsError, match="is a file"):
        export_segmenter(kmf.Segmenter(model), tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.slow
@pytest.mark.parametrize("encoder_layers", [0, 2])
@pytest.mark.parametrize("backbone", ["resnet", "swin"])
@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_large_images_and_all_parts(make_model, scene, tmp_path, task, backbone, encoder_layers):
    model = make_model(backbone, encoder_layers)
    segmenter = kmf.Segmenter(model, task=task, **OPTIONS)
    export_segmenter(segmenter, tmp_path / "model")
    serve = tf.saved_model.load(str(tmp_path / "model")).signatures["serving_default"]
    for size, batch in (((33, 47), 4), ((255, 191), 4), ((480, 640), 1), ((1024, 2048), 1)):
        images = np.stack([scene(*size, seed) for seed in range(batch)])
        outputs = serve(images=images)
        for index, expected in enumerate(segmenter(list(images))):
            check_equal(outputs, index, expected)
