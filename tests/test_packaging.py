"""Wheel and source archive install into an empty environment with the core dependencies alone, and import quickly."""

from __future__ import annotations

import statistics
import subprocess
import sys
import venv
import zipfile

import pytest

pytestmark = pytest.mark.slow
RATIO = 1.3
"""Import of the package, against TensorFlow's own."""


def run(*command, **options):
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    return result.stdout


@pytest.fixture(scope="module")
def archives(repository, tmp_path_factory):
    pytest.importorskip("build")
    source, output = tmp_path_factory.mktemp("source") / "checkout", tmp_path_factory.mktemp("dist")
    # Builds leave folders behind: not in the checkout. What git does not track must not be needed.
    run("git", "clone", "--quiet", "--depth", "1", f"file://{repository}", source)
    run(sys.executable, "-m", "build", "--outdir", output, source)
    return output


def test_the_wheel_has_its_data_and_nothing_of_the_tests(archives):
    (wheel,) = archives.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "kmaskformer/py.typed" in names and "kmaskformer/checkpoints/releases.csv" in names
    assert any(name.startswith("kmaskformer/data/labels/") and name.endswith(".csv") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"kmaskformer"}


@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
def test_it_works_in_an_empty_environment(archives, tmp_path, kind):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    (archive,) = archives.glob(kind)
    run(python, "-m", "pip", "install", "--quiet", archive)
    program = (
        "import kmaskformer as kmf; from kmaskformer.config import Config;"
        "[getattr(kmf, name) for name in kmf.__all__ if name != 'export_onnx'];"
        "print(len(kmf.list_presets()), kmf.__version__)"
    )
    assert run(python, "-c", program, cwd=tmp_path).startswith("30 ")


def test_import_takes_little_longer_than_tensorflows(repository):
    def seconds(module):
        program = f"import time; start = time.process_time(); import {module}; print(time.process_time() - start)"
        return float(run(sys.executable, "-c", program, cwd=repository).split()[-1])

    # Processor time, and taking turns: on a busy machine the clock on the wall says little.
    pairs = [(seconds("kmaskformer"), seconds("tensorflow")) for _ in range(5)]
    ratio = statistics.median(ours for ours, _ in pairs) / statistics.median(theirs for _, theirs in pairs)
    print(f"kmaskformer / tensorflow: {ratio:.2f}")
    assert ratio < RATIO
