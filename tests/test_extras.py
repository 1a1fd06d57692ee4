"""What is said where an optional package is missing."""

from __future__ import annotations

import configparser
import re
import sys

import pytest

from kmaskformer.extras import missing_extra, require_extra


def test_the_message_says_what_is_missing_and_how_it_is_installed_from_a_checkout():
    error = missing_extra("serve", "Serving", ModuleNotFoundError("No module named 'starlette'", name="starlette"))
    assert isinstance(error, ImportError) and error.name == "starlette"
    assert str(error) == (
        "Serving needs starlette, which cannot be imported (No module named 'starlette'). Install it in the checkout "
        "of kmaskformer: `bash scripts/install.sh serve` (into its .venv), or `pip install -e '.[serve]'`."
    )
    assert "needs the extra `plots`" in str(missing_extra("plots", "Drawing"))


def test_the_extras_exist(repository):
    setup = configparser.ConfigParser()
    setup.read(repository / "setup.cfg")
    extras = set(setup["options.extras_require"])
    sources = (repository / "kmaskformer").rglob("*.py")
    calls = re.compile(r"(?:missing_extra|how_to_install)\(['\"]([a-z-]+)")
    named = {name for path in sources for name in calls.findall(path.read_text())}
    assert named <= extras and {"coco", "data", "hub", "keras-cv", "onnx", "serve", "tensorboard", "video"} <= named


def test_nothing_is_said_of_a_package_index(repository):
    """kmaskformer is on none: `pip install kmaskformer[...]` fails, or worse, finds another's."""
    for path in [*(repository / "kmaskformer").rglob("*.py"), *(repository / "scripts").rglob("*.*")]:
        if path.suffix in (".py", ".sh"):
            assert not re.search(r"pip install\W+kmaskformer", path.read_text()), path


def test_an_extra_is_required_by_its_package(monkeypatch):
    require_extra("plots", "json", "Drawing")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"^Drawing needs matplotlib, .*install\.sh plots"):
        require_extra("plots", "matplotlib", "Drawing")
