"""Compare the models with the original implementation: `python scripts/check_fidelity.py --output table.json`.

Weights come from a formula, through the name map of the package; what the original computes with them lies in a folder
of golden cases. The comparison itself is `tests/fidelity.py`, which the tests use too.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

REPOSITORY = Path(__file__).resolve().parents[1]
COLUMNS = {
    "features": "features, of the largest",
    "logits": "logits, absolute",
    "losses": "losses, relative",
    "gradient_norms": "gradient norms, relative",
    "gradient_samples": "gradients, of the rms",
    "matching": "equal matchings",
    "argmax": "equal classes",
    "panoptic": "equal panoptic pixels",
}


def main() -> None:
    """Parse the arguments, compare and print; the exit status is 1 if a limit is exceeded."""
    parser = argparse.ArgumentParser(description="Largest errors against the original implementation.")
    folder = REPOSITORY.parent / "shared" / "golden"
    parser.add_argument("--golden", type=Path, default=folder, help=f"folder of golden cases; {folder} by default")
    parser.add_argument("--cases", nargs="*", default=[], help="names of cases; all by default")
    parser.add_argument("--output", type=Path, help="JSON file for every error by name")
    arguments = parser.parse_args()
    cases = _find_cases(arguments.golden, arguments.cases)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
    golden, fidelity = _load_module("golden"), _load_module("fidelity")
    print(f"| case | {' | '.join(COLUMNS.values())} |\n|---|{'---|' * len(COLUMNS)}", flush=True)
    print(_row("limit", fidelity.LIMITS), flush=True)
    errors, violations = {}, []
    for name in cases:
        errors[name] = fidelity.all_errors(golden.GoldenCase(name, arguments.golden / name))
        print(_row(name, fidelity.worst(errors[name])), flush=True)
        violations += [f"{name}: {text}" for text in fidelity.violations(errors[name])]
    if arguments.output:
        arguments.output.write_text(json.dumps(errors, indent=1) + "\n", encoding="utf-8")
    if violations:
        sys.exit("Beyond the limits:\n" + "\n".join(violations))


def _row(name: str, values: dict[str, float]) -> str:
    """A line of the table; part of the pixels as a percentage, errors with two digits."""
    texts = [
        "-" if key not in values else f"{values[key]:.3%}" if title.startswith("equal") else f"{values[key]:.1e}"
        for key, title in COLUMNS.items()
    ]
    return f"| {name} | {' | '.join(texts)} |"


def _find_cases(folder: Path, names: list[str]) -> list[str]:
    found = sorted(path.parent.name for path in folder.glob("*/meta.json"))
    if not found:
        sys.exit(f"{folder}: no golden cases (folders with meta.json and arrays.npz). Name their folder by --golden.")
    unknown = sorted(set(names) - set(found))
    if unknown:
        sys.exit(f"{folder}: no cases {', '.join(unknown)}. There are: {', '.join(found)}")
    return names or found


def _load_module(name: str) -> ModuleType:
    """A module of `tests`, which is no package; others can import it by its name from then on."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "tests" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
