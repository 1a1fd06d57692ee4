"""The reference's own results, from its own raw outputs, for the cases that lie beside the checkout."""

from __future__ import annotations

import json

import numpy as np
import pytest
from keras import ops

from kmaskformer.inference.pairs import best_classes, select_queries
from kmaskformer.inference.panoptic import panoptic_inference
from kmaskformer.inference.restore import restore_mask_logits, restore_pixel_logits
from kmaskformer.inference.semantic import semantic_inference, semantic_map

PANOPTIC = "maskformer_r50_6enc_coco_panoptic"


def load(shared_folder, case):
    folder = shared_folder / "golden" / case
    return np.load(folder / "arrays.npz"), json.loads((folder / "meta.json").read_text())


def sizes(meta, image):
    return tuple(meta["padded_pair_shape"][2:]), tuple(meta["sizes"][image]), tuple(meta["out_sizes"][image])


@pytest.mark.parametrize("order", ["after", "before"])
@pytest.mark.parametrize("image", [0, 1])
def test_semantic(shared_folder, order, image):
    arrays, meta = load(shared_folder, PANOPTIC)
    class_logits, masks = (arrays[f"pair/{name}"][image : image + 1] for name in ("pred_logits", "pred_masks"))
    scores = semantic_inference(class_logits, masks, *sizes(meta, image), before_inference=order == "before")
    expected = f"semantic_{order}/img{image}"
    sampled = ops.convert_to_numpy(scores)[0, ::5, ::8, ::8]
    np.testing.assert_allclose(sampled, arrays[f"{expected}/scores_5_8_8"], atol=1e-4)
    class_map = ops.convert_to_numpy(semantic_map(scores)[0])[0]
    assert (class_map != arrays[f"{expected}/argmax"]).sum() <= 1


@pytest.mark.parametrize("select", [False, True])
@pytest.mark.parametrize("tag", ["low", "mid", "high", "config"])
@pytest.mark.parametrize("image", [0, 1])
def test_panoptic(shared_folder, tag, image, select):
    arrays, meta = load(shared_folder, PANOPTIC)
    facts = meta["panoptic"]
    limits = facts["thresholds"][tag]
    class_logits, masks = (arrays[f"pair/{name}"][image : image + 1] for name in ("pred_logits", "pred_masks"))
    if select:
        kept = best_classes(class_logits, limits["object_mask_threshold"])[2]
        class_logits, masks = select_queries(class_logits, masks, kept)
        assert class_logits.shape[1] == max(1, int(ops.sum(ops.cast(kept, "int32"))))
    masks = restore_mask_logits(masks, *sizes(meta, image))
    results = panoptic_inference(class_logits, masks, facts["thing_ids"], **limits)
    results = {key: ops.convert_to_numpy(value)[0] for key, value in results.items()}
    assert (results["panoptic_map"] != arrays[f"panoptic_{tag}/img{image}/map"]).sum() <= 1
    columns = (results[key][results["valid"]].tolist() for key in ("segment_ids", "is_thing", "category_ids"))
    expected = [(row["id"], row["isthing"], row["category_id"]) for row in facts["segments_info"][tag][image]]
    assert list(zip(*columns, strict=True)) == expected


@pytest.mark.parametrize("case", ["per_pixel_r50_ade20k150", "per_pixel_plus_r50_ade20k150"])
@pytest.mark.parametrize("image", [0, 1])
def test_per_pixel(shared_folder, case, image):
    arrays, meta = load(shared_folder, case)
    logits = np.moveaxis(arrays["pair/logits_q5"][image : image + 1], 1, -1)  # every fifth class
    _, image_size, output_size = sizes(meta, image)
    restored = ops.convert_to_numpy(restore_pixel_logits(logits, image_size, output_size))
    np.testing.assert_allclose(restored[0, :, ::8, ::8], arrays[f"semantic_default/img{image}/scores_5_8_8"], atol=1e-4)
