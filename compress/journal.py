"""What has been finished, on disk: a killed run goes on where it stopped, and never mixes two.

One line of JSON for each finished unit (a decoder block of a stage, the state of a training, the
written artifact, the judgement), sealed with its own sha256 and forced to disk before the next unit
begins. The first line is the run's identity: all that decides its result. A last line that was cut
short, as by a power cut, is a unit that was not finished; a broken line anywhere else is damage.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress import storage
from compress.errors import ArtifactError, StorageError

_RUN = "run"  # the unit of the first line
_REMEDY = "Start over with --fresh, or choose another --out."


@dataclass(frozen=True)
class _Entry:
    record: Mapping[str, Any]
    files: Mapping[str, str]  # sha256 by name


class Journal:
    """The finished units of one run."""

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Open a journal; its file is made with the first finished unit.

        Args:
            path: the file, in a folder that exists and into which nobody else writes now.
            identity: all that decides the run's result, as plain values, nested where it helps to
                name a difference.

        Raises:
            ArtifactError: the journal is of a run with another identity, or it or a file of a
                finished unit is damaged.
        """
        self._folder, self._path = path.parent, path
        self._identity = json.loads(json.dumps(identity))  # as a reader will see it
        self._entries = _read(self._path)
        if begun := self._entries.pop(_RUN, None):
            _refuse_others(path, begun.record, self._identity)
        for unit, entry in self._entries.items():
            self._check_files(unit, entry)

    @property
    def finished(self) -> tuple[str, ...]:
        """Every finished unit, in order."""
        return tuple(self._entries)

    def get(self, unit: str) -> Mapping[str, Any] | None:
        """The record of a finished unit; None where it has yet to be done."""
        entry = self._entries.get(unit)
        return None if entry is None else entry.record

    def add(self, unit: str, record: Mapping[str, Any], files: Sequence[Path] = ()) -> None:
        """Make a unit final. When this returns, no crash can lose it.

        Args:
            unit: its name; a later record takes the place of an earlier one, whose files may go.
            record: plain values.
            files: what the unit made, beside the journal or above it, durable already.

        Raises:
            StorageError: the disk refused; the unit counts as not finished.
        """
        entry = _Entry(record, {os.path.relpath(p, self._folder): _sha256(p) for p in files})
        lines = [_line(unit, entry)]
        if not self._entries:
            lines.insert(0, _line(_RUN, _Entry(self._identity, {})))
        storage.append(self._path, "".join(lines))
        self._entries[unit] = entry

    def take(self, other: Journal, units: Sequence[str]) -> None:
        """Make finished units of another journal final here too; their files get second names.

        Args:
            other: of a run in which these units came out the same, for the same reasons.
            units: that lie in it, with files beside it.

        Raises:
            StorageError: the disk refused.
        """
        for unit in units:
            entry = other._entries[unit]
            for name in entry.files:
                storage.link_file(other._folder / name, self._folder / name)
            self.add(unit, entry.record, [self._folder / name for name in entry.files])

    def _check_files(self, unit: str, entry: _Entry) -> None:
        for name, sha256 in entry.files.items():
            try:
                changed = _sha256(self._folder / name) != sha256
            except OSError as error:
                raise ArtifactError(
                    f"{self._folder / name}: of finished {unit}, cannot be read "
                    f"({error.strerror}). {_REMEDY}"
                ) from error
            if changed:
                raise ArtifactError(
                    f"{self._folder / name}: has changed since {unit} was finished. {_REMEDY}"
                )


def _line(unit: str, entry: _Entry) -> str:
    content = json.dumps([unit, entry.record, entry.files], separators=(",", ":"))
    return f"{hashlib.sha256(content.encode()).hexdigest()} {content}\n"


def _read(path: Path) -> dict[str, _Entry]:
    """The entries of a journal, which is cut back to its last sound line."""
    try:
        raw = path.read_bytes() if path.is_file() else b""
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror}).") from error
    lines = raw.splitlines(keepends=True)
    entries: dict[str, _Entry] = {}
    for number, line in enumerate(lines, 1):
        parsed = _parsed(line)
        if parsed is None and number < len(lines):
            raise ArtifactError(f"{path}: line {number} is damaged. {_REMEDY}")
        if parsed is None:
            storage.cut(path, len(raw) - len(line))
        else:
            entries[parsed[0]] = parsed[1]
    if entries and next(iter(entries)) != _RUN:
        raise ArtifactError(f"{path}: does not begin with the run's identity. {_REMEDY}")
    return entries


def _parsed(line: bytes) -> tuple[str, _Entry] | None:
    seal, _, content = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or hashlib.sha256(content).hexdigest().encode() != seal:
        return None
    unit, record, files = json.loads(content)  # sealed: what is here was written here
    return str(unit), _Entry(record, files)


def _refuse_others(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    found = [f"  {name}: was {was}, is {now}" for name, was, now in _differences("", old, new)]
    if found:
        raise ArtifactError(
            "\n".join(
                [
                    f"{path}: holds an unfinished run that is not this one:",
                    *found,
                    f"Go on with what it was begun with, or leave it. {_REMEDY}",
                ]
            )
        )


def _differences(name: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """Dotted name, old and new value of everything in which two plain values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys((*old, *new)):
            inner = f"{name}.{key}" if name else str(key)
            yield from _differences(inner, old.get(key, "absent"), new.get(key, "absent"))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, pair in enumerate(zip(old, new, strict=True)):
            yield from _differences(f"{name}[{index}]", *pair)
    elif old != new:
        yield name, old, new


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
