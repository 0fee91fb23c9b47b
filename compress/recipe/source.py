"""YAML text → plain data, with the place where each part of it was written.

Only what a recipe needs is read: mappings, lists and scalars of YAML 1.2's core schema, so that
``no`` is a word and ``1e-3`` a number. Anchors, aliases, tags and repeated keys are refused, each
with its line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import yaml

from compress.errors import RecipeError

Loc: TypeAlias = tuple[str | int, ...]
Mistake: TypeAlias = tuple[int, str]  # where it sorts, mostly its line; the message
T = TypeVar("T")

MAX_BYTES = 1_000_000
_MAX_DEPTH = 20
_MAX_KEY = 200  # characters; the longest are patterns of names
_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_DECIMAL = re.compile(r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]{1,4})?")
_READER: Any = getattr(
    yaml, "CSafeLoader", yaml.SafeLoader
)  # the C reader where PyYAML was built with it
_QUOTE_STAR = 'A pattern that begins with * needs quotes, as in "*.down_proj".'


@dataclass
class Places:
    """Where each part of a recipe was written: by file and line, or by a ``--set`` argument."""

    name: str
    lines: dict[Loc, int] = field(default_factory=dict)
    sets: dict[Loc, str] = field(default_factory=dict)

    def replace(self, loc: Loc, assignment: str) -> None:
        """Record that `loc` and all inside it come from a ``--set`` argument."""
        for places in (self.lines, self.sets):
            for inner in [other for other in places if other[: len(loc)] == loc]:
                del places[inner]
        self.sets[loc] = assignment

    def label(self, loc: Loc) -> str:
        """Name the place of `loc`, or of the nearest part around it that was written."""
        written = self._written(loc)
        if written in self.sets:
            return f"--set {self.sets[written]}"
        return f"{self.name}:{self.lines[written]}" if written in self.lines else self.name

    def order(self, loc: Loc) -> int:
        """A sort key: the line; arguments come after the file."""
        written = self._written(loc)
        if written in self.sets:
            return MAX_BYTES + list(self.sets).index(written)
        return self.lines.get(written, 0)

    def moved(self, section: str, origins: Sequence[Loc]) -> Places:
        """The places of a list that has become another, given where each entry comes from."""
        lines, sets = (_moved(places, section, origins) for places in (self.lines, self.sets))
        return Places(self.name, lines, sets)

    def _written(self, loc: Loc) -> Loc:
        starts = (loc[:end] for end in range(len(loc), -1, -1))
        return next((start for start in starts if start in self.sets or start in self.lines), ())


def _moved(places: dict[Loc, T], section: str, origins: Sequence[Loc]) -> dict[Loc, T]:
    found = {loc: place for loc, place in places.items() if loc[:1] != (section,) or len(loc) == 1}
    for number, origin in enumerate(origins):
        for loc in places:
            if loc[: len(origin)] == origin:
                found[(section, number, *loc[len(origin) :])] = places[loc]
    return found


@dataclass
class Source:
    """What a text says as plain data, where it says it, and what could not be accepted in it."""

    data: Any
    places: Places
    mistakes: list[Mistake]


def read(text: str, name: str) -> Source:
    """Read one YAML document.

    Args:
        text: the document.
        name: what mistakes call it: a path, or a ``--set`` argument.

    Raises:
        RecipeError: the text is not YAML, is nested too deeply, or holds several documents.
    """
    source = Source(None, Places(name), [])
    try:
        # One event at a time: all those of a megabyte of brackets would take a gigabyte.
        _read_document(yaml.parse(text, Loader=_READER), source)
    except yaml.MarkedYAMLError as error:
        raise RecipeError([_syntax(error, name)]) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RecipeError(
            [f"{name}:{line}  holds a character that YAML does not allow. Remove it."]
        ) from error
    return source


def mapping(path: Path) -> dict[str, Any]:
    """Read a small YAML file that holds one mapping: a calibration set, an evaluation suite.

    Raises:
        RecipeError: the file cannot be read, or holds anything else.
    """
    return mapping_with_places(path)[0]


def mapping_with_places(path: Path) -> tuple[dict[str, Any], Places]:
    """Like `mapping`, with the place of each part."""
    source = read(text_of(path), str(path))
    if source.mistakes:
        raise RecipeError([message for _, message in source.mistakes])
    if not isinstance(source.data, dict):
        raise RecipeError([f"{path}: holds no mapping of names to values."])
    return source.data, source.places


def text_of(path: Path) -> str:
    """Read a file of text.

    Raises:
        RecipeError: the file cannot be read, is not UTF-8, or is too large to be a recipe.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError([f"{path}: cannot be read ({error.strerror})."]) from error
    if len(data) > MAX_BYTES:
        raise RecipeError(
            [f"{path}: larger than {MAX_BYTES:,} bytes, so it is no recipe. Check the path."]
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RecipeError(
            [f"{path}:{line}  byte {data[error.start]:#04x} is not UTF-8. Save it as UTF-8."]
        ) from error


def scalar(text: str) -> Any:
    """The value of a plain (unquoted) scalar."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _DECIMAL.fullmatch(text) else text


def _read_document(events: Iterator[Any], source: Source) -> None:
    """Fill `source` from the events of one document; of none, it stays empty."""
    next(events)  # the beginning of the stream
    if not isinstance(next(events), yaml.DocumentStartEvent):
        return
    source.data = _Builder(source).value(next(events), events, ())
    next(events)  # the end of the document
    if isinstance(following := next(events), yaml.DocumentStartEvent):
        at = f"{source.places.name}:{_line(following)}"
        raise RecipeError([f"{at}  a second document. A recipe is one; remove the --- line."])


class _Builder:
    """Turns parser events into data, writing places and mistakes into one `Source`."""

    def __init__(self, source: Source) -> None:
        self._places, self._mistakes = source.places, source.mistakes

    def value(self, event: Any, events: Iterator[Any], loc: Loc) -> Any:
        self._places.lines.setdefault(loc, _line(event))
        self._refuse_references(event)
        if len(loc) > _MAX_DEPTH:
            raise RecipeError(
                [f"{self._at(event)}  nested more than {_MAX_DEPTH} deep. No recipe needs that."]
            )
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(events, loc)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(events, loc)
        if isinstance(event, yaml.AliasEvent):
            return None
        return scalar(event.value) if event.implicit[0] else event.value

    def _mapping(self, events: Iterator[Any], loc: Loc) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for event in events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            key = self._key(event, events, loc)
            if key in found:
                first = self._places.lines[(*loc, key)]
                self._add(event, f"{key}: given twice; first in line {first}. Keep one of them.")
            self._places.lines[(*loc, key)] = _line(event)
            found[key] = self.value(next(events), events, (*loc, key))
        return found

    def _sequence(self, events: Iterator[Any], loc: Loc) -> list[Any]:
        found: list[Any] = []
        for event in events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            found.append(self.value(event, events, (*loc, len(found))))
        return found

    def _key(self, event: Any, events: Iterator[Any], loc: Loc) -> str:
        if isinstance(event, yaml.ScalarEvent):
            self._refuse_references(event)
            key = str(event.value)
            if len(key) > _MAX_KEY:
                self._add(event, f"a key of {len(key):,} characters; {_MAX_KEY} are allowed.")
            return key[:_MAX_KEY]
        if not isinstance(event, yaml.AliasEvent):
            self._add(event, "a list or mapping as a key. Keys are plain words.")
        self.value(event, events, (*loc, "?"))
        return "?"

    def _refuse_references(self, event: Any) -> None:
        if isinstance(event, yaml.AliasEvent):
            name = str(event.anchor)[:_MAX_KEY]
            self._add(event, f"*{name} is an alias; a recipe is read as it stands. {_QUOTE_STAR}")
        elif event.anchor:
            name = str(event.anchor)[:_MAX_KEY]
            self._add(event, f"&{name} is an anchor; a recipe is read as it stands. Write it out.")
        elif event.tag:
            name, kinds = event.tag[:_MAX_KEY], "text, numbers, true, false and null"
            self._add(event, f"{name} is a tag; values are {kinds}. Remove it.")

    def _add(self, event: Any, text: str) -> None:
        self._mistakes.append((_line(event), f"{self._at(event)}  {text}"))

    def _at(self, event: Any) -> str:
        return f"{self._places.name}:{_line(event)}"


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _syntax(error: yaml.MarkedYAMLError, name: str) -> str:
    mark = error.problem_mark or error.context_mark
    at = f"{name}:{mark.line + 1}" if mark else name
    column = f", column {mark.column + 1}" if mark else ""
    remedy = (
        _QUOTE_STAR
        if "alias" in (error.context or "")
        else "Check brackets, quotes and indentation (no tabs)."
    )
    context = f" {error.context}" if error.context else ""
    return f"{at}  not YAML: {error.problem}{context}{column}. {remedy}"
