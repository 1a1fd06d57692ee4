"""The table of published models against the facts of the model zoo and against the recipes."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from kmaskformer.checkpoints.releases import find_release, release_of_file, release_of_repository, releases
from kmaskformer.config import config_from_dict, load_config
from kmaskformer.data.label_spaces import label_space
from kmaskformer.presets import build_release

RELEASES = {release.name: release for release in releases()}


def test_thirty_rows_with_systematic_names():
    assert len(RELEASES) == len(releases()) == 30
    for name, release in RELEASES.items():
        task = "_panoptic" if release.task == "panoptic" else ""
        assert name == f"{release.model}_{release.backbone}_{release.dataset}{task}{release.num_classes}"
        assert release.license == "cc-by-nc-4.0"
        assert release.file_name == f"model_final_{release.md5_prefix}.pkl"
        assert re.fullmatch("[0-9a-f]{6}", release.md5_prefix)
        assert release.url.startswith("https://dl.fbaipublicfiles.com/maskformer/")
        assert (release.PQ is None) == (release.task == "semantic") == (release.mIoU is not None)


def test_rows_equal_the_model_zoo(shared_folder):
    with open(shared_folder / "spec" / "zoo.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["url"] for row in rows] == [release.url for release in releases()]
    for row, release in zip(rows, releases(), strict=True):
        for column in ("mIoU", "mIoU_ms_flip", "PQ"):
            assert getattr(release, column) == (float(row[column]) if row[column] else None)
        assert release.md5_prefix == row["md5_prefix"]
        assert {"MaskFormer": "maskformer", "PerPixelBaseline": "per_pixel"}.get(
            row["name"], "per_pixel_plus"
        ) == release.model
        depth = re.search(r"_(R\d+c?|swin_[a-z]+)_", row["reference_config"])[1]
        assert release.backbone == depth.replace("R", "resnet")
        assert str(release.num_classes) in row["reference_config"] or release.dataset in ("coco", "ade20k")


def test_evaluation_sizes_and_padding():
    """Section 3.2 of the specification of the reference."""
    sizes = {
        "maskformer_resnet101c_ade20k150": (512, 2048, 32),
        "maskformer_swin_small_ade20k150": (512, 2048, 32),
        "maskformer_swin_base_ade20k150": (640, 2560, 32),
        "maskformer_swin_large_ade20k150": (640, 2560, 32),
        "maskformer_resnet50_ade20k_full847": (512, 2048, 32),
        "maskformer_resnet50_coco_stuff171": (640, 2560, 32),
        "maskformer_resnet101_cityscapes19": (1024, 2048, 32),
        "maskformer_resnet50_mapillary65": (2048, 2048, 32),
        "maskformer_resnet50_ade20k_panoptic150": (640, 2560, 32),
        "maskformer_resnet50_coco_panoptic133": (800, 1333, 0),
        "maskformer_swin_large_coco_panoptic133": (800, 1333, 0),
        "per_pixel_resnet50_ade20k150": (512, 2048, 0),
        "per_pixel_plus_resnet50_coco_stuff171": (640, 2560, 0),
    }
    for name, expected in sizes.items():
        release = RELEASES[name]
        assert (release.shortest_edge, release.longest_edge, release.size_divisibility) == expected, name


def test_things(shared_folder):
    assert RELEASES["maskformer_swin_tiny_coco_panoptic133"].thing_ids == tuple(range(80))
    with open(shared_folder / "spec" / "labels" / "ade20k_150.csv", encoding="utf-8", newline="") as file:
        things = tuple(i for i, row in enumerate(csv.DictReader(file)) if row["isthing"] == "1")
    assert RELEASES["maskformer_resnet50_ade20k_panoptic150"].thing_ids == things
    assert RELEASES["maskformer_resnet50_ade20k150"].thing_ids == ()


def test_sixteen_have_a_copy_on_the_hub():
    copies = {release.hub.removeprefix("facebook/maskformer-"): release.name for release in releases() if release.hub}
    assert len(copies) == 16
    assert copies["swin-large-coco"] == "maskformer_swin_large_coco_panoptic133"
    assert copies["resnet50-vistas"] == "maskformer_resnet50_mapillary65"
    assert copies["resnet101-ade20k-full"] == "maskformer_resnet101_ade20k_full847"
    # transformers has no deep stem, no transformer encoder in the pixel decoder and no per-pixel baseline.
    without = [release for release in releases() if not release.hub]
    assert {release.model for release in without if release.backbone == "resnet50" and release.task == "semantic"} == {
        "per_pixel",
        "per_pixel_plus",
    }
    assert all("resnet101c" in release.name or release.pixel_decoder == "transformer_fpn" for release in without[8:])


@pytest.mark.parametrize("name", RELEASES)
def test_architecture_equals_the_recipe(name, repository):
    release = RELEASES[name]
    recipe = load_config(repository / release.config)
    model = config_from_dict(release.config_values()).model
    # The projection that the recipe enforces is there anyway: Swin's res5 has not the decoder's 256 channels.
    decoder = {**vars(model.transformer_decoder), "enforce_input_projection": False}
    if release.model != "per_pixel":
        assert {**vars(recipe.model.transformer_decoder), "enforce_input_projection": False} == decoder
    # -1 asks for what the backbone needs: nothing, in the ResNets of the per-pixel baselines.
    rest = {"transformer_decoder": None, "size_divisibility": max(recipe.model.size_divisibility, 0)}
    assert {**vars(recipe.model), **rest} == {**vars(model), "transformer_decoder": None}
    assert recipe.data.test_shortest_edge == release.shortest_edge
    assert recipe.data.test_longest_edge == release.longest_edge
    if release.task == "panoptic":
        assert recipe.evaluation.object_mask_threshold == release.object_mask_threshold


# Section 1.6 of the specification of the reference, without the frozen batch norms.
PARAMETERS = {
    "per_pixel_resnet50_ade20k150": 31_033_942,
    "per_pixel_plus_resnet50_ade20k150": 41_228_736,
    "maskformer_resnet50_ade20k150": 41_254_743,
    "maskformer_resnet101_ade20k150": 60_194_647,
    "maskformer_resnet101c_ade20k150": 60_318_039,
    "maskformer_swin_tiny_ade20k150": 41_757_009,
    "maskformer_swin_small_ade20k150": 63_074_913,
    "maskformer_swin_base_ade20k150": 101_829_391,
    "maskformer_swin_large_ade20k150": 211_575_627,
    "maskformer_resnet50_coco_stuff171": 41_260_140,
    "maskformer_resnet50_ade20k_full847": 41_433_872,
    "maskformer_resnet50_mapillary65": 41_232_898,
    "maskformer_resnet50_coco_panoptic133": 45_012_038,
    "maskformer_resnet101_coco_panoptic133": 63_951_942,
    "maskformer_swin_tiny_coco_panoptic133": 41_752_640,
    "maskformer_swin_small_coco_panoptic133": 63_070_544,
    "maskformer_swin_base_coco_panoptic133": 101_825_022,
    "maskformer_swin_large_coco_panoptic133": 211_571_258,
    "maskformer_resnet50_ade20k_panoptic150": 45_016_407,
    "maskformer_resnet101_ade20k_panoptic150": 63_956_311,
    # By the rule there: 257 for each class more or less than 150; 256, a query, for per_pixel_plus.
    "per_pixel_resnet50_coco_stuff171": 31_039_339,
    "per_pixel_plus_resnet50_coco_stuff171": 41_234_112,
    "maskformer_resnet101_coco_stuff171": 60_200_044,
    "maskformer_resnet101c_coco_stuff171": 60_323_436,
    "per_pixel_resnet50_ade20k_full847": 31_213_071,
    "per_pixel_plus_resnet50_ade20k_full847": 41_407_168,
    "maskformer_resnet101_ade20k_full847": 60_373_776,
    "maskformer_resnet101c_ade20k_full847": 60_497_168,
    "maskformer_resnet101_cityscapes19": 60_160_980,
    "maskformer_resnet101c_cityscapes19": 60_284_372,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RELEASES)
def test_parameter_count(name, without_values):
    model = without_values(build_release, RELEASES[name])
    count = sum(variable.shape.num_elements() for variable in model.trainable_variables)
    assert count == PARAMETERS[name]
    assert model.num_classes == model.dataset_info.num_classes == RELEASES[name].num_classes


def test_score_in_words():
    assert RELEASES["maskformer_swin_tiny_ade20k150"].score == "mIoU 46.7 (48.8 multi-scale, mirrored)"
    assert RELEASES["maskformer_resnet50_ade20k_full847"].score == "mIoU 16.0"
    assert RELEASES["maskformer_resnet50_coco_panoptic133"].score == "PQ 46.5"


def test_lookup():
    release = find_release("maskformer_resnet50_ade20k150")
    assert release_of_repository("facebook/maskformer-resnet50-ade") is release
    assert release_of_repository("someone/else") is None
    assert release_of_file(Path("/data/model_final_d8dbeb.pkl")) is release
    assert release_of_file(Path("/data/model_final.pkl")) is None


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("maskformer_swin_tiny_ade20k", "maskformer_swin_tiny_ade20k150"),
        ("facebook/maskformer-swin-base-ade", "hf://facebook/maskformer-swin-base-ade"),
    ],
)
def test_unknown_name(name, suggestion):
    with pytest.raises(
        ValueError, match=rf"no such preset.* Did you mean .*{suggestion}.*\? Known presets: per_pixel_res"
    ):
        find_release(name)
    with pytest.raises(ValueError, match=r"no such folder\. Known presets: .*Otherwise give a folder"):
        find_release("zzz")


def test_every_release_names_its_classes():
    for release in releases():
        info = label_space(release.label_space)
        assert info.num_classes == release.num_classes
        assert set(release.thing_ids) <= set(info.thing_ids)
