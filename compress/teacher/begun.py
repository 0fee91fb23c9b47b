"""A student of the teacher's family that nobody has made before: sliced from it, or drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress import storage
from compress.anatomy import Anatomy
from compress.artifact import write
from compress.recipe.source import Places
from compress.recipe.student import Student
from compress.smaller import remains
from compress.teacher.beginning import check, described
from compress.teacher.folder import Teacher, pinned, seal, sealed

if TYPE_CHECKING:
    from torch import Tensor

MAKER = 1  # raise it when what is made of the same teacher changes


def make(teacher: Teacher, spec: Student, cache: Path, places: Places | None = None) -> Teacher:
    """Make a student once, as a folder of the cache, and open it.

    Raises:
        RecipeError: the teacher's family has no such model.
        StorageError: the cache cannot be written.
    """
    import torch

    check(spec, teacher.config, teacher.anatomy, places)
    key = repr((MAKER, teacher.fingerprint, spec.model_dump(), torch.__version__))
    folder = cache / "students" / hashlib.sha256(key.encode()).hexdigest()
    name = f"{spec.init} {teacher.name} ({spec.told})"
    with storage.locked(folder.with_suffix(".lock")):  # another run may be at it
        if (found := sealed(folder)) is None:
            found = seal(folder, lambda made: _write(teacher, spec, made))
    return pinned(found, name=name)


def _write(teacher: Teacher, spec: Student, folder: Path) -> None:
    config, anatomy = described(spec, teacher.config, teacher.anatomy)
    write.write(
        folder, _parts(teacher, spec, config, anatomy),
        anatomy=anatomy, config=config, format="dense",
        tokenizer_files=write.companions(teacher.folder),
    )  # fmt: skip


def _parts(
    teacher: Teacher, spec: Student, config: dict[str, Any], anatomy: Anatomy
) -> Iterator[tuple[str, Tensor]]:
    from compress.surgery import fresh
    from compress.surgery.resize import Cut

    if spec.init == "fresh":
        dtype = teacher.outside()[f"{teacher.anatomy.embedding}.weight"].dtype
        drawn = fresh.draw(config, anatomy, spec.seed or 0)
        yield from ((name, tensor.to(dtype)) for name, tensor in drawn.items())
        return
    given = spec.config.given if spec.config else {}
    found = Cut(teacher, remains(teacher.config, teacher.anatomy, given))
    yield from found.outside().items()
    for block in found.anatomy.blocks:
        yield from found.block(block.index).items()
