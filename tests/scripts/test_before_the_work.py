"""What would fail at the end of long work is refused at its beginning."""

from __future__ import annotations

import importlib
import sys

import pytest


@pytest.fixture()
def run_script(load_script, monkeypatch, repository):
    """Runs a script's `main` where matplotlib is missing."""
    monkeypatch.syspath_prepend(str(repository / "scripts"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    def run(name, *arguments):
        script = load_script(name)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        for work in ("run", "plan_runs", "_load"):
            if hasattr(script, work):
                monkeypatch.setattr(script, work, lambda *_: pytest.fail("the work is begun"))
        return script.main()

    return run


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("soak", ["--output", "soak.png"]),
        ("compare_baselines", ["--output", "comparison"]),
        ("benchmark", ["scaling", "--output", "curves.png"]),
        ("analyze_model", ["--config", "fields.yaml", "--weights", "w", "--tasks", "queries", "--output", "out"]),
    ],
)
def test_pictures_need_matplotlib(run_script, monkeypatch, name, arguments):
    model = importlib.import_module("benchmarks.model") if name == "benchmark" else None
    if model is not None:
        monkeypatch.setattr(model, "_cost", lambda *_: pytest.fail("the work is begun"))
    with pytest.raises(SystemExit, match=r"^error: .* needs matplotlib, .*install\.sh plots"):
        run_script(name, *arguments)


def test_a_soak_has_five_steps_or_more(run_script, capsys):
    with pytest.raises(SystemExit):
        run_script("soak", "--steps", 4)
    assert "--steps must be 5 or more" in capsys.readouterr().err


def test_an_unknown_part_of_the_evaluation_benchmark(run_script, capsys):
    with pytest.raises(SystemExit) as exit_:
        run_script("benchmark", "evaluation", "--parts", "panoptc")
    assert exit_.value.code == 2 and "invalid choice: 'panoptc'" in capsys.readouterr().err
