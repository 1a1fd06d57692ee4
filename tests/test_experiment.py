"""A whole run on generated scenes: train, resume, evaluate, predict, and the folder it leaves."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from kmaskformer import build_data, experiment, report, trained_run
from kmaskformer.config import differences, load_config, save_config
from kmaskformer.inference.tiles import Tiling

TINY = [
    "model.backbone.channels=[8, 8, 16, 16]",
    "model.transformer_decoder={num_queries: 6, hidden_dim: 32, num_heads: 2, feedforward_dim: 32, decoder_layers: 2}",
    "model.pixel_decoder={conv_dim: 32, mask_dim: 32}",
    "data.image_size=[64, 64]",
    "data.augmentation={crop: [64, 64]}",
    "data.train={count: 8, seed: 0}",
    "data.val={count: 3, seed: 1}",
    "data.batch_size=2",
    "training={steps: 4, evaluate_every: 2, checkpoint_every: 2, log_every: 1}",
    "optimizer.schedule={warmup_steps: 1}",
]


@pytest.fixture(scope="module")
def config(repository):
    return load_config(repository / "configs/shapes/panoptic/maskformer_resnet18.yaml", TINY)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A finished run: its folder and the scores that `train` returned."""
    folder = tmp_path_factory.mktemp("run") / "finished"
    return folder, experiment.train(config, folder)


def test_the_folder_holds_everything_a_run_promises(finished):
    folder, scores = finished
    for name in ("config.yaml", "model.keras", "best.weights.h5", "metrics.csv", "metrics.jsonl", "tensorboard"):
        assert (folder / name).exists(), name
    assert json.loads((folder / "metrics.json").read_text()) == scores
    assert {"panoptic/PQ", "panoptic/PQ_things", "semantic/mIoU"} <= set(scores)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if row["kind"] == "train"]
    assert steps == [1, 2, 3, 4]
    assert {"loss", "loss_ce", "loss_mask", "loss_dice", "loss_ce_0", "learning_rate"} <= set(rows[0])
    assert [row["step"] for row in rows if row["kind"] == "evaluation"] == [2, 4]
    picture = np.asarray(Image.open(folder / "pictures" / "predictions_0000004.png"))
    assert picture.std() > 10


def test_an_existing_run_is_not_overwritten(config, finished):
    with pytest.raises(FileExistsError, match="--resume"):
        experiment.train(config, finished[0])


def test_a_failed_start_leaves_no_folder_in_the_way(repository, tmp_path):
    wrong = [*TINY, "model.num_classes=3"]
    with pytest.raises(ValueError, match="3 classes"):
        experiment.train(
            load_config(repository / "configs/shapes/panoptic/maskformer_resnet18.yaml", wrong), tmp_path / "x"
        )
    assert not (tmp_path / "x").exists()


def test_a_start_that_the_observers_refuse_leaves_no_folder(config, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise ValueError("no such task")

    monkeypatch.setattr(trained_run, "Segmenter", refuse)
    with pytest.raises(ValueError, match="no such task"):
        experiment.train(config, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_run_goes_on_without_the_file_that_it_started_from(config, finished, tmp_path):
    """Where there is a checkpoint, weights to start from are not read again."""
    model = dataclasses.replace(config.model, backbone=dataclasses.replace(config.model.backbone, weights="gone.pth"))
    begun = dataclasses.replace(config, model=model)
    with pytest.raises(FileNotFoundError, match=r"gone.pth: no such file, named by model.backbone.weights"):
        experiment.train(begun, tmp_path / "new", resume=True)
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    save_config(begun, folder / "config.yaml")
    assert json.dumps(experiment.train(begun, folder, resume=True)) == json.dumps(finished[1])
    trained_run.load_model(folder / "best.weights.h5")


def test_a_best_metric_that_no_evaluator_reports_is_refused_at_once(config, tmp_path):
    evaluation = dataclasses.replace(config.evaluation, best_metric="semantic/mIOU")
    with pytest.raises(ValueError, match=r"evaluation.best_metric: must be one of .*Did you mean semantic/mIoU\?"):
        experiment.train(dataclasses.replace(config, evaluation=evaluation), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_no_bound_of_the_longer_side(config, finished):
    data = dataclasses.replace(config.data, test_shortest_edge=48, test_longest_edge=0)
    model = trained_run.load_model(finished[0])
    segmenter = trained_run.build_segmenter(model, dataclasses.replace(config, data=data), "semantic")
    assert (segmenter.shortest_edge, segmenter.longest_edge) == (48, None)


def test_resuming_with_another_configuration_is_refused(repository, finished):
    other = load_config(
        repository / "configs/shapes/panoptic/maskformer_resnet18.yaml", [*TINY, "optimizer.learning_rate=1.0e-5"]
    )
    with pytest.raises(ValueError, match="another configuration") as caught:
        experiment.train(other, finished[0], resume=True)
    assert str(caught.value) == (
        f"{finished[0] / 'config.yaml'}: the run was started with another configuration: optimizer.learning_rate was "
        "0.0007 and is now 1e-05. Resume with the same one, or choose another --output."
    )


def test_of_many_fields_that_differ_five_are_named(repository, config, tmp_path):
    save_config(config, tmp_path / "config.yaml")
    other = load_config(repository / "configs/shapes/panoptic/maskformer_resnet18.yaml", ["training.steps=9"])
    with pytest.raises(ValueError, match=r"model.backbone.channels was \[8, 8, 16, 16\] and is now ") as caught:
        experiment.train(other, tmp_path, resume=True)
    *named, more = str(caught.value).partition(". Resume")[0].split("; ")
    assert len(named) == 5 and more == f"and {len(differences(config, other)) - 5} more"


@pytest.mark.slow
def test_a_stopped_and_resumed_run_equals_a_straight_one(config, finished, tmp_path, monkeypatch):
    folder = tmp_path / "resumed"
    fit = keras.Model.fit

    def stopped_fit(model, *args, **kwargs):
        return fit(model, *args, **{**kwargs, "epochs": 1})

    monkeypatch.setattr(keras.Model, "fit", stopped_fit)
    experiment.train(config, folder)
    monkeypatch.setattr(keras.Model, "fit", fit)
    (folder / "model.keras").unlink()
    experiment.train(config, folder, resume=True)
    straight = trained_run.load_model(finished[0])
    resumed = trained_run.load_model(folder)
    for expected, received in zip(straight.trainable_variables, resumed.trainable_variables, strict=True):
        # AdamW turns rounding noise of exactly-zero gradients into steps of the learning rate's size.
        np.testing.assert_allclose(received, expected, atol=2e-3, err_msg=expected.path)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2, 3, 4]
    expected = [json.loads(line) for line in (finished[0] / "metrics.jsonl").read_text().splitlines()]
    for one, other in zip(rows, expected, strict=True):
        if one["kind"] == "train":
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-3), one["step"]


@pytest.mark.parametrize("name", ["model.keras", "metrics.json"])
def test_a_result_that_cannot_be_written_is_an_error_that_says_how_to_go_on(
    config, finished, tmp_path, monkeypatch, name
):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    written = {"model.keras": "save_model", "metrics.json": "written_to_disk"}[name]
    write = getattr(experiment, written)

    def on_a_full_disk(*arguments):
        if Path(arguments[-1]).name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*arguments)

    monkeypatch.setattr(experiment, written, on_a_full_disk)
    with pytest.raises(OSError, match=rf"{name}: cannot be written: .*No space .*start again with --resume"):
        experiment.train(config, folder, resume=True)
    monkeypatch.undo()
    assert json.dumps(experiment.train(config, folder, resume=True)) == json.dumps(finished[1])


def test_an_evaluation_that_was_cut_off_is_made_up(config, finished, tmp_path):
    """The process died between the last checkpoint and its evaluation: the scores are those of the last weights."""
    folder, scores = finished
    copy = tmp_path / "killed"
    shutil.copytree(folder, copy)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    kept = [line for line in lines if (json.loads(line)["kind"], json.loads(line)["step"]) != ("evaluation", 4)]
    assert len(kept) == len(lines) - 1
    (copy / "metrics.jsonl").write_text("".join(f"{line}\n" for line in kept))
    for name in ("metrics.json", "model.keras", "pictures/predictions_0000004.png"):
        (copy / name).unlink()
    again = experiment.train(config, copy, resume=True)
    assert again == pytest.approx(scores, abs=1e-6) and json.loads((copy / "metrics.json").read_text()) == again
    assert (copy / "model.keras").is_file() and (copy / "pictures/predictions_0000004.png").is_file()
    rows = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "evaluation"] == [2, 4]


def test_a_broken_sample_that_is_skipped_costs_no_picture(config):
    class Broken:
        info = build_data.build_reader(config.data, "val").info

        def __len__(self):
            return 3

        def __getitem__(self, index):
            if index == 0:
                raise ValueError("a.png: damaged")
            return build_data.build_reader(config.data, "val")[index]

    data = dataclasses.replace(config.data, on_error="skip")
    shown = experiment._readable(Broken(), dataclasses.replace(config, data=data))
    assert [shown[index]["image_id"] for index in range(3)] == [Broken()[i]["image_id"] for i in (1, 1, 2)]
    with pytest.raises(ValueError, match="damaged"):
        experiment._readable(Broken(), config)[0]


def test_an_image_that_cannot_be_read_costs_the_report_no_other(config, finished, tmp_path, monkeypatch):
    reader = build_data.build_reader(config.data, "val")

    class Broken:
        info = reader.info

        def __len__(self):
            return len(reader)

        def __getitem__(self, index):
            if index == 0:
                raise ValueError("a.png: damaged")
            return reader[index]

    sheets = []

    def draw_samples(segmenter, info, samples, captions=None):
        sheets.append(([sample["image_id"] for sample in samples], captions))
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr(build_data, "build_reader", lambda *_: Broken())
    monkeypatch.setattr(experiment.report, "draw_samples", draw_samples)
    with pytest.warns(RuntimeWarning, match="damaged"):
        _, scores = experiment.evaluate(config, finished[0], report_folder=tmp_path / "report")
    assert (scores["evaluation/images"], scores["evaluation/failed_images"]) == (2, 1)
    (_, (names, captions)) = sheets
    assert sorted(names) == [reader[index]["image_id"] for index in (1, 2)]
    assert [caption.partition(":")[0] for caption in captions] == names
    assert (tmp_path / "report" / "best_and_worst.png").is_file()


def test_instances_of_a_run_in_tiles_come_from_whole_images(config, finished):
    model = trained_run.load_model(finished[0])
    tiled = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, tile_size=32))
    assert trained_run.build_segmenter(model, tiled, "panoptic").tiling == Tiling(32, 0.5)
    assert trained_run.build_segmenter(model, tiled, "instance").tiling is None


def test_weights_load_from_folder_keras_file_and_weights_file(config, finished):
    folder, _ = finished
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    models = [trained_run.load_model(folder), trained_run.load_model(folder / "model.keras")]
    assert all(model.dataset_info.name == "shapes" for model in models)
    maps = [trained_run.build_segmenter(model, config, "semantic")(image).segmentation for model in models]
    np.testing.assert_array_equal(*maps)
    assert trained_run.load_model(folder / "best.weights.h5").dataset_info.name == "shapes"


def test_weights_load_where_the_training_data_is_not(config, finished, tmp_path):
    folder = tmp_path / "moved"
    folder.mkdir()
    (folder / "best.weights.h5").write_bytes((finished[0] / "best.weights.h5").read_bytes())
    data = dataclasses.replace(config.data, source="semantic_folder", root=str(tmp_path / "gone"), class_names=("a",))
    save_config(dataclasses.replace(config, data=data), folder / "config.yaml")
    with pytest.warns(UserWarning, match="class names are unknown"):
        model = trained_run.load_model(folder / "best.weights.h5")
    assert model.dataset_info is None


def test_missing_and_foreign_weights_are_explained(config, finished, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.keras in its folder"):
        trained_run.load_model(tmp_path)
    lonely = tmp_path / "x.weights.h5"
    lonely.write_bytes((finished[0] / "best.weights.h5").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"config\.yaml beside"):
        trained_run.load_model(lonely)
    broken = tmp_path / "x.keras"
    broken.write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"x\.keras: expected a complete zip archive"):
        trained_run.load_model(broken)


def test_evaluate_gives_the_scores_of_the_run(config, finished):
    folder, scores = finished
    _, again = experiment.evaluate(config, folder)
    for name, value in scores.items():
        if value is not None:
            assert again[name] == pytest.approx(value, abs=1e-6), name


def test_predictions_of_a_sample_are_drawn(config, finished):
    model = trained_run.load_model(finished[0])
    segmenter = trained_run.build_segmenter(model, config, "panoptic")
    sheet = report.draw_evenly(segmenter, build_data.build_reader(config.data, "val"), count=2)
    assert np.asarray(sheet).shape[1] > 3 * 100


def test_a_non_finite_loss_names_the_term_and_keeps_the_last_checkpoint(repository, tmp_path):
    config = load_config(
        repository / "configs/shapes/panoptic/maskformer_resnet18.yaml", [*TINY, "loss.mask_weight=1.0e+38"]
    )
    with pytest.raises(ArithmeticError, match="loss_mask"):
        experiment.train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "model.keras").exists()
    row = json.loads((tmp_path / "run" / "suspicious_batches.jsonl").read_text())
    reader = build_data.build_reader(config.data, "train")
    assert len(row["images"]) == 2 and set(row["images"]) <= {reader[i]["image_id"] for i in range(8)}
