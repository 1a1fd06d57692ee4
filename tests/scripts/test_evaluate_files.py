"""The script that scores files, from its arguments to its metrics.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from kmaskformer.data.run_lengths import encode_mask
from kmaskformer.evaluation import score_files
from kmaskformer.evaluation.files import PanopticWriter, instance_record, write_instances, write_label_map
from kmaskformer.structures import DatasetInfo

INFO = DatasetInfo("toy", ("person", "sky"), thing_ids=(0,), dataset_ids=(1, 187))
TRUTH = np.array([[1, 1, 2, 2]] * 2, np.int32)
SEGMENTS = [{"id": 1, "category_id": 0}, {"id": 2, "category_id": 1}]


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("evaluate_files")


def write_panoptic(path, *maps, folder=None, segments=SEGMENTS):
    writer = PanopticWriter(path, INFO, folder)
    for image_id, segmentation in enumerate(maps):
        writer.add(str(image_id), segmentation, segments)
    return str(writer.save())


@pytest.fixture()
def panoptic(tmp_path):
    """Truth and predictions; the second image's segments have their classes exchanged."""
    truth = write_panoptic(tmp_path / "truth.json", TRUTH, TRUTH)
    predictions = write_panoptic(tmp_path / "predictions.json", TRUTH, 3 - TRUTH, folder=tmp_path / "elsewhere")
    return ["--truth", truth, "--predictions", predictions, "--predictions-folder", str(tmp_path / "elsewhere")]


def run(script, tmp_path, *arguments):
    """The scores, or the exit status of a script that ends in an error, which is then printed."""
    try:
        status = script.main([*arguments, "--output", str(tmp_path / "out" / "metrics.json")])
    except SystemExit as exit_:
        if isinstance(exit_.code, int):
            raise
        print(exit_.code, file=sys.stderr)
        status = 1
    return json.loads((tmp_path / "out" / "metrics.json").read_text()) if status == 0 else status


def test_panoptic(script, tmp_path, panoptic, capsys):
    scores = run(script, tmp_path, "panoptic", *panoptic)
    # Of each class one segment is found, one missed and one invented.
    assert scores["panoptic/PQ"] == scores["panoptic/PQ_things"] == scores["panoptic/PQ/sky"] == 0.5
    assert scores["panoptic/SQ"] == 1.0 and scores["panoptic/FN/person"] == 1
    assert "panoptic/PQ         0.5000" in capsys.readouterr().out


def test_an_option_without_effect_is_said(script, tmp_path, panoptic, capsys):
    assert run(script, tmp_path, "panoptic", *panoptic, "--classes", "2")["panoptic/PQ"] == 0.5
    assert "--classes has no effect on panoptic scores" in capsys.readouterr().err
    run(script, tmp_path, "panoptic", *panoptic)
    assert "no effect" not in capsys.readouterr().err


def test_semantic_from_panoptic_files(script, tmp_path, panoptic):
    scores = run(script, tmp_path, "semantic", *panoptic)
    assert scores["semantic/IoU/sky"] == scores["semantic/mIoU"] == pytest.approx(1 / 3)


def test_semantic(script, tmp_path, capsys):
    write_label_map(tmp_path / "truth" / "a" / "x.png", np.array([[0, 1, 255, 1]]))
    write_label_map(tmp_path / "predictions" / "a" / "x.png", np.array([[0, 1, 0, 255]]))
    folders = ["--truth", str(tmp_path / "truth"), "--predictions", str(tmp_path / "predictions"), "--classes", "2"]
    scores = run(script, tmp_path, "semantic", *folders)
    assert scores["semantic/mIoU"] == scores["semantic/mIoU_truth_classes"] == pytest.approx((1 + 1 / 2) / 2)
    scores = run(script, tmp_path, "semantic", *folders, "--void-to-class", "0")
    assert scores["semantic/IoU/class 0"] == pytest.approx(1 / 2)
    assert "semantic/mIoU" in capsys.readouterr().out


def test_more_than_255_classes_are_ignored_at_65535(script, tmp_path):
    write_label_map(tmp_path / "maps" / "x.png", np.array([[0, 846, 255, 65535]]))
    folder = str(tmp_path / "maps")
    arguments = ["semantic", "--truth", folder, "--predictions", folder, "--classes", "847"]
    assert run(script, tmp_path, *arguments)["semantic/pACC"] == 1.0
    assert run(script, tmp_path, *arguments, "--ignore", "846") == 1


def test_instance(script, tmp_path):
    pytest.importorskip("pycocotools")
    mask = np.zeros((20, 20), bool)
    mask[4:15, 3:12] = True
    annotation = {"id": 1, "image_id": 5, "category_id": 1, "iscrowd": 0, "area": 99}
    truth = {
        "images": [{"id": 5, "height": 20, "width": 20}],
        "annotations": [{**annotation, "segmentation": encode_mask(mask)}],
        "categories": [{"id": 1, "name": "person"}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    write_instances(tmp_path / "results.json", [instance_record("5", 1, 0.8, mask)])
    files = ["--truth", str(tmp_path / "truth.json"), "--predictions", str(tmp_path / "results.json")]
    scores = run(script, tmp_path, "instance", *files)
    for key in ("AP", "AP75", "AP/person"):
        assert scores[f"instance/{key}"] == pytest.approx(1.0)
    assert scores["instance/APl"] is None and "box/AP" not in scores


def test_label_folders_need_the_number_of_classes(script, capsys):
    with pytest.raises(SystemExit):
        script.main(["semantic", "--truth", "a", "--predictions", "b"])
    assert "add --classes N" in capsys.readouterr().err


def test_wrong_files_end_with_one_line(script):
    with pytest.raises(SystemExit, match=r"^error: no\.json: no such JSON file$"):
        script.main(["panoptic", "--truth", "no.json", "--predictions", "no.json"])


def test_panoptic_files_that_do_not_fit(tmp_path):
    truth = write_panoptic(tmp_path / "truth.json", TRUTH, TRUTH)
    one = write_panoptic(tmp_path / "one.json", TRUTH)
    with pytest.raises(ValueError, match=r"one.json: every image .* Missing: 1 of 2, first image_id 1"):
        score_files.score_panoptic_files(truth, one)
    small = write_panoptic(tmp_path / "small.json", TRUTH, TRUTH[:1])
    with pytest.raises(ValueError, match=r"image 1: .*small/1.png against .*truth/1.png: .* must have the same size"):
        score_files.score_panoptic_files(truth, small)
    unlisted = tmp_path / "unlisted.json"
    content = json.loads(Path(write_panoptic(unlisted, TRUTH, TRUTH)).read_text())
    del content["annotations"][0]["segments_info"][1]
    unlisted.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"image 0: .* table lacks: \[2\]"):
        score_files.score_panoptic_files(truth, unlisted)
    with pytest.raises(ValueError, match=r"image 0: .* table lacks: \[2\]"):
        score_files.score_semantic_from_panoptic(truth, unlisted)
    as_text = json.loads(Path(one).read_text())
    as_text["annotations"][0]["image_id"] = "0"
    Path(one).write_text(json.dumps(as_text))
    with pytest.raises(ValueError, match=r"Missing: 2 of 2, first image_id 0; those predicted are such as '0'"):
        score_files.score_panoptic_files(truth, one)
    with pytest.raises(ValueError, match="truth must have at least one annotation"):
        score_files.score_panoptic_files(write_panoptic(tmp_path / "none.json"), truth)


def test_categories_that_do_not_fit(tmp_path):
    truth = write_panoptic(tmp_path / "truth.json", TRUTH)
    content = json.loads((tmp_path / "truth.json").read_text())
    content["annotations"][0]["segments_info"][0]["category_id"] = 99
    (tmp_path / "other.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"other.json: segments must have a category of the truth.*\[99\]"):
        score_files.score_panoptic_files(truth, tmp_path / "other.json", predictions_folder=tmp_path / "truth")
    (tmp_path / "bare.json").write_text(json.dumps({"annotations": content["annotations"]}))
    with pytest.raises(ValueError, match=r"bare.json: the truth must list `categories`"):
        score_files.score_panoptic_files(tmp_path / "bare.json", truth, truth_folder=tmp_path / "truth")


def test_label_folders_that_do_not_fit(tmp_path):
    truth = tmp_path / "truth"
    with pytest.raises(FileNotFoundError, match="truth: no such folder of label PNGs"):
        score_files.score_semantic_folders(truth, tmp_path, 2)
    truth.mkdir()
    with pytest.raises(FileNotFoundError, match=r"expected label PNGs. Received: a folder without any"):
        score_files.score_semantic_folders(truth, tmp_path, 2)
    write_label_map(truth / "x.png", np.array([[0, 7]]))
    with pytest.raises(FileNotFoundError, match=r"needs a prediction of the same name. Missing: 1 of 1, first x.png"):
        score_files.score_semantic_folders(truth, tmp_path, 2)
    with pytest.raises(ValueError, match=r"x.png against .*x.png: Truth must hold class ids 0..1 .*\[7\]"):
        score_files.score_semantic_folders(truth, truth, 2)


def changed(path, destination, change):
    """A copy of a JSON after `change` of its content; its PNGs stay where they are."""
    content = json.loads(path.read_text())
    change(content)
    destination.write_text(json.dumps(content))
    return destination


def test_panoptic_annotations_that_are_no_annotations(tmp_path):
    truth, folder = write_panoptic(tmp_path / "truth.json", TRUTH), tmp_path / "truth"

    def refused(change, message):
        path = changed(tmp_path / "truth.json", tmp_path / "wrong.json", change)
        with pytest.raises(ValueError, match=rf"wrong.json: {message}"):
            score_files.score_panoptic_files(truth, path, predictions_folder=folder)

    refused(lambda c: c["annotations"].append(c["annotations"][0]), "each image needs one annotation.*several of .* 0")
    refused(lambda c: c["annotations"][0]["segments_info"][0].pop("id"), "each segment needs whole numbers `id`")
    refused(lambda c: c["annotations"].append("x"), "each panoptic annotation needs .*Received keys: str")


def test_a_json_that_names_the_photographs_finds_their_pngs(tmp_path):
    truth = write_panoptic(tmp_path / "truth.json", TRUTH)
    named = changed(
        tmp_path / "truth.json", tmp_path / "jpg.json", lambda c: c["annotations"][0].update(file_name="0.jpg")
    )
    assert score_files.score_panoptic_files(truth, named, predictions_folder=tmp_path / "truth")["panoptic/PQ"] == 1.0
    lost = changed(
        tmp_path / "truth.json", tmp_path / "lost.json", lambda c: c["annotations"][0].update(file_name="7.png")
    )
    with pytest.raises(FileNotFoundError, match=r"truth/7.png: no such panoptic PNG file"):
        score_files.score_panoptic_files(truth, lost, predictions_folder=tmp_path / "truth")


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_panoptic_pngs_with_alpha_or_a_palette(tmp_path, mode):
    from PIL import Image

    truth = write_panoptic(tmp_path / "truth.json", TRUTH)
    predictions = write_panoptic(tmp_path / "predictions.json", TRUTH)
    path = tmp_path / "predictions" / "0.png"
    image = Image.open(path)
    image = image.convert("RGBA") if mode == "RGBA" else image.quantize(4, dither=Image.Dither.NONE)
    image.save(path)
    assert Image.open(path).mode == mode
    assert score_files.score_panoptic_files(truth, predictions)["panoptic/PQ"] == 1.0


def test_nothing_true_and_nothing_predicted(tmp_path):
    void = np.zeros((2, 4), np.int32)
    full = write_panoptic(tmp_path / "full.json", TRUTH)
    empty = write_panoptic(tmp_path / "empty.json", void, segments=[])
    missed = score_files.score_panoptic_files(full, empty)
    assert missed["panoptic/PQ"] == missed["panoptic/PQ_stuff"] == 0.0 and missed["panoptic/FN/sky"] == 1
    assert score_files.score_semantic_from_panoptic(full, empty)["semantic/mIoU"] == 0.0
    free = score_files.score_panoptic_files(empty, full)
    # All that is predicted lies on void, which is no fault: nothing counts, and nothing is defined.
    assert np.isnan(free["panoptic/PQ"]) and free["panoptic/FP/sky"] == 0
    assert np.isnan(score_files.score_semantic_from_panoptic(empty, full)["semantic/mIoU"])


def test_label_maps_are_found_whatever_their_ending(script, tmp_path, capsys):
    from PIL import Image

    labels = np.array([[0, 1, 255, 1]], np.uint8)
    for folder, name in (("truth", "a/x.PNG"), ("predictions", "a/x.tif"), ("predictions", "a/y.png")):
        (tmp_path / folder / "a").mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels).save(tmp_path / folder / name)
    folders = ["--truth", str(tmp_path / "truth"), "--predictions", str(tmp_path / "predictions"), "--classes", "2"]
    assert run(script, tmp_path, "semantic", *folders)["semantic/mIoU"] == 1.0
    assert "1 label maps of other images than the truth's are ignored" in capsys.readouterr().err
    Image.fromarray(labels).save(tmp_path / "predictions" / "a" / "x.bmp")
    assert run(script, tmp_path, "semantic", *folders) == 1
    assert "needs one prediction" in capsys.readouterr().err


def test_label_maps_of_every_kind_of_png(script, tmp_path, capsys):
    from PIL import Image

    labels = np.array([[0, 1, 255, 2]], np.uint8)
    (tmp_path / "truth").mkdir()
    (tmp_path / "predictions").mkdir()
    Image.fromarray(labels).save(tmp_path / "truth" / "x.png")
    folders = ["--truth", str(tmp_path / "truth"), "--predictions", str(tmp_path / "predictions"), "--classes", "3"]
    palette = Image.fromarray(labels)
    palette.putpalette([7, 7, 7, 9, 9, 9, 11, 11, 11])
    grey = np.repeat(labels[..., None], 4, axis=-1)
    grey[..., 3] = 255
    kinds = (palette, Image.fromarray(labels.astype(np.uint16)), Image.fromarray(grey), Image.fromarray(grey[..., :3]))
    for image in kinds:
        image.save(tmp_path / "predictions" / "x.png")
        assert run(script, tmp_path, "semantic", *folders)["semantic/mIoU"] == 1.0, image.mode
    grey[0, 1, 0] = 200
    Image.fromarray(grey).save(tmp_path / "predictions" / "x.png")
    assert run(script, tmp_path, "semantic", *folders) == 1
    assert "x.png: a label map must have one channel" in capsys.readouterr().err
    Image.fromarray(labels[:, :2]).save(tmp_path / "predictions" / "x.png")
    assert run(script, tmp_path, "semantic", *folders) == 1
    assert "predictions/x.png against " in capsys.readouterr().err


def test_a_wrong_output_is_refused_before_anything_is_read(script, capsys):
    with pytest.raises(SystemExit):
        script.main(["panoptic", "--truth", "a", "--predictions", "b", "--output", "scores.txt"])
    assert "--output must end in .json or .csv: scores.txt" in capsys.readouterr().err


def label_maps(tmp_path, true, predicted, true_name="x.png", predicted_name="x.png"):
    """Two folders with a label map each, as arguments."""
    write_label_map(tmp_path / "truth" / true_name, np.array([true]))
    write_label_map(tmp_path / "predictions" / predicted_name, np.array([predicted]))
    return ["semantic", "--truth", str(tmp_path / "truth"), "--predictions", str(tmp_path / "predictions")]


def test_a_label_space_reads_the_ids_of_the_dataset(script, tmp_path, capsys):
    """What predict.py writes: ADE20K's classes are 1..150, and 0 is unlabelled."""
    arguments = label_maps(tmp_path, [1, 1, 150, 0], [1, 150, 150, 1])
    assert run(script, tmp_path, *arguments, "--classes", "150") == 1
    assert "--label-space" in capsys.readouterr().err
    scores = run(script, tmp_path, *arguments, "--label-space", "ade20k_150")
    assert scores["semantic/IoU/wall"] == scores["semantic/IoU/flag"] == 0.5
    assert scores["semantic/pACC"] == pytest.approx(2 / 3)
    with pytest.raises(SystemExit):
        script.main([*arguments, "--label-space", "ade20k_150", "--classes", "150"])
    assert "leave --classes out" in capsys.readouterr().err


def test_a_label_space_of_a_file(script, tmp_path, capsys):
    (tmp_path / "classes.json").write_text(
        json.dumps({"classes": [{"id": 3, "name": "soil"}, {"id": 700, "name": "crop"}], "ignore": 9})
    )
    arguments = [*label_maps(tmp_path, [3, 700, 9, 3], [3, 3, 3, 65535]), "--label-space", "absent.json"]
    assert run(script, tmp_path, *arguments) == 1
    assert "error: absent.json: no such class table" in capsys.readouterr().err
    arguments[-1] = str(tmp_path / "classes.json")
    scores = run(script, tmp_path, *arguments)
    assert scores["semantic/IoU/soil"] == pytest.approx(1 / 3) and scores["semantic/IoU/crop"] == 0
    label_maps(tmp_path, [3, 4, 9, 3], [3, 3, 3, 3])
    assert run(script, tmp_path, *arguments) == 1
    assert "truth/x.png: the truth must hold ids of the 2 classes" in capsys.readouterr().err


def test_ids_of_another_kind_are_noticed(script, tmp_path, capsys):
    """Class numbers where the dataset's ids are expected: 0 is a class there, and 255 unlabelled."""
    arguments = [*label_maps(tmp_path, [0, 1, 255, 1], [0, 1, 1, 1]), "--label-space", "ade20k_150"]
    run(script, tmp_path, *arguments)
    assert "truth: both 0 and 255 occur, and both are unlabelled in 'ade20k_150'" in capsys.readouterr().err
    label_maps(tmp_path, [1, 1, 2, 2], [0, 0, 0, 2])
    run(script, tmp_path, *arguments)
    assert "75% of the labelled pixels are predicted to be of no class" in capsys.readouterr().err
    label_maps(tmp_path, [1, 1, 2, 0], [1, 2, 2, 2])
    run(script, tmp_path, *arguments)
    assert capsys.readouterr().err == ""


def test_cityscapes_files_as_they_unpack(script, tmp_path):
    """Of 34 ids 19 are evaluated, and the others unlabelled; names have city, sequence and frame in common."""
    name = "ulm_000001_000019"
    true, predicted = f"ulm/{name}_gtFine_labelIds.png", f"{name}_leftImg8bit.png"
    arguments = label_maps(tmp_path, [7, 0, 29, 3, 8], [7, 8, 7, 8, 8], true, predicted)
    write_label_map(tmp_path / "truth" / "ulm" / f"{name}_gtFine_instanceIds.png", np.array([[24000]]))
    scores = run(script, tmp_path, *arguments, "--label-space", "cityscapes_19")
    assert scores["semantic/IoU/road"] == scores["semantic/IoU/sidewalk"] == 1.0
    assert scores["semantic/mIoU_truth_classes"] == 1.0


def test_an_output_that_cannot_be_written_is_noticed_before_anything_is_scored(script, tmp_path, panoptic, monkeypatch):
    monkeypatch.setattr(script, "score", lambda options: pytest.fail("scored"))
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file" / "metrics.json", tmp_path / "folder.json"):
        if output.name == "folder.json":
            output.mkdir()
        with pytest.raises(SystemExit, match=r"error: .*(file|folder\.json)"):
            script.main(["panoptic", *panoptic, "--output", str(output)])


def test_a_truth_without_a_labelled_pixel_is_noticed(script, tmp_path, capsys):
    for folder in ("truth", "predictions"):
        write_label_map(tmp_path / folder / "a.png", np.full((2, 2), 255))
    arguments = ["--truth", str(tmp_path / "truth"), "--predictions", str(tmp_path / "predictions"), "--classes", "2"]
    assert run(script, tmp_path, "semantic", *arguments)["semantic/mIoU"] is None
    assert "warning: every score is undefined" in capsys.readouterr().err
