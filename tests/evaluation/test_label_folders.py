"""Which prediction belongs to which label map."""

from __future__ import annotations

import warnings

import pytest

from kmaskformer.evaluation.label_folders import pair_label_maps


def folders(root, true, predicted):
    for folder, names in (("truth", true), ("predictions", predicted)):
        for name in names:
            path = root / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return root / "truth", root / "predictions"


def test_maps_that_differ_in_their_ending_alone_have_their_own_predictions(tmp_path):
    truth, predictions = folders(tmp_path, ("x.png", "x.tif"), ("x.png", "x.tif"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pairs = pair_label_maps(truth, predictions)
    assert [(pair.true.name, pair.predicted.name) for pair in pairs] == [("x.png", "x.png"), ("x.tif", "x.tif")]


def test_one_prediction_is_not_that_of_two_label_maps(tmp_path):
    truth, predictions = folders(tmp_path, ("a/x.png", "a/x.tif"), ("a/x.png",))
    with pytest.raises(
        ValueError, match=r"predictions/a/x.png: must be .* of one .*Received: a/x.png, a/x.tif in .*truth"
    ):
        pair_label_maps(truth, predictions)


def test_predictions_of_other_images_are_counted(tmp_path):
    # `x.tif` is not used either: the label map has a prediction of its own name.
    truth, predictions = folders(tmp_path, ("x.png",), ("x.png", "x.tif", "y.png"))
    with pytest.warns(UserWarning, match="2 label maps of other images"):
        pair_label_maps(truth, predictions)
