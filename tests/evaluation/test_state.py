"""Files of what an evaluation has counted: whole or not there, and refused by name where they are something else."""

from __future__ import annotations

import numpy as np
import pytest

from kmaskformer.evaluation.boundary_iou import BoundaryIoU
from kmaskformer.evaluation.instance_precision import AveragePrecision
from kmaskformer.evaluation.mean_iou import MeanIoU
from kmaskformer.evaluation.panoptic_quality import PanopticQuality
from kmaskformer.evaluation.state import read_state, save_state

STATE = {"semantic/counts": np.arange(6).reshape(2, 3), "progress": np.array([1, 2, 0])}


def test_round_trip_and_no_other_file(tmp_path):
    path = tmp_path / "new" / "state"  # without an ending, which NumPy would add
    save_state(path, STATE)
    save_state(path, STATE)
    read = read_state(path)
    assert list(read) == list(STATE)
    np.testing.assert_array_equal(read["semantic/counts"], STATE["semantic/counts"])
    assert list(path.parent.iterdir()) == [path]


def test_an_error_while_writing_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "state.npz"
    save_state(path, STATE)

    def full(file, **arrays):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space left"):
        save_state(path, {})
    assert list(tmp_path.iterdir()) == [path] and list(read_state(path)) == list(STATE)


def write_part(path):
    save_state(path, STATE)
    path.write_bytes(path.read_bytes()[:-30])


def write_array(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


@pytest.mark.parametrize(
    "write", [write_part, write_array, lambda path: path.write_bytes(b""), lambda p: p.write_text("x")]
)
def test_other_files_are_refused_by_name(tmp_path, write):
    write(tmp_path / "state.npz")
    with pytest.raises(ValueError, match=r"state.npz: not the state of an evaluation .*Delete it to evaluate"):
        read_state(tmp_path / "state.npz")


@pytest.mark.parametrize("metric", [MeanIoU, PanopticQuality, BoundaryIoU, AveragePrecision])
def test_only_metrics_of_one_kind_and_the_same_classes_are_merged(metric):
    other = PanopticQuality if metric is not PanopticQuality else MeanIoU
    with pytest.raises(ValueError, match=f"metrics of one kind.*Received: {metric.__name__} and {other.__name__}"):
        metric(2).merge(other(2))
    with pytest.raises(ValueError, match=r"the same classes can be merged. Received: 2 and 3 classes"):
        metric(2).merge(metric(3))
    with pytest.raises(ValueError, match="Received: class 1 'sky' and 'sea'"):
        metric(2, class_names=("cat", "sky")).merge(metric(2, class_names=("cat", "sea")))
