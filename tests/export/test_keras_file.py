"""`.keras` files: whole models that a fresh process loads with this package imported and nothing else known."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

LOAD = """
import sys
import numpy as np
import keras
import kmaskformer
folder, names = sys.argv[1], sys.argv[2:]
images = np.load(f"{folder}/images.npy")
for name in names:
    model = keras.saving.load_model(f"{folder}/{name}.keras")
    outputs = model(images, training=False)
    np.savez(f"{folder}/{name}.npz", **{key: outputs[key] for key in ("class_logits", "mask_logits")})
    model.save(f"{folder}/{name}_again.keras")
    print(model.dataset_info.class_names[3], model.dtype_policy.name)
"""

PARTS = {
    "resnet": {"backbone": "resnet", "encoder_layers": 1},
    "swin": {"backbone": "swin"},
    "half": {"backbone": "resnet", "dtype": "mixed_bfloat16"},
}


@pytest.fixture(scope="module")
def loaded_elsewhere(make_model, scene, repository, tmp_path_factory):
    """Models with their outputs, and the folder with what a fresh process computed from their files."""
    folder = tmp_path_factory.mktemp("keras_files")
    images = np.stack([scene(45, 70, seed) for seed in range(2)])
    np.save(folder / "images.npy", images)
    models = {name: make_model(**parts) for name, parts in PARTS.items()}
    for name, model in models.items():
        model.save(folder / f"{name}.keras")
    command = [sys.executable, "-c", LOAD, str(folder), *models]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return models, images, folder, result.stdout.split("\n")


def test_outputs_are_the_same(loaded_elsewhere):
    models, images, folder, printed = loaded_elsewhere
    for (name, model), line in zip(models.items(), printed, strict=False):
        expected = model(images, training=False)
        with np.load(folder / f"{name}.npz") as found:
            for key in ("class_logits", "mask_logits"):
                np.testing.assert_allclose(found[key], expected[key], rtol=0, atol=1e-5, err_msg=name)
        assert line.split() == ["grass", model.dtype_policy.name]


def test_a_file_of_a_loaded_model_loads_too(loaded_elsewhere):
    import keras

    models, images, folder, _ = loaded_elsewhere
    again = keras.saving.load_model(folder / "swin_again.keras")
    expected = models["swin"](images, training=False)
    np.testing.assert_allclose(again(images, training=False)["mask_logits"], expected["mask_logits"], atol=1e-5)
