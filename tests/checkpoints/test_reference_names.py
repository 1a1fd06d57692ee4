import pickle

import numpy as np
import pytest

from kmaskformer.backbones.resnet import ResNet
from kmaskformer.backbones.swin import SwinTransformer
from kmaskformer.build import build_model
from kmaskformer.checkpoints.reference_names import ReferenceParameter, load_reference_weights, reference_parameter
from kmaskformer.models.maskformer import MaskFormer
from kmaskformer.models.pixel_decoder import FPNPixelDecoder, TransformerFPNPixelDecoder
from kmaskformer.models.transformer_decoder import QueryDecoder

GOLDEN_CASES = (
    "maskformer_r50_ade20k150",
    "maskformer_r50_6enc_coco_panoptic",
    "maskformer_r101c_cityscapes19",
    "maskformer_swin_t_ade20k150",
)
HEAD = "sem_seg_head.predictor"
NAMES = {
    "backbone/stem/conv1/kernel": "backbone.stem.conv1.weight",
    "backbone/res2/0/conv1/norm/scale": "backbone.res2.0.conv1.norm.weight",
    "backbone/res2/0/conv1/norm/offset": "backbone.res2.0.conv1.norm.bias",
    "backbone/res2/0/shortcut/norm/mean": "backbone.res2.0.shortcut.norm.running_mean",
    "backbone/res2/0/shortcut/norm/variance": "backbone.res2.0.shortcut.norm.running_var",
    "backbone/res2/0/conv1/norm/moving_mean": "backbone.res2.0.conv1.norm.running_mean",
    "backbone/res2/0/conv1/norm/moving_variance": "backbone.res2.0.conv1.norm.running_var",
    "backbone/layers_0/blocks_1/attn/qkv/kernel": "backbone.layers.0.blocks.1.attn.qkv.weight",
    "pixel_decoder/layer_4/kernel": "sem_seg_head.pixel_decoder.layer_4.weight",
    "pixel_decoder/adapter_1/norm/gamma": "sem_seg_head.pixel_decoder.adapter_1.norm.weight",
    "pixel_decoder/mask_features/bias": "sem_seg_head.pixel_decoder.mask_features.bias",
    "pixel_decoder/input_projection/kernel": "sem_seg_head.pixel_decoder.input_proj.weight",
    "pixel_decoder/encoder/layer_5/norm2/beta": "sem_seg_head.pixel_decoder.transformer.encoder.layers.5.norm2.bias",
    "transformer_decoder/query_embedding": f"{HEAD}.query_embed.weight",
    "transformer_decoder/input_projection/bias": f"{HEAD}.input_proj.bias",
    "transformer_decoder/decoder/norm/gamma": f"{HEAD}.transformer.decoder.norm.weight",
    "transformer_decoder/encoder/norm/gamma": f"{HEAD}.transformer.encoder.norm.weight",
    "transformer_decoder/decoder/layer_2/linear1/kernel": f"{HEAD}.transformer.decoder.layers.2.linear1.weight",
    "transformer_decoder/decoder/layer_2/self_attention/output_projection/bias": (
        f"{HEAD}.transformer.decoder.layers.2.self_attn.out_proj.bias"
    ),
    "class_head/kernel": f"{HEAD}.class_embed.weight",
    "mask_head/linear_2/bias": f"{HEAD}.mask_embed.layers.2.bias",
}


@pytest.mark.parametrize(("path", "key"), NAMES.items())
def test_names(path, key):
    assert reference_parameter(path) == ReferenceParameter(key, None)


@pytest.mark.parametrize(("name", "third"), [("query", 0), ("key", 1), ("value", 2)])
def test_packed_names(name, third):
    path = f"transformer_decoder/decoder/layer_0/cross_attention/{name}_projection"
    key = f"{HEAD}.transformer.decoder.layers.0.multihead_attn"
    assert reference_parameter(f"{path}/kernel") == ReferenceParameter(f"{key}.in_proj_weight", third)
    assert reference_parameter(f"{path}/bias") == ReferenceParameter(f"{key}.in_proj_bias", third)


def make_model(kind="resnet"):
    if kind == "resnet":
        backbone = ResNet(18, num_blocks=(1, 1, 1, 1), stem_channels=8, channels=(8, 12, 16, 24))
        pixel_decoder = TransformerFPNPixelDecoder(32, 16, encoder_layers=1, num_heads=2, feedforward_dim=24)
        decoder = QueryDecoder(4, 16, 2, 24, decoder_layers=2, pre_norm=True)
    else:
        backbone = SwinTransformer(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4), window_size=4)
        pixel_decoder = FPNPixelDecoder(32, 16)
        decoder = QueryDecoder(4, 16, 2, 24, decoder_layers=1)
    model = MaskFormer(backbone, pixel_decoder, decoder, num_classes=3, name="maskformer")
    model.build()
    return model


@pytest.fixture(scope="module")
def untouched_model():
    """A model for the tests that set no weight."""
    return make_model()


def reference_state(model, rng):
    """Random parameters of the model as the reference would hold them."""
    state, thirds = {}, {}
    for variable in model.weights:
        path = variable.path.partition("/")[2]
        key, third = reference_parameter(path)
        value = rng.standard_normal(variable.shape).astype("float32")
        if path.endswith("kernel"):
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        if third is None:
            assert key not in state
            state[key] = value
        else:
            thirds.setdefault(key, [None] * 3)[third] = value
    return {**state, **{key: np.concatenate(parts) for key, parts in thirds.items()}}


def values(model):
    return {variable.path: np.asarray(variable).copy() for variable in model.weights}


@pytest.mark.parametrize("kind", ["resnet", "swin"])
def test_every_weight_is_set(rng, kind):
    model = make_model(kind)
    state, before = reference_state(model, rng), values(model)
    report = load_reference_weights(model, state)
    assert (report.ignored, report.fresh, len(report.loaded)) == ((), (), len(before))
    after = values(model)
    assert not any(np.array_equal(after[path], before[path]) for path in before)
    prefix = f"{model.name}/transformer_decoder"
    attention = f"{prefix}/decoder/layer_0/cross_attention"
    packed = state[f"{HEAD}.transformer.decoder.layers.0.multihead_attn.in_proj_weight"]
    np.testing.assert_array_equal(after[f"{attention}/key_projection/kernel"], packed[16:32].T)
    np.testing.assert_array_equal(after[f"{prefix}/query_embedding"], state[f"{HEAD}.query_embed.weight"])
    convolution = state["sem_seg_head.pixel_decoder.layer_2.weight"]
    np.testing.assert_array_equal(
        after[f"{model.name}/pixel_decoder/layer_2/kernel"], convolution.transpose(2, 3, 1, 0)
    )


def test_names_of_the_first_version(rng):
    """Released files lack `pixel_decoder.`; the predictor's names are the same."""
    model = make_model()
    state = reference_state(model, rng)
    load_reference_weights(model, state)
    expected = values(model)
    first = {key.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): value for key, value in state.items()}
    assert "sem_seg_head.layer_4.weight" in first
    model = make_model()
    load_reference_weights(model, first)
    for path, value in values(model).items():
        np.testing.assert_array_equal(value, expected[path])


def test_buffers_are_ignored_and_reported(rng):
    model = make_model()
    extra = {
        "criterion.empty_weight": np.ones(4),
        "pixel_mean": np.zeros(3),
        "pixel_std": np.ones(3),
        "backbone.stem.conv1.norm.num_batches_tracked": np.array(7),
        "backbone.layers.0.blocks.0.attn.relative_position_index": np.zeros((49, 49)),
    }
    report = load_reference_weights(model, {**reference_state(model, rng), **extra})
    assert report.ignored == tuple(sorted(extra))


def broken(state, problem):
    state = dict(state)
    key = "sem_seg_head.predictor.class_embed.weight"
    packed = "sem_seg_head.predictor.transformer.decoder.layers.0.self_attn.in_proj_weight"
    if problem == "missing":
        del state[key]
    elif problem == "unused":
        state["sem_seg_head.predictor.extra.weight"] = np.zeros(3)
    elif problem == "shape":
        state[key] = state[key][:2]
    elif problem == "packed shape":
        state[packed] = state[packed][:-1]
    elif problem == "rank":
        state["backbone.stem.conv1.weight"] = state["backbone.stem.conv1.weight"][0]
    return state


PROBLEMS = {
    "missing": r"1 weights have no array: class_head/kernel \(sem_seg_head.predictor.class_embed.weight\)",
    "unused": r"1 arrays have no weight: sem_seg_head.predictor.extra.weight \(3,\)",
    "shape": r"1 shapes differ: class_head/kernel \(16, 4\) and sem_seg_head.predictor.class_embed.weight \(16, 2\)",
    "packed shape": r"1 shapes differ: .*/value_projection/kernel \(16, 16\) and .*weight \[value\] \(16, 15\)",
    "rank": r"1 shapes differ: backbone/stem/conv1/kernel \(7, 7, 3, 8\)",
}


@pytest.mark.parametrize(("problem", "message"), PROBLEMS.items())
def test_nothing_is_set_when_something_does_not_fit(untouched_model, rng, problem, message):
    model = untouched_model
    before = values(model)
    with pytest.raises(ValueError, match=f"The arrays do not fit the model. {message}"):
        load_reference_weights(model, broken(reference_state(model, rng), problem))
    for path, value in values(model).items():
        np.testing.assert_array_equal(value, before[path])


def test_all_problems_are_told_at_once(untouched_model, rng):
    model = untouched_model
    state = broken(broken(reference_state(model, rng), "unused"), "shape")
    with pytest.raises(ValueError, match=r"1 arrays have no weight: .*; 1 shapes differ"):
        load_reference_weights(model, state)


def test_arrays_of_another_model_are_told_with_a_few_names(untouched_model, rng):
    state = reference_state(make_model("swin"), rng)
    with pytest.raises(ValueError, match=r"\d+ weights have no array: (\S+ \(\S+\), ){4}\S+ \(\S+\); \d+ arrays have"):
        load_reference_weights(untouched_model, state)


def test_arrays_must_be_a_mapping_or_a_path(untouched_model):
    message = r"`arrays_or_path` must map parameter names to arrays, or be the path .* Received: list"
    with pytest.raises(TypeError, match=message):
        load_reference_weights(untouched_model, [np.zeros(3)])


def test_file(rng, tmp_path):
    """A detectron2 pickle: the arrays lie under `model`, beside other things."""
    model = make_model()
    state = reference_state(model, rng)
    load_reference_weights(model, state)
    expected = values(model)
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": state, "__author__": "test"}))
    model = make_model()
    load_reference_weights(model, path)
    for name, value in values(model).items():
        np.testing.assert_array_equal(value, expected[name])


def test_another_number_of_classes(rng):
    model = make_model()
    before = values(model)
    state = reference_state(model, rng)
    for leaf, shape in (("weight", (8, 16)), ("bias", (8,))):
        state[f"{HEAD}.class_embed.{leaf}"] = np.zeros(shape, "float32")
    with pytest.raises(ValueError, match=r"2 shapes differ: class_head/kernel \(16, 4\) and \S+ \(16, 8\)"):
        load_reference_weights(model, state)
    report = load_reference_weights(model, state, allow_other_classes=True)
    assert report.fresh == ("class_head/kernel", "class_head/bias")
    assert report.ignored == (f"{HEAD}.class_embed.bias", f"{HEAD}.class_embed.weight")
    same = [path for path, value in values(model).items() if np.array_equal(value, before[path])]
    assert same == [f"{model.name}/class_head/kernel", f"{model.name}/class_head/bias"]


def test_other_differences_than_classes_are_no_fine_tuning(untouched_model, rng):
    state = reference_state(untouched_model, rng)
    state[f"{HEAD}.class_embed.weight"] = np.zeros((8, 12), "float32")
    with pytest.raises(ValueError, match=r"1 shapes differ: class_head/kernel"):
        load_reference_weights(untouched_model, state, allow_other_classes=True)


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_every_parameter_of_the_original_is_used_once(golden, without_values, name):
    """Names and shapes only; `models/test_golden.py` loads the values."""
    case = golden.case(name)
    model = without_values(build_model, case.model_config())
    shapes = {key: tuple(shape) for key, shape, _ in case.meta["state_dict"]}
    users = {}
    for variable in model.weights:
        path = variable.path.partition("/")[2]
        key, third = reference_parameter(path)
        users.setdefault(key, []).append(third)
        shape = shapes[key]
        if third is not None:
            shape = (shape[0] // 3, *shape[1:])
        if path.endswith("kernel"):
            shape = (*shape[2:], shape[1], shape[0])
        assert tuple(variable.shape) == shape, path
    assert all(sorted(thirds) == [0, 1, 2] for thirds in users.values() if thirds != [None])
    unused = {key for key in shapes if key not in users}
    assert all(key.endswith(golden.UNTOUCHED) for key in unused)
