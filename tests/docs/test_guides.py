"""Every block of the guides: configurations load, commands exist with their options, Python runs."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from kmaskformer.config import load_config

REPOSITORY = Path(__file__).resolve().parents[2]
GUIDES = sorted((REPOSITORY / "docs").rglob("*.md"))


def blocks(path, language):
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def source_of(script):
    """Text of a script, of the subcommand that it calls, and of the modules that add options to it."""
    text, waiting, seen = "", [REPOSITORY / script], set()
    while waiting:
        path = waiting.pop()
        seen.add(path)
        source = path.read_text(encoding="utf-8")
        text += source
        names = re.findall(r"from kmaskformer\.command_line\.(\w+) import", source)
        modules = {REPOSITORY / "kmaskformer" / "command_line" / f"{name}.py" for name in names}
        waiting += modules - seen - set(waiting)
    return text


@pytest.fixture(params=GUIDES, ids=lambda path: path.stem)
def guide(request):
    return request.param


def test_blocks_are_of_kinds_that_are_tested(guide):
    languages = re.findall(r"^```(\w*)$", guide.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert (
        len(languages) % 2 == 0 and set(languages[::2]) <= {"python", "bash", "yaml"} and set(languages[1::2]) <= {""}
    )


def test_commands_exist_with_their_options(guide):
    commands = re.findall(r"(scripts/\w+\.py)(.*)", "".join(blocks(guide, "bash")))
    assert commands or not blocks(guide, "bash")
    for script, line in commands:
        words, source = line.split("#")[0].split(), source_of(script)
        options = re.findall(r"(?<!\S)--[a-z-]+", line)
        assert [option for option in options if f'"{option}"' not in source] == [], line
        assert [word for word in words if word.startswith("configs/") and not (REPOSITORY / word).is_file()] == [], line


def test_configurations_load(guide, tmp_path):
    ours = [text for text in blocks(guide, "yaml") if not text.startswith("apiVersion:")]  # Kubernetes' are not
    for index, text in enumerate(ours):
        path = tmp_path / f"{index}.yaml"
        path.write_text(text)
        load_config(path)


def test_python_is_python(guide):
    for text in blocks(guide, "python"):
        ast.parse(text)


def test_links_lead_somewhere(guide):
    prose = re.sub(r"```.*?```", "", guide.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", prose)
    assert [link for link in links if not (guide.parent / link).is_file()] == []


@pytest.mark.slow
def test_python_runs(guide, tmp_path, monkeypatch):
    """In one namespace per page, in a folder that has the configurations and the page's own, as its text says."""
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    monkeypatch.chdir(tmp_path)
    for text in blocks(guide, "yaml"):
        Path("fields.yaml").write_text(text)
    namespace = {}
    for text in blocks(guide, "python"):
        exec(compile(text, str(guide), "exec"), namespace)


def test_every_guide_is_in_the_menu():
    menu = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    assert [str(path) for path in GUIDES if str(path.relative_to(REPOSITORY / "docs")) not in menu] == []


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    build = pytest.importorskip("mkdocs.commands.build")
    config = pytest.importorskip("mkdocs.config").load_config(str(REPOSITORY / "mkdocs.yml"), site_dir=str(tmp_path))
    build.build(config)  # strict: a warning is an error
    page = (tmp_path / "api" / "index.html").read_text(encoding="utf-8")
    assert "Deep supervision" in page or "deep_supervision" in page
