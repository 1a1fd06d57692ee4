"""Trained models by name: published ones, those of the Hugging Face Hub, and folders of one's own."""

from __future__ import annotations

import dataclasses
import logging
import os
import warnings
from pathlib import Path

from kmaskformer.build import build_model
from kmaskformer.checkpoints.convert import check_num_classes, load_checkpoint
from kmaskformer.checkpoints.huggingface import load_huggingface_folder, read_preprocessor
from kmaskformer.checkpoints.loading import named_weights
from kmaskformer.checkpoints.preset_config import CONFIG, is_preset
from kmaskformer.checkpoints.releases import Release, find_release, release_of_file, release_of_repository, releases
from kmaskformer.config import config_from_dict
from kmaskformer.data.label_spaces import label_space
from kmaskformer.downloads import cache_folder, check_published, fetch
from kmaskformer.hub import fetch_repository
from kmaskformer.json_files import read_json_object_or_empty
from kmaskformer.model_card import license_words
from kmaskformer.models.segmentation_model import SegmentationModel
from kmaskformer.preset_folder import PresetInfo, read_preset, write_preset
from kmaskformer.structures import DatasetInfo

_HUB = "hf://"
_RUN_MODEL = "model.keras"
_LOGGER = logging.getLogger("kmaskformer")


def from_preset(
    source: str | os.PathLike,
    num_classes: int | None = None,
    revision: str | None = None,
    dataset_info: DatasetInfo | None = None,
) -> SegmentationModel:
    """A trained model.

    Downloads are kept: those of the Hub in its client's cache, others below `$KMASKFORMER_HOME` (by default
    `~/.cache/kmaskformer`). Each file is checked against the published digest, and at every later use against that of
    its first download.

    Args:
        source: One of
            - `"hf://owner/name"`, a repository of the Hugging Face Hub that holds a MaskFormer of `transformers` or a
              preset of this package (needs the extra `hub`);
            - the name of a published model, such as `"maskformer_swin_tiny_ade20k150"`; `list_presets()` has all;
            - a folder: one that `save_to_preset` wrote, one of `transformers` with its `config.json`, or that of a
              training run;
            - a checkpoint: `model_final_*.pkl` of the reference's model zoo, any file of the reference's parameters
              whose shapes tell the architecture, or a `.keras` file.
        num_classes: Number of classes wanted. If the preset has another, the weights that depend on it are fresh, and
            a warning names them: this is where fine-tuning starts.
        revision: Branch, tag or commit of a Hub repository.
        dataset_info: Names, colours and things of the classes, instead of the preset's; says `num_classes` too.

    Returns:
        The built model. Its `dataset_info` names the classes, or numbers them where names are unknown; its
        `preset_info` holds source, licence and the image size of its evaluation. Presets and `.keras` files keep the
        precision that they were saved with; other sources take Keras' global dtype policy.

    Raises:
        ValueError: If there is no such preset, or a file is not what it should be.
        FileNotFoundError: If there is no such folder.
        ImportError: If an `hf://` source is asked for without `huggingface_hub`.
        DownloadError: If a file cannot be downloaded; the message says where to put it by hand.
        DigestError: If a file is not the published one, or has changed since its first download.

    Example:
        ```python
        model = from_preset("hf://facebook/maskformer-swin-base-ade")
        result = Segmenter(model, **model.preset_info.segmenter_options)("street.jpg")
        ```
    """
    num_classes = _wanted_classes(num_classes, dataset_info)
    text = os.fspath(source)
    if text.startswith(_HUB):
        model = _from_hub(text.removeprefix(_HUB).strip("/"), num_classes, revision)
    elif revision is not None:
        raise ValueError(f"`revision` belongs to hf:// sources only. Received: {text!r}, revision={revision!r}")
    else:
        model = _from_disk_or_table(text, num_classes)
    if num_classes not in (None, model.num_classes):
        model = _with_classes(model, num_classes)
    model.dataset_info = dataset_info or model.dataset_info or DatasetInfo.numbered(model.num_classes)
    return model


def save_to_preset(
    model: SegmentationModel,
    folder: str | os.PathLike,
    overwrite: bool = False,
    license: str | None = None,
    shortest_edge: int | None = None,
    longest_edge: int | None = None,
    score: str = "",
) -> Path:
    """Writes a model as a folder that `from_preset` reads and the Hugging Face Hub takes as it is.

    The folder holds configuration, weights, class names, preprocessing and a model card. An older preset there is
    replaced, except its card.

    Args:
        model: A built model of this package.
        folder: Where to; made if it is missing.
        overwrite: Write into a folder that holds other files too; they stay, but a model card is replaced.
        license: Licence of the weights, as the Hub writes it (`"apache-2.0"`); that of the preset from which the model
            came by default.
        shortest_edge: Length of the shorter side of the images that the model was evaluated on; by default as above.
        longest_edge: Bound of their longer side; by default as above.
        score: The model's score, in words, for the card.

    Returns:
        The folder.

    Raises:
        TypeError: If `model` is no built model of this package.
        FileExistsError: If the folder is not empty and not a preset.

    Example:
        ```python
        save_to_preset(model, "fields", license="apache-2.0", shortest_edge=640, longest_edge=2560)
        huggingface_hub.HfApi().upload_folder(repo_id="me/fields", folder_path="fields")
        ```
    """
    given = {"license": license, "shortest_edge": shortest_edge, "longest_edge": longest_edge}
    given = {name: value for name, value in given.items() if value is not None}
    info = dataclasses.replace(getattr(model, "preset_info", PresetInfo()), score=score, **given)
    folder = Path(folder).expanduser()
    write_preset(model, folder, info, overwrite)
    return folder


def list_presets() -> list[Release]:
    """The published models, in the order of the reference's model zoo; `.name`, `.score` and `.hub` of each."""
    return list(releases())


def _from_disk_or_table(text: str, num_classes: int | None) -> SegmentationModel:
    path = Path(text).expanduser()
    if path.is_dir():
        return _from_folder(path, num_classes)
    if path.is_file():
        return _from_file(path)
    if text.startswith((".", "~")) or path.is_absolute():
        raise FileNotFoundError(f"{path}: no such folder or file. A preset is a folder that `save_to_preset` wrote.")
    release = find_release(text)
    _say_license(release.name, release.license)
    file = fetch(release.url, cache_folder() / release.name / release.file_name, release.md5_prefix)
    return _from_release(release, file)


def _from_hub(repository: str, num_classes: int | None, revision: str | None) -> SegmentationModel:
    if len(repository.split("/")) != 2:
        raise ValueError(
            f"A Hub source must look like hf://owner/name. Received: {_HUB}{repository}. Give a branch or commit as "
            "`revision=`."
        )
    files = fetch_repository(repository, revision)
    release = release_of_repository(repository)
    if release is None:
        return _from_folder(files.folder, num_classes, PresetInfo(f"{_HUB}{repository}", files.license))
    # What the copies lost: sizes (theirs are the converter's defaults), padding, and which classes are things.
    model = _from_folder(files.folder, num_classes, _release_info(release, f"{_HUB}{repository}"))
    model.preprocessing.size_divisibility = release.size_divisibility
    if model.num_classes != release.num_classes:
        model.preset_info = dataclasses.replace(model.preset_info, score="")
    elif model.dataset_info is not None:
        model.dataset_info = dataclasses.replace(model.dataset_info, name=release.dataset, thing_ids=release.thing_ids)
    return model


def _from_folder(folder: Path, num_classes: int | None, known: PresetInfo | None = None) -> SegmentationModel:
    if is_preset(folder):
        model, info = read_preset(folder)
        info = dataclasses.replace(info, source=known.source if known else info.source)
    elif _model_type(folder) == "maskformer":
        model = load_huggingface_folder(folder, num_classes)
        info = known or PresetInfo(str(folder))
        if info.shortest_edge is None:
            sizes = read_preprocessor(folder)
            info = dataclasses.replace(info, shortest_edge=sizes.shortest_edge, longest_edge=sizes.longest_edge)
    elif (folder / _RUN_MODEL).is_file():
        return _from_file(folder / _RUN_MODEL)
    else:
        raise ValueError(_not_a_preset(folder))
    model.preset_info = info
    _say_license(info.source or str(folder), info.license)
    return model


def _from_file(path: Path) -> SegmentationModel:
    release = release_of_file(path)
    if release is not None:
        _say_license(release.name, release.license)
        check_published(path, release.md5_prefix, release.url)
        return _from_release(release, path)
    model, _ = load_checkpoint(path)
    model.preset_info = PresetInfo(str(path))
    return model


def _from_release(release: Release, file: Path) -> SegmentationModel:
    model, _ = load_checkpoint(file, lambda: build_release(release))
    model.preset_info = _release_info(release, release.name)
    return model


def build_release(release: Release) -> SegmentationModel:
    """The model of a release, with random weights."""
    info = dataclasses.replace(label_space(release.label_space), name=release.dataset, thing_ids=release.thing_ids)
    return build_model(config_from_dict(release.config_values(), release.name).model, info)


def _release_info(release: Release, source: str) -> PresetInfo:
    names = ("license", "score", "shortest_edge", "longest_edge", "object_mask_threshold")
    # The reference does so for all models that it evaluates as panoptic ones.
    before_inference = True if release.task == "panoptic" else None
    return PresetInfo(source, before_inference=before_inference, **{name: getattr(release, name) for name in names})


def _wanted_classes(num_classes: int | None, dataset_info: DatasetInfo | None) -> int | None:
    check_num_classes(num_classes)
    if dataset_info is None:
        return num_classes
    if num_classes not in (None, dataset_info.num_classes):
        raise ValueError(
            f"`num_classes` and `dataset_info` must agree; give one of them. Received: num_classes={num_classes}, "
            f"dataset_info with {dataset_info.num_classes} classes"
        )
    return dataset_info.num_classes


def _with_classes(model: SegmentationModel, num_classes: int) -> SegmentationModel:
    """A copy for another number of classes, in which the weights that depend on it are fresh."""
    config = {**model.get_config(), "num_classes": num_classes, "dataset_info": None}
    if config.get("transformer_decoder") and "class_head" not in {path.split("/")[0] for path in named_weights(model)}:
        decoder = config["transformer_decoder"]  # a per-pixel baseline has one query per class
        config["transformer_decoder"] = {**decoder, "config": {**decoder["config"], "num_queries": num_classes}}
    copy = type(model).from_config(config)
    copy.build((None, None, None, 3))
    old, fresh = named_weights(model), []
    for path, weight in named_weights(copy).items():
        if tuple(weight.shape) == tuple(old[path].shape):
            weight.assign(old[path])
        else:
            fresh.append(path)
    warnings.warn(
        f"{num_classes} classes instead of {model.num_classes}: left fresh, to be trained: {', '.join(fresh)}",
        stacklevel=3,
    )
    copy.preset_info = dataclasses.replace(model.preset_info, score="")
    return copy


def _model_type(folder: Path) -> str | None:
    return read_json_object_or_empty(folder / CONFIG).get("model_type")


def _not_a_preset(folder: Path) -> str:
    kind = _model_type(folder)
    if kind is not None:
        return f"{folder / CONFIG}: `model_type` must be maskformer. Found: {kind}. Other models cannot be read."
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
    return (
        f"{folder}: not a preset. Expected a config.json with weights, by `save_to_preset` or by transformers. "
        f"Found: {found}."
    )


def _say_license(name: str, license_name: str) -> None:
    if not license_name:
        return
    free = license_name not in ("other", "unknown") and "-nc" not in license_name
    level = logging.INFO if free else logging.WARNING
    _LOGGER.log(level, "%s: licence of the weights: %s", name, license_words(license_name))
