"""From the `data` section of a configuration to readers, datasets and transforms.

A choice among sources is a dict in this file; there is no registry.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kmaskformer import config as configs
from kmaskformer.structures import DatasetInfo

if TYPE_CHECKING:  # TensorFlow is imported by the functions that need it, so that a JAX user can build a model.
    import tensorflow as tf


def build_reader(config: configs.DataConfig, split: str) -> Any:
    """The reader of one split, `train` or `val`.

    Raises:
        ValueError: If there is no such split, or the files are not what the configuration says.
    """
    if split not in ("train", "val"):
        raise ValueError(f'`split` must be "train" or "val". Received: split={split!r}')
    readers: dict[str, Callable[[configs.DataConfig, configs.SplitConfig], Any]] = {
        "shapes": _shapes_reader,
        "semantic_folder": _semantic_folder_reader,
        "instance_folder": _instance_folder_reader,
        "coco_panoptic": _coco_panoptic_reader,
        "coco_instance": _coco_instance_reader,
        "cityscapes_semantic": _cityscapes_reader,
        "cityscapes_panoptic": _cityscapes_reader,
        "tfds": _tfds_reader,
        "examples": _examples_reader,
    }
    reader = readers[config.source.partition(":")[0]](config, getattr(config, split))
    return _merged(reader) if config.merge_instances else reader


def _merged(reader: Any) -> Any:
    from kmaskformer.data.merged import MergedSegments

    return MergedSegments(reader)


def build_dataset(
    config: configs.DataConfig, split: str, first_batch: int = 0, reader: Any = None, shard: tuple[int, int] = (0, 1)
) -> tf.data.Dataset:
    """The batches of a split, from the `data` section of a configuration.

    Args:
        config: The section.
        split: `train` gives endless augmented batches with targets at the images' size; `val` each image once, with
            its whole truth at its original size.
        first_batch: Where to start, to go on with an interrupted run; `train` only.
        reader: The split's reader, where there is one already: large annotation files take long to read.
        shard: `(index, count)` of this process among those that share each training batch.

    Returns:
        A dataset of `(ModelInputs, Targets)` with the attributes `dataset_info`, `steps_per_epoch` and `skipped`; see
        `pipeline.training_dataset`.
    """
    from kmaskformer.data import pipeline
    from kmaskformer.data.service import Service

    reader = build_reader(config, split) if reader is None else reader
    if split == "val":
        return pipeline.evaluation_dataset(
            reader,
            shortest_edge=config.test_shortest_edge,
            longest_edge=config.test_longest_edge if config.test_shortest_edge else 0,
            batch_size=config.test_batch_size,
            workers=config.workers,
            on_error=config.on_error,
        )
    augmentation = config.augmentation
    return pipeline.training_dataset(
        reader,
        build_transforms(augmentation),
        batch_size=config.batch_size,
        image_size=tuple(augmentation.crop) or None,
        max_segments=config.max_segments,
        min_area=1 if augmentation.drop_empty_segments else 0,
        seed=config.seed,
        cache=_training_cache(config),
        first_batch=first_batch,
        workers=config.workers,
        batch_shapes=config.batch_shapes,
        on_error=config.on_error,
        shard=shard,
        service=Service(config.service, _reader_name(config)) if config.service else None,
        aspect_ratio_grouping=config.aspect_ratio_grouping,
    )


def offer_reader(config: configs.DataConfig) -> Any:
    """Makes the training reader available to pipelines that run in this process for another; see `data.service`.

    Returns:
        The reader.
    """
    from kmaskformer.data import pipeline

    reader = build_reader(config, "train")
    pipeline.offer_reader(pipeline.cached(reader, _training_cache(config)), _reader_name(config))
    return reader


def _training_cache(config: configs.DataConfig) -> Path | bool:
    return Path(config.cache_folder) / "train" if config.cache_folder else config.cache


def _reader_name(config: configs.DataConfig) -> str:
    """The same for all processes whose configurations name the same training data."""
    described = configs.config_to_dict(dataclasses.replace(config, service="", workers=1, batch_size=1, root=""))
    return f"kmaskformer/{hashlib.sha1(json.dumps(described).encode()).hexdigest()[:12]}"


def training_images(config: configs.DataConfig, reader: Any, batch: int) -> list[str]:
    """Images of the training batch of a number, counted from 0 since the start of the run.

    Args:
        config: The `data` section.
        reader: The training reader; with `on_error: skip` the dataset's `skipped`, which knows the substitutes.
        batch: The batch's number.

    Returns:
        As `batch_images`; empty where a service makes the batches, whose order nobody knows.
    """
    from kmaskformer.data.batch_images import batch_images

    if config.service:
        return []
    return batch_images(reader, batch, config.batch_size, config.seed, config.aspect_ratio_grouping)


def build_transforms(config: configs.AugmentationConfig) -> list[Callable[..., Any]]:
    """The training transforms in the order in which they act."""
    from kmaskformer.data.augmentation import transform_chain

    options = {key: value for key, value in vars(config).items() if key not in ("drop_empty_segments", "map_resize")}
    return transform_chain(**options, nearest=config.map_resize)


def _shapes_reader(config: configs.DataConfig, split: configs.SplitConfig) -> Any:
    from kmaskformer.data.synthetic import Shapes

    count = min(split.count, split.limit or math.inf)
    return Shapes(int(count), config.image_size, split.seed, num_classes=config.generated_classes)


def _semantic_folder_reader(config: configs.DataConfig, split: configs.SplitConfig) -> Any:
    from kmaskformer.data.semantic_folder import SemanticFolder

    return SemanticFolder(split.images, split.labels, _read_info(config), **_folder_options(config, split))


def _instance_folder_reader(config: configs.DataConfig, split: configs.SplitConfig) -> Any:
    from kmaskformer.data.instance_folder import InstanceFolder

    return InstanceFolder(
        split.images,
        split.labels,
        _read_info(config),
        background=config.background or None,
        class_divisor=config.class_divisor,
        **_folder_options(config, split),
    )


def _folder_options(config: configs.DataConfig, split: configs.SplitConfig) -> dict[str, Any]:
    edges = config.augmentation.shortest_edges if split is config.train and config.reduced_decoding else ()
    return {
        "root": config.root,
        "limit": split.limit,
        "require_labels": config.on_error == "raise",
        "least_edge": max(edges, default=0),
    }


def _coco_panoptic_reader(config: configs.DataConfig, split: configs.SplitConfig) -> Any:
    from kmaskformer.data.coco_panoptic import CocoPanoptic

    info = _coco_info(config)
    return CocoPanoptic(split.images, split.labels, split.annotations, info, root=config.root, limit=split.limit)


def _coco_instance_reader(config: configs.DataConfig, split: configs.SplitConfig) -> Any:
    from kmaskformer.data.coco_instance import CocoInstances

    return CocoInstances(split.images, split.annotations, _coco_info(config), root=config.root, limit=split.limit)


def _cityscapes_reader(config: configs.DataConfig, split: configs.SplitConfig) -> Any:
    from kmaskformer.data.cityscapes import Cityscapes

    info = _read_info(config) if config.classes or config.class_names else None
    panoptic = config.source == "cityscapes_panoptic"
    return Cityscapes(split.images, split.labels, panoptic, info, root=config.root, limit=split.limit)


def _examples_reader(config: configs.DataConfig, split: configs.SplitConfig) -> Any:
    from kmaskformer.data.examples import Examples
    from kmaskformer.data.sources import examples_from

    examples, limit = examples_from(split.examples), split.limit or None
    is_list = isinstance(examples, list | tuple)
    return Examples(examples[:limit] if is_list else itertools.islice(examples, limit), _read_info(config))


def _tfds_reader(config: configs.DataConfig, split: configs.SplitConfig) -> Any:
    from kmaskformer.data.tfds_reader import TfdsReader

    name = config.source.partition(":")[2]
    info = _read_info(config) if config.classes or config.class_names else None
    folder = None if config.root == "." else config.root
    default = ("train",) if split is config.train else ("validation", "test")
    return TfdsReader(name, split.images or default, info, data_dir=folder, limit=split.limit)


def _coco_info(config: configs.DataConfig) -> DatasetInfo | None:
    if config.class_names or (config.thing_names and not config.classes):
        raise ValueError(
            f"data.source {config.source} takes names, ids and things from the categories of its JSON: "
            "remove data.class_names and data.thing_names"
        )
    return _read_info(config) if config.classes else None


def _read_info(config: configs.DataConfig) -> DatasetInfo:
    from kmaskformer.data.info import read_info
    from kmaskformer.data.label_spaces import IGNORE_VALUES, label_space

    if not config.classes and not config.class_names:
        raise ValueError(
            f"data.source {config.source} needs the classes: set data.classes to a JSON or CSV file under data.root, "
            f"or to one of {', '.join(IGNORE_VALUES)}; or data.class_names to a list of names"
        )
    source: Any = Path(config.root) / config.classes if config.classes else list(config.class_names)
    if config.classes in IGNORE_VALUES:
        source = label_space(config.classes)
    ignore_value = None if config.ignore_value < 0 else config.ignore_value
    name = "" if isinstance(source, DatasetInfo) else Path(config.root).name
    info = read_info(source, name=name, things=config.thing_names, ignore_value=ignore_value)
    if ignore_value in info.dataset_ids:
        raise ValueError(
            f"data.ignore_value {ignore_value} is also the id of the class "
            f"'{info.class_names[info.dataset_ids.index(ignore_value)]}'. Where {ignore_value} means unlabelled, set "
            'data.classes to a file that gives each class its id, such as [{"id": 1, "name": "soil"}, ...]'
        )
    return info
