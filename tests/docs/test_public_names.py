"""The public names stand in one place, `kmaskformer.__all__`, and the documentation has each of them."""

from __future__ import annotations

import importlib
import inspect
import re

import pytest

import kmaskformer as kmf


def documented(repository):
    return re.findall(r"^::: (\S+)$", (repository / "docs" / "api.md").read_text(encoding="utf-8"), flags=re.MULTILINE)


def public_objects():
    """Public names with what they stand for; `kmf.data` is a module with public names of its own."""
    names = {name: getattr(kmf, name) for name in kmf.__all__ if name not in ("__version__", "data")}
    return {**names, **{name: getattr(kmf.data, name) for name in kmf.data.__all__}}


def test_the_documentation_has_every_public_name_once(repository):
    names = [path.rpartition(".")[2] for path in documented(repository)]
    assert sorted(names) == sorted(public_objects())


def test_the_documentation_shows_the_very_objects(repository):
    objects = public_objects()
    for path in documented(repository):
        module, _, name = path.rpartition(".")
        assert getattr(importlib.import_module(module), name) is objects[name]


@pytest.mark.parametrize("name", sorted(public_objects()))
def test_public_names_have_docstrings_and_types(name):
    thing = public_objects()[name]
    text = inspect.getdoc(thing)
    assert text and len(text) > 40
    function = thing.__init__ if inspect.isclass(thing) else thing
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name not in ("self",)]
    assert [p.name for p in parameters if p.annotation is p.empty] == []
    assert inspect.isclass(thing) or inspect.signature(function).return_annotation is not inspect.Signature.empty
    named = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    if len(named) > 1:
        assert [n for n in named if not re.search(rf"\b{n}\b", text)] == []
