"""Records as JSON, and back: nothing that a record cannot hold is read into one."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any, Literal, TypeVar

from compress.results.records import SCHEMA_VERSION

T = TypeVar("T")


def to_json(value: Any) -> str:
    """Render any record as stable, readable JSON."""
    return json.dumps(dataclasses.asdict(value), indent=2, ensure_ascii=False) + "\n"


def from_json(kind: type[T], text: str) -> T:
    """Rebuild a record from what `to_json` wrote.

    Raises:
        ValueError: the text is not JSON, holds another schema version, or values of other types.
    """
    try:
        data = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if isinstance(data, dict) and data.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
        raise ValueError(
            f"schema_version {data['schema_version']}, this version reads {SCHEMA_VERSION}"
        )
    return typing.cast(T, _build(kind, data, kind.__name__))


def _refuse_constant(word: str) -> typing.NoReturn:
    raise ValueError(f"{word} is no number of JSON's")


def _build(kind: Any, data: Any, where: str) -> Any:
    """The value of type `kind` that plain `data` stands for; `where` names its place."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        some = next(one for one in args if one is not type(None))
        return None if data is None else _build(some, data, where)
    if dataclasses.is_dataclass(kind) and isinstance(data, dict):
        return _record(kind, data, where)
    if origin is tuple and isinstance(data, list):
        return tuple(_build(args[0], item, f"{where}[{i}]") for i, item in enumerate(data))
    if origin is dict and isinstance(data, dict):
        return {name: _build(args[1], value, f"{where}.{name}") for name, value in data.items()}
    if origin is Literal and data in args:
        return data
    whole = type(data) is int and abs(data) < 2**63
    if (kind is float and (whole or type(data) is float)) or (kind is int and whole):
        return data
    if kind in (str, bool) and type(data) is kind:
        return data
    raise ValueError(f"{where} is {str(data)[:40]!r}")


def _record(kind: Any, data: dict[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(kind)
    if unknown := [name for name in data if name not in hints]:
        raise ValueError(f"{where} has no {unknown[0][:40]!r}")
    found = {name: _build(hints[name], value, f"{where}.{name}") for name, value in data.items()}
    try:
        return kind(**found)
    except TypeError as error:  # a field is missing: its message names it
        raise ValueError(str(error)) from error
