import dataclasses
import itertools
import json

import pytest

from kmaskformer.structures import DatasetInfo, distinct_colors

STREET = DatasetInfo(
    name="street",
    class_names=("road", "car", "person"),
    thing_ids=(2, 1),
    colors=((128, 64, 128), (0, 0, 142), (220, 20, 60)),
    ignore_value=65535,
    dataset_ids=(7, 26, 24),
)


def test_derived_facts():
    assert STREET.num_classes == 3
    assert STREET.thing_ids == (1, 2) and STREET.stuff_ids == (0,)


def test_defaults():
    info = DatasetInfo("pair", ["a", "b"])
    assert info.class_names == ("a", "b") and info.dataset_ids == (0, 1)
    assert info.thing_ids == () and info.stuff_ids == (0, 1) and info.ignore_value == 255
    assert info.colors == distinct_colors(2)


def test_json_round_trip():
    values = json.loads(json.dumps(STREET.to_dict()))
    assert values["colors"][0] == [128, 64, 128]
    assert DatasetInfo.from_dict(values) == STREET


def test_from_dict_fills_in_what_is_missing():
    assert DatasetInfo.from_dict({"name": "pair", "class_names": ["a", "b"]}) == DatasetInfo("pair", ("a", "b"))


def test_record_is_constant_and_hashable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        STREET.name = "other"
    assert hash(STREET) == hash(DatasetInfo.from_dict(STREET.to_dict()))


def test_numbered():
    info = DatasetInfo.numbered(3)
    assert info.class_names == ("class 0", "class 1", "class 2") and info.num_classes == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"class_names": ()}, r"`class_names` must name at least one class. Received: class_names=\(\)"),
        ({"colors": ((1, 2, 3),)}, r"`colors` must have one entry per class \(2\). Received: 1"),
        ({"dataset_ids": (1, 2, 3)}, r"`dataset_ids` must have one entry per class \(2\). Received: 3"),
        ({"class_names": ("a", "a")}, r"`class_names` must not repeat an entry. Received twice: \['a'\]"),
        ({"dataset_ids": (4, 4)}, r"`dataset_ids` must not repeat an entry. Received twice: \[4\]"),
        ({"thing_ids": (0, 2)}, r"`thing_ids` must lie in 0..1. Received: \[2\]"),
        ({"thing_ids": (-1,)}, r"`thing_ids` must lie in 0..1. Received: \[-1\]"),
    ],
)
def test_errors(values, message):
    with pytest.raises(ValueError, match=message):
        DatasetInfo(**{"name": "pair", "class_names": ("a", "b"), **values})


@pytest.mark.parametrize("count", [1, 19, 150, 847])
def test_colors_differ(count):
    colors = distinct_colors(count)
    assert len(set(colors)) == count
    assert all(0 <= channel <= 255 for color in colors for channel in color)
    assert distinct_colors(count)[:5] == distinct_colors(5)[:count]


def test_neighbouring_colors_are_far_apart():
    colors = distinct_colors(30)
    distances = [
        sum(abs(a - b) for a, b in zip(first, second, strict=True)) for first, second in itertools.pairwise(colors)
    ]
    assert min(distances) > 100


def test_contiguous_ids_are_the_way_back_from_the_datasets_own():
    info = DatasetInfo("coco", ("a", "b", "c"), dataset_ids=(7, 1, 90))
    assert info.contiguous_ids == {7: 0, 1: 1, 90: 2}
    assert "contiguous_ids" not in info.to_dict()
    assert info == DatasetInfo("coco", ("a", "b", "c"), dataset_ids=(7, 1, 90))
