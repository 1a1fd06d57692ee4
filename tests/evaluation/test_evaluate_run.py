"""`evaluate` on a dataset made by hand, with a model that reads its prediction off the image."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from kmaskformer.build import build_evaluators
from kmaskformer.config import EvaluationConfig
from kmaskformer.data.pipeline import evaluation_dataset
from kmaskformer.evaluation import run
from kmaskformer.evaluation.callback import ScoresCallback
from kmaskformer.evaluation.evaluator import PanopticEvaluator, SemanticEvaluator
from kmaskformer.evaluation.instance_evaluator import InstanceEvaluator
from kmaskformer.evaluation.run import Evaluation, evaluate
from kmaskformer.inference.tiles import Tiling
from kmaskformer.structures import DatasetInfo

INFO = DatasetInfo("toy", ("person", "sky", "sea"), thing_ids=(0,))
TRUE_CLASSES = (0, 0, 1)


class ReadingModel:
    """Reads in the red channel which of three segments a pixel is in (1..3); each query takes one, with its class."""

    num_classes = 3
    dataset_info = INFO

    def __init__(self, classes=TRUE_CLASSES):
        self.class_logits = 16.0 * tf.one_hot([classes], 4)
        self.traces = 0

    def padded_size(self, height, width):
        return -(-height // 16) * 16, -(-width // 16) * 16

    def __call__(self, inputs, training=None):
        self.traces += 1
        red = tf.cast(inputs["images"][..., 0], tf.int32)
        height, width = tf.shape(red)[1], tf.shape(red)[2]
        padded = self.padded_size(height, width)
        red = tf.pad(red, ((0, 0), (0, padded[0] - height), (0, padded[1] - width)))[:, ::4, ::4]
        masks = tf.stack([tf.where(red == segment, 12.0, -12.0) for segment in (1, 2, 3)], axis=1)
        batch = tf.shape(red)[0]
        aux = [{"class_logits": masks, "mask_logits": masks}]
        return {"class_logits": tf.tile(self.class_logits, (batch, 1, 1)), "mask_logits": masks, "aux_outputs": aux}


def element(cells, scale=2):
    """Input of 4 pixels a cell; truth of `4 * scale` pixels a cell; cell values 0..2, -1 = void."""
    cells = np.array(cells, np.int32)
    image = np.kron(cells + 1, np.ones((4, 4), np.int32))
    truth = np.kron(cells, np.ones((4 * scale, 4 * scale), np.int32))
    inputs = {"images": np.repeat(image[..., None], 3, -1).astype(np.uint8), "image_sizes": np.array(image.shape)}
    targets = {
        "segment_map": truth,
        "labels": np.array(TRUE_CLASSES, np.int32),
        "valid": np.ones(3, bool),
        "is_crowd": np.zeros(3, bool),
        "image_id": np.bytes_(b"image"),
        "original_size": np.array(truth.shape, np.int32),
    }
    return inputs, targets


# Stripes, because a bilinear resize keeps straight borders where they are but rounds corners.
ELEMENTS = [element([[0, 1, 2, 2]]), element([[0, 0, 1, 1, 2]] * 2, scale=1), element([[2, -1, 1, 0]] * 3)]


def dataset_of(elements=ELEMENTS, batch_size=2):
    def generate():
        yield from elements

    shapes = {key: [None] * np.ndim(value) for part in elements[0] for key, value in part.items()}
    types = {key: np.asarray(value).dtype for part in elements[0] for key, value in part.items()}
    types |= {"image_id": tf.string, "image_sizes": tf.int32}
    shapes |= {"image_sizes": [2], "original_size": [2]}
    signature = tuple({key: tf.TensorSpec(shapes[key], types[key]) for key in part} for part in elements[0])
    fills = ({"images": np.uint8(0), "image_sizes": 0}, dict.fromkeys(elements[0][1], 0))
    fills[1].update(segment_map=-1, valid=False, is_crowd=False, image_id="")
    return tf.data.Dataset.from_generator(generate, output_signature=signature).padded_batch(
        batch_size, padding_values=fills
    )


def evaluators():
    return [SemanticEvaluator(), PanopticEvaluator()]


def test_labels_without_a_labelled_pixel_are_noticed():
    inputs, targets = element([[-1, -1]])
    nothing = [(inputs, {**targets, "valid": np.zeros(3, bool)})]
    with pytest.warns(RuntimeWarning, match="none of the 1 images has a labelled pixel"):
        scores = evaluate(ReadingModel(), dataset_of(nothing), evaluators(), progress=False)
    assert math.isnan(scores["semantic/mIoU"]) and math.isnan(scores["panoptic/PQ"])
    assert scores["panoptic/TP/person"] == 0  # a count, which is never undefined


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_perfect_model(batch_size, capsys):
    scores = evaluate(ReadingModel(), dataset_of(batch_size=batch_size), evaluators(), progress=False)
    assert scores["panoptic/PQ"] == scores["panoptic/PQ_things"] == scores["panoptic/PQ_stuff"] == 1.0
    assert scores["semantic/mIoU"] == scores["semantic/IoU/person"] == 1.0
    assert math.isnan(scores["semantic/IoU/sea"]) and math.isnan(scores["panoptic/PQ/sea"])
    assert (scores["evaluation/images"], scores["evaluation/failed_images"]) == (3, 0)
    assert all(type(value) is float for value in scores.values())
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("inference", ["default", "general"])
def test_a_half_wrong_model(inference):
    # The second person is called sea.
    tools = [SemanticEvaluator(inference), PanopticEvaluator(inference=inference)]
    scores = evaluate(ReadingModel((0, 2, 1)), dataset_of(ELEMENTS[:1]), tools, progress=False)
    assert scores["semantic/IoU/person"] == pytest.approx(1 / 2)
    assert scores["semantic/mIoU"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert scores["semantic/mIoU_truth_classes"] == pytest.approx((1 / 2 + 1) / 2)
    assert scores["semantic/fwIoU"] == pytest.approx(3 / 4)
    assert scores["semantic/pACC"] == pytest.approx(3 / 4)
    scores = evaluate(ReadingModel((0, 2, 1)), dataset_of(), tools, progress=False)
    person = (scores["panoptic/TP/person"], scores["panoptic/FP/person"], scores["panoptic/FN/person"])
    assert person == (3, 0, 3) and scores["panoptic/FP/sea"] == 3
    # Person 3 / (3 + 1.5), sky 1, sea 0.
    assert scores["panoptic/PQ"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert scores["panoptic/PQ_things"] == pytest.approx(2 / 3)
    # A cell has 64, 16 and 64 pixels in the three images.
    assert scores["semantic/IoU/person"] == pytest.approx((64 + 4 * 16 + 3 * 64) / (2 * 64 + 8 * 16 + 6 * 64))


def test_one_graph_serves_all_sizes_and_runs():
    model = ReadingModel()
    evaluation = Evaluation(model, evaluators())
    first = evaluation.run(dataset_of(batch_size=1), progress=False)
    assert model.traces == 1
    second = evaluation.run(dataset_of(batch_size=2), progress=False)
    assert model.traces == 1
    assert {k: v for k, v in first.items() if not math.isnan(v)} == {
        k: v for k, v in second.items() if not math.isnan(v)
    }


def test_a_bad_image_is_left_out_and_reported():
    inputs, targets = ELEMENTS[0]
    bad = (inputs, {**targets, "labels": np.array([0, 0, 77], np.int32), "image_id": np.bytes_(b"bad one")})
    with pytest.warns(RuntimeWarning, match="left out of the scores: bad one: .*77"):
        scores = evaluate(ReadingModel(), dataset_of([*ELEMENTS, bad]), SemanticEvaluator(), progress=False)
    assert (scores["evaluation/images"], scores["evaluation/failed_images"]) == (3, 1)
    assert scores["semantic/mIoU"] == 1.0


def test_a_batch_that_cannot_be_read_is_left_out():
    def load(number, batch):
        with tf.control_dependencies([tf.debugging.Assert(number != 1, ["unreadable"])]):
            return tf.nest.map_structure(tf.identity, batch)

    broken = dataset_of(batch_size=1).enumerate().map(lambda number, batch: load(number, batch))
    with pytest.warns(RuntimeWarning, match="batch 1, which cannot be read"):
        scores = evaluate(ReadingModel(), broken, evaluators(), progress=False)
    assert (scores["evaluation/images"], scores["evaluation/failed_images"]) == (2, 1)


class Reader:
    """The elements as a dataset on disk, some of whose files cannot be read."""

    info = INFO

    def __init__(self, *broken):
        self.broken = broken

    def __len__(self):
        return len(ELEMENTS)

    def __getitem__(self, index):
        if index in self.broken:
            raise ValueError(f"{index}.png: cannot be read as image")
        inputs, targets = ELEMENTS[index]
        kept = {key: targets[key] for key in ("segment_map", "labels", "is_crowd")}
        # As large as its truth, in which the model's stripes then lie.
        scale = targets["segment_map"].shape[0] // inputs["images"].shape[0]
        image = np.kron(inputs["images"], np.ones((scale, scale, 1), np.uint8))
        return {"image": image, **kept, "image_id": str(index)}


def test_samples_that_the_dataset_leaves_out_have_failed(tmp_path):
    dataset, evaluation = evaluation_dataset(Reader(1), on_error="skip"), Evaluation(ReadingModel(), evaluators())
    state = tmp_path / "state.npz"

    def counts(batches=dataset):
        with pytest.warns(RuntimeWarning, match=r"1 of 3 samples of 'toy' were left out:\n  1: 1.png: cannot be read"):
            scores = evaluation.run(batches, progress=False, state_file=state, save_every=1)
        return scores["evaluation/images"], scores["evaluation/failed_images"]

    # Not counted again by a second run.
    assert counts() == counts() == (2, 1)

    def cut_off():
        yield from dataset.take(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluation.run(cut_off(), progress=False, state_file=state, save_every=1)
    assert state.exists() and counts() == (2, 1)


def test_a_dataset_of_which_no_sample_can_be_read():
    dataset = evaluation_dataset(Reader(0, 1, 2), on_error="skip")
    with pytest.warns(RuntimeWarning, match="3 of 3"), pytest.raises(ValueError, match="3 that cannot be read"):
        evaluate(ReadingModel(), dataset, SemanticEvaluator(), progress=False)


def test_an_error_in_the_truth_of_one_image_costs_that_image_only():
    def with_regions(inputs, targets, bad=False):
        # Regions that are the segments; -2 is none, which settling overlaps refuses.
        segment_map = targets["segment_map"] - 2 * bad
        name = np.bytes_(b"bad" if bad else b"good")
        return inputs, {**targets, "membership": np.eye(3, dtype=bool), "segment_map": segment_map, "image_id": name}

    pair = [with_regions(*ELEMENTS[0]), with_regions(*ELEMENTS[0], bad=True)]
    batch = tuple({key: np.stack([one[part][key] for one in pair]) for key in pair[0][part]} for part in (0, 1))
    with pytest.warns(RuntimeWarning, match="left out of the scores: bad: "):
        scores = evaluate(ReadingModel(), [batch], SemanticEvaluator(), progress=False)
    assert (scores["evaluation/images"], scores["evaluation/failed_images"]) == (1, 1)


def test_a_model_that_fails_for_one_batch():
    class Failing(ReadingModel):
        def __call__(self, inputs, training=None):
            with tf.control_dependencies([tf.debugging.Assert(tf.shape(inputs["images"])[1] < 12, ["too tall"])]):
                return super().__call__({**inputs, "images": tf.identity(inputs["images"])}, training)

    with pytest.warns(RuntimeWarning, match="left out of the scores: image"):
        scores = evaluate(Failing(), dataset_of(batch_size=1), evaluators(), progress=False)
    assert (scores["evaluation/images"], scores["panoptic/PQ"]) == (2, 1.0)


@pytest.mark.filterwarnings("ignore:left out")
def test_nothing_that_works_is_an_error_not_a_score():
    wrong = [(inputs, {**targets, "labels": np.array([0, 0, 77], np.int32)}) for inputs, targets in ELEMENTS]
    for elements in (wrong, wrong[:1]):
        with pytest.raises(ValueError, match="77"):
            evaluate(ReadingModel(), dataset_of(elements), SemanticEvaluator(), progress=False)


def test_the_progress_bar_shows(capsys):
    evaluate(ReadingModel(), dataset_of(), SemanticEvaluator())
    assert "evaluate" in capsys.readouterr().err


@pytest.mark.parametrize(("cost", "shown"), [(0.0, 20), (1.0, 4)])
def test_running_scores_come_seldom_and_cost_little(monkeypatch, cost, shown):
    now, times = [0.0], []
    monkeypatch.setattr(run, "monotonic", lambda: now[0])

    def scores():
        now[0] += cost
        times.append(now[0])
        return {}

    running = run._RunningScores(run.tqdm(disable=True), scores)
    while now[0] < 200:
        running.show()
        now[0] += 1
    assert len(times) == shown and np.diff(times).min() >= max(10, 50 * cost)


def test_label_space_of_dataset_model_or_numbers():
    dataset = dataset_of()
    dataset.dataset_info = DatasetInfo("other", ("a", "b", "c"))
    assert "semantic/IoU/sky" in evaluate(ReadingModel(), dataset_of(), SemanticEvaluator(), progress=False)
    model = ReadingModel()
    model.dataset_info = None
    assert "semantic/IoU/b" in evaluate(model, dataset, SemanticEvaluator(), progress=False)
    with pytest.warns(RuntimeWarning, match="classes are numbered, and all count as stuff"):
        assert "semantic/IoU/class 1" in evaluate(model, dataset_of(), SemanticEvaluator(), progress=False)
    dataset.dataset_info = DatasetInfo("two", ("a", "b"))
    with pytest.raises(ValueError, match="a model of 3 and dataset 'two' of 2 classes"):
        evaluate(model, dataset, SemanticEvaluator())
    model.num_classes = None
    with pytest.raises(ValueError, match="so the classes are unknown"):
        evaluate(model, dataset_of(), SemanticEvaluator())


def test_errors_about_the_dataset():
    with pytest.raises(ValueError, match="an empty dataset"):
        evaluate(ReadingModel(), [], SemanticEvaluator(), progress=False)
    training = dataset_of().map(lambda inputs, targets: (inputs, {"labels": targets["labels"]}))
    with pytest.raises(ValueError, match=r'missing: segment_map.*split="val"'):
        evaluate(ReadingModel(), training, SemanticEvaluator(), progress=False)


def test_classes_of_other_names_are_refused():
    dataset = tf.data.Dataset.from_tensors(element([[0, 1]])).batch(1)
    dataset.dataset_info = DatasetInfo("other", ("person", "sea", "sky"))
    with pytest.raises(ValueError, match="class 1 is 'sky' for the model, 'sea' for dataset 'other'"):
        evaluate(ReadingModel(), dataset, SemanticEvaluator(), progress=False)


def test_all_metrics_of_a_perfect_model():
    metrics = ("semantic", "panoptic", "instance", "semantic_boundary", "panoptic_stuff")
    scores = evaluate(ReadingModel(), dataset_of(), build_evaluators(EvaluationConfig(metrics=metrics)), progress=False)
    assert scores["semantic_boundary/mIoU"] == scores["panoptic_stuff/PQ"] == scores["panoptic/PQ"] == 1.0
    # Masks that run on into the void are not excused, as they are in panoptic quality.
    assert (
        scores["instance/AP50"] == pytest.approx(1) and 0.9 < scores["instance/AP"] == scores["instance/AP/person"] < 1
    )
    assert "instance/AP/sky" not in scores


def test_instances_need_things():
    evaluator = InstanceEvaluator()
    with pytest.raises(ValueError, match="Instances need thing classes, and dataset 'unnamed' has none"):
        evaluator.bind(DatasetInfo.numbered(2))
    with pytest.raises(ValueError, match=r"`max_instances` must be a positive integer. Received: max_instances=0"):
        InstanceEvaluator(max_instances=0)


class KerasReadingModel(keras.Model):
    """The reading model as one that Keras can fit and evaluate; nothing is learnt."""

    num_classes = 3
    dataset_info = INFO
    padded_size = ReadingModel.padded_size

    def __init__(self):
        super().__init__()
        self.reading = ReadingModel()

    def call(self, inputs, training=None):
        return self.reading(inputs)

    def train_step(self, data):
        return {"loss": tf.constant(0.0)}

    test_step = train_step


def test_scores_within_fit_and_evaluate(capsys):
    expected = evaluate(ReadingModel(), dataset_of(), evaluators(), progress=False)
    model = KerasReadingModel()
    model.compile(optimizer="sgd", loss=None)
    callback = ScoresCallback(dataset_of(), evaluators(), every_epochs=2)
    data = tf.data.Dataset.from_tensors((tf.zeros((1, 1)), tf.zeros((1, 1))))
    history = model.fit(data, validation_data=data, epochs=2, callbacks=[callback], verbose=0).history
    assert history["val_panoptic/PQ"] == [pytest.approx(expected["panoptic/PQ"])]
    assert not any(key.startswith("val_panoptic/PQ/") for key in history)
    assert callback.scores == pytest.approx(expected, nan_ok=True)
    capsys.readouterr()
    callback.scores = {}
    model.evaluate(data, callbacks=[callback], verbose=0)
    assert callback.scores == pytest.approx(expected, nan_ok=True)
    assert "semantic/mIoU" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"`every_epochs` must be a positive integer. Received: every_epochs=0"):
        ScoresCallback([], evaluators(), every_epochs=0)


def test_tiles_give_the_scores_of_the_whole_images():
    """Of cells 32 pixels wide, tiles of 32 show one to four; also where the truth has half or twice the size."""
    large = [np.kron(cells, np.ones((8, 8), int)) for cells in ([[0, 1, 2, 2]], [[2, -1, 1, 0]] * 3)]
    elements = [element(cells, scale=scale) for cells, scale in zip(large, (1, 2), strict=True)]
    found = []
    for tiling in (None, Tiling(32)):
        evaluation = Evaluation(ReadingModel((0, 2, 1)), evaluators(), tiling)
        found.append(evaluation.run(dataset_of(elements), progress=False))
    np.testing.assert_equal(found[1], found[0])
    assert found[1]["evaluation/images"] == 2 and 0 < found[1]["panoptic/PQ"] < 1


def test_tiles_are_not_for_instances():
    evaluation = Evaluation(ReadingModel(), [InstanceEvaluator()], Tiling(32))
    with pytest.warns(RuntimeWarning), pytest.raises(ValueError, match="semantic and panoptic results only"):
        evaluation.run(dataset_of(), progress=False)
