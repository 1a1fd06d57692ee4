"""What several tests of scripts need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from kmaskformer import build, build_data
from kmaskformer.config import load_config, save_config

TINY = (
    "model.transformer_decoder={num_queries: 6, hidden_dim: 32, num_heads: 2, feedforward_dim: 32, decoder_layers: 1}",
    "model.pixel_decoder={conv_dim: 32, mask_dim: 32}",
)


@pytest.fixture(scope="session")
def make_run_folder(repository: Path) -> Callable[[Path, Sequence[str]], Path]:
    """Fills a folder with what training leaves for other scripts, of a tiny model: itself and its configuration."""

    def make(folder: Path, overrides: Sequence[str]) -> Path:
        config = load_config(repository / "configs/shapes/panoptic/maskformer_resnet18.yaml", [*TINY, *overrides])
        build.build_model(config.model, build_data.build_reader(config.data, "val").info).save(folder / "model.keras")
        save_config(config, folder / "config.yaml")
        return folder

    return make
