"""What the comparison holds equal, and that it runs, goes on and repeats itself."""

from __future__ import annotations

import dataclasses
import json

import pytest

from kmaskformer.comparison.studies import DATASETS, STUDIES, perform, plan_runs
from kmaskformer.config import ConfigError, config_to_dict

TINY = (
    "training.steps=2",
    "training.evaluate_every=1",
    "training.checkpoint_every=1",
    "data.train.count=8",
    "data.val.count=2",
    "data.batch_size=2",
    "data.augmentation.crop=[32, 32]",
    "data.image_size=[32, 32]",
    "model.pixel_decoder.conv_dim=32",
    "model.transformer_decoder.hidden_dim=32",
    "model.transformer_decoder.decoder_layers=1",
)


def differences(first, second, prefix=""):
    """Names of the fields in which two configurations differ."""
    for key, value in first.items():
        if isinstance(value, dict):
            yield from differences(value, second[key], f"{prefix}{key}.")
        elif value != second[key]:
            yield f"{prefix}{key}"


def test_every_study_plans_on_every_dataset(repository, tmp_path):
    runs = plan_runs(list(STUDIES), list(DATASETS), [0], tmp_path, repository=repository)
    variants = {variant.name for study in STUDIES.values() for variant in study}
    assert len(runs) == len(DATASETS) * len(variants)
    classes = {run.dataset.name: run.config.model.num_classes for run in runs}
    assert classes == {"camvid": 11, "dubai": 5, "shapes-20": 20, "shapes-60": 60, "shapes-150": 150}


@pytest.mark.parametrize("dataset", DATASETS)
def test_baselines_differ_in_nothing_but_the_model_and_its_loss(repository, tmp_path, dataset):
    runs = plan_runs(["baselines"], [dataset], [5], tmp_path, repository=repository)
    maskformer, *others = [config_to_dict(run.config) for run in runs]
    queries = maskformer["model"]["transformer_decoder"]["num_queries"]
    assert (maskformer["training"]["seed"], maskformer["data"]["seed"]) == (5, 5)
    for values in others:
        allowed = {"model.name", "loss.name", "loss.cross_entropy_weight", "model.transformer_decoder.num_queries"}
        assert {"model.name", "loss.name"} <= set(differences(maskformer, values)) <= allowed
        assert values["loss"]["cross_entropy_weight"] == 1.0, "its only loss"
    assert queries >= maskformer["model"]["num_classes"] or dataset in ("shapes-60", "shapes-150")


def test_what_is_configured_alike_is_trained_once(repository, tmp_path):
    runs = plan_runs(list(STUDIES), ["camvid", "shapes-20"], [0, 1], tmp_path, repository=repository)
    folders = {}
    for run in runs:
        folders.setdefault(run.folder, []).append(run)
    for together in folders.values():
        assert all(run.config == together[0].config and run.seed == together[0].seed for run in together)
    names = {run.variant.name for run in folders[tmp_path / "camvid" / "maskformer" / "seed1"]}
    assert names == {"MaskFormer", "25 queries", "3 decoder layers"}
    assert len({json.dumps(config_to_dict(run.config)) for run in runs}) == len(folders)
    general = [run for run in runs if run.variant.name == "general inference"]
    assert [run.source.name for run in general] == ["seed0", "seed1"] * 2


def test_weights_come_before_what_evaluates_them(repository, tmp_path):
    names = [run.variant.name for run in plan_runs(["inference"], ["dubai"], [0, 1], tmp_path, repository=repository)]
    assert names == ["MaskFormer", "MaskFormer", "general inference", "general inference"]


def test_an_override_that_fits_nothing(repository, tmp_path):
    with pytest.raises(ConfigError, match=r"training.stepps: unknown field. Did you mean steps\?"):
        plan_runs(["baselines"], ["dubai"], [0], tmp_path, ["training.stepps=3"], repository)


def test_the_result_of_another_configuration_is_no_result(repository, tmp_path):
    run = plan_runs(["baselines"], ["shapes-20"], [0], tmp_path, TINY, repository)[0]
    longer = plan_runs(["baselines"], ["shapes-20"], [0], tmp_path, [*TINY, "training.steps=4"], repository)[0]
    assert longer.result_file == run.result_file
    run.folder.mkdir(parents=True)
    run.result_file.write_text(json.dumps({"score": 0.5, "config": config_to_dict(run.config)}))
    assert perform(run) == {"score": 0.5}
    with pytest.raises(ValueError, match="the result of another configuration"):
        perform(longer)


def test_what_would_make_the_variants_equal_is_refused(repository, tmp_path):
    for study, override, message in (
        ("queries", "model.transformer_decoder.num_queries=50", "is what the studies vary"),
        ("matching", "loss.matcher=scipy", "is what the studies vary"),
        ("baselines", "training.seed=7", "is set by `--seeds`"),
    ):
        with pytest.raises(ValueError, match=message):
            plan_runs([study], ["dubai"], [0], tmp_path, [override], repository)
    with pytest.raises(ValueError, match="Each seed counts once"):
        plan_runs(["baselines"], ["dubai"], [0, 0], tmp_path, repository=repository)


def test_a_result_that_is_no_json_is_named(repository, tmp_path):
    run = plan_runs(["baselines"], ["shapes-20"], [0], tmp_path, TINY, repository)[0]
    run.folder.mkdir(parents=True)
    run.result_file.write_text("{")
    with pytest.raises(ValueError, match=r"seed0/result\.json: cannot be read as JSON"):
        perform(run)


@pytest.mark.slow
def test_a_run_is_done_once_and_goes_on(repository, tmp_path, monkeypatch):
    run = plan_runs(["baselines"], ["shapes-20"], [0], tmp_path, TINY, repository)[0]
    result = perform(run)
    assert [step for step, _ in result["curve"]] == [1, 2] and result["curve"][-1][1] == result["score"]
    assert 0 <= result["score"] <= 1 and result["steps"] == 2 and result["parameters"] > 11e6
    monkeypatch.setattr("kmaskformer.experiment.train", None)  # nothing is trained a second time
    assert json.dumps(perform(run)) == json.dumps(result)
    monkeypatch.undo()
    run.result_file.unlink()  # as if it had been stopped between training and writing the result
    assert perform(run)["score"] == result["score"]
    run.result_file.unlink()
    other = dataclasses.replace(
        run, config=dataclasses.replace(run.config, loss=dataclasses.replace(run.config.loss, mask_weight=3.0))
    )
    with pytest.raises(ValueError, match="the run was started with another configuration"):
        perform(other)
