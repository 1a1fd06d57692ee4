"""What is wrong with a dataset, before training: every finding, and the page that shows it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import kmaskformer as kmf
from kmaskformer.data.inspection import find_problems, read_facts
from kmaskformer.dataset_report import draw_contact_sheet, write_report

LABELS = np.array([[0, 0, 1, 1]] * 4, np.uint8)


def image(value, height=4, width=4):
    return np.full((height, width, 3), value, np.uint8)


def facts(examples, name="train", classes=("soil", "crop"), **options):
    return read_facts(kmf.data.from_examples(examples, list(classes), **options), name, progress=False)


def messages(findings):
    return [str(finding) for finding in findings]


def folder_facts(tmp_path, maps, classes, **options):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir(exist_ok=True)
    for number, label_map in enumerate(maps):
        Image.fromarray(image(40 * number, *np.shape(label_map))).save(tmp_path / f"images/{number}.png")
        Image.fromarray(np.asarray(label_map, np.uint8)).save(tmp_path / f"masks/{number}.png")
    reader = kmf.data.from_folders(tmp_path / "images", tmp_path / "masks", classes, **options)
    return read_facts(reader, "train", progress=False)


def test_counts_of_a_clean_dataset():
    split = facts([(image(0), LABELS), (image(9, 4, 6), np.ones((4, 6), np.uint8)), (image(5), LABELS * 255)])
    assert [sample.size for sample in split.readable] == [(4, 4), (4, 6), (4, 4)]
    assert split.class_images.tolist() == [2, 2] and split.class_segments.tolist() == [2, 2]
    assert split.class_pixels.tolist() == [16, 32] and split.class_areas == [8.0, 16.0]
    assert split.num_segments == [2, 1, 1] and [sample.void_pixels for sample in split.readable] == [0, 0, 8]
    assert find_problems([split], num_queries=2, num_classes=2) == []


def test_overlapping_and_crowded_segments(tmp_path):
    class Overlapping:
        info = kmf.DatasetInfo("toy", ("a", "b"), (0, 1))
        has_overlaps = True

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return {
                "image": image(1, 1, 4),
                "segment_map": np.array([[0, 1, 2, -1]], np.int32),
                "membership": np.array([[1, 1, 0], [0, 1, 1], [1, 1, 1]], bool),
                "labels": np.array([0, 0, 1], np.int32),
                "is_crowd": np.array([False, False, True]),
                "image_id": "x",
            }

    split = read_facts(Overlapping(), "train", progress=False)
    assert split.readable[0].areas == (2, 2) and split.class_pixels.tolist() == [4, 0]


def test_zero_and_255_are_taken_for_a_confusion(tmp_path):
    split = folder_facts(tmp_path, [LABELS * 255, LABELS * 255], ["wall", "crack"])
    first = find_problems([split])[0]
    assert first.is_error and 'classes={0: "wall", 255: "crack"}' in first.message
    right = folder_facts(tmp_path, [LABELS * 255], {0: "wall", 255: "crack"})
    assert not any(finding.is_error for finding in find_problems([right]))


def test_parts_of_a_dataset_are_looked_into_as_the_whole(tmp_path):
    folder_facts(tmp_path, [LABELS * 255] * 3, ["wall", "crack"])
    reader = kmf.data.from_folders(tmp_path / "images", tmp_path / "masks", ["wall", "crack"])
    for part in kmf.data.split(reader, fraction=0.4):
        first = find_problems([read_facts(part, "part", progress=False)])[0]
        assert first.is_error and "hold 0 and 255 only" in first.message


def test_one_class_as_1_and_as_255_in_different_maps(tmp_path):
    split = folder_facts(tmp_path, [LABELS, LABELS * 255, LABELS * 0], ["wall", "crack"])
    (found,) = find_problems([split])
    assert not found.is_error and "1 label maps hold 1 and no 255, as " in found.message
    assert "1 hold 255 and no 1, as " in found.message and "if it is 'crack' there" in found.message
    assert found.message.index("masks/0.png") < found.message.index("masks/1.png")
    both = LABELS.copy()
    both[0] = 255  # a map with both: 255 is unlabelled indeed
    assert find_problems([folder_facts(tmp_path, [LABELS, LABELS * 255, both], ["wall", "crack"])]) == []
    three = folder_facts(tmp_path, [LABELS, LABELS * 255, LABELS * 2], ["wall", "crack", "door"])
    assert find_problems([three]) == []


def test_maps_that_are_unlabelled_as_a_whole_hold_no_0(tmp_path):
    found = messages(find_problems([folder_facts(tmp_path, [LABELS * 0 + 255], ["wall", "crack"])]))
    assert "1 of 1 images have no segment, all of them unlabelled" in found[0]
    assert not any("hold 0 and 255 only" in message for message in found)


def test_instances_that_are_all_255(tmp_path):
    options = {"instances": True, "background": "wall"}
    split = folder_facts(tmp_path, [LABELS * 255, LABELS * 0], ["wall", "crack"], **options)
    (found,) = find_problems([split])
    assert not found.is_error and "maps of instances hold 0 and 255 only" in found.message
    numbered = folder_facts(tmp_path, [LABELS * 255, LABELS * 7], ["wall", "crack"], **options)
    assert find_problems([numbered]) == []


@pytest.mark.parametrize("instances", [False, True])
def test_images_that_share_a_label_map(tmp_path, instances):
    (tmp_path / "images/inner").mkdir(parents=True)
    (tmp_path / "masks").mkdir()
    for number, name in enumerate(("a", "b", "inner/a")):
        Image.fromarray(image(number)).save(tmp_path / f"images/{name}.png")
        Image.fromarray(LABELS).save(tmp_path / f"masks/{name[-1]}.png")
    options = {"root": tmp_path, "instances": instances, "background": "soil" if instances else None}
    reader = kmf.data.from_folders("images/**/*.png", "masks/{stem}.png", ["soil", "crop"], **options)
    (found,) = find_problems([read_facts(reader, "train", progress=False)])
    assert not found.is_error and "2 images share 1 label maps: " in found.message
    assert f"{tmp_path / 'masks/a.png'} belongs to 2 images" in found.message


def test_labels_that_count_from_1(tmp_path):
    split = folder_facts(tmp_path, [LABELS + 1, LABELS * 2], ["soil", "crop"])
    found = find_problems([split])
    assert found[0].is_error and "label maps hold 0..2, one value more than there are classes (2)" in found[0].message
    assert any("Received: [2]" in finding.message and "masks/0.png" in finding.message for finding in found)


def test_labels_outside_the_class_list_and_broken_files(tmp_path):
    split = folder_facts(tmp_path, [LABELS, LABELS + 40, LABELS], ["soil", "crop"])
    (tmp_path / "images/2.png").write_text("no image")
    (tmp_path / "masks/0.png").unlink()
    reader = kmf.data.from_folders(tmp_path / "images", tmp_path / "masks", ["soil", "crop"], on_error="skip")
    split = read_facts(reader, "train", progress=False)
    errors = [finding.message for finding in find_problems([split]) if finding.is_error]
    assert len(errors) == 4 and "none of the samples can be used" in errors
    for name, reason in (("0.png", "no such label map"), ("1.png", "[40, 41]"), ("2.png", "in no known image format")):
        assert any(name in error and reason in error for error in errors)


def test_empty_masks_are_a_warning_and_an_error_where_all_are():
    void = np.full((4, 4), 255, np.uint8)
    some = find_problems([facts([(image(0), LABELS), (image(1), void)])])
    assert messages(some) == [
        "warning: train: 1 of 2 images have no segment, all of them unlabelled: 1",
    ]
    every = find_problems([facts([(image(0), void), (image(1), void)])])
    assert every[0].is_error and "2 of 2 images have no segment" in every[0].message


def test_more_segments_than_queries():
    found = find_problems([facts([(image(0), LABELS), (image(1), LABELS * 0)])], num_queries=1)
    assert "1 images have more segments than the model has queries (1), up to 2 (0)" in messages(found)[0]
    assert not found[0].is_error


def test_classes_sizes_and_the_model():
    split = facts([(image(0), LABELS)], classes=("soil", "crop", "weed"))
    found = messages(find_problems([split], num_classes=2, least_size=(8, 4)))
    assert found[0] == "error: train: the model has 2 classes and the dataset 3: set model.num_classes"
    assert any("1 of 1 images are smaller than the crop (8, 4)" in message for message in found)
    assert any("1 of 3 classes occur in no image (it can never be learnt): weed" in message for message in found)


def test_images_that_occur_twice():
    train = facts([(image(0), LABELS), (image(1), LABELS), (image(1), LABELS)])
    val = facts([(image(0), LABELS), (image(7), LABELS)], "val")
    found = messages(find_problems([train, val]))
    assert "warning: train: 1 images occur more than once: 1 = 2" in found
    assert "warning: val: 1 images are also in train, so that scores come out too high: 0 = 0" in found


def test_report_and_contact_sheet(tmp_path):
    reader = kmf.data.from_examples([(image(120, 40, 60), np.ones((40, 60), np.uint8))], ["<soil>", "crop"])
    split = read_facts(reader, "train", progress=False)
    sheet = draw_contact_sheet(reader, split)
    write_report(tmp_path / "report.html", [split], find_problems([split]), {"train": sheet})
    text = (tmp_path / "report.html").read_text()
    assert "Training can start." in text and "&lt;soil&gt;" in text and "<soil>" not in text
    assert "data:image/jpeg;base64," in text and sheet.width > 700
    broken = read_facts(kmf.data.from_examples([(image(0), LABELS + 9)], ["soil"]), "train", progress=False)
    write_report(tmp_path / "report.html", [broken], find_problems([broken]), {})
    assert "Training cannot start" in (tmp_path / "report.html").read_text()
    with pytest.raises(ValueError, match="at least one image"):
        draw_contact_sheet(reader, broken)
