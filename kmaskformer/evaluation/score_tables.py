"""Scores as text and tables: written as files, shown, by class, and of two runs side by side."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

MAIN_CLASS_SCORES = ("PQ", "IoU", "AP")
"""The score of a class that charts show, whichever an evaluator has."""

_COUNTS = ("TP", "FP", "FN", "images", "failed_images")


def write_metrics(scores: Mapping[str, float], path: str | Path) -> Path:
    """Writes scores to a `.json` (one flat object) or a `.csv` (columns `name`, `value`).

    Undefined scores (NaN) are `null` in JSON, which has no NaN, and empty in CSV.

    Returns:
        The path; its folder is made.

    Raises:
        ValueError: If the path ends neither in `.json` nor in `.csv`.
    """
    path = Path(path)
    if path.suffix not in (".json", ".csv"):
        raise ValueError(f"`path` must end in .json or .csv. Received: path={path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        plain = {key: None if math.isnan(value) else float(value) for key, value in scores.items()}
        path.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    else:
        write_rows(path, [("name", "value"), *((key, float(value)) for key, value in scores.items())])
    return path


def write_rows(path: str | Path, rows: Iterable[Sequence]) -> None:
    """Writes a CSV; NaN is empty."""
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(["" if _is_nan(cell) else cell for cell in row] for row in rows)


def summarize(scores: Mapping[str, float]) -> dict[str, float]:
    """The scores without the per-class entries: `panoptic/PQ` stays, `panoptic/PQ/person` goes."""
    return {key: value for key, value in scores.items() if key.count("/") <= 1}


def format_scores(scores: Mapping[str, float]) -> str:
    """A short table of the summary, one score a line, for a terminal."""
    rows = [(key, shown(key, value)) for key, value in summarize(scores).items()]
    width = max((len(key) for key, _ in rows), default=0)
    return "\n".join(f"{key:<{width}}  {value:>6}" for key, value in rows)


def shown(name: str, value: float) -> str:
    """A score as text: four places, whole numbers for counts, `-` where it is undefined."""
    if math.isnan(value):
        return "-"
    return f"{value:.0f}" if name.partition("/")[2].partition("/")[0] in _COUNTS else f"{value:.4f}"


def _is_nan(cell: Any) -> bool:
    return isinstance(cell, float) and math.isnan(cell)


def class_table(scores: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """The per-class entries of a flat dict of scores: `{"semantic/IoU": {"road": 0.9, ...}, ...}`."""
    table: dict[str, dict[str, float]] = {}
    for key, value in scores.items():
        evaluator, _, rest = key.partition("/")
        # A class name may itself hold a slash.
        score, has_class, name = rest.partition("/")
        if has_class:
            table.setdefault(f"{evaluator}/{score}", {})[name] = value
    return table


def main_columns(scores: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Of the class table, the column of each evaluator that says most."""
    return {key: column for key, column in class_table(scores).items() if key.partition("/")[2] in MAIN_CLASS_SCORES}


def format_classes(scores: Mapping[str, float]) -> str:
    """The class table for a terminal, a row a class, with shares of one as they are and counts as whole numbers."""
    table = class_table(scores)
    if not table:
        return ""
    rows = [["class", *table]]
    rows += [
        [name, *(shown(key, column.get(name, math.nan)) for key, column in table.items())] for name in _names(table)
    ]
    return format_rows(rows)


def write_classes(path: str | Path, scores: Mapping[str, float]) -> None:
    """Writes the class table as a CSV, undefined scores empty."""
    table = class_table(scores)
    rows = [[name, *(column.get(name, math.nan) for column in table.values())] for name in _names(table)]
    write_rows(path, [["class", *table], *rows])


class Difference(NamedTuple):
    """A score of two runs; NaN where a run does not have it."""

    name: str
    first: float
    second: float

    @property
    def change(self) -> float:
        """By how much the second is greater."""
        return self.second - self.first


def differences(first: Mapping[str, float | None], second: Mapping[str, float | None]) -> list[Difference]:
    """Every score that one of two runs has, in the order of the first; undefined scores (None) as NaN."""
    names = [*first, *(name for name in second if name not in first)]
    return [Difference(name, _number(first.get(name)), _number(second.get(name))) for name in names]


def format_differences(rows: Iterable[Difference], titles: Sequence[str]) -> str:
    """Two runs side by side, for a terminal."""
    cells = [[row.name, shown(row.name, row.first), shown(row.name, row.second), _change(row)] for row in rows]
    return format_rows([["score", *titles, "change"], *cells])


def format_rows(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text in aligned columns, the first to the left, all others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) if not column else cell.rjust(width) for column, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in rows)
    )


def _names(table: Mapping[str, Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(name for column in table.values() for name in column))


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _change(row: Difference) -> str:
    return "-" if math.isnan(row.change) else f"{row.change:+.4f}"
