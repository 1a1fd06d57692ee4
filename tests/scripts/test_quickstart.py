"""`scripts/quickstart.sh` with a Python that only writes down what it is asked to do."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

PYTHON = """\
#!/usr/bin/env bash
echo "$@" >> calls.txt
while [ $# -gt 1 ]; do
    if [ "$1" = --output ]; then mkdir -p "$2"; fi
    shift
done
echo "panoptic/PQ 0.5"
"""


@pytest.fixture()
def quickstart(repository, tmp_path):
    """Runs the script in a folder of its own; gives the calls of Python."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / ".venv/bin").mkdir(parents=True)
    shutil.copy(repository / "scripts/quickstart.sh", tmp_path / "scripts")
    (tmp_path / "scripts/install.sh").write_text("")
    (tmp_path / ".venv/bin/python").write_text(PYTHON)
    (tmp_path / ".venv/bin/python").chmod(0o755)

    def run(*arguments, **environment):
        command = ["bash", "scripts/quickstart.sh", *arguments]
        subprocess.run(command, cwd=tmp_path, env={**os.environ, **environment}, check=True, capture_output=True)
        calls = (tmp_path / "calls.txt").read_text().splitlines()
        (tmp_path / "calls.txt").unlink()
        return calls

    return run


def test_the_short_run_has_a_folder_of_its_own(quickstart):
    """Else the plain command afterwards would skip the training, and score a model of four steps."""
    short, plain = quickstart("--smoke"), quickstart()
    assert all("runs/quickstart_smoke" in call for call in short) and "training.steps=4" in short[0]
    assert not any("smoke" in call or "--set" in call for call in plain)
    assert plain[0].endswith("--output runs/quickstart --resume") and len(plain) == len(short) == 5
    assert "elsewhere/x" in quickstart("--smoke", QUICKSTART_OUTPUT="elsewhere/x")[0]


def test_no_array_may_be_empty(repository):
    """Before version 4.4 bash calls an empty one an unbound variable under `set -u`."""
    assert "=()" not in (repository / "scripts/quickstart.sh").read_text()
