"""Each image's own score beside that of all."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kmaskformer.evaluation.evaluator import SemanticEvaluator, Truth
from kmaskformer.evaluation.scored_images import ScoredImages
from kmaskformer.evaluation.state import read_state, save_state
from kmaskformer.structures import DatasetInfo

INFO = DatasetInfo("toy", ("person", "sky"), thing_ids=(0,))
IMAGES = {"half": [[0, 0, 1, 1]], "right": [[0, 1, 1, 1]], "wrong": [[1, 0, 0, 0]]}


def fed(*names):
    scored = ScoredImages(SemanticEvaluator())
    scored.bind(INFO)
    for name in names:
        true = np.full((1, 4), -1) if name == "blank" else np.array([[0, 1, 1, 1]])
        truth = Truth(true.astype(np.int32), np.array([0, 1]), np.zeros(2, bool), np.ones(2, bool), name)
        scored.update({"class_map": np.array(IMAGES.get(name, [[0, 0, 0, 0]]))}, truth)
    return scored


def test_images_are_ranked_by_their_own_score(tmp_path):
    scored = fed("half", "blank", "wrong", "right")
    assert scored.score_name == "semantic/mIoU"
    images = scored.images()
    assert list(images) == ["right", "half", "wrong", "blank"]
    assert images["right"] == 1.0 and images["wrong"] == 0.0 and math.isnan(images["blank"])
    assert images["half"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    plain = SemanticEvaluator()
    plain.bind(INFO)
    plain.load_state({"counts": scored.state()["counts"]})
    assert scored.result() == pytest.approx(plain.result(), nan_ok=True)
    scored.write(tmp_path / "images.csv")
    assert (tmp_path / "images.csv").read_text().splitlines()[::4] == ["image_id,semantic/mIoU", "blank,"]


def test_names_of_any_alphabet_are_written_as_utf_8(tmp_path, monkeypatch):
    # Where the locale's encoding is another.
    monkeypatch.setattr("io.text_encoding", lambda encoding, stacklevel=2: encoding or "ascii")
    fed("straße").write(tmp_path / "images.csv")
    assert (tmp_path / "images.csv").read_bytes().decode("utf-8").splitlines()[1].startswith("straße,0.")


def test_parts_merge_and_states_go_through_files(tmp_path):
    first, second, resumed = fed("half"), fed("right"), fed()
    save_state(tmp_path / "state.npz", first.state())
    resumed.load_state(read_state(tmp_path / "state.npz"))
    resumed.merge(second)
    assert list(resumed.images()) == ["right", "half"] and resumed.order() == ["half", "right"]
    assert resumed.result() == fed("half", "right").result()
    resumed.load_state(SemanticEvaluator.state(first.evaluator))
    assert resumed.images() == {}
