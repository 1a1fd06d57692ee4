"""Makes `huggingface/*.json` and `*.npz`: what transformers stores and computes for tiny models.

    python tests/checkpoints/make_huggingface_fixtures.py     (needs torch and transformers)

The JSON holds `config.json` and the names, shapes and types of the arrays on disk; the archive the model's outputs for
`images()` and for weights that come from a formula of their names, so that no weight is stored.
"""

from __future__ import annotations

import json
import re
import tempfile
import zlib
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "huggingface"
KINDS = ("swin", "resnet_basic", "resnet_bottleneck")
MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
SIZE = (64, 96)
BUILT_IN = ("relative_position_index", "criterion.empty_weight")


def formula_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The array of this name: numbers of a spread that keeps signals in range, from a seed that is the name's hash."""
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype("float32")
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, "int64")
    if name.endswith("relative_position_index"):
        return np.zeros(shape, "int64")  # never read: neither side takes it from the file
    if name.endswith("running_var"):
        return 1 + np.float32(0.1) * np.abs(noise)
    if name.endswith("queries_embedder.weight"):
        return noise
    if name.endswith("relative_position_bias_table"):
        return np.float32(0.5) * noise
    if re.search(r"\.bias$|running_mean$", name):
        return np.float32(0.1) * noise
    if len(shape) < 2:
        return 1 + np.float32(0.1) * noise
    factor = 4.0 if re.search(r"encoder_attn\.out_proj|class_predictor", name) else 1.0
    return noise * np.float32(factor / np.sqrt(np.prod(shape[1:])))


def images() -> np.ndarray:
    """Two images, `(2, height, width, 3)` uint8."""
    rng = np.random.RandomState(7)
    coarse = rng.uniform(0, 255, (2, SIZE[0] // 16, SIZE[1] // 16, 3))
    smooth = np.kron(coarse, np.ones((1, 16, 16, 1)))
    return np.clip(np.rint(smooth + 12 * rng.standard_normal(smooth.shape)), 0, 255).astype("uint8")


def make_model(kind: str):
    """A tiny `MaskFormerForInstanceSegmentation` with random weights."""
    import transformers

    decoder = transformers.DetrConfig(
        d_model=16, decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=24, num_queries=5, encoder_layers=0
    )
    stages = ["stage1", "stage2", "stage3", "stage4"]
    if kind == "swin":
        sizes = {"embed_dim": 8, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 5}
        backbone = transformers.MaskFormerSwinConfig(**sizes, out_features=stages)
    else:
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 24], "depths": [1, 2, 1, 1]}
        backbone = transformers.ResNetConfig(**sizes, layer_type=kind.split("_")[1], out_features=stages)
    config = transformers.MaskFormerConfig(
        backbone_config=backbone,
        decoder_config=decoder,
        fpn_feature_size=32,
        mask_feature_size=12,
        id2label={0: "sky", 1: "road", 2: "car"},
        label2id={"sky": 0, "road": 1, "car": 2},
    )
    return transformers.MaskFormerForInstanceSegmentation(config).eval()


def with_formula_weights(kind: str, folder: Path):
    """The model whose stored arrays are the formula's, and the shapes and types of these arrays."""
    import safetensors.numpy
    import transformers

    make_model(kind).save_pretrained(folder)
    stored = safetensors.numpy.load_file(folder / "model.safetensors")
    shapes = {name: [list(array.shape), str(array.dtype)] for name, array in sorted(stored.items())}
    arrays = {
        name: array if name.endswith(BUILT_IN) else formula_weight(name, array.shape) for name, array in stored.items()
    }
    safetensors.numpy.save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    return transformers.MaskFormerForInstanceSegmentation.from_pretrained(folder).eval(), shapes


def main() -> None:
    """Write all fixtures."""
    import torch

    FOLDER.mkdir(exist_ok=True)
    pixels = torch.tensor(((images() - MEAN) / STD).transpose(0, 3, 1, 2), dtype=torch.float32)
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            model, shapes = with_formula_weights(kind, Path(folder))
            config = json.loads((Path(folder) / "config.json").read_text())
        with torch.no_grad():
            outputs = model(pixel_values=pixels)
        (FOLDER / f"{kind}.json").write_text(json.dumps({"config": config, "arrays": shapes}, indent=1) + "\n")
        np.savez_compressed(
            FOLDER / f"{kind}.npz",
            class_logits=outputs.class_queries_logits.numpy(),
            mask_logits=outputs.masks_queries_logits.numpy(),
        )


if __name__ == "__main__":
    main()
