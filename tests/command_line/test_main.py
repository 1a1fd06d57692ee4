"""The command `kmaskformer` itself: its help, its subcommands, and how it ends."""

from __future__ import annotations

import configparser
import importlib

import pytest

import kmaskformer
from kmaskformer.command_line.main import COMMANDS, main


def test_is_installed_as_a_console_command(repository):
    setup = configparser.ConfigParser()
    setup.read(repository / "setup.cfg")
    line = setup["options.entry_points"]["console_scripts"].strip()
    assert line == "kmaskformer = kmaskformer.command_line.main:main"


def test_without_arguments_it_explains_itself(capsys):
    with pytest.raises(SystemExit) as exit_:
        main([])
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    assert all(f"  {name}" in printed for name in COMMANDS) and "kmaskformer train --config" in printed


def test_version_and_unknown_commands(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0 and capsys.readouterr().out == f"kmaskformer {kmaskformer.__version__}\n"
    with pytest.raises(SystemExit) as exit_:
        main(["trane"])
    assert exit_.value.code == 2 and "(choose from " in capsys.readouterr().err


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_of_a_command_teaches_by_examples(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: kmaskformer {command} ")
    examples = printed.split("examples:\n")[1].splitlines()
    assert len(examples) >= 2 and examples[0].startswith(f"  kmaskformer {command} ")


def test_examples_name_options_that_exist(capsys):
    """What the help shows can be typed: each option of an example is one of its command."""
    for command in COMMANDS:
        module = importlib.import_module(f"kmaskformer.command_line.{command}")
        with pytest.raises(SystemExit):
            main([command, "--help"])
        usage = capsys.readouterr().out.split("examples:\n")[0]
        shown = module.EXAMPLES.replace("\\\n", " ")
        for line in shown.splitlines():
            if line.strip().startswith("kmaskformer"):
                words = line.split("#")[0].split()
                assert words[1] == command
                assert [word for word in words if word.startswith("--") and word not in usage] == []


def test_a_users_mistake_ends_in_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"^error: .*absent\.yaml"):
        main(["train", "--config", str(tmp_path / "absent.yaml"), "--output", str(tmp_path / "run")])
    with pytest.raises(SystemExit, match=r"^error: .*no such weights file"):
        main(["export", "--weights", str(tmp_path / "absent.keras"), "--output", str(tmp_path / "out")])
