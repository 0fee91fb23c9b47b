"""Stages that several runs begin with, computed by the first of them that needs them.

A stage is known by a hash over all that decides what it leaves: those before it, itself, models,
texts, machine. What it left is a journal of its own in a folder of that name, its files hard links
to the shards of the run that made it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress import storage
from compress.errors import ArtifactError
from compress.journal import Journal
from compress.recipe import resolve
from compress.recipe.schema import Recipe, Stage

_JOURNAL = "journal.jsonl"


@dataclass(frozen=True)
class Shared:
    """Where stages lie that other runs begin with too, and how many of this run's are such."""

    folder: Path
    stages: int  # from the first one on


class Prefixes:
    """The stages of one run that others begin with too."""

    def __init__(
        self, shared: Shared, recipe: Recipe, decided: Mapping[str, Any], journal: Journal
    ) -> None:
        """Share stages of the run whose journal this is.

        Args:
            shared: where, and how many.
            recipe: of the run.
            decided: all that decides its result, recipe and texts of its stages among it.
            journal: of the run.
        """
        self._shared, self._recipe, self._journal = shared, recipe, journal
        self._decided = dict(decided)
        self.taken = 0  # units that another run has made

    @contextlib.contextmanager
    def stage(self, index: int) -> Iterator[None]:
        """Carry out a stage inside: what another run has finished of it is in the journal already.

        While one run carries it out, others that need it wait.
        """
        if index >= self._shared.stages:
            yield
            return
        decided = self._decided_until(index)
        folder = self._shared.folder / _hashed(decided)
        with storage.locked(folder.with_suffix(".lock")):
            if folder.is_dir():
                self._take(folder, decided, index)
            yield
            if not folder.is_dir():
                self._leave(folder, decided, index)

    def _take(self, folder: Path, decided: Mapping[str, Any], index: int) -> None:
        """Take over what is there, unless it is damaged: then it is made anew."""
        try:
            there = Journal(folder / _JOURNAL, decided)
        except ArtifactError:
            shutil.rmtree(folder)
            return
        missing = [unit for unit in there.finished if self._journal.get(unit) is None]
        self._journal.take(there, missing)
        self.taken += len(missing)

    def _leave(self, folder: Path, decided: Mapping[str, Any], index: int) -> None:
        """Leave what this run has made for others, whole or not at all."""
        making = folder.with_suffix(".making")
        shutil.rmtree(making, ignore_errors=True)
        storage.make_folder(making)
        units = [u for u in self._journal.finished if u.startswith(f"stage-{index}/")]
        Journal(making / _JOURNAL, decided).take(self._journal, units)
        making.rename(folder)
        storage.sync_folder(folder.parent)

    def _decided_until(self, index: int) -> dict[str, Any]:
        """Of all that decides the run's result, what decides what a stage leaves."""
        until = self._recipe.stages[: index + 1]
        texts = [i for i, stage in enumerate(self._recipe.stages) if stage.distill]
        read = sum(place <= index for place in texts)
        return {
            **self._decided,
            "recipe": recipe_until(self._recipe, index),
            "texts": self._decided["texts"][:read],
            "stages": len(until),
        }


def recipe_until(recipe: Recipe, index: int) -> dict[str, Any]:
    """What of a recipe decides what a stage leaves."""
    explicit = resolve.explicit(recipe)
    gate = recipe.linear_gate
    found = {
        "stages": explicit["stages"][: index + 1],
        "dtype": recipe.teacher.dtype,
        "seed": recipe.seed,
        "gate": repr(gate),
    }
    if any(_looks_ahead(stage) for stage in recipe.stages[: index + 1]):
        return {**found, "ahead": explicit["stages"][index + 1 :], "artifact": explicit["artifact"]}
    return found


def _looks_ahead(stage: Stage) -> bool:
    """Whether a stage asks what the artifact will take, which those behind it decide."""
    if stage.restructure:
        return stage.restructure.most_bytes is not None
    return stage.allocate is not None


def _hashed(decided: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()
