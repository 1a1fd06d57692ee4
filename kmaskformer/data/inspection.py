"""What a dataset holds, and what is wrong with it: everything that can be known before the first training step."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from tqdm import tqdm

from kmaskformer.data import images
from kmaskformer.data.label_maps import void_values
from kmaskformer.data.printable import printable
from kmaskformer.data.wrapped_reader import innermost
from kmaskformer.structures import VOID, DatasetInfo, Sample

MANY = 0.05
"""Share of the images from which on a finding counts for the whole dataset."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something to know. `is_error`: training cannot start, or would learn something wrong."""

    is_error: bool
    split: str
    message: str

    def __str__(self) -> str:
        return f"{'error' if self.is_error else 'warning'}: {self.split}: {self.message}"


@dataclasses.dataclass(frozen=True)
class SampleFacts:
    """What is known of one sample; `failure` instead of the rest where it cannot be read.

    `classes`, `areas`: contiguous class id and pixels of each segment that is no crowd. `label_file`: its label map,
    where it has one of its own; `stored`: distinct values of a semantic one, `instance_ids` of one of instances.
    """

    index: int
    image_id: str = ""
    size: tuple[int, int] = (0, 0)
    classes: tuple[int, ...] = ()
    areas: tuple[int, ...] = ()
    void_pixels: int = 0
    digest: str = ""
    label_file: str = ""
    stored: tuple[int, ...] = ()
    instance_ids: tuple[int, ...] = ()
    failure: str = ""


@dataclasses.dataclass
class SplitFacts:
    """All samples of a split, and tables over its classes `(classes,)`: images, segments, pixels, median areas."""

    name: str
    info: DatasetInfo
    samples: list[SampleFacts]

    def __post_init__(self) -> None:
        self.readable = [sample for sample in self.samples if not sample.failure]
        count = self.info.num_classes
        classes = np.array([c for sample in self.readable for c in sample.classes], np.int64)
        areas = np.array([a for sample in self.readable for a in sample.areas], np.int64)
        seen = np.array([c for sample in self.readable for c in set(sample.classes)], np.int64)
        self.class_images = np.bincount(seen, minlength=count)
        self.class_segments = np.bincount(classes, minlength=count)
        self.class_pixels = np.bincount(classes, weights=areas, minlength=count).astype(np.int64)
        self.class_areas = [
            float(np.median(areas[classes == c])) if (classes == c).any() else 0.0 for c in range(count)
        ]

    @property
    def num_segments(self) -> list[int]:
        """Segments of each readable sample."""
        return [len(sample.classes) for sample in self.readable]


def read_facts(reader: Any, name: str, workers: int = 4, progress: bool = True) -> SplitFacts:
    """Reads every sample of a split once.

    Args:
        reader: The split's reader.
        name: The split's name.
        workers: Threads.
        progress: Whether to show a progress bar.
    """
    with ThreadPoolExecutor(workers) as pool:
        facts = pool.map(lambda index: _sample_facts(reader, index), range(len(reader)))
        samples = list(tqdm(facts, total=len(reader), desc=f"inspect {name}", unit="image", disable=not progress))
    return SplitFacts(name, reader.info, samples)


def find_problems(
    splits: Sequence[SplitFacts], num_queries: int = 0, num_classes: int = 0, least_size: tuple[int, int] = (0, 0)
) -> list[Finding]:
    """What deserves attention, errors first.

    Args:
        splits: The splits; the first is the one to train with.
        num_queries: Queries of the model; 0 if unknown.
        num_classes: Classes of the model; 0 if unknown.
        least_size: `(height, width)` of the crop; smaller images are padded.
    """
    found = []
    for split in splits:
        checks = [_confused_values(split), _mixed_values(split), _binary_instances(split), _shared_maps(split)]
        checks += [_unreadable(split), _empty(split), _too_many_segments(split, num_queries)]
        checks += [_small_images(split, least_size), _missing_classes(split, split is splits[0]), _repeated(split)]
        found += [finding for check in checks for finding in check]
    found += _shared(splits)
    if num_classes and num_classes != splits[0].info.num_classes:
        message = f"the model has {num_classes} classes and the dataset {splits[0].info.num_classes}"
        found.append(Finding(True, splits[0].name, f"{message}: set model.num_classes"))
    return sorted(found, key=lambda finding: not finding.is_error)


def _sample_facts(reader: Any, index: int) -> SampleFacts:
    of_file = _facts_of_file(reader, index)
    try:
        sample = reader[index]
    except (OSError, ValueError) as error:
        return SampleFacts(index, **of_file, failure=printable(str(error)))
    areas = _areas(sample)
    keep = ~np.asarray(sample["is_crowd"], bool)
    return SampleFacts(
        index,
        image_id=printable(str(sample["image_id"])),
        size=sample["image"].shape[:2],
        classes=tuple(np.asarray(sample["labels"])[keep].tolist()),
        areas=tuple(areas[keep].tolist()),
        void_pixels=int(np.count_nonzero(sample["segment_map"] == VOID)),
        digest=hashlib.sha1(np.ascontiguousarray(sample["image"])).hexdigest() + str(sample["image"].shape),
        **of_file,
    )


def _areas(sample: Sample) -> np.ndarray:
    """Pixels of each segment; those of two that overlap count for both."""
    regions = sample["segment_map"].ravel() - VOID
    membership = sample.get("membership")
    count = len(sample["labels"]) if membership is None else membership.shape[1]
    areas = np.bincount(regions, minlength=count + 1)[1:]
    return areas if membership is None else membership @ areas


def _facts_of_file(reader: Any, index: int) -> dict[str, Any]:
    """What its own label map tells of a sample; nothing where the dataset has another format."""
    reader, index = innermost(reader, index)
    if not hasattr(reader, "label_file"):
        return {}
    path = reader.label_file(index)
    name = printable(str(path))
    kind = "instance_ids" if hasattr(reader, "class_divisor") else "stored"
    try:
        return {"label_file": name, kind: tuple(np.unique(images.read_label_map(path)).tolist())}
    except (OSError, ValueError):
        return {"label_file": name}


def _unreadable(split: SplitFacts) -> list[Finding]:
    failures = [sample.failure for sample in split.samples if sample.failure]
    found = [Finding(True, split.name, failure) for failure in failures]
    if len(failures) == len(split.samples):
        found.append(Finding(True, split.name, "none of the samples can be used"))
    return found


def _confused_values(split: SplitFacts) -> list[Finding]:
    """Label maps whose values are shifted by one, or where 255 is a class and not "unlabelled"."""
    counts = collections.Counter(value for sample in split.samples for value in sample.stored)
    if not counts:
        return []
    values, ids = set(counts), set(split.info.dataset_ids)
    names = list(split.info.class_names)
    if 255 in void_values(split.info) and values == {0, 255}:
        second = names[1] if len(names) > 1 else "object"
        suggestion = f'{{0: "{names[0]}", 255: "{second}"}}'
        return [
            Finding(
                True,
                split.name,
                "label maps hold 0 and 255 only, and 255 is read as unlabelled, so that nothing but "
                f"'{names[0]}' is learnt. If 255 is a class, name the classes with their ids: classes={suggestion} "
                '(in a configuration a JSON file: [{"id": 0, "name": ...}, {"id": 255, "name": ...}])',
            )
        ]
    shifted = {value + 1 for value in ids}
    if ids == set(range(len(ids))) and len(ids) in values and values - void_values(split.info) <= shifted | {0}:
        return [
            Finding(
                True,
                split.name,
                f"label maps hold 0..{len(ids)}, one value more than there are classes ({len(ids)}). If 0 is "
                "unlabelled and classes count from 1, give them the ids 1, 2, ... and set the ignore value to 0; if 0 "
                "is a class of its own, such as background, add its name at the front",
            )
        ]
    return []


def _mixed_values(split: SplitFacts) -> list[Finding]:
    """Two classes, of which one is 1 in some label maps and 255 in others."""
    stored = [(set(sample.stored), sample.label_file) for sample in split.samples if sample.stored]
    is_binary = split.info.dataset_ids == (0, 1) and all(values <= {0, 1, 255} for values, _ in stored)
    ones = [path for values, path in stored if 1 in values]
    highs = [path for values, path in stored if 255 in values]
    if not is_binary or not ones or not highs or set(ones) & set(highs):
        return []
    message = (
        f"{len(ones)} label maps hold 1 and no 255, as {ones[0]}; {len(highs)} hold 255 and no 1, as "
        f"{', '.join(highs[:5])}. 255 is read as unlabelled: if it is '{split.info.class_names[1]}' there, save these "
        "maps anew with 1"
    )
    return [Finding(False, split.name, message)]


def _binary_instances(split: SplitFacts) -> list[Finding]:
    """Maps of instances that tell object from background, and not one object from another."""
    values = {value for sample in split.samples for value in sample.instance_ids}
    if values != {0, 255}:
        return []
    message = (
        "maps of instances hold 0 and 255 only, so that all objects of an image are one. Give each object a number of "
        "its own, or read the maps as classes: without instances, and with the ids 0 and 255"
    )
    return [Finding(False, split.name, message)]


def _shared_maps(split: SplitFacts) -> list[Finding]:
    counts = collections.Counter(sample.label_file for sample in split.samples if sample.label_file)
    shared = [(path, count) for path, count in counts.items() if count > 1]
    if not shared:
        return []
    examples = "; ".join(f"{path} belongs to {count} images" for path, count in shared[:5])
    message = f"{sum(count for _, count in shared)} images share {len(shared)} label maps: {examples}"
    return [Finding(False, split.name, f"{message}. Correct what pairs them, unless their pictures are alike")]


def _empty(split: SplitFacts) -> list[Finding]:
    empty = [sample for sample in split.readable if not sum(sample.areas)]
    if not empty:
        return []
    every = len(empty) == len(split.readable)
    names = ", ".join(sample.image_id for sample in empty[:5])
    message = f"{len(empty)} of {len(split.readable)} images have no segment, all of them unlabelled: {names}"
    return [Finding(every, split.name, message)]


def _too_many_segments(split: SplitFacts, num_queries: int) -> list[Finding]:
    over = [sample for sample in split.readable if num_queries and len(sample.classes) > num_queries]
    if not over:
        return []
    most = max(over, key=lambda sample: len(sample.classes))
    message = (
        f"{len(over)} images have more segments than the model has queries ({num_queries}), up to {len(most.classes)} "
        f"({most.image_id}): the surplus cannot be learnt. Raise model.transformer_decoder.num_queries"
    )
    return [Finding(False, split.name, message)]


def _small_images(split: SplitFacts, least_size: tuple[int, int]) -> list[Finding]:
    small = [sample for sample in split.readable if np.any(np.less(sample.size, least_size))]
    if len(small) <= MANY * len(split.readable):
        return []
    message = f"{len(small)} of {len(split.readable)} images are smaller than the crop {tuple(least_size)}"
    return [Finding(False, split.name, f"{message}: unless enlarged first, they are padded")]


def _missing_classes(split: SplitFacts, is_training: bool) -> list[Finding]:
    missing = [name for name, count in zip(split.info.class_names, split.class_images, strict=True) if not count]
    if not missing or not split.readable:
        return []
    use = "it can never be learnt" if is_training else "its score is undefined"
    message = f"{len(missing)} of {split.info.num_classes} classes occur in no image ({use}): {', '.join(missing[:10])}"
    return [Finding(False, split.name, message)]


def _repeated(split: SplitFacts) -> list[Finding]:
    groups = collections.defaultdict(list)
    for sample in split.readable:
        groups[sample.digest].append(sample.image_id)
    repeated = [names for names in groups.values() if len(names) > 1]
    if not repeated:
        return []
    examples = "; ".join(" = ".join(names[:3]) for names in repeated[:5])
    return [Finding(False, split.name, f"{len(repeated)} images occur more than once: {examples}")]


def _shared(splits: Sequence[SplitFacts]) -> list[Finding]:
    found = []
    for number, first in enumerate(splits):
        known: Mapping[str, str] = {sample.digest: sample.image_id for sample in first.readable}
        for second in splits[number + 1 :]:
            both = [sample for sample in second.readable if sample.digest in known]
            if both:
                examples = "; ".join(f"{sample.image_id} = {known[sample.digest]}" for sample in both[:5])
                message = f"{len(both)} images are also in {first.name}, so that scores come out too high: {examples}"
                found.append(Finding(False, second.name, message))
    return found
