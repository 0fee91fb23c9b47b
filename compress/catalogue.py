"""What every shipped recipe was measured to make and to take, as `recipes/catalogue.json` holds it.

`benchmarks/catalogue.py` writes that file; commands and pages read it here.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from compress import library
from compress.errors import RequestError
from compress.results import SCHEMA_VERSION, from_json

NAME = "catalogue.json"
DENSE = "dense"  # how tables name the teacher as it is


@dataclass(frozen=True)
class Measurement:
    """One recipe as it was carried out once: what it made, what it took, by which command."""

    recipe_sha256: str  # of its `fingerprint` then; "" of the teacher, which no recipe made
    teacher: str
    suite: str
    texts: tuple[str, ...]  # sha256 of the token ids that perplexity and KL were read on
    size_bytes: int
    bits_per_weight: float
    perplexity: float | None
    kl_mean: float | None
    kl_p99: float | None
    top1_agreement: float | None
    decode_tokens_per_second: float | None
    seconds: float  # on the wall; the time to have the teacher here is left out
    cpu_seconds: float  # of all threads and processes, the same left out
    peak_memory_bytes: int
    threads: int
    date: str
    commit: str
    hardware: str
    command: str


@dataclass(frozen=True)
class Catalogue:
    """All of them by the recipe's name, and the teacher before anything is done to it."""

    dense: Measurement | None = None
    recipes: dict[str, Measurement] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION


def fingerprint(text: str) -> str:
    """sha256 over the lines of a recipe that are no comments: what it does, not what it says."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    said = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    return hashlib.sha256(said.encode()).hexdigest()


def read(folder: Path | None = None) -> Catalogue:
    """The catalogue of a folder of recipes, the shipped one by default; empty where there is none.

    Raises:
        RequestError: it is not what this version writes.
    """
    path = (folder or library.folder("recipes")) / NAME
    if not path.is_file():
        return Catalogue()
    try:
        return from_json(Catalogue, path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(
            f"{path}: not the catalogue that this version reads ({error}). Install compress anew."
        ) from error


def changed(found: Catalogue, folder: Path | None = None) -> list[str]:
    """Names of the recipes that do something else now than what was measured."""
    where = folder or library.folder("recipes")
    texts = {name: where / f"{name}.yaml" for name in found.recipes}
    return [
        name
        for name, path in texts.items()
        if path.is_file()
        and fingerprint(path.read_text(encoding="utf-8")) != found.recipes[name].recipe_sha256
    ]
