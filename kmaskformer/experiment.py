"""A whole run: from a configuration to a folder with weights, scores and pictures.

The run's folder holds `config.yaml` (resolved), `model.keras` (the final model, self-contained), `best.weights.h5`,
`metrics.json` (final scores), `metrics.csv` and `metrics.jsonl` (over time), `tensorboard/`, `pictures/` and
`checkpoints/` (to resume from).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
from tqdm import tqdm

from kmaskformer import build, build_data, report
from kmaskformer.config import Config, ModelConfig, differences, load_config, save_config
from kmaskformer.data.skipping import SkippingReader
from kmaskformer.evaluation.evaluator import SemanticEvaluator, Truth
from kmaskformer.evaluation.run import Evaluation
from kmaskformer.evaluation.score_tables import summarize
from kmaskformer.evaluation.scored_images import ScoredImages
from kmaskformer.evaluation.written_predictions import WrittenPredictions, writing
from kmaskformer.strict_yaml import choice_error
from kmaskformer.structures import DatasetInfo
from kmaskformer.trained_run import CONFIG_FILE, MODEL_FILE, build_segmenter, load_model, picture_task
from kmaskformer.training.averages import averaged_weights
from kmaskformer.training.callbacks import (
    EvaluateCallback,
    LossProgressBar,
    PredictionPictures,
    StopAtStep,
    TrainingLog,
)
from kmaskformer.training.checkpoint import RunCheckpoint, RunState, latest_checkpoint, restore_checkpoint
from kmaskformer.training.distribution import any_worker, distribution_strategy, is_chief, shared_out
from kmaskformer.training.interruption import SaveOnSignal
from kmaskformer.training.nonfinite import WatchForNonFinite
from kmaskformer.training.run_log import RunLog
from kmaskformer.training.saving import save_model
from kmaskformer.training.seeds import set_seed
from kmaskformer.training.unwritten import needed_at_the_end, warned_of
from kmaskformer.whole_files import written_to_disk

SCORES_FILE = "metrics.json"
SKIPPED_FILE = "skipped.txt"

_MOST_SHOWN = 5


def train(
    config: Config, output: str | Path, resume: bool = False, strategy: str = "none", on_nan: str = "stop"
) -> dict[str, float]:
    """Train as a configuration says, and evaluate the result.

    Args:
        config: The configuration.
        output: Folder of the run; created. Of several processes the chief writes it, and all read its checkpoints.
        resume: Go on from the newest checkpoint of `output`, or start where there is none.
        strategy: Name of a distribution strategy; see `distribution_strategy`.
        on_nan: What to do about a loss or gradient that is not finite: `"stop"`, or `"skip"` the batch.

    Returns:
        The final scores, which also stand in `metrics.json`.

    Raises:
        FileExistsError: If `output` holds a run already and `resume` is not asked for.
        ValueError: If `output` holds the run of another configuration, data and model do not fit, no evaluator
            reports `evaluation.best_metric`, or a batch cannot be shared out among workers.
        NonFiniteLossError: If the loss becomes NaN or infinite.
        OSError: If the final model or scores cannot be written; of files that are written on the way, a warning tells.
        TrainingInterrupted: If the process is told to end (SIGTERM); a checkpoint has been saved.
    """
    output = Path(output)
    if strategy == "multi_worker" and config.data.service:
        # Each process would get a stream of its own, in an order of its own, of which it keeps a part.
        raise ValueError("data.service feeds one training process; leave it out with the strategy multi_worker")
    devices = distribution_strategy(strategy)  # first: a cluster is to be configured before TensorFlow does anything
    if strategy == "multi_worker" and config.data.batch_size % devices.num_replicas_in_sync:
        raise ValueError(
            f"data.batch_size must be a multiple of the number of replicas, {devices.num_replicas_in_sync}. "
            f"Received: {config.data.batch_size}"
        )
    if is_chief(devices):
        _check_unclaimed(output, config, resume)
    set_seed(config.training.seed, config.training.deterministic)
    readers = {split: build_data.build_reader(config.data, split) for split in ("train", "val")}
    checkpoint = latest_checkpoint(output / "checkpoints") if resume else None
    with devices.scope():
        model = build.build_model(_started(config.model) if checkpoint else config.model, readers["train"].info)
        model.compile(
            optimizer=build.build_optimizer(config.optimizer, skip_nonfinite=on_nan == "skip"),
            criterion=build.build_criterion(config.loss),
            jit_compile=config.training.jit_compile,
            accumulation_steps=config.training.accumulation_steps,
        )
        state = restore_checkpoint(model, checkpoint) if checkpoint else RunState(step=0, epoch=0, batch=0)
    scores, draw = _observations(model, config, readers["val"])
    # Only now, when data and model are known to be good: a failed start leaves no folder in the way of the next.
    with _own_folder(output, is_chief(devices)) as folder:
        with written_to_disk(folder / CONFIG_FILE) as path:
            save_config(config, path)
        run_log = RunLog(folder, start_step=state.step)
        observers = _observers(scores, draw, config, folder, run_log)
        if strategy != "multi_worker":  # where the others do not know what is in the chief's log
            _make_up(observers, model, config, run_log, state.step)
        if state.step < config.training.steps:
            _fit(model, config, readers, folder, observers, run_log, state, on_nan)
        with needed_at_the_end(folder / MODEL_FILE), averaged_weights(model):
            save_model(model, folder / MODEL_FILE)
        final_scores = _newest_scores(run_log)
        with needed_at_the_end(folder / SCORES_FILE), written_to_disk(folder / SCORES_FILE) as path:
            path.write_text(json.dumps(final_scores, indent=1) + "\n", encoding="utf-8")
        run_log.close()
    return final_scores


def _started(model: ModelConfig) -> ModelConfig:
    """A model without the files that it once started from, which a run that goes on does not need any more."""
    return dataclasses.replace(model, weights="", backbone=dataclasses.replace(model.backbone, weights=""))


@contextlib.contextmanager
def _own_folder(output: Path, is_chief: bool) -> Iterator[Path]:
    """The run's folder; of a second process, one that is thrown away.

    All processes save, since reading the weights may need all of them, but only one has a use for the files.
    """
    if is_chief:
        output.mkdir(parents=True, exist_ok=True)
        yield output
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def evaluate(
    config: Config,
    weights: str | Path | keras.Model,
    predictions: str | Path | None = None,
    state_file: str | Path | None = None,
    report_folder: str | Path | None = None,
) -> tuple[keras.Model, dict[str, float]]:
    """Scores of trained weights on the validation split of a configuration.

    Args:
        config: The configuration; its model must be that of the weights.
        weights: A `.keras` or `.weights.h5` file, or a run's folder; or the model itself.
        predictions: Folder for the predictions in the files of the official tools; see `PredictionFiles`.
        state_file: Where to keep what has been counted, to go on after an interruption; see `Evaluation.run`.
        report_folder: Folder for the scores, tables, charts and pictures; see `report`.

    Returns:
        The model and its scores.

    Raises:
        ValueError: If both `predictions` and `state_file` are given: files of the part before an interruption would be
            incomplete.
    """
    if predictions and state_file:
        raise ValueError("An evaluation that writes predictions cannot be resumed; leave out one of the two.")
    reader = build_data.build_reader(config.data, "val")
    dataset = build_data.build_dataset(config.data, "val", reader=reader)
    model = weights if isinstance(weights, keras.Model) else load_model(weights, config, dataset.dataset_info)
    evaluators = build.build_evaluators(config.evaluation)
    if report_folder:
        evaluators[0] = ScoredImages(evaluators[0])
    written = writing(evaluators, predictions) if predictions else evaluators
    scores = Evaluation(model, written, build.build_tiling(config.evaluation)).run(dataset, state_file=state_file)
    for evaluator in written:
        if isinstance(evaluator, WrittenPredictions):
            evaluator.save()
    scores |= _augmented_scores(model, config)
    if report_folder:
        _write_report(Path(report_folder), config, model, reader, evaluators, scores)
    return model, scores


def _write_report(
    folder: Path, config: Config, model: keras.Model, reader: Any, evaluators: list[Any], scores: dict[str, float]
) -> None:
    report.write_scores(folder, scores)
    report.write_confusion(folder, evaluators)
    segmenter = build_segmenter(model, config, picture_task(config), config.evaluation.inference)
    # What cannot be read has been counted as failed; it must not cost the report as well.
    reader = SkippingReader(reader)
    report.draw_evenly(segmenter, reader).save(folder / "predictions.png")
    report.write_images(folder, evaluators[0], segmenter, reader)


def _augmented_scores(model: keras.Model, config: Config) -> dict[str, float]:
    """The semantic scores with test-time augmentation, named `semantic_tta/...`; none where none is configured.

    An image that cannot be read has been counted by the plain evaluation, whose scores it must not cost.
    """
    augmentation = build.build_augmentation(config.evaluation.augmentation)
    if augmentation is None:
        return {}
    evaluators = [e for e in build.build_evaluators(config.evaluation) if isinstance(e, SemanticEvaluator)]
    reader = SkippingReader(build_data.build_reader(config.data, "val"))
    segmenter = build_segmenter(model, config, "semantic", augmentation=augmentation)
    for evaluator in evaluators:
        evaluator.bind(reader.info)
    for index in tqdm(range(len(reader)), desc="evaluate with augmentation", unit="image"):
        sample = reader.get(index)
        if sample is None:
            continue
        class_map = segmenter(sample["image"]).segmentation
        truth = Truth.of_sample(sample)
        for evaluator in evaluators:
            evaluator.update({"class_map": class_map}, truth)
    scores = {key: value for evaluator in evaluators for key, value in evaluator.result().items()}
    return {key.replace("/", "_tta/", 1): value for key, value in scores.items()}


def _fit(
    model: keras.Model,
    config: Config,
    readers: dict[str, Any],
    output: Path,
    observers: list[Any],
    run_log: RunLog,
    state: RunState,
    on_nan: str,
) -> None:
    training = config.training
    # An "epoch" of fit is the stretch between two evaluations, whatever the size of the dataset.
    stretch = _stretch(config)
    batches = functools.partial(
        build_data.build_dataset, config.data, "train", first_batch=state.batch, reader=readers["train"]
    )
    is_of_one_size = bool(config.data.augmentation.crop)
    dataset, skipped = shared_out(model.distribute_strategy, batches, config.data.batch_size, is_of_one_size)
    checkpoints = RunCheckpoint(
        output / "checkpoints", every_steps=training.checkpoint_every or None, first_batch=state.batch
    )
    interruption = SaveOnSignal(checkpoints, functools.partial(any_worker, model.distribute_strategy))
    # Where broken samples are skipped, what the batches come from knows which others took their places.
    source = readers["train"] if skipped is None else skipped
    images_of = functools.partial(build_data.training_images, config.data, source)
    callbacks = [
        LossProgressBar(),
        WatchForNonFinite(on_nan, output, images_of, state.batch),
        TrainingLog(run_log, training.log_every, epoch_steps=stretch),
        checkpoints,
        *observers,
        StopAtStep(training.steps),
        interruption,
    ]
    # A resumed run may start within a stretch, and batches may be left out: StopAtStep then ends a spare one in time.
    may_skip = on_nan == "skip" or config.model.precision == "mixed_float16"
    needs_spare = may_skip or state.step % stretch > 0
    try:
        model.fit(
            dataset,
            epochs=math.ceil(training.steps / stretch) + needs_spare,
            initial_epoch=state.step // stretch,
            steps_per_epoch=stretch,
            shuffle=False,  # the pipeline shuffles; Keras would only warn that it cannot
            callbacks=callbacks,
        )
    finally:
        interruption.restore_handler()
        _report_skipped(skipped, output, is_chief(model.distribute_strategy))


def _report_skipped(skipped: Any, output: Path, is_chief: bool) -> None:
    """Count and list of the samples that `data.on_error: skip` left out."""
    report = skipped.report() if skipped else ""
    if report:
        with warned_of(output / SKIPPED_FILE, "The run goes on without it."):
            (output / SKIPPED_FILE).write_text(report + "\n", encoding="utf-8")
        # The folder of a second worker is thrown away.
        warnings.warn(f"{report.splitlines()[0]} See {output / SKIPPED_FILE}" if is_chief else report, stacklevel=2)


def _stretch(config: Config) -> int:
    """Updates between two evaluations."""
    return min(config.training.evaluate_every or config.training.steps, config.training.steps)


def _make_up(observers: list[Any], model: Any, config: Config, run_log: RunLog, step: int) -> None:
    """Does the evaluation that was due at the step a run goes on from, if the run ended before it was done."""
    is_due = step > 0 and (step % _stretch(config) == 0 or step >= config.training.steps)
    if not is_due or any(row["step"] == step for row in run_log.rows("evaluation")):
        return
    for observer in observers:
        observer.set_model(model)
        observer.on_train_begin()
        observer.act(step, {})


def _readable(reader: Any, config: Config) -> Any:
    """The reader for pictures: where the configuration leaves out broken samples, they show the next one."""
    return SkippingReader(reader) if config.data.on_error == "skip" else reader


def _observations(model: Any, config: Config, reader: Any) -> tuple[Callable[[], dict], Callable[[], np.ndarray]]:
    """What scores the model and what draws its predictions, with averaged weights where there are any."""
    validation = build_data.build_dataset(config.data, "val", reader=reader)
    evaluators = build.build_evaluators(config.evaluation)
    _check_best_metric(config.evaluation.best_metric, evaluators, reader.info)
    evaluation = Evaluation(model, evaluators, build.build_tiling(config.evaluation))
    segmenter = build_segmenter(model, config, picture_task(config), config.evaluation.inference)
    shown = _readable(reader, config)

    def draw() -> np.ndarray:
        with averaged_weights(model):
            return np.asarray(report.draw_evenly(segmenter, shown).convert("RGB"))

    def scores() -> dict[str, float]:
        with averaged_weights(model):
            return summarize(evaluation.run(validation, progress=False))

    return scores, draw


def _check_best_metric(best_metric: str, evaluators: list[Any], info: DatasetInfo) -> None:
    """Refuses a name that no evaluator reports; they tell their names before they have seen an image."""
    names: list[str] = []
    for evaluator in evaluators:
        evaluator.bind(info)
        names += summarize(evaluator.result())
    if best_metric and best_metric not in names:
        raise ValueError(f"evaluation.best_metric: {choice_error(names, best_metric)}")


def _observers(scores: Callable, draw: Callable, config: Config, output: Path, run_log: RunLog) -> list[Any]:
    """What evaluates and draws after each stretch."""
    stretch = _stretch(config)
    best_metric = config.evaluation.best_metric or None
    best_weights = best_metric and output / "best.weights.h5"
    return [
        EvaluateCallback(scores, run_log, every_steps=stretch, monitor=best_metric, best_weights=best_weights),
        PredictionPictures(draw, run_log, every_steps=stretch),
    ]


def _newest_scores(run_log: RunLog) -> dict[str, float]:
    rows = run_log.rows("evaluation")
    return {key: value for key, value in rows[-1].items() if "/" in key} if rows else {}


def _check_unclaimed(output: Path, config: Config, resume: bool) -> None:
    """Refuse a folder that holds a run, or, to resume, the run of another configuration."""
    path = output / CONFIG_FILE
    if not path.exists():
        return
    if not resume:
        raise FileExistsError(f"{output}: holds a run already. Add --resume to go on, or choose another --output.")
    changed = differences(load_config(path), config)
    if changed:
        more = [f"and {len(changed) - _MOST_SHOWN} more"] if len(changed) > _MOST_SHOWN else []
        raise ValueError(
            f"{path}: the run was started with another configuration: {'; '.join([*changed[:_MOST_SHOWN], *more])}. "
            "Resume with the same one, or choose another --output."
        )
