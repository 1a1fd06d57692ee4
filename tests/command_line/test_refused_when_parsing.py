"""Arguments that cannot do are refused before models are read or frameworks imported."""

from __future__ import annotations

import json
import sys

import pytest

from kmaskformer.command_line.main import main


def refused(capsys, *arguments):
    """What is printed where the arguments are refused by their parser."""
    with pytest.raises(SystemExit) as exit_:
        main([*map(str, arguments)])
    assert exit_.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.fixture()
def unread(monkeypatch):
    for reader in ("from_preset", "load_checkpoint"):
        monkeypatch.setattr(f"kmaskformer.command_line.convert.{reader}", lambda *_, **__: pytest.fail("it is read"))


@pytest.mark.parametrize("name", ["a.h5", "a.pkl", "a.PTH", "a.bin", "a.safetensors"])
def test_convert_to_a_file_that_it_does_not_write(unread, capsys, tmp_path, name):
    said = refused(capsys, "convert", tmp_path / "model.pkl", tmp_path / name)
    assert "DESTINATION must end in .weights.h5 or .keras, or be a folder" in said and name in said


def test_convert_a_preset_with_a_configuration(unread, capsys, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"registered_name": "kmaskformer>MaskFormer"}))
    said = refused(capsys, "convert", tmp_path, tmp_path / "out.keras", "--config", "fields.yaml")
    assert "--config does not apply to a preset" in said


def test_train_with_a_strategy_that_does_not_exist(capsys):
    said = refused(capsys, "train", "--config", "absent.yaml", "--output", "out", "--strategy", "mirored")
    assert "invalid choice: 'mirored'" in said and "multi_worker" in said


def test_serve_explains_itself_without_its_extra(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("kmaskformer.serving")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "kmaskformer.command_line.serve", raising=False)
    for package in ("starlette", "uvicorn", "prometheus_client", "multipart", "python_multipart"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as exit_:
        main(["serve", "--help"])
    assert exit_.value.code == 0 and "--max-pixels" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"^error: Serving needs .*install\.sh serve"):
        main(["serve", "--model", "out"])
