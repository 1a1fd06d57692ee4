"""Your own data in one call each. All return readers: `len(reader)`, `reader[index]`, `reader.info`.

import kmaskformer as kmf

reader = kmf.data.from_folders("images", "masks", classes=["background", "pet"])
train, val = kmf.data.split(reader, 0.2)
batches = kmf.data.training_dataset(train, kmf.data.standard_transforms((256, 256)), batch_size=8)
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kmaskformer.data.coco_panoptic import CocoPanoptic
from kmaskformer.data.examples import Examples
from kmaskformer.data.info import ClassTable, read_info
from kmaskformer.data.instance_folder import InstanceFolder
from kmaskformer.data.label_spaces import IGNORE_VALUES, label_space
from kmaskformer.data.semantic_folder import SemanticFolder
from kmaskformer.data.skipping import check_on_error
from kmaskformer.structures import DatasetInfo

Classes = ClassTable | Mapping[int, str]
Files = str | Path | Sequence[str | Path]


def from_folders(
    images: Files,
    masks: Files,
    classes: Classes,
    *,
    root: str | Path = ".",
    instances: bool = False,
    things: Sequence[str | int] = (),
    ignore_value: int | None = None,
    background: str | None = None,
    class_divisor: int = 0,
    limit: int = 0,
    on_error: str = "raise",
) -> SemanticFolder | InstanceFolder:
    """Images with one mask file each, whose pixels are ids of classes or, with `instances`, of instances.

    Args:
        images: A folder, a glob pattern (`"images/*.jpg"`), or a list of files.
        masks: A folder with files of the images' names, to all of which the same may be added (`a.jpg`,
            `a_mask.png`); a pattern with `{stem}`; or a list of files.
        classes: Names in the order of the ids 0, 1, ...; a dict from ids to names (`{0: "wall", 255: "crack"}`); a
            JSON or CSV file; or a published label space (`"ade20k_150"`). See `info.read_info`.
        root: Folder to which relative paths refer.
        instances: Whether masks hold ids of instances, 0 = none. All are of the one thing class, unless
            `class_divisor` tells.
        things: Names or contiguous ids of the countable classes. With `instances`, by default all but `background`.
        ignore_value: Value of unlabelled pixels; 255 (65535 in 16-bit maps) is unlabelled too where no class has it.
            Of maps of instances without a `class_divisor` every number but 0 is an instance.
        background: With `instances`, the class of the pixels outside all of them; by default they are unlabelled.
        class_divisor: With `instances`, `id // class_divisor` is the class id.
        limit: Only the first `limit` images; 0 for all.
        on_error: `"skip"` accepts images without a mask here, so that the pipeline (`on_error="skip"` there, too) can
            leave them out.

    Raises:
        FileNotFoundError: If a folder is missing, nothing matches or, with `on_error="raise"`, an image has no mask.
        ValueError: If an argument cannot be understood.

    Example:
        >>> reader = from_folders("images", "masks", classes=["background", "pet"])  # doctest: +SKIP
    """
    check_on_error(on_error)
    info = class_record(classes, things, ignore_value, name=Path(root).resolve().name)
    options = {"root": root, "limit": limit, "require_labels": on_error == "raise"}
    if not instances:
        return SemanticFolder(images, masks, info, **options)
    if not info.thing_ids:
        names = [name for name in info.class_names if name != background]
        info = class_record(classes, names, ignore_value, name=info.name)
    return InstanceFolder(images, masks, info, background=background, class_divisor=class_divisor, **options)


def from_coco_json(
    annotations: str | Path, images: str | Path, classes: Classes | None = None, *, limit: int = 0
) -> Any:
    """COCO's instance format: polygons, run lengths and crowds; objects that overlap keep their overlaps.

    Args:
        annotations: The JSON file.
        images: Folder of the images.
        classes: The label space, all things unless it names some; by default the JSON's categories, contiguous ids in
            the order of their ids.
        limit: Only the first `limit` images; 0 for all.

    Raises:
        FileNotFoundError: If the JSON or an image is missing.
        ValueError: If the JSON is damaged; the message names file and record.
    """
    from kmaskformer.data.coco_instance import CocoInstances

    info = None if classes is None else class_record(classes)
    return CocoInstances(Path(images).absolute(), Path(annotations).absolute(), info, limit=limit)


def from_coco_panoptic(
    annotations: str | Path,
    images: str | Path,
    masks: str | Path,
    classes: Classes | None = None,
    *,
    limit: int = 0,
) -> CocoPanoptic:
    """COCO's panoptic format: a JSON with segment tables, and PNGs with segment ids.

    Args:
        annotations: The JSON file.
        images: Folder of the images.
        masks: Folder of the panoptic PNGs.
        classes: The label space; by default the JSON's categories.
        limit: Only the first `limit` images; 0 for all.

    Raises:
        FileNotFoundError: If the JSON, an image or a PNG is missing.
        ValueError: If the JSON is damaged; the message names file and record.
    """
    info = None if classes is None else class_record(classes)
    paths = [Path(path).absolute() for path in (images, masks, annotations)]
    return CocoPanoptic(*paths, info, limit=limit)


def from_tfds(
    name: str,
    split: str = "train",
    classes: Classes | None = None,
    *,
    data_dir: str | Path | None = None,
    limit: int = 0,
) -> Any:
    """A dataset that TensorFlow Datasets has prepared; needs the extra `data`.

    Args:
        name: As for `tfds.builder`: `"oxford_iiit_pet"`, `"coco/2017_panoptic"`.
        split: `"train"`, or a part such as `"train[:80%]"`.
        classes: The label space, where the dataset does not tell.
        data_dir: Folder of the prepared datasets; by default the library's.
        limit: Only the first `limit` examples; 0 for all.

    Raises:
        ImportError: If the library is not installed.
        FileNotFoundError: If the dataset is not prepared.
        ValueError: If there is no such dataset or split, or it has no masks.
    """
    from kmaskformer.data.tfds_reader import TfdsReader

    info = None if classes is None else class_record(classes)
    return TfdsReader(name, split, info, None if data_dir is None else str(data_dir), limit)


def from_examples(
    examples: Iterable[Any], classes: Classes, *, things: Sequence[str | int] = (), ignore_value: int | None = None
) -> Examples:
    """Examples from plain Python: pairs `(image, label_map)` or dicts, see `examples.Examples`.

    A cache in a folder notices changes of files that a list of examples names; empty it after any other change.

    Args:
        examples: A sequence, whose items are made when needed, or another iterable, which is kept in memory.
        classes: As in `from_folders`.
        things: Names or contiguous ids of the countable classes.
        ignore_value: Value of unlabelled pixels in label maps.

    Example:
        >>> import numpy as np
        >>> picture, labels = np.zeros((4, 6, 3), np.uint8), np.eye(4, 6, dtype=np.uint8)
        >>> from_examples([(picture, labels)], classes=["soil", "crop"])[0]["labels"]
        array([0, 1], dtype=int32)
    """
    return Examples(examples, class_record(classes, things, ignore_value))


def examples_from(place: str) -> Iterable[Any]:
    """What a function of a module returns, `"my_data:training_examples"`; the way from a configuration to Python.

    Raises:
        ValueError: If there is no such module or function.
    """
    module_name, _, function_name = place.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        raise ValueError(
            f'Examples must be given as "module:function", the function without arguments. Received: {place!r} '
            f"({error}). The module must be importable: start in its folder or set PYTHONPATH."
        ) from error
    return function()


def class_record(
    classes: Classes, things: Sequence[str | int] = (), ignore_value: int | None = None, name: str = ""
) -> DatasetInfo:
    """The record for what `classes` may be; see `from_folders`."""
    if isinstance(classes, str) and classes in IGNORE_VALUES:
        classes = label_space(classes)
    name = "" if isinstance(classes, DatasetInfo) else name
    info = read_info(classes, name=name, things=things, ignore_value=ignore_value)
    if ignore_value in info.contiguous_ids:
        label = info.class_names[info.contiguous_ids[ignore_value]]
        raise ValueError(
            f"`ignore_value` must be no id of a class. Received: {ignore_value}, which is {label!r}. Give the classes "
            "as a dict from the ids in the files to names, without the unlabelled one."
        )
    return info
