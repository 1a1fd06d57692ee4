"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root folder of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Folder with the golden outputs and the real images; it lies beside the checkout where it is available."""
    folder = Path(os.environ.get("KMASKFORMER_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no golden outputs and real images at {folder}; set KMASKFORMER_SHARED to run this test")
    return folder


@pytest.fixture()
def rng() -> np.random.Generator:
    """Random numbers that are the same in every run."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def golden(shared_folder: Path) -> ModuleType:
    """The module `golden.py`, with `golden.case(name)` to open a case."""
    module = load_module("golden")
    module.case = lambda name: module.GoldenCase(name, shared_folder / "golden" / name)
    return module


@pytest.fixture(scope="session")
def fidelity(golden: ModuleType) -> ModuleType:
    """The module `fidelity.py`, which compares models with golden cases."""
    return load_module("fidelity")


@pytest.fixture(scope="session")
def official() -> ModuleType:
    """The module `official_cases.py`, with `official.scores`, what the official tools say of its cases."""
    module = load_module("official_cases")
    module.scores = json.loads((REPOSITORY / "tests" / "official_scores.json").read_text())
    return module


@pytest.fixture(scope="session")
def run_on_jax() -> Iterator[Callable[..., str]]:
    """Runs a script with Keras on JAX and without TensorFlow, `run_on_jax(script, *arguments)`; what it printed."""
    pytest.importorskip("jax")
    interpreter = load_module("jax_interpreter").JaxInterpreter(REPOSITORY)
    yield interpreter.run
    interpreter.close()


def load_module(name: str) -> ModuleType:
    """A module of this folder, which is no package; others can import it by its name from then on."""
    return load_file(REPOSITORY / "tests" / f"{name}.py", name)


def load_file(path: Path, name: str) -> ModuleType:
    """A file of Python as a module of that name."""
    spec = importlib.util.spec_from_file_location(name, path)
    # Known before it runs, for its dataclasses look it up.
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def load_script() -> Callable[[str], ModuleType]:
    """Gives a script of the repository as a module: `load_script("train")`, `load_script("benchmarks/data")`."""
    return lambda name: load_file(REPOSITORY / "scripts" / f"{name}.py", f"script_{name.replace('/', '_')}")


@pytest.fixture()
def without_values() -> Iterator[Callable[..., Any]]:
    """Calls a function that makes a model, and leaves out the values of its weights: 200 million of them take long."""
    import keras

    def call(make: Callable[..., Any], *arguments: Any) -> Any:
        with keras.StatelessScope(initialize_variables=False):
            return make(*arguments)

    yield call
    keras.utils.clear_session()  # forgets the weights that wait for a value
