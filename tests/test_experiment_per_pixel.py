"""Whole runs of the baselines on generated scenes: train, evaluate, predict, and the files they leave."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from kmaskformer import experiment, trained_run
from kmaskformer.config import load_config

TINY = [
    "model.pixel_decoder={conv_dim: 32, mask_dim: 32}",
    "model.transformer_decoder={num_queries: 10, hidden_dim: 32, num_heads: 2, feedforward_dim: 32, decoder_layers: 2}",
    "data.image_size=[64, 64]",
    "data.augmentation={crop: [64, 64]}",
    "data.train={count: 8, seed: 0}",
    "data.val={count: 3, seed: 1}",
    "data.batch_size=2",
    "training={steps: 2, evaluate_every: 2, checkpoint_every: 2, log_every: 1}",
    "optimizer.schedule={warmup_steps: 1}",
    "evaluation.metrics=[semantic]",
]
RUNS = {
    "per_pixel": (["model.name=per_pixel", "loss.name=per_pixel"], {"loss_sem_seg"}),
    "per_pixel_plus": (["model.name=per_pixel_plus", "loss.name=per_pixel"], {"loss_sem_seg", "loss_sem_seg_0"}),
    "fixed": (
        ["loss.matcher=fixed"],
        {f"loss_{kind}{layer}" for kind in ("ce", "mask", "dice") for layer in ("", "_0")},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_run(repository, tmp_path, name):
    options, terms = RUNS[name]
    config = load_config(repository / "configs/shapes/panoptic/maskformer_resnet18.yaml", [*TINY, *options])
    scores = experiment.train(config, tmp_path)
    assert 0 <= scores["semantic/mIoU"] <= 1 and "panoptic/PQ" not in scores
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {key for key in rows[0] if key.startswith("loss_")} == terms
    assert np.asarray(Image.open(tmp_path / "pictures" / "predictions_0000002.png")).std() > 10
    model, again = experiment.evaluate(trained_run.run_config(tmp_path), tmp_path)
    assert again["semantic/mIoU"] == pytest.approx(scores["semantic/mIoU"], abs=1e-6)
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    result = trained_run.build_segmenter(model, config, "semantic")(image)
    assert result.segmentation.shape == (50, 70) and result.info.name == "shapes"
