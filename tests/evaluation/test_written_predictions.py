"""Files written while scoring score the same; an evaluation that was cut off goes on."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

from kmaskformer.data.images import read_label_map
from kmaskformer.evaluation.evaluator import CombinedEvaluator, PanopticEvaluator, SemanticEvaluator, Truth
from kmaskformer.evaluation.files import PanopticWriter, read_instances
from kmaskformer.evaluation.instance_evaluator import InstanceEvaluator
from kmaskformer.evaluation.run import Evaluation
from kmaskformer.evaluation.score_files import score_panoptic_files
from kmaskformer.evaluation.semantic_evaluators import SemanticBoundaryEvaluator
from kmaskformer.evaluation.state import save_state
from kmaskformer.evaluation.written_predictions import WrittenPredictions, writing
from kmaskformer.structures import DatasetInfo

SPEC = importlib.util.spec_from_file_location("evaluate_run_cases", Path(__file__).parent / "test_evaluate_run.py")
CASES = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(CASES)

INFO = DatasetInfo("toy", ("person", "sky", "sea"), thing_ids=(0,), dataset_ids=(24, 23, 7))


class Model(CASES.ReadingModel):
    dataset_info = INFO


def dataset():
    """Three images, in batches of 1, under the names 1, 2 and 3."""
    elements = [(inputs, dict(targets)) for inputs, targets in CASES.ELEMENTS]
    for number, (_, targets) in enumerate(elements, start=1):
        targets["image_id"] = np.bytes_(str(number).encode())
    return elements, CASES.dataset_of(elements, batch_size=1)


def test_written_files_score_as_the_model_does(tmp_path):
    elements, batches = dataset()
    evaluators = writing([PanopticEvaluator(), SemanticEvaluator(), InstanceEvaluator()], tmp_path / "predictions")
    scores = Evaluation(Model((0, 2, 1)), evaluators).run(batches, progress=False)
    for evaluator in evaluators:
        assert evaluator.save().exists()
    truth = PanopticWriter(tmp_path / "truth.json", INFO)
    for _, targets in elements:
        one = Truth(targets["segment_map"], targets["labels"], targets["is_crowd"], targets["valid"], "")
        segment_map, table = one.panoptic()
        rows = zip(table.ids.tolist(), table.category_ids.tolist(), strict=True)
        segments = [{"id": i, "category_id": c} for i, c in rows if (segment_map == i).any()]
        truth.add(targets["image_id"].decode(), segment_map, segments)
    again = score_panoptic_files(truth.save(), tmp_path / "predictions" / "panoptic.json")
    for key in ("PQ", "PQ_things", "SQ", "TP/person", "FP/sea", "FN/person"):
        assert again[f"panoptic/{key}"] == pytest.approx(scores[f"panoptic/{key}"], abs=1e-12)
    assert set(np.unique(read_label_map(tmp_path / "predictions" / "labels" / "1.png"))) <= {24, 23, 7}
    records = read_instances(tmp_path / "predictions" / "instances.json")
    assert {record["category_id"] for record in records} == {24}
    assert {record["image_id"] for record in records} == {1, 2, 3}


def cut_off(batches, after):
    for number, batch in enumerate(batches):
        if number == after:
            raise KeyboardInterrupt
        yield batch


@pytest.fixture(scope="module")
def evaluation():
    return Evaluation(Model(), [PanopticEvaluator(), SemanticEvaluator(), InstanceEvaluator()])


@pytest.fixture(scope="module")
def whole(evaluation):
    return evaluation.run(dataset()[1], progress=False)


def test_an_evaluation_goes_on_where_it_was_cut_off(evaluation, whole, tmp_path, monkeypatch):
    batches, state = dataset()[1], tmp_path / "state.npz"
    with pytest.raises(KeyboardInterrupt):
        evaluation.run(cut_off(batches, 2), progress=False, state_file=state, save_every=1)
    seen, update = [], evaluation.evaluator.update
    monkeypatch.setattr(evaluation.evaluator, "update", lambda *arguments: (seen.append(arguments), update(*arguments)))
    scores = evaluation.run(batches, progress=False, state_file=state)
    assert len(seen) == 1 and not state.exists()
    assert scores == pytest.approx(whole, nan_ok=True, abs=1e-12)
    assert scores["evaluation/images"] == 3


def test_a_state_that_does_not_say_how_far_it_came_is_refused(evaluation, whole, tmp_path):
    # What this process has counted, as for merging, but no evaluation to go on with.
    save_state(tmp_path / "state.npz", evaluation.state())
    with pytest.raises(ValueError, match=r"state.npz: expected the state of .* 0 such numbers. Delete it"):
        evaluation.run(dataset()[1], progress=False, state_file=tmp_path / "state.npz")


def test_parts_of_several_processes_are_one_evaluation(evaluation, whole):
    evaluation.run(dataset()[1].shard(2, 0), progress=False)
    other = CombinedEvaluator([PanopticEvaluator(), SemanticEvaluator(), InstanceEvaluator()])
    other.bind(INFO)
    other.load_state(evaluation.state())
    evaluation.run(dataset()[1].shard(2, 1), progress=False)
    other.merge(evaluation.evaluator)
    for key, value in other.result().items():
        assert value == pytest.approx(whole[key], nan_ok=True, abs=1e-12), key


def test_the_bar_shows_running_scores(evaluation, capsys):
    evaluation.run(dataset()[1])
    assert "panoptic/PQ=1.000, semantic/mIoU=1.000" in capsys.readouterr().err


def test_an_image_that_cannot_be_written_does_not_count(tmp_path):
    (tmp_path / "labels" / "2.png").mkdir(parents=True)  # a folder where the file shall be
    evaluators = writing([SemanticEvaluator()], tmp_path)
    with pytest.warns(RuntimeWarning, match="left out of the scores: 2: "):
        scores = Evaluation(Model(), evaluators).run(dataset()[1], progress=False)
    assert (scores["evaluation/images"], scores["evaluation/failed_images"]) == (2, 1)
    pixels = sum((CASES.ELEMENTS[index][1]["segment_map"] >= 0).sum() for index in (0, 2))
    assert evaluators[0].evaluator.metric.confusion.sum() == pixels


def test_states_of_other_evaluators_are_refused(tmp_path):
    evaluator = CombinedEvaluator([SemanticEvaluator()])
    evaluator.bind(INFO)
    with pytest.raises(ValueError, match=r"that of the evaluators \['semantic'\]. Received: \['panoptic'\]"):
        evaluator.load_state({"panoptic/iou_sums": np.zeros(3)})


def test_errors(tmp_path):
    with pytest.raises(
        ValueError, match=r"Only semantic, instance, panoptic predictions have files. Received: semantic_"
    ):
        WrittenPredictions(SemanticBoundaryEvaluator(), tmp_path)
    with pytest.raises(ValueError, match=r"measure one of semantic, instance, panoptic. Received: semantic_boundary"):
        writing([SemanticBoundaryEvaluator()], tmp_path)


def test_a_writing_evaluator_forgets_and_resumes_its_scores(tmp_path):
    evaluator = WrittenPredictions(SemanticEvaluator(), tmp_path)
    evaluator.bind(INFO)
    segment_map = np.zeros((4, 4), np.int32)
    truth = Truth(segment_map, np.array([1]), np.array([False]), np.array([True]), "town/street")
    evaluator.update({"class_map": np.ones((4, 4), np.int32)}, truth)
    assert (tmp_path / "labels" / "town_street.png").is_file()
    state = evaluator.state()
    evaluator.reset()
    assert math.isnan(evaluator.result()["semantic/mIoU"])
    evaluator.load_state(state)
    evaluator.merge(evaluator)
    assert evaluator.result()["semantic/mIoU"] == 1.0
