"""Predictions written for the official tools score as the same predictions in memory."""

from __future__ import annotations

import types

import numpy as np
import pytest
from PIL import Image

from kmaskformer.data.run_lengths import decode_mask
from kmaskformer.evaluation import score_files
from kmaskformer.evaluation.files import read_instances
from kmaskformer.evaluation.prediction_files import PredictionFiles
from kmaskformer.structures import VOID, DatasetInfo

INFO = DatasetInfo("toy", ("person", "sky"), thing_ids=(0,), dataset_ids=(1, 187))
MAP = np.array([[1, 1, 2, 2], [1, 1, 2, 0]], np.int32)
SEGMENTS = [{"id": 1, "category_id": 0, "score": 0.9, "area": 4}, {"id": 2, "category_id": 1, "score": 0.8, "area": 3}]


def result(segmentation, segments=(), masks=None):
    return types.SimpleNamespace(segmentation=segmentation, segments=list(segments), masks=masks)


def test_panoptic_files_score_one_against_themselves(tmp_path):
    files = PredictionFiles(tmp_path, "panoptic", INFO)
    files.add("000000000139", result(MAP, SEGMENTS))
    path = files.save()
    scores = score_files.score_panoptic_files(path, path)
    assert scores["panoptic/PQ"] == 1.0 and scores["panoptic/TP/person"] == 1


def test_instances_have_the_datasets_ids(tmp_path):
    masks = np.stack([MAP == 1, MAP == 2])
    files = PredictionFiles(tmp_path / "new", "instance", INFO)
    files.add("139", result(MAP, SEGMENTS, masks))
    first, second = read_instances(files.save())
    assert (first["image_id"], first["category_id"], second["category_id"]) == (139, 1, 187)
    np.testing.assert_array_equal(decode_mask(second["segmentation"]), masks[1])


@pytest.mark.parametrize(("ids", "void"), [((7, 11), 255), ((7, 300), 65535)])
def test_semantic_maps_have_the_datasets_ids(tmp_path, ids, void):
    info = DatasetInfo("toy", ("person", "sky"), dataset_ids=ids)
    files = PredictionFiles(tmp_path, "semantic", info)
    files.add("street", result(np.array([[0, 1], [VOID, 0]], np.int32)))
    assert files.save() == tmp_path / "labels"
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "labels" / "street.png")), [ids, (void, ids[0])])
