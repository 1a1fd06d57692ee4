"""What is compared with what: datasets, variants, studies, and the runs that they need."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras

from kmaskformer import experiment, trained_run
from kmaskformer.analysis.parts import count_parameters
from kmaskformer.config import Config, config_to_dict, load_config
from kmaskformer.json_files import read_json_object

SCORE = "semantic/mIoU"


@dataclasses.dataclass(frozen=True)
class Variant:
    """One of the things that a study compares.

    Args:
        name: As in tables and folders.
        overrides: What differs from the dataset's configuration; `{classes}` stands for its number of classes.
        trained_as: Name of the variant whose weights it takes, where it differs in the evaluation alone.
    """

    name: str
    overrides: tuple[str, ...] = ()
    trained_as: str = ""


MASKFORMER = Variant("MaskFormer")
_PER_PIXEL_LOSS = ("loss.name=per_pixel", "loss.cross_entropy_weight=1.0")
"""A recipe may weigh cross-entropy against the mask losses, which the baselines have not."""
STUDIES: dict[str, tuple[Variant, ...]] = {
    "baselines": (
        MASKFORMER,
        Variant("PerPixelBaseline", ("model.name=per_pixel", *_PER_PIXEL_LOSS)),
        Variant(
            "PerPixelBaseline+",
            (
                "model.name=per_pixel_plus",
                *_PER_PIXEL_LOSS,
                "model.transformer_decoder.num_queries={classes}",
            ),
        ),
    ),
    "matching": (
        Variant("bipartite matching", ("model.transformer_decoder.num_queries={classes}",)),
        Variant("fixed matching", ("model.transformer_decoder.num_queries={classes}", "loss.matcher=fixed")),
    ),
    "queries": tuple(
        Variant(f"{count} queries", (f"model.transformer_decoder.num_queries={count}",)) for count in (25, 10, 100)
    ),
    "decoder_layers": tuple(
        Variant(name, (f"model.transformer_decoder.decoder_layers={count}",))
        for count, name in ((3, "3 decoder layers"), (1, "1 decoder layer"), (6, "6 decoder layers"))
    ),
    "deep_supervision": (
        MASKFORMER,
        Variant("last layer only", ("model.deep_supervision=false", "loss.deep_supervision=false")),
    ),
    "inference": (
        MASKFORMER,
        Variant("general inference", ("evaluation.inference=general",), trained_as="MaskFormer"),
    ),
}
"""The first variant of each study is the one that the others are compared with."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset to compare on: the configuration of its MaskFormer, and what to change in it."""

    name: str
    config: str
    overrides: tuple[str, ...] = ()


_SEEDS = ("training.seed", "data.seed")
_SHORT = (
    "model.backbone.channels=[32, 64, 128, 256]",
    "training.steps=800",
    "training.evaluate_every=200",
    "training.checkpoint_every=200",
)
"""What makes nine runs on a dataset a matter of an hour on two CPU cores instead of days; equal for all variants."""


def _shapes(classes: int) -> Dataset:
    overrides = (f"data.generated_classes={classes}", f"model.num_classes={classes}", "data.val.count=100")
    return Dataset(f"shapes-{classes}", "configs/shapes/semantic/maskformer_resnet18.yaml", (*overrides, *_SHORT))


def _photographs(name: str, config: str) -> Dataset:
    return Dataset(name, config, _SHORT)


DATASETS = {
    dataset.name: dataset
    for dataset in (
        _photographs("camvid", "configs/camvid/semantic/maskformer_resnet18.yaml"),
        _photographs("dubai", "configs/dubai_aerial/semantic/maskformer_resnet18.yaml"),
        _shapes(20),
        _shapes(60),
        _shapes(150),
    )
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One training, or, for a variant that is `trained_as` another, one evaluation of that one's weights."""

    dataset: Dataset
    variant: Variant
    seed: int
    config: Config
    folder: Path
    source: Path | None = None
    """Folder of the run whose weights it takes."""

    @property
    def result_file(self) -> Path:
        """Scores of the finished run."""
        return self.folder / "result.json"


def plan_runs(
    studies: Sequence[str],
    datasets: Sequence[str],
    seeds: Sequence[int],
    output: str | Path,
    overrides: Sequence[str] = (),
    repository: str | Path = ".",
) -> list[Run]:
    """The runs that studies need, those that others build on first; runs of equal configuration share a folder.

    Args:
        studies: Names out of `STUDIES`.
        datasets: Names out of `DATASETS`.
        seeds: Seeds of weights, augmentation and order of the images; the data itself stays the same.
        output: Folder that holds a folder for each run.
        overrides: Changes to every configuration, such as `training.steps=200`.
        repository: Where the configurations' paths begin.

    Raises:
        ConfigError: If an override fits no configuration.
        ValueError: If an override sets what the studies vary, or a seed is given twice.
    """
    variants = {variant.name: variant for study in studies for variant in STUDIES[study]}
    _check_overrides(overrides, variants.values())
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"Each seed counts once: a run repeated is no spread. Received: seeds {list(seeds)}")
    ordered = sorted(variants.values(), key=lambda variant: bool(variant.trained_as))
    runs: list[Run] = []
    for name in datasets:
        for variant in ordered:
            for seed in seeds:
                run = _run(DATASETS[name], variant, seed, Path(output), overrides, Path(repository))
                runs.append(_shared(run, runs))
    return runs


def _shared(run: Run, earlier: Sequence[Run]) -> Run:
    """The run, with the folder of an earlier one that it repeats or takes its weights from."""
    same = [other for other in earlier if (other.dataset, other.seed) == (run.dataset, run.seed)]
    if run.variant.trained_as:
        source = next(other for other in same if other.variant.name == run.variant.trained_as)
        return dataclasses.replace(run, source=source.folder)
    twins = (other.folder for other in same if other.config == run.config)
    return dataclasses.replace(run, folder=next(twins, run.folder))


def _check_overrides(overrides: Sequence[str], variants: Iterable[Variant]) -> None:
    varied = {override.partition("=")[0] for variant in variants for override in variant.overrides}
    for override in overrides:
        field = override.partition("=")[0].strip()
        if field in _SEEDS:
            raise ValueError(f"`{field}` is set by `--seeds`. Received: {override}")
        if field in varied:
            raise ValueError(
                f"`{field}` is what the studies vary, and cannot be the same for all. Received: {override}"
            )


def _run(
    dataset: Dataset, variant: Variant, seed: int, output: Path, overrides: Sequence[str], repository: Path
) -> Run:
    path = repository / dataset.config
    classes = load_config(path, dataset.overrides).model.num_classes
    # Together: a baseline's model and its loss are right with one another only.
    own = [override.format(classes=classes) for override in variant.overrides]
    seeds = [f"{field}={seed}" for field in _SEEDS]
    config = load_config(path, [*dataset.overrides, *own, *overrides, *seeds])
    return Run(dataset, variant, seed, config, output / dataset.name / _slug(variant.name) / f"seed{seed}")


def _slug(name: str) -> str:
    return name.lower().replace("+", "_plus").replace(" ", "_")


def perform(run: Run) -> dict[str, Any]:
    """Do a run, go on with it where it was interrupted, or read the result where it is finished.

    Returns:
        `score`, the mIoU of the last weights; `parameters`; `steps`; `curve`, pairs of step and mIoU.

    Raises:
        ValueError: If the folder holds a run of another configuration.
        FileNotFoundError: If the run that it takes its weights from is not there.
    """
    config = config_to_dict(run.config)
    if run.result_file.is_file():
        result = read_json_object(run.result_file)
        if result.pop("config", None) != config:
            raise ValueError(
                f"{run.result_file}: the result of another configuration. Repeat the `--set` that it was made with, "
                f"choose another output folder, or delete {run.folder}."
            )
        return result
    keras.utils.clear_session()
    if run.source:
        model, scores = experiment.evaluate(run.config, run.source)
        curve = [(run.config.training.steps, scores[SCORE])]
    else:
        scores = experiment.train(run.config, run.folder, resume=True)
        model = trained_run.load_model(run.folder)
        curve = list(_curve(run.folder))
    result = {
        "score": scores[SCORE],
        "parameters": count_parameters(model)[""],
        "steps": run.config.training.steps,
        "curve": curve,
    }
    run.folder.mkdir(parents=True, exist_ok=True)
    run.result_file.write_text(json.dumps(result | {"config": config}, indent=1) + "\n", encoding="utf-8")
    return result


def _curve(folder: Path) -> Iterator[tuple[int, float]]:
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["kind"] == "evaluation":
            yield row["step"], row[SCORE]
