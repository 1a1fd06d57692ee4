"""Our own average precision, against pycocotools and by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from kmaskformer.data.run_lengths import encode_mask
from kmaskformer.evaluation.average_precision import coco_average_precision
from kmaskformer.evaluation.instance_precision import AveragePrecision, Instances
from kmaskformer.evaluation.own_average_precision import own_average_precision
from kmaskformer.evaluation.state import read_state, save_state
from kmaskformer.structures import DatasetInfo

SIZE = (100, 130)


def squares(rng, count):
    masks = np.zeros((count, *SIZE), bool)
    for mask in masks:
        side, top, left = rng.choice([4, 12, 40, 99]), rng.integers(SIZE[0]), rng.integers(SIZE[1])
        mask[top : top + side, left : left + side] = True
    return masks


def random_files(rng, images=6, classes=4):
    """Truth with crowds and all sizes, without the last class; up to 120 detections an image, scores that repeat."""
    annotations, results = [], []
    for image_id in range(images):
        true, found = squares(rng, rng.integers(0, 8)), squares(rng, rng.integers(0, 120))
        for mask in found:
            if len(true) and rng.random() < 0.7:
                mask[:] = np.roll(true[rng.integers(len(true))], rng.integers(-3, 4, 2), (0, 1))
        for mask in true:
            record = {"id": len(annotations) + 1, "image_id": image_id, "category_id": int(rng.integers(classes - 1))}
            record |= {"iscrowd": int(rng.random() < 0.25), "area": int(mask.sum()), "bbox": box(mask)}
            annotations.append({**record, "segmentation": encode_mask(mask)})
        for mask in found:
            record = {"image_id": image_id, "category_id": int(rng.integers(classes)), "score": round(rng.random(), 1)}
            results.append({**record, "segmentation": encode_mask(mask)})
    categories = [{"id": index, "name": f"class {index}"} for index in range(classes)]
    content = {"images": [{"id": i, "height": SIZE[0], "width": SIZE[1]} for i in range(images)]}
    return {**content, "annotations": annotations, "categories": categories}, results


def box(mask):
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return [0, 0, 0, 0]
    return [int(v) for v in (columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0])]


def assert_same(ours, reference):
    assert set(ours) == set(reference)
    for name, value in reference.items():
        assert ours[name] == pytest.approx(value, abs=1e-12, nan_ok=True), name


@pytest.mark.parametrize("kind", ["segm", "bbox"])
@pytest.mark.parametrize("seed", range(4))
def test_equals_pycocotools_on_random_files(kind, seed):
    pytest.importorskip("pycocotools")
    content, results = random_files(np.random.default_rng(seed))
    assert_same(own_average_precision(content, results, kind), coco_average_precision(content, results, kind))
    # Given boxes say how large detections are.
    results = [{**r, "bbox": [1.0, 2.0, 50.0, 60.0 if i % 2 else 10.0]} for i, r in enumerate(results)]
    assert_same(own_average_precision(content, results, kind), coco_average_precision(content, results, kind))


def test_equals_the_reference_figures(shared_folder):
    folder = shared_folder / "data" / "coco_panoptic_train100" / "reference_eval"
    expected = json.loads((folder / "expected.json").read_text())["ap"]
    content, results = (json.loads((folder / f"{name}_instances.json").read_text()) for name in ("gt", "pred"))
    order = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
    for kind in ("segm", "bbox"):
        scores = own_average_precision(content, results, kind)
        assert [scores[key] for key in order] == pytest.approx(expected[kind], abs=1e-12)


def instances(*category_ids, area=2000, crowd=False, scores=None):
    count = len(category_ids)
    scores = np.linspace(1, 0.5, count) if scores is None else np.array(scores)
    return Instances(np.array(category_ids, int), np.full(count, area), scores, np.full(count, crowd))


def scored(detections, truths, iou):
    metric = AveragePrecision(2)
    metric.update(detections, truths, np.array(iou, float).reshape(len(detections.areas), len(truths.areas)))
    return metric.result()


def test_hand_numbers():
    scores = scored(instances(0, 0), instances(0, 0), [[0.76, 0.1], [0.6, 0.3]])
    # The second finds nothing free: precision 1 up to recall one half, 51 of 101 levels, at 6 of 10 thresholds.
    assert scores["AP50"] == scores["AP75"] == scores["APm"] / 0.6 == pytest.approx(51 / 101)
    assert scores["AP"] == scores["AP/class 0"] == pytest.approx(0.6 * 51 / 101)
    assert scores["AR100"] == scores["AR1"] == pytest.approx(0.3)
    assert math.isnan(scores["APs"]) and math.isnan(scores["AP/class 1"])


def test_a_crowd_excuses_any_number_of_detections_and_need_not_be_found():
    scores = scored(instances(0, 0), instances(0, crowd=True), [[0.9], [0.8]])
    assert all(math.isnan(value) for value in scores.values())


def test_empty_truth_and_empty_prediction():
    nothing = instances()
    assert all(math.isnan(value) for value in scored(nothing, nothing, []).values())
    assert math.isnan(scored(instances(0), nothing, [])["AP"])
    assert scored(nothing, instances(0), [])["AP"] == scored(nothing, instances(0), [])["AR100"] == 0.0


def test_parts_merge_and_states_are_kept_in_files(tmp_path, rng):
    whole, parts = AveragePrecision(3), [AveragePrecision(3) for _ in range(3)]
    for part in (*parts, *parts):
        found, true = instances(*rng.integers(0, 3, 9), scores=rng.random(9)), instances(*rng.integers(0, 3, 4))
        iou = rng.random((9, 4))
        part.update(found, true, iou)
        whole.update(found, true, iou)
    save_state(tmp_path / "part.npz", parts[0].state())
    resumed = AveragePrecision(3)
    resumed.load_state(read_state(tmp_path / "part.npz"))
    resumed.merge(parts[1]).merge(parts[2])
    assert resumed.result() == pytest.approx(whole.result(), abs=1e-12, nan_ok=True)
    whole.reset()
    assert math.isnan(whole.result()["AP"])


def test_stuff_is_left_out():
    info = DatasetInfo("toy", ("sky", "person"), thing_ids=(1,))
    assert [key for key in AveragePrecision.from_info(info).result() if "/" in key] == ["AP/person"]


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: AveragePrecision(0), "`num_classes` must be a positive integer. Received: num_classes=0"),
        (lambda: AveragePrecision(1).merge(AveragePrecision(2)), "Received: 1 and 2 classes"),
        (lambda: scored(instances(2), instances(0), [[0]]), r"must lie in 0\.\.1. Received: 2\.\.2"),
        (
            lambda: AveragePrecision(1).update(instances(0), instances(0), np.zeros((2, 1))),
            r"`iou` must have shape \(detections, truths\) = \(1, 1\). Received: \(2, 1\)",
        ),
        (lambda: AveragePrecision(1).load_state(AveragePrecision(2).state()), "same kind and classes"),
    ],
)
def test_errors(action, message):
    with pytest.raises(ValueError, match=message):
        action()


def test_a_file_that_is_no_state_is_named(tmp_path):
    path = tmp_path / "state.npz"
    path.write_text("nothing of the kind")
    with pytest.raises(ValueError, match=r"state.npz: not the state of an evaluation .*Delete it"):
        read_state(path)


def test_masks_of_several_sizes_are_an_error():
    content, results = random_files(np.random.default_rng(0), images=1)
    content["images"] = [{"id": image["id"]} for image in content["images"]]
    results = [{**results[0], "segmentation": encode_mask(np.ones((4, 5 + 9 * i), bool))} for i in range(2)]
    with pytest.raises(ValueError, match="Masks of image 0 must have the size of the image; some differ"):
        own_average_precision(content, results)
