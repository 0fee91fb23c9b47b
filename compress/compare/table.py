"""Artifacts side by side, all of it together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from compress.compare import locks, paired, sides
from compress.compare.measures import front, measures
from compress.compare.sides import Artifact, Evaluate
from compress.results.comparison import Comparison, Entry, Prompt


def compare(
    folders: Sequence[Path],
    *,
    names: Sequence[str] = (),
    suite: str = "",
    evaluate: Evaluate | None = None,
) -> Comparison:
    """Put finished artifacts, or any model folders, side by side.

    Args:
        folders: one or more.
        names: what each goes by; the name of its folder by default.
        suite: the name of what `evaluate` measures by.
        evaluate: judges all folders now, alike, instead of reading what their runs found.

    Raises:
        ArtifactError: folders that are missing or no artifacts, records of another version, and
            names that two of them share, all at once.
    """
    artifacts = sides.read(folders, names)
    if evaluate:
        now = evaluate([one.folder for one in artifacts])
        artifacts = [sides.judged(one, its) for one, its in zip(artifacts, now, strict=True)]
    found = measures(artifacts)
    return Comparison(
        artifacts=tuple(_entry(one) for one in artifacts),
        measures=found,
        front=front(found),
        recipe=locks.asked(artifacts),
        made_by=locks.made_by(artifacts),
        pairs=tuple(paired.pairs(artifacts, found)),
        flipped=tuple(paired.flipped(artifacts, found)),
        prompts=tuple(_prompts(artifacts)),
        suite=suite,
    )


def _entry(artifact: Artifact) -> Entry:
    made, measured, kl = artifact.made, artifact.measured, artifact.divergence
    entry = Entry(
        artifact.name, str(artifact.folder), artifact.format, made.recipe if made else "",
        _teacher(artifact), artifact.size_bytes, artifact.parts_bytes,
        notes=artifact.notes,
    )  # fmt: skip
    if measured:
        entry = replace(entry, hardware=measured.hardware, date=measured.date)
    if kl:
        edges, counts = kl.histogram_edges, kl.histogram_counts
        entry = replace(entry, histogram_edges=edges, histogram_counts=counts)
    return entry


def _teacher(artifact: Artifact) -> str:
    """Whom its numbers are held against, by name."""
    if artifact.judged:
        return artifact.judged.teacher
    return artifact.made.teacher if artifact.made else ""


def _prompts(artifacts: Sequence[Artifact]) -> Iterator[Prompt]:
    """Every prompt that an artifact has answered, in the order in which they are met."""
    said = {one.name: one.replies for one in artifacts}
    for prompt in dict.fromkeys(reply.prompt for replies in said.values() for reply in replies):
        theirs = {
            who: reply for who, replies in said.items() for reply in replies
            if reply.prompt == prompt
        }  # fmt: skip
        teachers = {reply.teacher for reply in theirs.values()}
        answers = {who: reply.answer for who, reply in theirs.items()}
        yield Prompt(prompt, teachers.pop() if len(teachers) == 1 else None, answers)
