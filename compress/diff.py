"""What differs between two artifacts: files, recipe, tensors, metrics, environment.

*Identical* means what it means everywhere here: weights, config, tokenizer and lock are the same
bytes. Times, memory, reports and the machine may differ all the same; they are told, not judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compress.artifact import manifest, records
from compress.artifact.records import LOCK
from compress.artifact.write import COMPANIONS
from compress.errors import ArtifactError
from compress.results import Divergence, Measured, Results, Side

ABSENT = "absent"
_IDENTITY = frozenset(("config.json", LOCK, *COMPANIONS))
_ENVIRONMENT = ("versions", "threads", "device")  # of a lock's `resolved`: where, not what


@dataclass(frozen=True)
class Change:
    """One thing that differs; what one side lacks is `ABSENT` there."""

    name: str
    first: Any
    second: Any


@dataclass(frozen=True)
class Metric:
    """One number of both; `difference` is second - first, None where they cannot be subtracted."""

    name: str
    first: float
    second: float
    difference: float | None
    note: str = ""  # in what their protocols differ


@dataclass(frozen=True)
class Tensors:
    """Names of tensors by what became of them, and how many are the same."""

    missing: tuple[str, ...]  # in the first alone
    extra: tuple[str, ...]  # in the second alone
    changed: tuple[str, ...]
    same: int


@dataclass(frozen=True)
class Difference:
    """Two artifacts, compared."""

    first: str
    second: str
    files: tuple[Change, ...]  # of those that make an artifact what it is, by sha256
    recipe: tuple[Change, ...]
    tensors: Tensors
    metrics: tuple[Metric, ...]
    environment: tuple[Change, ...]
    hashed: tuple[str, ...]  # folders whose hashes were computed, not taken from their manifest

    @property
    def identical(self) -> bool:
        """Whether weights, config, tokenizer and lock are the same bytes."""
        return not self.files

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for ``--json``."""
        return {"identical": self.identical, **asdict(self)}


def compare(first: Path, second: Path, *, rehash: bool = False) -> Difference:
    """Compare two artifacts, or an artifact with any model folder.

    Args:
        first: a folder.
        second: another.
        rehash: hash what lies there now, even where a manifest says what was written.

    Raises:
        ArtifactError: one of them cannot be read.
    """
    sides = [_Side.read(folder, rehash=rehash) for folder in (first, second)]
    a, b = sides
    recipe = tuple(_changes("", a.lock, b.lock))
    machines = tuple(_changes("", a.environment, b.environment))
    return Difference(
        str(first), str(second), tuple(_changes("", a.files, b.files)), recipe,
        _tensors(a.tensors, b.tensors), tuple(_metrics(a.results, b.results)), machines,
        tuple(str(side.folder) for side in sides if side.hashed),
    )  # fmt: skip


@dataclass(frozen=True)
class _Side:
    """All that is compared of one folder."""

    folder: Path
    files: Mapping[str, str]
    tensors: Mapping[str, str]
    lock: Mapping[str, Any]
    environment: Mapping[str, Any]
    results: Results | None
    hashed: bool

    @classmethod
    def read(cls, folder: Path, *, rehash: bool) -> _Side:
        if not folder.is_dir():
            raise ArtifactError(f"{folder}: no such folder. Give the folders of two artifacts.")
        promised = None if rehash else _promised(folder)
        files = promised["files"] if promised else manifest.file_hashes(folder)
        tensors = promised["tensors"] if promised else manifest.tensor_hashes(folder)
        lock = records.lock(folder)
        resolved = {**lock.get("resolved", {})}
        machine = {name: resolved.pop(name) for name in _ENVIRONMENT if name in resolved}
        measured = records.record(folder / "measured.json", Measured)
        hardware = {"hardware": measured.hardware} if measured else {}
        return cls(
            folder, {name: sha256 for name, sha256 in files.items() if _decides(name)}, tensors,
            {**lock, "resolved": resolved} if lock else {}, {**machine, **hardware},
            records.record(folder / "results.json", Results), promised is None,
        )  # fmt: skip


def _promised(folder: Path) -> dict[str, Any] | None:
    """The manifest, where there is one."""
    return manifest.read_manifest(folder) if (folder / manifest.NAME).is_file() else None


def _decides(name: str) -> bool:
    """Whether a file is part of what *identical* speaks of."""
    return name in _IDENTITY or name.endswith((".safetensors", ".safetensors.index.json"))


def _changes(name: str, first: Any, second: Any) -> Iterator[Change]:
    """Everything in which two plain values differ, by dotted names."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for key in dict.fromkeys((*first, *second)):
            inner = f"{name}.{key}" if name else str(key)
            yield from _changes(inner, first.get(key, ABSENT), second.get(key, ABSENT))
    elif isinstance(first, list) and isinstance(second, list):
        for index in range(max(len(first), len(second))):
            pair = (side[index] if index < len(side) else ABSENT for side in (first, second))
            yield from _changes(f"{name}[{index}]", *pair)
    elif (type(first), first) != (type(second), second):
        yield Change(name, first, second)


def _tensors(first: Mapping[str, str], second: Mapping[str, str]) -> Tensors:
    both = first.keys() & second.keys()
    changed = sorted(name for name in both if first[name] != second[name])
    return Tensors(
        tuple(sorted(first.keys() - both)), tuple(sorted(second.keys() - both)), tuple(changed),
        len(both) - len(changed),
    )  # fmt: skip


@dataclass(frozen=True)
class _Reading:
    """One number, with what it was measured on."""

    value: float
    protocol: Mapping[str, Any]


def _metrics(first: Results | None, second: Results | None) -> Iterator[Metric]:
    """Numbers that both have. Those of different protocols are never subtracted."""
    if first is None or second is None:
        return
    ours, theirs = _readings(first), _readings(second)
    for name in (name for name in ours if name in theirs):
        a, b = ours[name], theirs[name]
        differing = list(_changes("", a.protocol, b.protocol))
        note = ", ".join(f"{change.name} {change.first}, {change.second}" for change in differing)
        yield Metric(name, a.value, b.value, None if differing else b.value - a.value, note)


def _readings(results: Results) -> dict[str, _Reading]:
    teacher = {"teacher_fingerprint": results.provenance.teacher_fingerprint}
    found = {f"before.{name}": reading for name, reading in _of_side(results.before)}
    found |= {f"after.{name}": reading for name, reading in _of_side(results.after)}
    return found | {f"divergence.{n}": r for n, r in _of_divergence(results.divergence, teacher)}


def _of_side(side: Side | None) -> Iterator[tuple[str, _Reading]]:
    if side is None:
        return
    yield "size_bytes", _Reading(side.size_bytes, {})
    yield "bits_per_weight", _Reading(side.bits_per_weight, {})
    if side.perplexity:
        protocol = asdict(side.perplexity)
        yield "perplexity", _Reading(protocol.pop("perplexity"), protocol)
    for task in side.tasks:
        yield (
            f"tasks.{task.name}.{task.metric}",
            _Reading(task.accuracy, {"items": task.items}),
        )


def _of_divergence(
    found: Divergence | None, teacher: Mapping[str, str]
) -> Iterator[tuple[str, _Reading]]:
    if found is None:
        return
    protocol = {"set": found.set, "tokens": found.tokens, **teacher}
    for name in ("kl_mean", "kl_p50", "kl_p99", "top1_agreement", "flips"):
        yield name, _Reading(getattr(found, name), protocol)
