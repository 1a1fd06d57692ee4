"""What `import kmaskformer` does, and what works where TensorFlow is not installed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import kmaskformer

WITHOUT_TENSORFLOW = """
import sys
sys.modules["tensorflow"] = None  # importing it fails, as where it is not installed
import importlib, pkgutil
import jax, keras, numpy as np
assert keras.backend.backend() == "jax"
import kmaskformer
for name in {packages!r}:
    package = importlib.import_module(f"kmaskformer.{{name}}")
    for module in pkgutil.iter_modules(getattr(package, "__path__", [])):
        importlib.import_module(f"kmaskformer.{{name}}.{{module.name}}")
for name in {names!r}:
    getattr(kmaskformer, name)
from kmaskformer.config import config_from_dict
config = config_from_dict({{"model": {{
    "num_classes": 3, "backbone": {{"name": "resnet18"}}, "pixel_decoder": {{"conv_dim": 32, "mask_dim": 16}},
    "transformer_decoder": {{"num_queries": 5, "hidden_dim": 16, "num_heads": 2, "feedforward_dim": 24,
                             "decoder_layers": 2}},
}}}})
with keras.StatelessScope(initialize_variables=False):  # JAX compiles an initialiser for each shape, which takes long
    model = kmaskformer.build_model(config.model)
keras.utils.clear_session()  # forgets the weights that wait for a value
for variable in model.variables:
    variable.assign(np.full(variable.shape, 0.01, variable.dtype))
weights = [[v.value for v in values] for values in (model.trainable_variables, model.non_trainable_variables)]
criterion = kmaskformer.build_criterion(config.loss)
def losses(trainable, others, images, targets):
    outputs, _ = model.stateless_call(trainable, others, images)
    return outputs, criterion(outputs, targets)
targets = {{"segment_map": np.zeros((2, 64, 64), "int32"), "labels": np.ones((2, 1), "int32"),
            "valid": np.ones((2, 1), bool)}}
outputs, terms = jax.jit(losses)(*weights, np.zeros((2, 37, 45, 3), "uint8"), targets)
assert outputs["class_logits"].shape == (2, 5, 4), outputs["class_logits"].shape
assert outputs["mask_logits"].shape == (2, 5, 16, 16), outputs["mask_logits"].shape
assert set(terms) == {{f"loss_{{kind}}{{layer}}" for kind in ("ce", "mask", "dice") for layer in ("", "_0")}}, terms
assert all(np.isfinite(float(term)) for term in terms.values())
assert "tensorflow" not in [name for name, module in sys.modules.items() if module is not None]
"""
PACKAGES = ("structures", "config", "ops", "layers", "backbones", "models", "losses", "inference", "build")
NAMES = ("DatasetInfo", "MaskFormer", "build_model", "build_criterion", "load_config", "load_reference_weights")


def run(script, repository, **environment):
    environment = {**os.environ, "PYTHONPATH": str(repository), **environment}
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)


def test_works_without_tensorflow(repository):
    """Every module from `ops` to `inference`, and a model with its loss, on JAX."""
    pytest.importorskip("jax")
    script = WITHOUT_TENSORFLOW.format(packages=PACKAGES, names=NAMES)
    result = run(script, repository, KERAS_BACKEND="jax", JAX_PLATFORMS="cpu")
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.parametrize("name", kmaskformer.__all__)
def test_public_names_resolve(name):
    value = getattr(kmaskformer, name)
    assert name == "__version__" or value.__name__.removeprefix("kmaskformer.") == name
    assert name in dir(kmaskformer)


def test_public_names_have_docstrings():
    for name in set(kmaskformer.__all__) - {"__version__"}:
        assert getattr(kmaskformer, name).__doc__, name


def test_unknown_name():
    with pytest.raises(AttributeError, match=r"has no attribute 'Maskformer'. Public names: .*MaskFormer"):
        kmaskformer.Maskformer  # noqa: B018
