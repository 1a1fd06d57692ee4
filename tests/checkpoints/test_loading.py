import threading
from concurrent.futures import ThreadPoolExecutor

import keras
import ml_dtypes
import numpy as np
import pytest

from kmaskformer.backbones.resnet import ResNet
from kmaskformer.checkpoints.loading import (
    LoadedWeight,
    LoadReport,
    NameMap,
    Source,
    load_weights_by_name,
    named_weights,
    zero_initializers,
)

IDENTITY = NameMap("test files", lambda path: Source((path.removeprefix("backbone/").replace("/", "."),)))


def make_backbone(**options):
    backbone = ResNet(18, num_blocks=(1, 1, 1, 1), stem_channels=4, channels=(4, 4, 4, 4), **options)
    backbone.build((None, None, None, 3))
    return backbone


def state_of(backbone, rng, dtype="float32"):
    state = {}
    for path, variable in named_weights(backbone).items():
        value = rng.standard_normal(variable.shape).astype(dtype)
        state[IDENTITY.source(path).keys[0]] = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
    return state


def test_paths_do_not_depend_on_the_backbones_name():
    assert list(named_weights(make_backbone(name="trunk"))) == list(named_weights(make_backbone()))
    assert "backbone/res2/0/conv1/norm/scale" in named_weights(make_backbone())


@pytest.mark.parametrize("dtype", ["float16", "float64", ml_dtypes.bfloat16])
def test_other_types_become_float32(rng, dtype):
    backbone = make_backbone()
    state = state_of(backbone, rng, dtype)
    load_weights_by_name(backbone, state, IDENTITY)
    kernel = named_weights(backbone)["backbone/stem/conv1/kernel"]
    expected = state["stem.conv1.kernel"].transpose(2, 3, 1, 0).astype("float32")
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(kernel), expected)


def test_memory_maps(rng, tmp_path):
    backbone = make_backbone()
    state = state_of(backbone, rng)
    for name, value in state.items():
        np.save(tmp_path / f"{name}.npy", value)
    load_weights_by_name(backbone, {name: np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in state}, IDENTITY)
    for path, variable in named_weights(backbone).items():
        value = state[IDENTITY.source(path).keys[0]]
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), value)


def test_joined_and_packed_arrays(rng):
    """A kernel from two arrays that stand one upon the other, and a kernel that is the middle third of an array."""
    layer = keras.Sequential(
        [keras.layers.Dense(6, name="joined"), keras.layers.Dense(2, name="packed")], name="backbone"
    )
    layer.build((None, 3))
    state = {name: rng.standard_normal(shape) for name, shape in (("a", (2, 3)), ("b", (4, 3)), ("c", (6, 6)))}
    state |= {name: rng.standard_normal(shape) for name, shape in (("d", 2), ("e", 4), ("f", 6))}
    sources = {
        "joined/kernel": Source(("a", "b")),
        "joined/bias": Source(("d", "e")),
        "packed/kernel": Source(("c",), 1),
        "packed/bias": Source(("f",), 1),
    }
    name_map = NameMap("test files", lambda path: sources[path.removeprefix("backbone/")])
    report = load_weights_by_name(layer, state, name_map)
    joined, packed = layer.layers
    np.testing.assert_allclose(joined.kernel, np.concatenate([state["a"], state["b"]]).T, rtol=1e-6)
    np.testing.assert_allclose(joined.bias, np.concatenate([state["d"], state["e"]]), rtol=1e-6)
    np.testing.assert_allclose(packed.kernel, state["c"][2:4].T, rtol=1e-6)
    np.testing.assert_allclose(packed.bias, state["f"][2:4], rtol=1e-6)
    assert [row.source for row in report.loaded] == ["a + b", "d + e", "c [key]", "f [key]"]


def test_two_spellings_of_one_parameter(rng):
    backbone = make_backbone()
    name_map = NameMap("test files", IDENTITY.source, canonical=lambda name: name.removeprefix("module."))
    state = state_of(backbone, rng)
    state["module.stem.conv1.kernel"] = state["stem.conv1.kernel"]
    message = r"Two arrays are the same parameter: stem.conv1.kernel and module.stem.conv1.kernel. Remove one"
    with pytest.raises(ValueError, match=message):
        load_weights_by_name(backbone, state, name_map)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(rng, bad):
    state = state_of(make_backbone(), rng)
    state["res3.0.conv1.kernel"][0, 1, 0, 0] = bad
    with pytest.raises(ValueError, match=r"res3\.0\.conv1\.kernel holds NaN or infinity"):
        load_weights_by_name(make_backbone(), state, IDENTITY)


def test_the_largest_numbers_are_finite(rng):
    backbone = make_backbone()
    state = {name: np.full_like(value, np.finfo("float32").max) for name, value in state_of(backbone, rng).items()}
    assert len(load_weights_by_name(backbone, state, IDENTITY).loaded) == len(state)


def test_texts_are_no_weights(rng):
    backbone = make_backbone()
    state = state_of(backbone, rng)
    state["stem.conv1.norm.mean"] = np.array(["a"] * 4)
    with pytest.raises(ValueError, match=r"1 arrays are not of floating point: stem.conv1.norm.mean \(<U1\)"):
        load_weights_by_name(backbone, state, IDENTITY)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "bool", "int64"])
def test_whole_numbers_are_no_weights(rng, dtype):
    """A quantised kernel without its scale is no kernel."""
    state = state_of(make_backbone(), rng)
    state["res3.0.conv1.kernel"] = state["res3.0.conv1.kernel"].astype(dtype)
    with pytest.raises(ValueError, match=rf"1 arrays are not of floating point: res3.0.conv1.kernel \({dtype}\)"):
        load_weights_by_name(make_backbone(), state, IDENTITY)


def test_a_list_is_no_mapping():
    with pytest.raises(TypeError, match=r"`arrays` must map names to arrays. Received: list"):
        load_weights_by_name(make_backbone(), [], IDENTITY)


def test_table():
    loaded = (LoadedWeight("class_head/kernel", (16, 4), "head.weight"), LoadedWeight("x", (4,), "a + b"))
    report = LoadReport("test files", loaded, ignored=("old.step",), fresh=("class_head/bias",))
    assert str(report).splitlines() == [
        "weight             shape    from",
        "class_head/kernel  (16, 4)  head.weight",
        "x                  (4,)     a + b",
        "class_head/bias             (fresh: kept its initial value)",
        "(ignored)                   old.step",
        "test files: 2 weights set, 1 left fresh, 1 arrays ignored",
    ]


def test_zero_initializers():
    with zero_initializers():
        backbone = make_backbone()
    assert not any(np.any(keras.ops.convert_to_numpy(weight)) for weight in backbone.weights)
    assert np.any(keras.ops.convert_to_numpy(make_backbone().stem.convolutions[0].kernel))


def test_zero_initializers_of_two_threads_end_for_both_and_concern_no_other():
    """The first thread to begin is the first to end, and a third makes a layer meanwhile."""
    both_began, first_ended = threading.Event(), threading.Event()

    def has_values():
        layer = keras.layers.Dense(4)
        layer.build((None, 3))
        return bool(np.any(keras.ops.convert_to_numpy(layer.kernel)))

    def first():
        with zero_initializers():
            assert both_began.wait(20)
            inside = has_values()
        first_ended.set()
        return inside, has_values()

    def second():
        with zero_initializers():
            both_began.set()
            assert first_ended.wait(20)
            inside = has_values()
        return inside, has_values()

    with ThreadPoolExecutor(2) as pool:
        results = [pool.submit(one) for one in (first, second)]
        assert has_values()
        assert [one.result() for one in results] == [(False, True), (False, True)]
    assert has_values()
