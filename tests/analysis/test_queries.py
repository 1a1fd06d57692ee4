"""Statistics of queries, against a model whose predictions are known; attention; the pictures of both."""

from __future__ import annotations

import numpy as np
import pytest
from keras import ops

from kmaskformer.analysis.attention import attention_maps
from kmaskformer.analysis.queries import query_statistics
from kmaskformer.models.per_pixel import PerPixelBaseline
from kmaskformer.structures import DatasetInfo

INFO = DatasetInfo("test", tuple(f"class {i}" for i in range(10)))


@pytest.fixture()
def known(maskformer, monkeypatch):
    """The model, with predictions that depend on the image's brightness alone."""

    def call(images, training=False):
        bright = images.mean() > 100
        class_logits = np.zeros((1, 6, 11), np.float32)
        class_logits[..., 10] = 5  # no-object
        class_logits[0, 1, 3 if bright else 4] = 9
        class_logits[0, 2, 7] = 9
        mask_logits = np.full((1, 6, 16, 24), -1, np.float32)
        mask_logits[0, 1, :8, :10] = 1  # the upper left quarter of an image of 64x80 pixels, padded to 64x96
        mask_logits[0, 1, 0, 22] = 1  # lies in the padding
        mask_logits[0, 2, :, 20:] = 1  # lies wholly in the padding
        return {"class_logits": class_logits, "mask_logits": mask_logits}

    monkeypatch.setattr(type(maskformer), "__call__", lambda self, *args, **kwargs: call(*args, **kwargs))
    return maskformer


def test_classes_and_places(known):
    images = [np.full((64, 80, 3), value, np.uint8) for value in (200, 10, 220)]
    statistics = query_statistics(known, images, grid=4)
    assert statistics.num_images == 3
    expected = np.zeros((6, 10), int)
    expected[1, 3], expected[1, 4] = 2, 1
    assert np.array_equal(statistics.class_counts, expected)
    assert statistics.num_predictions.tolist() == [0, 3, 0, 0, 0, 0]
    assert statistics.mask_counts[1].tolist() == [[3, 3, 0, 0], [3, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert statistics.centers[1] == pytest.approx(np.full((3, 2), 0.25))
    assert statistics.centers[0].shape == (0, 2)
    assert statistics.classes_of(1, INFO) == [("class 3", pytest.approx(2 / 3)), ("class 4", pytest.approx(1 / 3))]


def test_what_cannot_be_counted(maskformer):
    with pytest.raises(ValueError, match="`images` must hold at least one image"):
        query_statistics(maskformer, [])
    baseline = PerPixelBaseline.__new__(PerPixelBaseline)
    with pytest.raises(TypeError, match=r"Only a MaskFormer's queries predict classes. Received: PerPixelBaseline"):
        query_statistics(baseline, [])


def test_attention_is_what_the_layers_use(maskformer, rng):
    image = rng.integers(0, 256, (60, 100, 3), np.uint8)
    maps = attention_maps(maskformer, image)
    assert maps.shape == (2, 6, 2, 4)  # layers, queries, stride 32 of 64x128
    assert maps.sum(axis=(2, 3)) == pytest.approx(np.ones((2, 6)), abs=1e-5)
    # The first layer's queries see the image before anything else: their weights can be made by hand.
    decoder = maskformer.transformer_decoder
    layer = decoder.decoder.layers[0]
    feature = maskformer.backbone(maskformer.preprocessing(image[None], None))["res5"]
    x = decoder.input_projection(feature)
    position = decoder.position_embedding(x)
    start = ops.convert_to_tensor(decoder.query_embedding)[None]
    attended = layer.norm1(layer.self_attention(start, start, ops.zeros_like(start)))
    memory = ops.reshape(x, (1, 8, 32)) + position
    query = layer.cross_attention.query_projection(attended + start)
    key = layer.cross_attention.key_projection(memory)
    heads = [
        ops.softmax(query[..., i : i + 8] @ ops.transpose(key[..., i : i + 8], (0, 2, 1)) / 8**0.5)
        for i in range(0, 32, 8)
    ]
    expected = sum(ops.convert_to_numpy(head)[0] for head in heads) / 4
    assert maps[0].reshape(6, 8) == pytest.approx(expected, abs=1e-5)


def test_looking_leaves_no_trace(maskformer, rng):
    image = rng.integers(0, 256, (64, 64, 3), np.uint8)
    before = ops.convert_to_numpy(maskformer(image[None])["class_logits"])
    attention_maps(maskformer, image)
    layers = maskformer.transformer_decoder.decoder.layers
    assert all("attention_weights" not in vars(layer.cross_attention) for layer in layers)
    assert np.array_equal(ops.convert_to_numpy(maskformer(image[None])["class_logits"]), before)


def test_pictures(known, maskformer, monkeypatch, rng, tmp_path):
    pytest.importorskip("matplotlib")
    from kmaskformer.analysis import pictures

    with pytest.raises(TypeError, match="Only a MaskFormer's queries predict classes"):
        pictures.draw_attention(PerPixelBaseline.__new__(PerPixelBaseline), np.zeros((32, 32, 3), np.uint8), INFO)

    statistics = query_statistics(known, [np.full((64, 80, 3), 200, np.uint8)], grid=4)
    classes = pictures.draw_classes(statistics, INFO)
    drawn = classes.axes[0].images[0].get_array()
    assert drawn.shape == (10, 6) and drawn[3, 0] == 1 and np.ma.count(drawn) == 1  # the used query comes first
    positions = pictures.draw_positions(statistics, INFO, count=2)
    assert [axes.get_title().split("\n")[0] for axes in positions.axes] == ["query 1: 1x", "query 0: 0x"]
    monkeypatch.undo()
    attention = pictures.draw_attention(maskformer, rng.integers(0, 256, (60, 100, 3), np.uint8), INFO, count=3)
    assert len(attention.axes) == 3 * 4  # image, mask, two layers
    for name, figure in (("classes", classes), ("positions", positions), ("attention", attention)):
        figure.savefig(tmp_path / f"{name}.png")
