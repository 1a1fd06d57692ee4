"""The report of errors against the original implementation: what it prints, and what it refuses."""

from __future__ import annotations

import json
import sys

import pytest


@pytest.fixture()
def script(load_script, monkeypatch):
    """The script as a module, with `run(*arguments)`."""
    module = load_script("check_fidelity")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["check_fidelity", *map(str, arguments)])
        module.main()

    module.run = run
    return module


@pytest.fixture()
def fake_golden(script, tmp_path, monkeypatch):
    """A folder with the cases `a` and `b`, and modules that measure fixed errors; `b` is beyond one limit."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "meta.json").write_text("{}")
    load = script._load_module

    def load_module(name):
        module = load(name)
        if name == "fidelity":
            module.all_errors = lambda case: {
                "logits": {"x": 1e-5, "y": 2e-5 if case.name == "a" else 6e-4},
                "argmax": {"img0": 1.0, "img1": 0.9995},
            }
        return module

    monkeypatch.setattr(script, "_load_module", load_module)
    return tmp_path


def test_table_file_and_status(script, fake_golden, capsys):
    script.run("--golden", fake_golden, "--cases", "a", "--output", fake_golden / "out" / "table.json")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| case | features, of the largest | logits, absolute | losses, relative |")
    assert lines[2].startswith("| limit | 1.0e-04 | 5.0e-04 | 1.0e-04 | 1.0e-03 | 1.0e-02 | 100.000% | 99.900% |")
    assert lines[3:] == ["| a | - | 2.0e-05 | - | - | - | - | 99.950% | - |"]
    assert json.loads((fake_golden / "out" / "table.json").read_text())["a"]["logits"] == {"x": 1e-5, "y": 2e-5}
    with pytest.raises(SystemExit) as caught:
        script.run("--golden", fake_golden)
    assert caught.value.code == "Beyond the limits:\nb: logits: y: 0.0006, limit 0.0005"
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_what_is_beyond_a_limit(script):
    script._load_module("golden")
    fidelity = script._load_module("fidelity")
    fine = {"losses": {"a": 1e-4}, "matching": {"a": 1.0}, "gradient_samples": {"a": 0.02, "b": 0.001}}
    assert fidelity.violations(fine) == []
    assert fidelity.violations({"losses": {"a": float("nan")}}) == ["losses: a: nan, limit 0.0001"]
    assert fidelity.violations({"matching": {"a": 1.0, "b": 0.0}}) == ["matching: b: 0, limit 1"]
    assert fidelity.violations({"panoptic": {"a": 0.998}}) == ["panoptic: a: 0.998, limit 0.999"]
    # A few tensors may be moved by a ReLU, but neither far nor many.
    assert len(fidelity.violations({"gradient_samples": {"a": 0.2}})) == 1
    assert len(fidelity.violations({"gradient_samples": dict.fromkeys("abcd", 0.02)})) == 4


def test_missing_folder_and_unknown_case(script, fake_golden, tmp_path):
    with pytest.raises(SystemExit, match=r"nothing: no golden cases .*Name their folder by --golden"):
        script.run("--golden", tmp_path / "nothing")
    with pytest.raises(SystemExit, match=r"no cases c\. There are: a, b"):
        script.run("--golden", fake_golden, "--cases", "c")


@pytest.mark.slow
def test_every_case_holds(script, shared_folder, capsys):
    script.run("--golden", shared_folder / "golden")
    assert len(capsys.readouterr().out.splitlines()) == 9
