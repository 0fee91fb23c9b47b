"""One artifact: its headers, its records, its lock."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from compress.artifact import records
from compress.artifact.layout import open_artifact
from compress.errors import ArtifactError
from compress.results import Divergence, Measured, Provenance, Results, Side
from compress.results.comparison import Judged, Reply

Evaluate: TypeAlias = Callable[[Sequence[Path]], Sequence[Judged]]


@dataclass(frozen=True)
class Artifact:
    """All that is compared of one folder."""

    name: str
    folder: Path
    format: str
    size_bytes: int
    parts_bytes: dict[str, int]
    bits_per_weight: float  # of the block linears
    bits_per_weight_with_head: float
    lock: dict[str, Any]
    results: Results | None
    measured: Measured | None
    side: Side | None  # as judged: when it was made, or now
    divergence: Divergence | None
    notes: tuple[str, ...]
    judged: Judged | None = None  # now; None where records are read

    @property
    def made(self) -> Provenance | None:
        """What decided the run that left it."""
        return self.results.provenance if self.results else None

    @property
    def teacher(self) -> str:
        """Fingerprint of the teacher that it is held against, "" where none is known."""
        if self.judged:
            return self.judged.teacher_fingerprint
        made = self.made
        return made.teacher_fingerprint if made else ""

    @property
    def dtype(self) -> str:
        """In which its tasks were answered."""
        if self.judged:
            return self.judged.dtype
        return str(self.lock.get("teacher", {}).get("dtype", "bfloat16"))

    @property
    def replies(self) -> tuple[Reply, ...]:
        """What it answered to prompts."""
        if self.judged:
            return self.judged.replies
        said = self.results.samples if self.results else ()
        return tuple(Reply(one.prompt, one.teacher, one.student) for one in said)


def read(folders: Sequence[Path], names: Sequence[str] = ()) -> list[Artifact]:
    """Read every artifact; only headers and records are opened.

    Without names, each goes by the name of its folder.

    Raises:
        ArtifactError: every folder that is missing or no artifact, and every name that two share.
    """
    names = names or [_name(folder) for folder in folders]
    mistakes, found = list(_shared_names(folders, names)), []
    for folder, name in zip(folders, names, strict=True):
        try:
            found.append(_read(folder, name))
        except ArtifactError as error:
            mistakes.append(str(error))
    if mistakes:
        count = f"{len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''}"
        tail = f"{count}; nothing was compared.   docs/compare.md"
        raise ArtifactError("\n".join([*mistakes, tail]))
    return found


def judged(artifact: Artifact, now: Judged) -> Artifact:
    """The same artifact as it is judged now."""
    notes = tuple(note for note in artifact.notes if not note.startswith("sizes only"))
    side = Side(artifact.size_bytes, artifact.bits_per_weight, now.perplexity, now.tasks)
    return replace(
        artifact, side=side, divergence=now.divergence, notes=(*notes, *now.notes), judged=now
    )


def _shared_names(folders: Sequence[Path], names: Sequence[str]) -> Iterator[str]:
    by_name = defaultdict(list)
    for folder, name in zip(folders, names, strict=True):
        by_name[name].append(str(folder))
    for name, same in by_name.items():
        if len(same) > 1:
            yield (
                f"{', '.join(same)}: {len(same)} folders are called {name}, and names tell them "
                "apart. Give each once, and rename or link those that differ."
            )


def _name(folder: Path) -> str:
    return folder.name if folder.name not in ("", "..") else folder.resolve().name or str(folder)


def _read(folder: Path, name: str) -> Artifact:
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no such folder. Give the folders of finished artifacts.")
    opened = open_artifact(folder)
    sizes, weights = opened.parts_sizes(), opened.parts_weights()
    inside = ("block linears", "embedding" if opened.anatomy.tied else "head")
    stored, held = sum(sizes[part] for part in inside), sum(weights[part] for part in inside)
    results = records.record(folder / "results.json", Results)
    return Artifact(
        name=name, folder=folder, format=opened.format, size_bytes=opened.size_bytes,
        parts_bytes=sizes, bits_per_weight=opened.bits_per_weight,
        bits_per_weight_with_head=8 * stored / held if held else opened.bits_per_weight,
        lock=records.lock(folder), results=results,
        measured=records.record(folder / "measured.json", Measured),
        side=results.after if results else None,
        divergence=results.divergence if results else None, notes=tuple(_notes(results)),
    )  # fmt: skip


def _notes(results: Results | None) -> Iterator[str]:
    if results is None:
        yield "sizes only: no results.json; --evaluate SUITE measures it"
    elif results.after is None or results.after.perplexity is None:
        yield "sizes only: its recipe judged nothing; --evaluate SUITE does"
    if results and results.verdict and results.verdict.outcome != "ACCEPT":
        missed = ", ".join(gate.name for gate in results.verdict.missed)
        yield f"{results.verdict.outcome}: misses its gates ({missed})"
