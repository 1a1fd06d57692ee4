import dataclasses
from pathlib import Path

import keras
import numpy as np
import pytest
import yaml

from kmaskformer.build import build_criterion, build_model, build_optimizer
from kmaskformer.config import (
    Config,
    ConfigError,
    ModelConfig,
    config_from_dict,
    config_to_dict,
    differences,
    load_config,
    save_config,
)
from kmaskformer.models.pixel_decoder import FPNPixelDecoder

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIGS = sorted(path for path in (REPOSITORY / "configs").rglob("*.yaml") if path.name != "base.yaml")


@pytest.fixture()
def write(tmp_path):
    """Writes a configuration file and gives its path."""

    def write_file(text, name="config.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


def error_of(path, overrides=()):
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_empty_file_gives_the_defaults(write):
    config = load_config(write("# nothing\n"))
    assert config.model == ModelConfig()
    assert config.model.transformer_decoder.num_queries == 100 and config.loss.no_object_weight == 0.1


def test_values_are_read_into_their_types(write):
    config = load_config(
        write(
            """
            model:
              num_classes: 7
              backbone: {name: swin_tiny, drop_path_rate: 0}
              pixel_mean: [1, 2.5, 3]
            data:
              class_names: [sky, tree]
              augmentation: {shortest_edges: [64, 128], color: true}
            optimizer: {learning_rate: 6.0e-5}
            """
        )
    )
    assert config.model.num_classes == 7 and config.model.backbone.name == "swin_tiny"
    assert config.model.backbone.drop_path_rate == 0.0 and isinstance(config.model.backbone.drop_path_rate, float)
    assert config.model.pixel_mean == (1.0, 2.5, 3.0)
    assert config.data.class_names == ("sky", "tree")
    assert config.data.augmentation.shortest_edges == (64, 128) and config.data.augmentation.color is True
    assert config.optimizer.learning_rate == 6e-5


def test_configuration_is_constant():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().model.num_classes = 3


ERRORS = {
    "model: {num_clases: 3}": "model.num_clases: unknown field. Did you mean num_classes?",
    "model: {transformer_decoder: {num_querys: 3}}": (
        "model.transformer_decoder.num_querys: unknown field. Did you mean num_queries?"
    ),
    "modle: {}": "modle: unknown field. Did you mean model?",
    "loss: {zzz: 1}": "loss.zzz: unknown field. Known fields: name, cross_entropy_weight",
    "optimizer: {learning_rate: small}": "optimizer.learning_rate: must be a number. Received: 'small'",
    "model: {num_classes: 3.5}": "model.num_classes: must be an integer. Received: 3.5",
    "model: {num_classes: true}": "model.num_classes: must be an integer. Received: True",
    "model: {num_classes: null}": "model.num_classes: must be an integer. Received: None",
    "loss: {mask_weight: true}": "loss.mask_weight: must be a number. Received: True",
    "model: {deep_supervision: 1}": "model.deep_supervision: must be true or false. Received: 1",
    "data: {root: 3}": "data.root: must be text. Received: 3",
    "model: {backbone: resnet50}": "model.backbone: must be a mapping of fields. Received: 'resnet50'",
    "model:": "model: must be a mapping of fields. Received: None",
    "model: {backbone: {name: resnet5}}": (
        "model.backbone.name: must be one of resnet18, resnet34, resnet50, resnet101, resnet101c, swin_tiny, "
        "swin_small, swin_base, swin_large. Received: 'resnet5'. Did you mean resnet50?"
    ),
    "loss: {matcher: xyz}": "loss.matcher: must be one of in_graph, scipy, fixed. Received: 'xyz'.",
    "model: {pixel_mean: [1, 2]}": "model.pixel_mean: must have 3 entries. Received: [1, 2]",
    "model: {pixel_mean: 1}": "model.pixel_mean: must be a list. Received: 1",
    "model: {pixel_mean: [1, 2, x]}": "model.pixel_mean[2]: must be a number. Received: 'x'",
    "data: {image_size: [64]}": "data.image_size: must have 2 entries. Received: [64]",
    "data: {class_names: [a, 2]}": "data.class_names[1]: must be text. Received: 2",
    "evaluation: {metrics: [semantic, panoptc]}": (
        "panoptic_stuff, cityscapes. Received: 'panoptc'. Did you mean panoptic?"
    ),
    "data: {augmentation: {crop: [64]}}": "data.augmentation.crop: must have 2 entries or none. Received: [64]",
    "data: {augmentation: {scale_range: [1, 2, 3]}}": "data.augmentation.scale_range: must have 2 entries or none.",
    "data: {augmentation: {shortest_edges: [64], scale_range: [0.5, 2]}}": "choose the size; set one of them",
    "model: {num_classes: 0}": "model.num_classes: must be positive. Received: 0",
    "model: {transformer_decoder: {num_queries: -1}}": (
        "model.transformer_decoder.num_queries: must be positive. Received: -1"
    ),
    "data: {batch_size: 0}": "data.batch_size: must be positive. Received: 0",
    "training: {steps: 0}": "training.steps: must be positive. Received: 0",
    "optimizer: {learning_rate: -1}": "optimizer.learning_rate: must not be negative. Received: -1.0",
    "model: {size_divisibility: -2}": (
        "model.size_divisibility: must be a multiple to pad to, 0 for none, or -1 for the backbone's own. Received: -2"
    ),
    "[1, 2]": "must hold a mapping of sections. Received: list",
    "model: {num_classes: 3": "not valid YAML",
    "model: {num_classes: 3, num_classes: 4}": "not valid YAML: the key 'num_classes' is given twice",
    "loss: {}\nloss: {}": "not valid YAML: the key 'loss' is given twice",
    "model: !!python/object:os.system {}": "not valid YAML",
    "base: [a, b]": "base: must be the name of a file beside it. Received: ['a', 'b']",
    "base: absent.yaml": "absent.yaml: no such configuration file",
}


ERRORS |= {  # of test-time augmentation
    "evaluation: {metrics: [panoptic], augmentation: {shortest_edges: [64]}}": "evaluation.metrics must hold semantic",
    "evaluation: {augmentation: {shortest_edges: [0]}}": "evaluation.augmentation.shortest_edges: must be positive",
}
ERRORS |= {  # of quarter turns
    "data: {batch_shapes: [[64, 32]], augmentation: {quarter_turns: true}}": (
        "data.augmentation.quarter_turns: needs `data.batch_shapes` that hold images turned too. Received: [[64, 32]]"
    ),
    "data: {augmentation: {crop: [32, 64], quarter_turns: true}}": (
        "data.augmentation.quarter_turns: needs a square `crop`, or turned images would not fit. Received: [32, 64]"
    ),
}
ERRORS |= {  # of bounds of the longer side, where 0 is none
    "data: {augmentation: {longest_edge: -1}}": "data.augmentation.longest_edge: must not be negative. Received: -1",
    "data: {test_longest_edge: -1}": "data.test_longest_edge: must not be negative. Received: -1",
}
ERRORS |= {  # of tiles and numbers of layers
    "model: {pixel_decoder: {encoder_layers: -6}}": "model.pixel_decoder.encoder_layers: must not be negative",
    "model: {transformer_decoder: {encoder_layers: -1}}": "model.transformer_decoder.encoder_layers: must not be",
    "evaluation: {metrics: []}": "evaluation.metrics: must name what is measured",
    "evaluation: {tile_size: -1}": "evaluation.tile_size: must not be negative",
    "evaluation: {tile_size: 64, tile_overlap: 1.0}": "evaluation.tile_overlap: must be less than 1",
    "evaluation: {tile_overlap: 1.5}": "evaluation.tile_overlap: must lie in 0..1",
    "evaluation: {tile_size: 64, metrics: [instance]}": "evaluation.tile_size: tiles are put together for semantic and",
    "evaluation: {tile_size: 64, augmentation: {shortest_edges: [64]}}": "of one view only. Received: metrics",
}
ERRORS |= {  # of numbers of the optimizer and the loss
    "optimizer: {learning_rate: .inf}": "optimizer.learning_rate: must be a finite number. Received: inf",
    "optimizer: {learning_rate: .nan}": "optimizer.learning_rate: must be a finite number. Received: nan",
    "model: {pixel_mean: [1, 2, .nan]}": "model.pixel_mean: must be a finite number. Received: nan",
    "optimizer: {momentum: 1}": "optimizer.momentum: must be at least 0 and below 1. Received: 1.0",
    "optimizer: {momentum: -0.1}": "optimizer.momentum: must be at least 0 and below 1. Received: -0.1",
    "optimizer: {ema: 1}": "optimizer.ema: must be at least 0 and below 1. Received: 1.0",
    "optimizer: {backbone_multiplier: -1}": "optimizer.backbone_multiplier: must not be negative. Received: -1.0",
    "optimizer: {schedule: {total_steps: -1}}": "optimizer.schedule.total_steps: must not be negative. Received: -1",
    "optimizer: {schedule: {milestones: [9, 9]}}": (
        "optimizer.schedule.milestones: must be increasing and at least 1. Received: [9, 9]"
    ),
    "optimizer: {schedule: {milestones: [0, 9]}}": "must be increasing and at least 1. Received: [0, 9]",
    "loss: {num_points: -1}": "loss.num_points: must not be negative. Received: -1",
    "loss: {oversample_ratio: 0.5}": "loss.oversample_ratio: must be at least 1. Received: 0.5",
    "loss: {importance_ratio: 1.5}": "loss.importance_ratio: must lie in 0..1. Received: 1.5",
    "training: {seed: -1}": "training.seed: must lie in 0..4294967295. Received: -1",
    "training: {seed: 4294967296}": "training.seed: must lie in 0..4294967295. Received: 4294967296",
}
ERRORS |= {  # of channels
    "model: {pixel_decoder: {conv_dim: 48}}": (
        "model.pixel_decoder.conv_dim: must be a multiple of 32, the groups of norm group. Received: 48"
    ),
    "model: {pixel_decoder: {conv_dim: 0, norm: none}}": "model.pixel_decoder.conv_dim: must be positive. Received: 0",
    "model: {pixel_decoder: {mask_dim: -32}}": "model.pixel_decoder.mask_dim: must be positive. Received: -32",
}


@pytest.mark.parametrize("pixel_decoder", ["{conv_dim: 48, norm: none}", "{conv_dim: 32, mask_dim: 20}"])
def test_only_what_is_normalised_in_groups_needs_32_channels(write, pixel_decoder):
    decoder = load_config(write(f"model: {{pixel_decoder: {pixel_decoder}}}")).model.pixel_decoder
    layer = FPNPixelDecoder(decoder.conv_dim, decoder.mask_dim, decoder.norm)
    shapes = {f"res{level}": (1, 2 ** (6 - level), 2 ** (6 - level), 8) for level in (2, 3, 4, 5)}
    embedding = layer({name: np.ones(shape, "float32") for name, shape in shapes.items()})["pixel_embedding"]
    assert embedding.shape == (1, 16, 16, decoder.mask_dim)


@pytest.mark.parametrize("evaluation", ["{tile_size: 64}", "{inference: general}"])
def test_an_augmentation_that_is_off_forbids_nothing(write, evaluation):
    views = "augmentation: {enabled: false, shortest_edges: [64]}"
    config = load_config(write(f"evaluation: {evaluation[:-1]}, {views}}}"))
    assert config.evaluation.augmentation.shortest_edges == (64,)


@pytest.mark.parametrize(("text", "message"), ERRORS.items(), ids=range(len(ERRORS)))
def test_errors_name_file_field_and_remedy(write, text, message):
    error = error_of(write(text))
    assert message in error
    assert "absent" in message or error.startswith(str(write(text)))


def test_missing_file(tmp_path):
    assert error_of(tmp_path / "none.yaml") == f"{tmp_path / 'none.yaml'}: no such configuration file"


def test_file_that_is_no_text(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert f"{path}: not valid YAML" in error_of(path)


def test_values_win_over_the_base_field_by_field(write):
    write(
        "model: {num_classes: 7, backbone: {name: resnet18, norm: batch}}\ndata: {class_names: [a, b, c]}", "base.yaml"
    )
    path = write("base: base.yaml\nmodel: {backbone: {name: resnet34}}\ndata: {class_names: [x]}")
    config = load_config(path)
    assert (config.model.num_classes, config.model.backbone.name, config.model.backbone.norm) == (
        7,
        "resnet34",
        "batch",
    )
    assert config.data.class_names == ("x",)  # a list is replaced, not extended


def test_an_error_names_the_file_that_it_is_in(write):
    base = write("model: {num_clases: 3}", "base.yaml")
    child = write("base: base.yaml\n")
    assert error_of(child).startswith(f"{base}: model.num_clases")
    write("model: {num_classes: 3}", "base.yaml")
    child = write("base: base.yaml\nloss: {mask_wait: 3}")
    assert error_of(child).startswith(f"{child}: loss.mask_wait: unknown field. Did you mean mask_weight?")


def test_a_base_has_no_base(write):
    write("base: other.yaml", "base.yaml")
    assert "base.yaml: a base may not have a `base` itself; received 'other.yaml'" in error_of(write("base: base.yaml"))


def test_overrides_win_and_the_last_one_most(write):
    path = write("model: {num_classes: 7}\ndata: {root: here}")
    overrides = [
        "model.num_classes=8",
        "model.num_classes=9",
        "data.class_names=[a, b]",
        "data.root=",
        "loss.matcher=scipy",
    ]
    config = load_config(path, [*overrides, "optimizer.learning_rate=1.0e-3", "model.backbone={name: resnet18}"])
    assert config.model.num_classes == 9 and config.data.class_names == ("a", "b") and config.data.root == ""
    assert config.loss.matcher == "scipy" and config.optimizer.learning_rate == 1e-3
    assert config.model.backbone.name == "resnet18"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.num_classes", "An override must look like \"data.root=/data/coco\". Received: 'model.num_classes'"),
        ("=3", 'An override must look like "data.root=/data/coco"'),
        ("model.num_classes=[", "The value of the override 'model.num_classes=[' is not valid YAML"),
        ("model.num_clases=3", "with model.num_clases=3: model.num_clases: unknown field. Did you mean num_classes?"),
        ("model.num_classes.x=3", "model.num_classes: must be an integer. Received: {'x': 3}"),
        ("base=other.yaml", "base: unknown field"),
        ("optimizer.learning_rate=1e", "optimizer.learning_rate: must be a number. Received: '1e'"),
        ("model.num_classes=0", "with model.num_classes=0: model.num_classes: must be positive"),
    ],
)
def test_wrong_overrides(write, override, message):
    assert message in error_of(write("model: {num_classes: 7}"), [override])


def test_numbers_may_have_an_exponent_without_a_dot(write):
    """YAML 1.1 reads 1e-4 as text."""
    config = load_config(write("optimizer: {learning_rate: 1e-4}"), ["optimizer.weight_decay=5E-2"])
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (1e-4, 0.05)
    assert load_config(write("optimizer: {learning_rate: 1.5e4}")).optimizer.learning_rate == 15000.0


def test_values_that_follow_from_other_sections(write):
    config = load_config(write("training: {steps: 123}\nevaluation: {metrics: [panoptic, semantic]}"))
    assert config.optimizer.schedule.total_steps == 123 and config.evaluation.best_metric == "panoptic/PQ"
    config = load_config(
        write("optimizer: {schedule: {total_steps: 5}}\nevaluation: {metrics: [panoptic], best_metric: panoptic/SQ}")
    )
    assert config.optimizer.schedule.total_steps == 5 and config.evaluation.best_metric == "panoptic/SQ"
    assert load_config(write("")).evaluation.best_metric == "semantic/mIoU"


def test_save_and_load(write, tmp_path):
    config = load_config(
        write(
            """
            model: {backbone: {name: swin_base}, pixel_std: [1, 2, 3], precision: mixed_float16}
            data: {train: {images: "a/*.png", limit: 4}, augmentation: {crop: [64, 96]}, thing_names: [cell]}
            optimizer: {schedule: {name: multistep, milestones: [10, 20]}}
            evaluation: {metrics: [semantic, panoptic]}
            """
        )
    )
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config
    assert config_from_dict(config_to_dict(config)) == config
    saved = yaml.safe_load((tmp_path / "saved.yaml").read_text())
    assert list(saved) == [field.name for field in dataclasses.fields(Config)]
    assert saved["data"]["augmentation"]["crop"] == [64, 96]


def test_differences_are_told_by_field_with_both_values(write):
    path = write("model: {num_classes: 7}\ndata: {class_names: [a, b], train: {count: 3}}")
    config = load_config(path)
    assert differences(config, load_config(path)) == []
    other = load_config(path, ["data.class_names=[a, c]", "data.train.count=4", "model.backbone.norm=batch"])
    assert differences(config, other) == [
        "model.backbone.norm was 'frozen' and is now 'batch'",
        "data.class_names was ['a', 'b'] and is now ['a', 'c']",
        "data.train.count was 3 and is now 4",
    ]


def test_every_default_passes_its_own_check():
    config = config_from_dict(config_to_dict(Config()))
    assert dataclasses.replace(config.optimizer, schedule=Config().optimizer.schedule) == Config().optimizer
    assert (config.model, config.loss, config.data, config.training) == (
        Config().model,
        Config().loss,
        Config().data,
        Config().training,
    )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(REPOSITORY / "configs")))
def test_shipped_configuration_loads_and_builds(path, build_architecture):
    config = load_config(path)
    build_architecture(config.model)
    assert config.data.class_names == () or len(config.data.class_names) == config.model.num_classes
    build_criterion(config.loss)
    build_optimizer(config.optimizer)
    assert config_from_dict(config_to_dict(config)) == config


@pytest.fixture(scope="module")
def build_architecture():
    """Builds each architecture once, whatever its number of classes, and without values of its weights."""
    built = set()

    def build(config):
        decoder = dataclasses.replace(config.transformer_decoder, num_queries=3)
        architecture = dataclasses.replace(config, num_classes=3, transformer_decoder=decoder, size_divisibility=32)
        if architecture not in built:
            with keras.StatelessScope(initialize_variables=False):
                build_model(architecture)
            built.add(architecture)

    yield build
    keras.utils.clear_session()  # forgets the weights that wait for a value


def test_every_folder_has_a_configuration():
    assert CONFIGS
