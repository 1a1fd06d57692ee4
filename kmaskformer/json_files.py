"""Reading JSON files; every error names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_json(path: str | Path) -> Any:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such JSON file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # text that is not UTF-8 is one too
        raise ValueError(f"{path}: cannot be read as JSON ({error}). Copy or save it anew.") from error


def read_json_object(path: str | Path) -> dict[str, Any]:
    """As `read_json`, for a file that must hold an object.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not JSON, or holds something else than an object.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: must hold a JSON object. Found: {type(values).__name__}. Copy or save it anew.")
    return values


def read_json_object_or_empty(path: Path) -> dict[str, Any]:
    """As `read_json_object`, {} where there is no such file.

    Raises:
        ValueError: If it is not JSON, or holds something else than an object.
    """
    return read_json_object(path) if path.is_file() else {}
