"""Every row of the model zoo has a recipe, and each resolves to the numbers that were published.

The numbers are typed out here, not computed: a recipe that truncates a list otherwise is another recipe.
"""

from __future__ import annotations

import dataclasses

import pytest

from kmaskformer.checkpoints.releases import releases
from kmaskformer.config import config_to_dict, load_config
from kmaskformer.data.label_spaces import label_space

SIZES_512 = [256, 307, 358, 409, 460, 512, 563, 614, 665, 716, 768, 819, 870, 921, 972, 1024]
SIZES_640 = [320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960, 1024, 1088, 1152, 1216, 1280]
SIZES_640_SHORT = [320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960]
SIZES_1024 = [512, 614, 716, 819, 921, 1024, 1126, 1228, 1331, 1433, 1536, 1638, 1740, 1843, 1945, 2048]
SIZES_2048 = [1024, 1228, 1433, 1638, 1843, 2048, 2252, 2457, 2662, 2867, 3072, 3276, 3481, 3686, 3891, 4096]
SIZES_COCO = [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800]
VIEWS_512 = ([256, 384, 512, 640, 768, 896], 3584)
VIEWS_640 = ([320, 480, 640, 800, 960, 1120], 4480)
VIEWS_1024 = ([512, 768, 1024, 1280, 1536, 1792], 4096)
NO_VIEWS = ([], 0)


@dataclasses.dataclass(frozen=True)
class Published:
    """A column of the table of recipes."""

    classes: str
    ignore: int
    sizes: list[int]
    longest: int
    test: tuple[int, int]
    crop: list[int]
    batch: int
    steps: int
    views: tuple[list[int], int]
    evaluate_every: int = 5000
    color: bool = True
    divisibility: int = 32


ADE20K = Published("ade20k_150", 0, SIZES_512, 2048, (512, 2048), [512, 512], 16, 160_000, VIEWS_512)
ADE20K_640 = dataclasses.replace(
    ADE20K, sizes=SIZES_640, longest=2560, test=(640, 2560), crop=[640, 640], views=VIEWS_640
)
COCO = Published(
    "coco_panoptic_133", 255, SIZES_COCO, 1333, (800, 1333), [], 64, 554_400, NO_VIEWS, 0, color=False, divisibility=0
)
RECIPES = {
    "ade20k150": ADE20K,
    "swin_base_ade20k150": ADE20K_640,
    "swin_large_ade20k150": ADE20K_640,
    "ade20k_full847": Published(
        "ade20k_full_847", 65535, SIZES_512, 2048, (512, 2048), [512, 512], 16, 200_000, NO_VIEWS
    ),
    "coco_stuff171": Published(
        "coco_stuff_171", 255, SIZES_640_SHORT, 2560, (640, 2560), [640, 640], 32, 60_000, VIEWS_640
    ),
    "cityscapes19": Published(
        "cityscapes_19", 255, SIZES_1024, 4096, (1024, 2048), [512, 1024], 16, 90_000, VIEWS_1024
    ),
    "mapillary65": Published(
        "mapillary_vistas_65", 65, SIZES_2048, 8192, (2048, 2048), [1280, 1280], 16, 300_000, NO_VIEWS
    ),
    "coco_panoptic133": COCO,
    "swin_large_coco_panoptic133": dataclasses.replace(COCO, longest=1000),
    "ade20k_panoptic150": dataclasses.replace(ADE20K_640, steps=720_000, views=NO_VIEWS, evaluate_every=0),
}
NUM_CLASSES = {
    "ade20k_150": 150,
    "ade20k_full_847": 847,
    "coco_stuff_171": 171,
    "cityscapes_19": 19,
    "mapillary_vistas_65": 65,
    "coco_panoptic_133": 133,
}
RELEASES = {release.name: release for release in releases()}


@pytest.fixture(params=RELEASES)
def release(request):
    return RELEASES[request.param]


@pytest.fixture()
def config(release, repository):
    return load_config(repository / release.config)


def recipe_of(release):
    """The longest name that the release's ends in."""
    return RECIPES[max((name for name in RECIPES if release.name.endswith(name)), key=len)]


def test_every_row_of_the_zoo_is_there():
    kinds = [(release.dataset, release.task) for release in RELEASES.values()]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        ("ade20k", "semantic"): 9,
        ("coco_stuff", "semantic"): 5,
        ("ade20k_full", "semantic"): 5,
        ("cityscapes", "semantic"): 2,
        ("mapillary", "semantic"): 1,
        ("coco", "panoptic"): 6,
        ("ade20k", "panoptic"): 2,
    }


def test_data(release, config):
    published, data = recipe_of(release), config.data
    augmentation = data.augmentation
    assert list(augmentation.shortest_edges) == published.sizes
    assert augmentation.longest_edge == published.longest
    assert list(augmentation.crop) == published.crop
    assert augmentation.color == published.color
    assert augmentation.horizontal_flip and not augmentation.vertical_flip and not augmentation.scale_range
    assert augmentation.drop_empty_segments == (release.task == "semantic")
    assert augmentation.map_resize == ("floor" if release.task == "semantic" else "center")
    assert augmentation.range_crop == ((384, 600) if release.dataset == "coco" else ())
    # It is on everywhere in the reference; where all images are crops of one size it would change nothing.
    assert config.data.aspect_ratio_grouping == (release.dataset == "coco") == (not augmentation.crop)
    assert (augmentation.range_crop_edges, augmentation.range_crop_probability) == ((400, 500, 600), 0.5)
    assert augmentation.largest_class == 1.0 and not augmentation.jitter_range
    assert (data.test_shortest_edge, data.test_longest_edge) == published.test
    assert (data.batch_size, data.test_batch_size) == (published.batch, 1)


def test_label_space(release, config):
    published = recipe_of(release)
    info = label_space(release.label_space)
    assert release.label_space == published.classes and info.ignore_value == published.ignore
    assert config.model.num_classes == info.num_classes == NUM_CLASSES[published.classes]
    if config.data.source == "semantic_folder":
        assert config.data.classes == published.classes and config.data.ignore_value == -1


def test_schedule(release, config):
    published, optimizer = recipe_of(release), config.optimizer
    is_swin = "swin" in release.backbone
    assert (optimizer.name, optimizer.clip_norm) == ("adamw", 0.01)
    rates = (optimizer.learning_rate, optimizer.weight_decay, optimizer.backbone_multiplier)
    assert rates == ((6e-5, 0.01, 1.0) if is_swin else (1e-4, 1e-4, 0.1))
    warmup = (optimizer.schedule.warmup_steps, optimizer.schedule.warmup_factor)
    assert warmup == ((1500, 1e-6) if is_swin else (0, 1.0))
    if release.dataset == "coco":
        assert (optimizer.schedule.name, optimizer.schedule.milestones) == ("multistep", (369_600,))
        assert optimizer.schedule.gamma == 0.1
    else:
        assert (optimizer.schedule.name, optimizer.schedule.power) == ("poly", 0.9)
    training = config.training
    assert training.steps == optimizer.schedule.total_steps == published.steps
    assert (training.evaluate_every, training.checkpoint_every) == (published.evaluate_every, 5000)


def test_model(release, config):
    model, decoder = config.model, config.model.transformer_decoder
    assert (model.name, model.backbone.name) == (release.model, release.backbone)
    assert model.backbone.norm == "frozen" and model.backbone.frozen_stages == 0
    assert model.backbone.drop_path_rate == 0.3 and not model.backbone.absolute_position_embedding
    assert model.backbone.pretrain_image_size == (384 if release.backbone in ("swin_base", "swin_large") else 224)
    encodes = release.task == "panoptic" and release.backbone.startswith("resnet")
    assert model.pixel_decoder.name == ("transformer_fpn" if encodes else "fpn")
    assert (model.pixel_decoder.conv_dim, model.pixel_decoder.mask_dim, model.pixel_decoder.norm) == (256, 256, "group")
    assert model.pixel_decoder.encoder_layers == 6
    assert decoder.in_feature == ("transformer_encoder" if encodes else "res5")
    assert decoder.num_queries == (model.num_classes if model.name == "per_pixel_plus" else 100)
    assert (decoder.hidden_dim, decoder.num_heads, decoder.feedforward_dim) == (256, 8, 2048)
    assert (decoder.encoder_layers, decoder.decoder_layers, decoder.dropout, decoder.pre_norm) == (0, 6, 0.1, False)
    assert decoder.enforce_input_projection == (release.dataset == "coco" and not encodes)
    assert model.deep_supervision and model.precision == "float32"
    # -1 asks the backbone, and ResNets ask for no multiple.
    assert model.size_divisibility == (-1 if model.name != "maskformer" else recipe_of(release).divisibility)
    assert model.pixel_mean == (123.675, 116.28, 103.53) and model.pixel_std == (58.395, 57.12, 57.375)


def test_loss(release, config):
    loss = config.loss
    assert loss.cross_entropy_weight == 1.0 and loss.deep_supervision and loss.mask_stride == 1 and not loss.num_points
    if release.model != "maskformer":
        assert loss.name == "per_pixel"
        return
    assert (loss.name, loss.matcher) == ("mask_classification", "in_graph")
    assert (loss.mask_weight, loss.dice_weight, loss.no_object_weight) == (20.0, 1.0, 0.1)
    assert (loss.cost_class, loss.cost_mask, loss.cost_dice) == (1.0, 20.0, 1.0)


def test_evaluation(release, config):
    evaluation = config.evaluation
    sizes, longest = recipe_of(release).views
    views = evaluation.augmentation
    assert (list(views.shortest_edges), views.longest_edge) == (sizes, longest)
    assert views.flip and views.resize_twice and not (views.enabled and sizes)
    assert evaluation.inference == "default"
    # The reference restores mask logits before the semantic inference of its panoptic models, class scores otherwise.
    assert evaluation.before_inference == (release.task == "panoptic")
    if release.task == "semantic":
        assert evaluation.metrics == ("semantic",)
        return
    assert evaluation.metrics == (("panoptic",) if release.dataset == "coco" else ("panoptic", "semantic"))
    assert evaluation.object_mask_threshold == (0.8 if release.dataset == "coco" else 0.7)
    assert evaluation.overlap_threshold == 0.8


def test_the_table_of_presets_agrees(release, config):
    """Model, sizes and threshold of a preset are those of its recipe."""
    preset = release.config_values()["model"]
    recipe = config_to_dict(config.model)
    recipe["size_divisibility"] = max(0, recipe["size_divisibility"])
    for field in ("name", "num_classes", "size_divisibility"):
        assert preset[field] == recipe[field]
    for section in ("backbone", "pixel_decoder", "transformer_decoder"):
        assert preset[section].items() <= recipe[section].items()
    assert (release.shortest_edge, release.longest_edge) == (
        config.data.test_shortest_edge,
        config.data.test_longest_edge,
    )
    if release.task == "panoptic":
        assert release.object_mask_threshold == config.evaluation.object_mask_threshold
        assert release.thing_ids == label_space(release.label_space).thing_ids


def test_header(release, repository):
    """Recipe, hardware, published and own score, command."""
    first, second, third, *_ = (repository / release.config).read_text().splitlines()
    assert first.startswith("# ") and first.endswith(f"; the preset {release.name}.")
    hardware = "64 V100" if release.dataset == "coco" else "8 V100"
    assert second.startswith(f"# Published, on {hardware}: {release.score.split(' (')[0]}")
    assert release.mIoU_ms_flip is None or f", {release.mIoU_ms_flip} with test-time augmentation" in second
    assert "By this package: " in second
    assert third == f"# python scripts/train.py --config {release.config} --output RUN"
