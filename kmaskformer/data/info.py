"""`DatasetInfo` from what datasets come with: JSON or CSV class tables, COCO categories, plain lists of names."""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kmaskformer.structures import DatasetInfo

ClassTable = str | Path | DatasetInfo | Mapping[str, Any] | Sequence[Any]


def read_info(
    source: ClassTable, name: str = "", things: Sequence[str | int] = (), ignore_value: int | None = None
) -> DatasetInfo:
    """Reads a label space.

    Args:
        source: Path of a JSON or CSV file, or what such a file holds:
            - `{"classes": [...], "colors_rgb": ["3C1098", ...], "things": [...], "ignore": 255}`, all but the first
              optional; a class is a name, or a record as below;
            - COCO's `{"categories": [{"id": 1, "name": "person", "isthing": 1, "color": [220, 20, 60]}, ...]}` or the
              bare list; contiguous ids follow the order of the ids;
            - a list of names, or a dict from the ids in the files to names (`{0: "wall", 255: "crack"}`);
            - what `DatasetInfo.to_dict` wrote;
            - CSV with a header of `name` and optionally `id`, `isthing`, `color`; contiguous ids follow the rows, or
              are `trainId` where there is such a column (rows with -1 or 255 there are left out).
        name: The dataset's name; by default the file's, or `"custom"`.
        things: Names or contiguous ids of the countable classes, instead of the source's.
        ignore_value: Value of unlabelled pixels, instead of the source's (255 if it has none).

    Returns:
        The record.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the table cannot be understood; the message names the file.
    """
    if isinstance(source, DatasetInfo):
        values: Any = source.to_dict()
    else:
        values = _load(Path(source)) if isinstance(source, str | Path) else source
    where = str(source) if isinstance(source, str | Path) else "class table"
    try:
        fields = _fields(values)
        fields["name"] = name or fields.get("name") or _default_name(source)
        wanted = list(things) or fields.get("thing_ids", ())
        fields["thing_ids"] = tuple(_class_index(thing, fields["class_names"]) for thing in wanted)
        if ignore_value is not None:
            fields["ignore_value"] = ignore_value
        return DatasetInfo(**fields)
    except (ValueError, KeyError, TypeError) as error:
        detail = f"missing entry {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{where}: {detail}") from error


def _default_name(source: ClassTable) -> str:
    """The file's name, or its folder's where the file is simply called "classes"."""
    if not isinstance(source, str | Path):
        return "custom"
    path = Path(source).resolve()
    return path.parent.name if path.stem in ("classes", "labels", "info") else path.stem


def _load(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such class table. Give a JSON or CSV file, or a list of class names.")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".csv":
            return _csv_records(text)
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read as {path.suffix or 'JSON'} ({error}).") from error


def _csv_records(text: str) -> list[dict[str, str]]:
    records = list(csv.DictReader(text.splitlines(), skipinitialspace=True))
    if not records or "name" not in records[0]:
        raise ValueError(f"the first line must name the columns, one of them `name`. Received: {text.splitlines()[:1]}")
    if "trainId" not in records[0]:
        return records
    # Cityscapes gives 255 and -1 to what is not trained on.
    records = [record for record in records if int(record["trainId"]) not in (-1, 255)]
    records.sort(key=lambda record: int(record["trainId"]))
    if [int(record["trainId"]) for record in records] != list(range(len(records))):
        raise ValueError("`trainId` must number the classes 0, 1, 2, ... without gaps; -1 and 255 leave a row out")
    return records


def _fields(values: Any) -> dict[str, Any]:
    """Arguments of `DatasetInfo`, from any of the formats."""
    if isinstance(values, Mapping) and values and all(str(key).isdecimal() for key in values):  # keys of JSON are text
        return _from_records([{"id": int(key), "name": values[key]} for key in sorted(values, key=int)])
    if isinstance(values, Mapping) and "class_names" in values:
        return dict(DatasetInfo.from_dict(dict(values)).to_dict())
    if isinstance(values, Mapping) and "categories" in values:
        return _from_records(sorted(values["categories"], key=lambda record: int(record["id"])))
    if isinstance(values, Mapping) and "classes" in values:
        fields = _from_records(values["classes"])
        if values.get("colors_rgb"):
            fields["colors"] = tuple(_color(color) for color in values["colors_rgb"])
        if "ignore" in values:
            fields["ignore_value"] = int(values["ignore"])
        if "things" in values:
            fields["thing_ids"] = tuple(values["things"])
        return fields | ({"name": values["name"]} if "name" in values else {})
    if isinstance(values, Sequence) and not isinstance(values, str):
        records = list(values)
        # COCO's bare list is numbered by its ids; rows of a CSV file, whose ids are text, by their order.
        if all(isinstance(record, Mapping) and isinstance(record.get("id"), int) for record in records):
            records.sort(key=lambda record: record["id"])
        return _from_records(records)
    raise ValueError(
        "a class table must have an entry `classes` or `categories`, or be a list of names. "
        f"Received: {sorted(values) if isinstance(values, Mapping) else values!r}"
    )


def _from_records(records: Sequence[Any]) -> dict[str, Any]:
    """From a list of names or of records with `name` and perhaps `id`, `isthing`, `color`."""
    records = [{"name": record} if isinstance(record, str) else record for record in records]
    strange = [record for record in records if not isinstance(record, Mapping)]
    if strange:
        raise ValueError(f"a class must be a name, or a record with `name`. Received: {strange[0]!r}")
    fields: dict[str, Any] = {"class_names": tuple(str(record["name"]) for record in records)}
    fields["thing_ids"] = tuple(index for index, record in enumerate(records) if _is_true(record.get("isthing", 0)))
    for field, key, convert in (("dataset_ids", "id", int), ("colors", "color", _color)):
        given = [record[key] for record in records if record.get(key) not in (None, "")]
        if given and len(given) < len(records):
            lacking = next(record["name"] for record in records if record.get(key) in (None, ""))
            raise ValueError(f"`{key}` must be given for all classes or for none. Received: none for {lacking!r}")
        if given:
            fields[field] = tuple(convert(value) for value in given)
    return fields


def _is_true(value: Any) -> bool:
    return str(value).strip().lower() in ("1", "true", "yes")


def _color(value: str | Sequence[int]) -> tuple[int, ...]:
    """`"#3C1098"`, `"3C1098"` or `[60, 16, 152]`."""
    if not isinstance(value, str):
        channels = tuple(int(channel) for channel in value)
    else:
        digits = value.strip().lstrip("#")
        try:
            channels = tuple(bytes.fromhex(digits))
        except ValueError:
            channels = ()
    if len(channels) != 3 or not all(0 <= channel <= 255 for channel in channels):
        raise ValueError(f'a colour must be six hex digits ("3C1098") or three numbers 0..255. Received: {value!r}')
    return channels


def _class_index(thing: str | int, class_names: Sequence[str]) -> int:
    if not isinstance(thing, str):
        return int(thing)
    if thing not in class_names:
        close = difflib.get_close_matches(thing, class_names, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else f" Classes: {', '.join(class_names[:20])}"
        raise ValueError(f"`things` names an unknown class {thing!r}.{hint}")
    return list(class_names).index(thing)
