"""Tables of the published datasets against what is known of them."""

from __future__ import annotations

import csv
import json

import pytest

from kmaskformer.data.label_spaces import IGNORE_VALUES, label_space

# Classes, things, first and last name, first and last id of the dataset's own.
KNOWN = {
    "ade20k_150": (150, 100, "wall", "flag", 1, 150),
    "ade20k_full_847": (847, 0, "wall", "adding machine, totalizer, totaliser", 0, 846),
    "coco_panoptic_133": (133, 80, "person", "rug-merged", 1, 200),
    "coco_instance_80": (80, 80, "person", "toothbrush", 1, 90),
    "coco_stuff_171": (171, 80, "person", "wood", 1, 182),
    "cityscapes_19": (19, 8, "road", "bicycle", 7, 33),
    "mapillary_vistas_65": (65, 37, "Bird", "Ego Vehicle", 0, 64),
}


@pytest.mark.parametrize("name", KNOWN)
def test_tables(name):
    info = label_space(name)
    num_classes, num_things, first, last, first_id, last_id = KNOWN[name]
    assert (info.name, info.num_classes, len(info.thing_ids)) == (name, num_classes, num_things)
    assert (info.class_names[0], info.class_names[-1]) == (first, last)
    assert (info.dataset_ids[0], info.dataset_ids[-1]) == (first_id, last_id)
    assert info.ignore_value == IGNORE_VALUES[name] and info.ignore_value not in info.dataset_ids
    assert len(set(info.colors)) == num_classes - (name == "ade20k_150")  # whose own palette has a colour twice


def test_things_of_ade20k_are_those_of_its_panoptic_task():
    info = label_space("ade20k_150")
    names = {info.class_names[i] for i in info.thing_ids}
    assert {"bed", "window", "person", "door"} <= names and not {"wall", "sky", "floor", "road"} & names


def test_cityscapes_colours_and_things():
    info = label_space("cityscapes_19")
    assert info.colors[0] == (128, 64, 128)
    assert [info.class_names[i] for i in info.thing_ids] == [
        "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
    ]  # fmt: skip


def test_things_of_mapillary_vistas():
    """The 37 classes whose instances it has; crosswalks are countable, trains on rails are not."""
    info = label_space("mapillary_vistas_65")
    names = {info.class_names[i] for i in info.thing_ids}
    assert {"Crosswalk - Plain", "Lane Marking - Crosswalk", "Pole", "Car", "Banner"} <= names
    assert not {"On Rails", "Pothole", "Lane Marking - General", "Car Mount", "Road"} & names


def test_coco_is_that_of_the_official_file(shared_folder):
    file = json.loads((shared_folder / "data" / "coco_panoptic_train100" / "panoptic.json").read_text())
    categories = sorted(file["categories"], key=lambda category: category["id"])
    info = label_space("coco_panoptic_133")
    assert info.dataset_ids == tuple(category["id"] for category in categories)
    assert info.class_names == tuple(category["name"] for category in categories)
    assert info.thing_ids == tuple(i for i, category in enumerate(categories) if category["isthing"])


@pytest.mark.parametrize(
    ("name", "file", "shift"),
    [
        ("ade20k_150", "ade20k_150", 1),
        ("ade20k_full_847", "ade20k_full_847", 0),
        ("coco_stuff_171", "coco_stuff_171", 0),
        ("mapillary_vistas_65", "mapillary_vistas_66", 0),
    ],
)
def test_tables_hold_the_published_facts(shared_folder, name, file, shift):
    """Name by name, colour by colour; label maps of ADE20K number the classes from 1."""
    with (shared_folder / "spec" / "labels" / f"{file}.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    info = label_space(name)
    if "trainId" in rows[0]:
        rows.sort(key=lambda row: int(row["trainId"]))
        rows = [row | {"id": row["trainId"]} for row in rows]
    rows = rows[: info.num_classes]
    assert info.class_names == tuple(row.get("readable", row["name"]).strip() for row in rows)
    assert info.dataset_ids == tuple(int(row.get("id", index)) + shift for index, row in enumerate(rows))
    if "isthing" in rows[0]:
        assert info.thing_ids == tuple(index for index, row in enumerate(rows) if row["isthing"] == "1")
    colors = {index: tuple(bytes.fromhex(row["color"][1:])) for index, row in enumerate(rows) if row.get("color")}
    assert {index: info.colors[index] for index in colors} == colors


def test_cityscapes_is_that_of_the_official_package():
    labels = pytest.importorskip("cityscapesscripts.helpers.labels", reason="needs cityscapesscripts").labels
    rows = sorted((row for row in labels if 0 <= row.trainId < 255), key=lambda row: row.trainId)
    info = label_space("cityscapes_19")
    assert info.class_names == tuple(row.name for row in rows) and info.colors == tuple(row.color for row in rows)
    assert info.dataset_ids == tuple(row.id for row in rows)
    assert info.thing_ids == tuple(row.trainId for row in rows if row.hasInstances)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"`name` must be one of ade20k_150, .*Did you mean ade20k_150\?"):
        label_space("ade20k_15")
