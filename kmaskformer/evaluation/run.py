"""A model's scores on a dataset."""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import keras
import numpy as np
from tqdm import tqdm

from kmaskformer.evaluation.evaluator import CombinedEvaluator, Evaluator, ImageOutputs, Truth, image_name
from kmaskformer.evaluation.interrupted import InterruptedEvaluation, Progress, subject_of
from kmaskformer.evaluation.score_tables import summarize
from kmaskformer.inference.tiles import Tiling, stitch
from kmaskformer.structures import DatasetInfo

_SHOW_SECONDS = 10.0
_SHOW_SHARE = 0.02
_USED_OUTPUTS = ("class_logits", "mask_logits", "logits")
_NEEDED_TARGETS = ("segment_map", "labels", "valid", "is_crowd", "image_id", "original_size")


def evaluate(
    model: Any, dataset: Iterable, evaluators: Evaluator | Sequence[Evaluator], progress: bool = True
) -> dict[str, float]:
    """Scores a model on a dataset, at the original size of its images.

    An image that cannot be read or evaluated is reported by a warning and left out; all others still count.

    Args:
        model: Called with `ModelInputs`, returns `ModelOutputs`; has `padded_size(height, width)`.
        dataset: Yields `(ModelInputs, Targets)` batches with the fields of an evaluation dataset
            (`build_dataset(..., split="val")`). Names and things come from its `dataset_info`, else from the model's;
            where neither has one, classes are numbered and all are stuff.
        evaluators: One or several, with different names.
        progress: Whether to show a progress bar.

    Returns:
        A flat dict of floats: the evaluators' scores (`semantic/mIoU`, `panoptic/PQ`, `semantic/IoU/<class>`, ...),
        NaN where undefined, `evaluation/images`, the number of images that count, and `evaluation/failed_images`, that
        of the others, among them those that the dataset left out itself (`data.on_error: skip`).

    Raises:
        ValueError: If the dataset yields no images, lacks fields, or has other classes than the model.
        Exception: The first failure, if none of the first images can be evaluated.

    Example:
        ```python
        scores = evaluate(model, build_dataset(config.data, split="val"), [SemanticEvaluator()])
        scores["semantic/mIoU"]
        ```
    """
    return Evaluation(model, evaluators).run(dataset, progress=progress)


class Evaluation:
    """A model with its evaluators, compiled once; `run` scores a dataset as often as wished.

    Args:
        model: As in `evaluate`.
        evaluators: As in `evaluate`.
        tiling: Cuts images into tiles, which the model sees one by one; see `Segmenter`. Not for instance evaluators.
    """

    def __init__(self, model: Any, evaluators: Evaluator | Sequence[Evaluator], tiling: Tiling | None = None) -> None:
        self.model = model
        self.tiling = tiling
        self.evaluator = CombinedEvaluator(list(evaluators) if isinstance(evaluators, Sequence) else [evaluators])
        self._info: DatasetInfo | None = None
        self._forward = _compiled(self._call_model, _image_spec)
        self._predict: Callable | None = None

    def run(
        self, dataset: Iterable, progress: bool = True, state_file: str | Path | None = None, save_every: int = 50
    ) -> dict[str, float]:
        """As `evaluate`; earlier results are forgotten.

        Args:
            dataset: As in `evaluate`.
            progress: Whether to show a progress bar, with the first score of each evaluator.
            state_file: If given, what has been counted is written there (`.npz`) again and again, and if it exists the
                evaluation goes on where it was cut off; the dataset must yield the same batches again. The file is
                deleted when all is done.
            save_every: Batches between two writes, from 1 on.

        Raises:
            ValueError: As `evaluate`, and if `state_file` is the state of another model's evaluation, of other
                evaluators, options or images, or of none.
        """
        if save_every < 1:
            raise ValueError(f"`save_every` must be a positive number of batches. Received: save_every={save_every}")
        self._bind(dataset)
        tally = _Tally()
        file = self._state_file(state_file) if state_file else None
        done, batches = self._resume(file, dataset, tally) if file else (0, dataset)
        bar = tqdm(total=_num_batches(dataset), initial=done, desc="evaluate", unit="batch", disable=not progress)
        running = _RunningScores(bar, self._first_scores)
        with bar:
            for number, (inputs, targets) in _batches(batches, tally, first=done + 1):
                self._add_batch(inputs, targets, tally)
                bar.update()
                if progress:
                    running.show()
                if file and number % save_every == 0:
                    file.write(self.state(), Progress(number, tally.images, tally.failures, _names(targets)))
        tally.left_out_by(dataset)
        tally.check()
        if file:
            file.delete()
        scores = self.evaluator.result()
        if all(math.isnan(value) for value in summarize(scores).values()):
            warnings.warn(
                f"none of the {tally.images} images has a labelled pixel, so that every score is undefined; "
                "check the labels and `data.ignore_value`",
                RuntimeWarning,
                stacklevel=2,
            )
        counts = {"evaluation/images": float(tally.images), "evaluation/failed_images": float(tally.failures)}
        return {**scores, **counts}

    def state(self) -> dict[str, np.ndarray]:
        """What the evaluators have counted; states of several processes' parts can be merged."""
        return self.evaluator.state()

    def _state_file(self, path: str | Path) -> InterruptedEvaluation:
        return InterruptedEvaluation(path, subject_of(self.model, self.evaluator.evaluators, self.tiling))

    def _resume(self, file: InterruptedEvaluation, dataset: Iterable, tally: _Tally) -> tuple[int, Iterable]:
        """Number of batches that are counted already, and the others."""
        found = file.read()
        if found is None:
            return 0, dataset
        counts, progress = found
        self.evaluator.load_state(counts)
        done, tally.images, tally.failures = progress[:3]
        # The batch that was counted last is read once more, to see that the dataset is the same.
        batches = iter(_from(dataset, done - 1))
        last = next(batches, None)
        file.check_continued(progress.last_images, None if last is None else _names(_checked_targets(last[1])))
        return done, batches

    def _first_scores(self) -> dict[str, str]:
        """The first score of each evaluator, as text."""
        first = {}
        for key, value in self.evaluator.result().items():
            first.setdefault(key.partition("/")[0], (key, value))
        return {key: f"{value:.3f}" for key, value in first.values()}

    def _bind(self, dataset: Iterable) -> None:
        info = _dataset_info(self.model, dataset)
        if info != self._info:
            # Inference depends on the label space (which classes are things), so a new one needs a new graph.
            self._predict = _compiled(self._predict_image, _output_spec)
            self._info = info
        self.evaluator.bind(info)

    def _add_batch(self, inputs: Mapping[str, Any], targets: Mapping[str, Any], tally: _Tally) -> None:
        targets = _to_numpy(_checked_targets(targets))
        names = _names(targets)
        inputs = _with_sizes(inputs)
        try:
            predict = self._whole(inputs) if self.tiling is None else functools.partial(self._in_tiles, inputs)
        # Whatever fails for these images must not cost the scores of all others.
        except Exception as error:
            for name in names:
                tally.failed(name, error)
            return
        for index, name in enumerate(names):
            try:
                truth = Truth.of_batch(targets, index)
                self.evaluator.update(predict(index, truth.segment_map.shape), truth)
            except Exception as error:
                tally.failed(name, error)
            else:
                tally.images += 1

    def _whole(self, inputs: Mapping[str, Any]) -> Callable[[int, tuple[int, int]], dict[str, Any]]:
        """What gives the predictions for an image of the batch, which the model sees at once."""
        outputs = self._forward(inputs)
        sizes = keras.ops.convert_to_numpy(inputs["image_sizes"])
        padded_size = self.model.padded_size(*(int(side) for side in inputs["images"].shape[1:3]))

        def predict(index: int, output_size: tuple[int, int]) -> dict[str, Any]:
            one = {key: value[index : index + 1] for key, value in outputs.items()}
            return _to_numpy(self._predict(one, np.array([padded_size, sizes[index], output_size], np.int32)))

        return predict

    def _in_tiles(self, inputs: Mapping[str, Any], index: int, output_size: tuple[int, int]) -> dict[str, Any]:
        """The predictions for an image of the batch, put together from those for its tiles."""
        height, width = (int(side) for side in inputs["image_sizes"][index])
        image = inputs["images"][index : index + 1, :height, :width]
        tiles = self.tiling.tiles(height, width)
        parts = [image[:, *tile.region] for tile in tiles]
        results = [self._whole(_with_sizes({"images": part}))(0, tuple(part.shape[1:3])) for part in parts]
        return {
            name: stitch([result[name] for result in results], tiles, output_size, self._info.thing_ids)
            for name in results[0]
        }

    def _call_model(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        outputs = self.model(inputs, training=False)
        # Only what evaluators read leaves the graph; earlier decoder layers' outputs are then never computed.
        return {key: outputs[key] for key in _USED_OUTPUTS if key in outputs}

    def _predict_image(self, outputs: Mapping[str, Any], sizes: Any) -> dict[str, Any]:
        padded_size, image_size, output_size = ((sizes[row, 0], sizes[row, 1]) for row in range(3))
        return self.evaluator.predict(ImageOutputs(outputs, padded_size, image_size, output_size))


class _Tally:
    """How many images counted and how many failed; stops an evaluation in which nothing works."""

    _HOPELESS = 3
    _UNREADABLE = 100

    def __init__(self) -> None:
        self.images = 0
        self.failures = 0
        self._first_error: Exception | None = None

    def failed(self, name: str, error: Exception) -> None:
        self.failures += 1
        self._first_error = self._first_error or error
        if self.images == 0 and self.failures >= self._HOPELESS:
            raise self._first_error
        warnings.warn(f"left out of the scores: {name}: {error}", RuntimeWarning, stacklevel=2)

    def left_out_by(self, dataset: Iterable) -> None:
        """Adds the samples that the dataset itself left out, because they cannot be read.

        To be called once, when all batches have been seen: only then has the dataset found all of them. It remembers
        them, so that their number is that of the dataset however often it is evaluated, and not part of a state file.
        """
        skipped = getattr(dataset, "skipped", None)
        if skipped is None or not skipped.skipped:
            return
        self.failures += len(skipped.skipped)
        warnings.warn(skipped.report(), RuntimeWarning, stacklevel=3)

    def check(self) -> None:
        if self.images:
            return
        if self._first_error is not None:
            raise self._first_error
        received = f"{self.failures} that cannot be read, and no other" if self.failures else "an empty dataset"
        raise ValueError(f"`dataset` must yield at least one image. Received: {received}")


class _RunningScores:
    """Shows scores beside a progress bar, now and then: of many detections they take a second."""

    def __init__(self, bar: tqdm, scores: Callable[[], dict[str, str]]) -> None:
        self._bar = bar
        self._scores = scores
        self._due = -math.inf

    def show(self) -> None:
        """Shows the scores, unless that was a short while ago, measured by what it cost."""
        start = monotonic()
        if start < self._due:
            return
        self._bar.set_postfix(self._scores())
        end = monotonic()
        self._due = end + max(_SHOW_SECONDS, (end - start) / _SHOW_SHARE)


def _from(dataset: Iterable, number: int) -> Iterable:
    """The dataset from a batch on."""
    if not number:
        return dataset
    return dataset.skip(number) if hasattr(dataset, "skip") else itertools.islice(dataset, number, None)


def _batches(dataset: Iterable, tally: _Tally, first: int = 1) -> Iterator[tuple[int, tuple[Mapping, Mapping]]]:
    """The dataset's batches with their numbers; one that cannot be read is tallied and skipped."""
    iterator = iter(dataset)
    unreadable = 0
    for number in itertools.count(first):
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except Exception as error:
            unreadable += 1
            if unreadable > _Tally._UNREADABLE:
                raise
            tally.failed(f"batch {number - 1}, which cannot be read", error)
            continue
        unreadable = 0
        yield number, batch


def _names(targets: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a batch's images."""
    return tuple(image_name(image_id) for image_id in _to_numpy(targets["image_id"]))


def _compiled(function: Callable, spec: Callable) -> Callable:
    """The function, on TensorFlow as one graph for all image sizes; `spec` gives the signature of its arguments."""
    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    graphs: dict[Any, Callable] = {}

    def call(values: Mapping[str, Any], *rest: Any) -> Any:
        signature = {key: tf.TensorSpec(spec(key, value.shape), value.dtype) for key, value in values.items()}
        key = tuple(sorted((name, str(one)) for name, one in signature.items()))
        if key not in graphs:
            others = [tf.TensorSpec(other.shape, other.dtype) for other in rest]
            graphs[key] = tf.function(function, input_signature=[signature, *others], autograph=False)
        return graphs[key](dict(values), *rest)

    return call


def _image_spec(key: str, shape: Sequence[int]) -> tuple[int | None, ...]:
    return (None, None, None, shape[-1]) if key == "images" else (None, 2)


def _output_spec(key: str, shape: Sequence[int]) -> tuple[int | None, ...]:
    shapes = {"mask_logits": (1, shape[1], None, None), "logits": (1, None, None, shape[-1])}
    return shapes.get(key, tuple(shape))


def _with_sizes(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Images and their sizes as tensors; the whole batch where no sizes are given."""
    images = keras.ops.convert_to_tensor(inputs["images"])
    batch, height, width, _ = images.shape
    sizes = inputs.get("image_sizes")
    sizes = np.tile(np.array([[height, width]], np.int32), (batch, 1)) if sizes is None else sizes
    return {"images": images, "image_sizes": keras.ops.cast(sizes, "int32")}


def _checked_targets(targets: Mapping[str, Any]) -> dict[str, Any]:
    missing = [key for key in _NEEDED_TARGETS if key not in targets]
    if missing:
        raise ValueError(
            f"An evaluation dataset's targets need {', '.join(_NEEDED_TARGETS)}; missing: {', '.join(missing)}. "
            'Is this a training dataset? Build it with split="val".'
        )
    return {key: targets[key] for key in (*_NEEDED_TARGETS, "membership") if key in targets}


def _dataset_info(model: Any, dataset: Iterable) -> DatasetInfo:
    num_classes = getattr(model, "num_classes", None)
    info = getattr(dataset, "dataset_info", None) or getattr(model, "dataset_info", None)
    if info is None and num_classes is None:
        raise ValueError("Neither the dataset nor the model has a `dataset_info`, so the classes are unknown; set one.")
    if info is None:
        warnings.warn(
            "Neither the dataset nor the model has a `dataset_info`: classes are numbered, and all count as stuff.",
            RuntimeWarning,
            stacklevel=4,
        )
        info = DatasetInfo.numbered(num_classes)
    if num_classes not in (None, info.num_classes):
        raise ValueError(
            "Model and dataset must have the same classes. "
            f"Received: a model of {num_classes} and dataset {info.name!r} of {info.num_classes} classes"
        )
    known = getattr(model, "dataset_info", None)
    if known is not None and known.class_names != info.class_names:
        first = next(
            i for i, pair in enumerate(zip(known.class_names, info.class_names, strict=True)) if len({*pair}) > 1
        )
        raise ValueError(
            "Model and dataset must have the same classes in the same order. "
            f"Received: class {first} is {known.class_names[first]!r} for the model, {info.class_names[first]!r} for "
            f"dataset {info.name!r}"
        )
    return info


def _num_batches(dataset: Iterable) -> int | None:
    if hasattr(dataset, "cardinality"):
        count = int(dataset.cardinality())
        return count if count >= 0 else getattr(dataset, "steps_per_epoch", None)
    return len(dataset) if hasattr(dataset, "__len__") else None


def _to_numpy(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _to_numpy(value) for key, value in values.items()}
    if isinstance(values, np.ndarray):
        return values
    return values.numpy() if hasattr(values, "numpy") else keras.ops.convert_to_numpy(values)
