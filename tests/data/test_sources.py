"""Your own data: folders, lists, dicts of examples, parts of a dataset."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

import kmaskformer as kmf
from kmaskformer.data.cache import DiskCache
from kmaskformer.data.cityscapes import Cityscapes
from kmaskformer.data.sources import examples_from


def write(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)


def write_pair(folder, image, mask, values=((0, 1, 1), (0, 0, 255))):
    write(folder / image, np.full((2, 3, 3), 80))
    write(folder / mask, values)


def test_two_folders(tmp_path):
    for name in ("b", "a"):
        write_pair(tmp_path, f"images/{name}.jpg", f"masks/{name}.png")
    reader = kmf.data.from_folders(tmp_path / "images", tmp_path / "masks", classes=["soil", "crop"])
    assert [reader[index]["image_id"] for index in range(len(reader))] == ["a", "b"]
    assert reader.info.class_names == ("soil", "crop")
    np.testing.assert_array_equal(reader[0]["segment_map"], [[0, 1, 1], [0, 0, -1]])
    np.testing.assert_array_equal(reader[0]["labels"], [0, 1])
    assert [path.name for path in reader.files(1)] == ["b.jpg", "b.png"]


def test_inner_folders_and_names_with_an_addition(tmp_path):
    """Same inner folders, the same text after every name; `1` is not taken for the beginning of `10`."""
    for name in ("x/1", "x/10", "y/1"):
        write_pair(tmp_path, f"images/{name}.JPEG", f"masks/{name}_mask.png", np.full((2, 3), len(name)))
    reader = kmf.data.from_folders("images", "masks", classes=[str(i) for i in range(5)], root=tmp_path)
    assert [reader[index]["image_id"] for index in range(3)] == [f"images/{n}.JPEG" for n in ("x/1", "x/10", "y/1")]
    assert [reader[index]["labels"].tolist() for index in range(3)] == [[3], [4], [3]]


def test_a_pattern_with_a_folder_of_masks(tmp_path):
    write_pair(tmp_path, "data/train/a_left.png", "labels/a_left.png")
    reader = kmf.data.from_folders("data/train/*_left.png", "labels", ["soil", "crop"], root=tmp_path)
    assert reader[0]["labels"].tolist() == [0, 1]


def test_ids_of_one_class_and_255(tmp_path):
    write_pair(tmp_path, "i/a.png", "m/a.png", [[0, 255, 255], [0, 0, 255]])
    with_dict = kmf.data.from_folders(tmp_path / "i", tmp_path / "m", classes={0: "wall", 255: "crack"})
    np.testing.assert_array_equal(with_dict[0]["segment_map"], [[0, 1, 1], [0, 0, 1]])
    assert with_dict.info.dataset_ids == (0, 255)


def test_published_label_spaces_by_name(tmp_path):
    write_pair(tmp_path, "i/a.png", "m/a.png", [[0, 1, 150], [0, 0, 1]])
    reader = kmf.data.from_folders(tmp_path / "i", tmp_path / "m", classes="ade20k_150")
    np.testing.assert_array_equal(reader[0]["segment_map"], [[-1, 0, 1], [-1, -1, 0]])
    assert reader.info.name == "ade20k_150" and reader[0]["labels"].tolist() == [0, 149]


def test_instances(tmp_path):
    write_pair(tmp_path, "i/a.png", "m/a.png", [[0, 7, 7], [9, 9, 0]])
    classes = ["ground", "cell"]
    reader = kmf.data.from_folders(tmp_path / "i", tmp_path / "m", classes=classes, instances=True, background="ground")
    sample = reader[0]
    assert reader.info.thing_ids == (1,) and sample["labels"].tolist() == [0, 1, 1]
    np.testing.assert_array_equal(sample["segment_map"], [[0, 1, 1], [2, 2, 0]])


def test_a_missing_mask(tmp_path):
    write_pair(tmp_path, "i/a.png", "m/a.png")
    write(tmp_path / "i/b.png", np.zeros((2, 3, 3)))
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images have no label map, first: .*b\.png"):
        kmf.data.from_folders(tmp_path / "i", tmp_path / "m", classes=["soil", "crop"])
    reader = kmf.data.from_folders(tmp_path / "i", tmp_path / "m", classes=["soil", "crop"], on_error="skip")
    assert len(reader) == 2 and reader[0]["labels"].tolist() == [0, 1]
    with pytest.raises(FileNotFoundError, match=r"b\.png: no such label map file"):
        reader[1]
    with pytest.raises(ValueError, match="on_error='ignore'"):
        kmf.data.from_folders(tmp_path / "i", tmp_path / "m", classes=["soil"], on_error="ignore")


def test_two_masks_for_one_image(tmp_path):
    """Neither is taken; but the image itself, where both lie in one folder, is no mask of its own."""
    for name in "ab":
        write_pair(tmp_path, f"i/{name}.jpg", f"m/{name}.png")
    write(tmp_path / "m/c.tif", LABELS)  # belongs to no image
    write(tmp_path / "m/c.png", LABELS)
    assert len(kmf.data.from_folders("i", "m", ["soil", "crop"], root=tmp_path)) == 2
    write(tmp_path / "m/b.tif", LABELS)
    with pytest.raises(ValueError, match=r"i/b\.jpg: .*one label map. Received: .*/b\.png, .*/b\.tif\..*{stem}\.png"):
        kmf.data.from_folders("i", "m", ["soil", "crop"], root=tmp_path)
    assert len(kmf.data.from_folders("i", "m/{stem}.png", ["soil", "crop"], root=tmp_path)) == 2
    write(tmp_path / "both/a.jpg", np.zeros((2, 3, 3)))
    write(tmp_path / "both/a.png", LABELS)
    reader = kmf.data.from_folders("both/*.jpg", "both", ["soil", "crop"], root=tmp_path)
    assert [path.name for path in reader.files(0)] == ["a.jpg", "a.png"]


def test_a_missing_folder_of_masks(tmp_path):
    write_pair(tmp_path, "i/a.png", "m/a.png")
    for root, masks in ((tmp_path, "nowhere"), (".", tmp_path / "nowhere")):
        with pytest.raises(FileNotFoundError, match=rf"{tmp_path}/nowhere: no such folder of label maps"):
            kmf.data.from_folders(tmp_path / "i", masks, ["soil", "crop"], root=root)
    with pytest.raises(ValueError, match=r"`labels` must contain {stem}"):
        kmf.data.from_folders("i", "m/a.png", ["soil", "crop"], root=tmp_path)


def test_lists_with_the_line_ends_of_windows(tmp_path):
    write_pair(tmp_path, "i/a.png", "m/a.png")
    reader = kmf.data.from_folders(["i/a.png\r"], ["m/a.png\r\n"], ["soil", "crop"], root=tmp_path)
    assert reader[0]["labels"].tolist() == [0, 1] and reader.files(0) == (tmp_path / "i/a.png", tmp_path / "m/a.png")


def test_links_that_lead_back_are_not_followed(tmp_path):
    write_pair(tmp_path, "i/a.png", "m/a.png")
    (tmp_path / "i/again").symlink_to(tmp_path / "i", target_is_directory=True)
    (tmp_path / "i/self.png").symlink_to(tmp_path / "i/self.png")
    (tmp_path / "i/self.png").unlink()
    assert len(kmf.data.from_folders(tmp_path / "i", tmp_path / "m", classes=["soil", "crop"])) == 1


PICTURE = np.full((2, 3, 3), 7, np.uint8)
LABELS = np.array([[0, 1, 1], [0, 0, 255]], np.uint8)


def test_examples_in_every_form(tmp_path):
    masks = np.array([[[1, 1, 1], [1, 1, 0]], [[0, 1, 1], [0, 0, 0]]])
    write(tmp_path / "labels.png", LABELS)
    examples = [
        (PICTURE, LABELS),
        {"image": Image.fromarray(PICTURE), "label_map": tmp_path / "labels.png"},
        {"image": PICTURE, "segment_map": LABELS.astype(int) - 256 * (LABELS == 255), "labels": [0, 1]},
        {"image": PICTURE[..., 0], "masks": masks, "labels": [0, 1]},
    ]
    reader = kmf.data.from_examples(examples, classes=["soil", "crop"])
    for index in range(4):
        sample = reader[index]
        np.testing.assert_array_equal(sample["segment_map"], [[0, 1, 1], [0, 0, -1]])
        np.testing.assert_array_equal(sample["image"], PICTURE)
        assert sample["labels"].tolist() == [0, 1] and sample["is_crowd"].tolist() == [False, False]
        assert sample["segment_map"].dtype == np.int32 and sample["image_id"] == str(index)
    named = {"image": PICTURE, "label_map": LABELS, "image_id": "field", "is_crowd": [False, True]}
    sample = kmf.data.from_examples([named], classes=["soil", "crop"])[0]
    assert sample["image_id"] == "field" and sample["is_crowd"].tolist() == [False, True]


def test_a_generator_is_kept():
    reader = kmf.data.from_examples(((PICTURE, LABELS) for _ in range(3)), classes=["soil", "crop"])
    assert len(reader) == 3 and reader[2]["labels"].tolist() == reader[2]["labels"].tolist() == [0, 1]


def test_a_generator_may_fill_the_same_arrays_again():
    def generate():
        image, labels, masks = PICTURE.copy(), LABELS.copy(), np.zeros((1, 2, 3), bool)
        for number in range(2):
            image[:], labels[:], masks[:] = number, number, number
            yield image, labels
            yield {"image": image, "masks": list(masks), "labels": [1]}

    reader = kmf.data.from_examples(generate(), classes=["soil", "crop"])
    assert [int(sample["image"].max()) for sample in reader] == [0, 0, 1, 1]
    assert [sample["labels"].tolist() for sample in reader] == [[0], [1], [1], [1]]
    assert [int(sample["segment_map"].max()) for sample in reader] == [0, -1, 0, 0]


def test_a_cache_on_disk_notices_changed_files_of_examples(tmp_path):
    image, labels = tmp_path / "a.png", tmp_path / "labels.png"
    write(image, PICTURE)
    write(labels, LABELS)
    examples = [(str(image), labels), {"image": image, "label_map": str(labels)}, (PICTURE, LABELS)]
    reader = kmf.data.from_examples(examples, ["soil", "crop"])
    assert [reader.files(index) for index in range(3)] == [(image, labels), (image, labels), ()]
    cache = DiskCache(reader, tmp_path / "cache")
    assert [cache[index]["labels"].tolist() for index in range(2)] == [[0, 1], [0, 1]]
    write(labels, np.ones((2, 3)))
    os.utime(labels, ns=(1, 1))
    assert [cache[index]["labels"].tolist() for index in range(2)] == [[1], [1]]


def test_files_of_examples_that_are_made_when_needed():
    class Lazy:
        def __len__(self):
            return 1

        def __getitem__(self, index):
            raise AssertionError("made for nothing")

    assert kmf.data.from_examples(Lazy(), ["soil"]).files(0) == ()


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"image": PICTURE}, r"example 0: must have `image` and one of label_map.*Received: \['image'\]"),
        ("a.png", "Received: str"),
        ((PICTURE.astype(float), LABELS), "Received: an array of float64"),
        ((PICTURE, LABELS / 255), "`label_map` must hold whole numbers. Received: an array of float64"),
        ((PICTURE, LABELS[:1]), r"the same height and width. Received: \(2, 3\) and \(1, 3\)"),
        ((PICTURE, LABELS + 5), r"example 0: label maps of 'custom' must hold ids.*Received: \[4, 5, 6\]"),
        ({"image": PICTURE, "segment_map": LABELS, "labels": [0, 1]}, r"rows 0\.\.255"),
        ({"image": PICTURE, "segment_map": LABELS * 0, "labels": [2]}, r"ids 0\.\.1. Received: \[2\]"),
        ({"image": PICTURE, "masks": LABELS[None], "labels": [0, 1]}, "2 labels, 1 segments"),
        ({"image": PICTURE, "masks": LABELS, "labels": [0]}, r"`masks` must be .*Received: shape \(2, 3\)"),
        ({"image": PICTURE, "label_map": LABELS, "is_crowd": [True]}, "`is_crowd` must have one entry"),
    ],
)
def test_examples_that_cannot_be_used(example, message):
    with pytest.raises(ValueError, match=message):
        kmf.data.from_examples([example], classes=["soil", "crop"])[0]


def test_examples_by_the_name_of_a_function(tmp_path, monkeypatch):
    (tmp_path / "my_fields.py").write_text("def train():\n    return [1, 2, 3]\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert examples_from("my_fields:train") == [1, 2, 3]
    for place in ("my_fields:test", "no_such_module:train", "my_fields"):
        with pytest.raises(ValueError, match="Examples must be given as"):
            examples_from(place)


def test_split_parts_a_dataset():
    reader = kmf.data.from_examples([(PICTURE + index, LABELS) for index in range(10)], classes=["soil", "crop"])
    train, val = kmf.data.split(reader, 0.3, seed=4)
    values = [[int(part[i]["image"][0, 0, 0]) for i in range(len(part))] for part in (train, val)]
    assert len(values[1]) == 3 and sorted(values[0] + values[1]) == list(range(7, 17))
    assert values == [sorted(part) for part in values] and train.info is reader.info
    again = kmf.data.split(reader, 0.3, seed=4)[1]
    assert [int(again[i]["image"][0, 0, 0]) for i in range(3)] == values[1]
    with pytest.raises(ValueError, match=r"fraction=1\.0"):
        kmf.data.split(reader, 1.0)


def test_coco_files_and_prepared_datasets_by_their_own_readers(tmp_path):
    """The last two sources are covered with their readers; here, that the call reaches them."""
    with pytest.raises(FileNotFoundError, match=r"no\.json: no such annotation file"):
        kmf.data.from_coco_json(tmp_path / "no.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no\.json: no such annotation file"):
        kmf.data.from_coco_panoptic(tmp_path / "no.json", tmp_path, tmp_path)
    pytest.importorskip("tensorflow_datasets", reason="needs the extra `data`", exc_type=ImportError)
    with pytest.raises(FileNotFoundError, match="oxford_iiit_pet"):
        kmf.data.from_tfds("oxford_iiit_pet", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("images", "masks", "expected"),
    [
        ("a a_2 b", "a_2 b", "a a_2 b"),  # one mask is missing, and none of another image is taken for it
        ("a b c", "b_mask c_mask", "a_mask b_mask c_mask"),  # the first image's mask is missing
        ("a a_2 b", "a_mask a_2_mask b_mask", "a_mask a_2_mask b_mask"),
        ("1 10", "1_m 10_m", "1_m 10_m"),
    ],
)
def test_the_addition_to_mask_names_is_that_of_most(tmp_path, images, masks, expected):
    for folder, names in (("images", images), ("masks", masks)):
        (tmp_path / folder).mkdir()
        for name in names.split():
            Image.new("L", (2, 2)).save(tmp_path / folder / f"{name}.png")
    reader = kmf.data.from_folders("images", "masks", ["x"], root=tmp_path, on_error="skip")
    pairs = {pair.image.stem: pair.labels.stem for pair in reader.pairs}
    assert pairs == dict(zip(images.split(), expected.split(), strict=True))


def test_a_class_cannot_mean_unlabelled(tmp_path):
    with pytest.raises(ValueError, match=r"`ignore_value` must be no id of a class. Received: 0, which is 'soil'"):
        kmf.data.from_examples([], ["soil", "crop"], ignore_value=0)
    reader = kmf.data.from_examples(
        [(np.zeros((1, 3, 3), np.uint8), np.array([[0, 1, 2]]))], {1: "soil", 2: "crop"}, ignore_value=0
    )
    assert reader[0]["segment_map"].tolist() == [[-1, 0, 1]]


def test_deep_and_turned_pictures_of_examples_are_read_as_files_are(tmp_path):
    grey = np.array([[0, 300, 4000]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    turned = Image.new("RGB", (3, 1), (9, 8, 7))
    turned.putpixel((0, 0), (200, 0, 0))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    for name in ("deep.png", "turned.png"):
        picture = Image.open(tmp_path / name)
        labels = np.zeros(picture.size[::-1] if name == "deep.png" else picture.size, np.uint8)
        pair = kmf.data.from_examples([(picture, labels), (tmp_path / name, labels)], ["x"])
        np.testing.assert_array_equal(pair[0]["image"], pair[1]["image"])
        assert picture.getexif().get(0x0112) == Image.open(tmp_path / name).getexif().get(0x0112)


def test_maps_that_were_opened_with_pillow(tmp_path):
    """They are read as their files are: ids of lossless files, with a palette too, and nothing that was lossy."""
    labels = Image.fromarray(LABELS)
    for name in ("a.png", "a.jpg", "a.webp", "lossy.tif"):
        labels.save(tmp_path / name, **({"compression": "jpeg"} if name == "lossy.tif" else {}))
    for kind in ("label_map", "masks"):
        for name in ("a.jpg", "a.webp", "lossy.tif"):
            picture = Image.open(tmp_path / name)
            example = {"image": PICTURE, kind: picture if kind == "label_map" else [picture], "labels": [0]}
            with pytest.raises(ValueError, match=rf"example 0: `{kind}`: a label map must be stored without loss"):
                kmf.data.from_examples([example], ["soil", "crop"])[0]
    labels.putpalette([9, 9, 9, 200, 0, 0])
    for picture in (labels, Image.open(tmp_path / "a.png"), Image.open(tmp_path / "a.png").convert("RGB")):
        sample = kmf.data.from_examples([(PICTURE, picture)], ["soil", "crop"])[0]
        np.testing.assert_array_equal(sample["segment_map"], [[0, 1, 1], [0, 0, -1]])
    masks = {"image": PICTURE, "masks": [Image.fromarray(LABELS == 1)], "labels": [1]}
    sample = kmf.data.from_examples([masks], ["soil", "crop"])[0]
    np.testing.assert_array_equal(sample["segment_map"], [[-1, 0, 0], [-1, -1, -1]])


@pytest.mark.parametrize("orientation", [3, 6])
def test_maps_of_turned_pictures_are_aligned(tmp_path, orientation):
    """Two paths as in folders: a lying map belongs to the stored pixels; a map with a tag is turned by it."""
    stored = np.array([[0, 1, 2], [3, 4, 5]], np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(stored).save(tmp_path / "plain.png")
    Image.fromarray(stored).save(tmp_path / "turned.tif", exif=exif, compression="tiff_lzw")
    turned, plain, tiff = (tmp_path / name for name in ("turned.png", "plain.png", "turned.tif"))
    examples = [(turned, turned), (turned, Image.open(turned)), (Image.open(turned), Image.open(turned))]
    examples += [(tiff, tiff), (Image.open(tiff), Image.open(tiff))]
    if orientation == 6:
        examples += [(turned, plain), (turned.read_bytes(), plain.read_bytes())]
        examples += [{"image": turned, "segment_map": str(plain), "labels": range(6)}]
    for example in kmf.data.from_examples(examples, [str(i) for i in range(6)]):
        np.testing.assert_array_equal(example["labels"][example["segment_map"]], example["image"][..., 0])
        np.testing.assert_array_equal(example["image"][..., 0], np.rot90(stored, {3: 2, 6: -1}[orientation]))


def test_a_negative_limit(tmp_path):
    """Not "all but the last"."""
    write_pair(tmp_path, "i/a.png", "m/a.png")
    message = "`limit` must not be negative. Received: limit=-1"
    with pytest.raises(ValueError, match=message):
        kmf.data.from_folders("i", "m", ["soil", "crop"], root=tmp_path, limit=-1)
    with pytest.raises(ValueError, match=message):
        kmf.data.from_coco_json(tmp_path / "a.json", tmp_path, limit=-1)
    with pytest.raises(ValueError, match=message):
        kmf.data.from_coco_panoptic(tmp_path / "a.json", tmp_path, tmp_path, limit=-1)
    with pytest.raises(ValueError, match=message):
        Cityscapes("i", "m", root=tmp_path, limit=-1)


def test_classes_that_are_numbers():
    with pytest.raises(ValueError, match=r"a class must be a name, or a record .*Received: 1"):
        kmf.data.from_examples([], classes=(1, 2, 3))


def test_numbers_that_do_not_fit_are_refused():
    reader = kmf.data.from_examples([(np.zeros((1, 2, 3), np.uint8), np.array([[0, 2**32 + 1]]))], ["a", "b"])
    with pytest.raises(ValueError, match=r"must hold numbers of 32 bits. Received: 0..4294967297"):
        reader[0]


def test_errors_of_the_users_function_are_its_own(tmp_path, monkeypatch):
    (tmp_path / "my_examples.py").write_text("def load():\n    raise ValueError('row 7 has no mask')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"^row 7 has no mask$"):
        examples_from("my_examples:load")
