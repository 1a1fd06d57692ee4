"""Strict reading of YAML that is only data into frozen dataclasses; every error names file, field and remedy."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?e[-+]?\d+", re.IGNORECASE)


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names file, field and remedy."""


def read_values(cls: type, path: Path, overrides: Sequence[str]) -> tuple[dict[str, Any], str]:
    """The values of a file over those of its `base`, under those of `overrides`, and what to call them in errors.

    Every layer is checked against `cls` on its own, so that an error names the file or override that it is in.
    """
    values = _read_over_base(cls, path)
    where = str(path)
    for override in overrides:
        values = _merge(values, _parse_override(override))
        where = f"{path} with {override}"
        to_dataclass(cls, values, where)
    return values, where


def to_plain(value: Any) -> Any:
    """Tuples as lists, at any depth: what YAML and JSON can hold."""
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, list | tuple) else value


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`, at any depth."""
    fields: dict[str, Any] = {}
    for key, value in values.items():
        fields |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return fields


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, which YAML would silently let win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = sorted({str(key) for key in keys if keys.count(key) > 1})
        if repeated:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {repeated[0]!r} is given twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def _read_mapping(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"{path}: no such configuration file")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must hold a mapping of sections. Received: {type(values).__name__}")
    return values


def _read_over_base(cls: type, path: Path) -> dict[str, Any]:
    values = _read_mapping(path)
    base = values.pop("base", None)
    to_dataclass(cls, values, str(path))
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base: must be the name of a file beside it. Received: {base!r}")
    base_values = _read_mapping(path.parent / base)
    if "base" in base_values:
        raise ConfigError(
            f"{path.parent / base}: a base may not have a `base` itself; received {base_values['base']!r}"
        )
    to_dataclass(cls, base_values, str(path.parent / base))
    return _merge(base_values, values)


def _parse_override(override: str) -> dict[str, Any]:
    name, equals, text = override.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f'An override must look like "data.root=/data/coco". Received: {override!r}')
    try:
        value = yaml.safe_load(text) if text.strip() else ""
    except yaml.YAMLError as error:
        raise ConfigError(f"The value of the override {override!r} is not valid YAML: {error}") from error
    for part in reversed(name.strip().split(".")):
        value = {part: value}
    return value


def _merge(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in values.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def to_dataclass(cls: type, values: Any, where: str, prefix: str = "") -> Any:
    """The dataclass `cls` with these values, fields that are dataclasses included; an error begins with `where`."""
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: {prefix.rstrip('.')}: must be a mapping of fields. Received: {values!r}")
    hints = _type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    for key in values:
        if key not in names:
            close = difflib.get_close_matches(str(key), names, n=1)
            hint = f"Did you mean {close[0]}?" if close else f"Known fields: {', '.join(names)}"
            raise ConfigError(f"{where}: {prefix}{key}: unknown field. {hint}")
    return cls(**{key: _convert(hints[key], value, where, f"{prefix}{key}") for key, value in values.items()})


@functools.cache
def _type_hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)  # evaluates text, which is the slowest part of reading a file


def _convert(hint: Any, value: Any, where: str, name: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return to_dataclass(hint, value, where, f"{name}.")
    origin = typing.get_origin(hint)
    if origin is Literal:
        return _convert_choice(typing.get_args(hint), value, where, name)
    if origin is tuple:
        return _convert_tuple(typing.get_args(hint), value, where, name)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    if hint is float and isinstance(value, str) and _EXPONENT.fullmatch(value):
        return float(value)  # YAML reads 1e-4 and 1.0e4 as text, for its numbers need a dot and a sign
    raise ConfigError(f"{where}: {name}: must be {_describe(hint)}. Received: {value!r}")


def _convert_choice(choices: tuple[Any, ...], value: Any, where: str, name: str) -> Any:
    if value in choices:
        return value
    raise ConfigError(f"{where}: {name}: {choice_error(choices, value)}")


def choice_error(choices: Sequence[Any], value: Any) -> str:
    """What is wrong with a value that is none of the choices, and which of them may have been meant."""
    close = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"must be one of {', '.join(map(str, choices))}. Received: {value!r}.{hint}"


def _convert_tuple(hints: tuple[Any, ...], value: Any, where: str, name: str) -> tuple:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{where}: {name}: must be a list. Received: {value!r}")
    if hints[-1] is Ellipsis:
        return tuple(_convert(hints[0], item, where, f"{name}[{i}]") for i, item in enumerate(value))
    if len(value) != len(hints):
        raise ConfigError(f"{where}: {name}: must have {len(hints)} entries. Received: {value!r}")
    return tuple(
        _convert(hint, item, where, f"{name}[{i}]") for i, (hint, item) in enumerate(zip(hints, value, strict=True))
    )


def _describe(hint: Any) -> str:
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
    return names.get(hint, str(hint) if isinstance(hint, types.GenericAlias) else getattr(hint, "__name__", str(hint)))
