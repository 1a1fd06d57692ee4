"""An evaluation goes on from its state file only where it is the same evaluation."""

from __future__ import annotations

import numpy as np
import pytest

from kmaskformer.evaluation.evaluator import PanopticEvaluator, SemanticEvaluator
from kmaskformer.evaluation.run import Evaluation
from kmaskformer.evaluation.scored_images import ScoredImages
from kmaskformer.evaluation.state import read_state
from kmaskformer.inference.tiles import Tiling
from tests.evaluation.test_evaluate_run import ELEMENTS, ReadingModel


def batch(element, name):
    inputs, targets = ({key: np.asarray(value)[None] for key, value in part.items()} for part in element)
    return inputs, {**targets, "image_id": np.array([name.encode()])}


BATCHES = [batch(element, name) for element, name in zip(ELEMENTS, "abc", strict=True)]


class Weighted(ReadingModel):
    """A model with weights, one of which can be told."""

    def __init__(self, weight=1.0):
        super().__init__()
        self.weights = [np.zeros((2, 3), np.float32), np.float32([weight])]


def evaluation(weight=1.0, threshold=0.8, tiling=None):
    evaluators = [ScoredImages(PanopticEvaluator(threshold)), SemanticEvaluator()]
    return Evaluation(Weighted(weight), evaluators, tiling)


@pytest.fixture()
def state(tmp_path):
    """The file of an evaluation that was cut off after two of three batches."""

    def cut_off():
        yield from BATCHES[:2]
        raise KeyboardInterrupt

    path = tmp_path / "state.npz"
    with pytest.raises(KeyboardInterrupt):
        evaluation().run(cut_off(), progress=False, state_file=path, save_every=1)
    return path


def test_the_same_goes_on(state):
    whole = evaluation().run(BATCHES, progress=False)
    assert whole["evaluation/images"] == 3
    assert evaluation().run(iter(BATCHES), progress=False, state_file=state) == pytest.approx(whole, nan_ok=True)
    assert not state.exists()


@pytest.mark.parametrize(
    ("other", "batches", "message"),
    [
        (evaluation(weight=2.0), BATCHES, r"an evaluation with other weights, .*Received: weights \w{8} after \w{8}"),
        (evaluation(threshold=0.5), BATCHES, r"an evaluation with other options, .*'object_mask_threshold': 0.5.* aft"),
        (evaluation(tiling=Tiling(64)), BATCHES, r"an evaluation with other options, .*size=64.* after .*tiles None"),
        (evaluation(), BATCHES[1:], r"the last one of the images b. Received: c"),
        (evaluation(), [BATCHES[0], BATCHES[2], BATCHES[1]], r"the last one of the images b. Received: c"),
        (evaluation(), BATCHES[:1], r"the last one of the images b. Received: a dataset that ends before"),
    ],
)
def test_something_else_does_not(state, other, batches, message):
    before = read_state(state)
    with pytest.raises(ValueError, match=rf"state.npz: .*{message}"):
        other.run(batches, progress=False, state_file=state)
    assert list(read_state(state)) == list(before)  # what has been counted is not lost


def test_every_so_many_batches_must_be_a_number(tmp_path):
    with pytest.raises(ValueError, match=r"`save_every` must be a positive number of batches. Received: save_every=0"):
        evaluation().run(BATCHES, progress=False, state_file=tmp_path / "state.npz", save_every=0)
