"""What the readers of COCO's JSON files share."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kmaskformer.json_files import read_json
from kmaskformer.structures import DatasetInfo

_TYPE_NAMES = {int: "a whole number", str: "a text", list: "a list"}


def load(path: Path) -> Any:
    """The content of an annotation file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no JSON.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such annotation file. Check `root` and `annotations`.")
    return read_json(path)


def require_fields(path: Path, kind: str, rows: Iterable[Mapping[str, Any]], fields: Sequence[str]) -> None:
    """Refuses a file in which a record lacks one of `fields`; `kind` is its plural in the message."""
    for number, row in enumerate(rows):
        missing = [field for field in fields if field not in row] if isinstance(row, Mapping) else list(fields)
        if missing:
            raise ValueError(
                f"{path}: all {kind} must have {', '.join(fields)}. Received: number {number} without "
                f"{', '.join(missing)}: {str(row)[:200]}. Complete the file."
            )


def is_integer(value: Any) -> bool:
    """Whether a value of a JSON is a whole number; true and false, which are numbers to Python, are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def require_types(path: Path, kind: str, rows: Sequence[Mapping[str, Any]], **fields: type | tuple[type, ...]) -> None:
    """Refuses a file in which a record's field is of another type than `fields` says; all records have them."""
    for field, types in fields.items():
        for number, row in enumerate(rows):
            # True is a number to Python.
            if not isinstance(row[field], types) or isinstance(row[field], bool):
                expected = " or ".join(_TYPE_NAMES[one] for one in (types if isinstance(types, tuple) else (types,)))
                raise ValueError(
                    f"{path}: `{field}` of all {kind} must be {expected}. Received: {repr(row[field])[:100]} in number "
                    f"{number}: {str(row)[:200]}. Correct the file."
                )


def refuse_repeated(path: Path, kind: str, values: Sequence[Any]) -> None:
    """Refuses a file in which a value that must be unique occurs again."""
    repeated = [value for value, count in collections.Counter(values).items() if count > 1]
    if repeated:
        raise ValueError(f"{path}: {kind} must occur once. Received more than once: {repeated[:10]}.")


def labels(rows: Sequence[Mapping[str, Any]], info: DatasetInfo, subject: str) -> np.ndarray:
    """`(rows,)` int32 contiguous class ids of the rows' `category_id`.

    Raises:
        ValueError: If a category is unknown; the message begins with `subject`.
    """
    unknown = sorted({row["category_id"] for row in rows} - set(info.contiguous_ids))
    if unknown:
        raise ValueError(
            f"{subject} of unknown categories. Received: category_id {unknown}; "
            f"'{info.name}' has {info.num_classes} categories. Add them to `categories`."
        )
    return np.asarray([info.contiguous_ids[row["category_id"]] for row in rows], np.int32)


def crowds(rows: Sequence[Mapping[str, Any]], subject: str) -> np.ndarray:
    """`(rows,)` bool, whether each is a crowd; none where `iscrowd` is missing.

    Raises:
        ValueError: If `iscrowd` is something else than 0, 1, true or false; the message begins with `subject`.
    """
    values = [row.get("iscrowd", 0) for row in rows]
    for row, value in zip(rows, values, strict=True):
        if value not in (0, 1):  # true and false are equal to them
            raise ValueError(
                f"{subject} {row['id']}: `iscrowd` must be 0, 1, true or false. Received: {value!r}. Correct the file."
            )
    return np.asarray(values, bool)


def categories(info: DatasetInfo) -> list[dict[str, Any]]:
    """The list `categories` of a file with these classes, with the dataset's own ids."""
    columns = zip(info.dataset_ids, info.class_names, info.colors, strict=True)
    return [
        {"id": dataset_id, "name": name, "color": list(color), "isthing": int(index in info.thing_ids)}
        for index, (dataset_id, name, color) in enumerate(columns)
    ]


def require_files(path: Path, kind: str, files: Iterable[Path]) -> None:
    """Refuses an annotation file that names files which do not exist."""
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{path} names {len(missing)} {kind} file(s) that do not exist, first: {missing[0]}. "
            "Add the files or correct the folder."
        )
