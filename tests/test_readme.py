"""What the README shows works: its commands name files that exist, its configuration loads, its Python runs."""

from __future__ import annotations

import re

import pytest

from kmaskformer.config import load_config


@pytest.fixture(scope="module")
def readme(repository):
    return (repository / "README.md").read_text(encoding="utf-8")


def blocks(readme, language):
    return re.findall(rf"```{language}\n(.*?)```", readme, flags=re.DOTALL)


def test_the_two_commands_stand_first(readme):
    first = blocks(readme, "bash")[0]
    assert [line.split("  ")[0].strip() for line in first.splitlines()] == [
        "bash scripts/quickstart.sh",
        "bash scripts/test.sh",
    ]


def test_named_scripts_and_configs_exist(readme, repository):
    names = set(re.findall(r"(?:scripts|configs|kmaskformer)/[\w/.-]+\.(?:py|sh|yaml)", readme))
    assert len(names) >= 6
    assert [name for name in names if not (repository / name).is_file()] == []


def test_the_configuration_of_own_data_loads(readme, tmp_path):
    for index, text in enumerate(blocks(readme, "yaml")):
        path = tmp_path / f"{index}.yaml"
        path.write_text(text)
        config = load_config(path)
        assert config.model.num_classes == len(config.data.class_names)


def test_the_python_runs(readme, repository, monkeypatch, capsys):
    monkeypatch.chdir(repository)
    for text in blocks(readme, "python"):
        exec(compile(text, "README.md", "exec"), {})
    printed = capsys.readouterr().out.split()
    assert all(0 <= float(score) <= 1 for score in printed[-2:])
