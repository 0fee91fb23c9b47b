"""What a student begins as where no folder holds it: sliced from its teacher, drawn, or fitted.

Fitted is another model with the teacher's tokenizer, whose vocabulary was filled up otherwise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress import storage
from compress.anatomy import Anatomy
from compress.artifact import write
from compress.recipe.student import Student
from compress.smaller import remains
from compress.teacher import license, spelling
from compress.teacher.beginning import described, fitted, rows_of_tokens
from compress.teacher.folder import Teacher, file_sha256, pinned, seal, sealed

if TYPE_CHECKING:
    from torch import Tensor

MAKER = 2  # raise it when what is made of the same teacher changes
_ROWS = 4096  # of an embedding that are summed at a time


def make(teacher: Teacher, spec: Student, cache: Path) -> Teacher:
    """Make a student whose sizes were checked, once, as a folder of the cache, and open it.

    Raises:
        StorageError: the cache cannot be written.
    """
    key = (teacher.fingerprint, spec.model_dump())
    name = f"{spec.init} {teacher.name} ({spec.told})"
    found = _kept(cache, teacher, key, lambda made: _write(teacher, spec, made))
    return pinned(found, name=name)


def fit(origin: Teacher, teacher: Teacher, cache: Path) -> Teacher:
    """Give a model the vocabulary of a teacher with the same tokenizer, once, as `make` does.

    Rows that no token has are cut, or filled up with the mean of all: nobody says them.

    Raises:
        ModelError: the tokenizers differ, or tokens have no row.
        StorageError: the cache cannot be written.
    """
    key = (origin.fingerprint, teacher.anatomy.vocab_size)
    found = _kept(cache, origin, key, lambda made: _write_fitted(origin, teacher, made))
    return pinned(
        found, name=origin.name, revision=origin.revision, source_sha256=origin.source_sha256
    )


def _kept(
    cache: Path, source: Teacher, key: tuple[Any, ...], write: Callable[[Path], None]
) -> Teacher:
    """The model of the cache that a key and the files beside its source name, written if needed."""
    import torch

    beside = [(path.name, file_sha256(path)) for path in _beside(source)]
    digest = hashlib.sha256(repr((MAKER, *key, beside, torch.__version__)).encode()).hexdigest()
    folder = cache / "students" / digest
    with storage.locked(folder.with_suffix(".lock")):  # another run may be at it
        return sealed(folder) or seal(folder, write)


def _write(teacher: Teacher, spec: Student, folder: Path) -> None:
    config, anatomy = described(spec, teacher.config, teacher.anatomy)
    _store(folder, teacher, config, anatomy, _parts(teacher, spec, config, anatomy))


def _store(
    folder: Path, source: Teacher, config: dict[str, Any], anatomy: Anatomy,
    parts: Iterator[tuple[str, Tensor]],
) -> None:  # fmt: skip
    write.write(
        folder, parts, anatomy=anatomy, config=config, format="dense",
        tokenizer_files=_beside(source),
    )  # fmt: skip


def _beside(source: Teacher) -> tuple[Path, ...]:
    """The files that go along: also the card, which says under which license."""
    return (*write.companions(source.folder), *license.cards(source.folder))


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


def _write_fitted(origin: Teacher, teacher: Teacher, folder: Path) -> None:
    rows = teacher.anatomy.vocab_size
    spelling.check(origin, teacher, rows=min(rows, origin.anatomy.vocab_size))
    config, anatomy = fitted(origin.config, origin.anatomy, rows)
    longer = rows_of_tokens(origin.anatomy)

    def parts() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in origin.outside().items():
            yield name, _with_rows(tensor, rows) if name in longer else tensor
        for block in origin.anatomy.blocks:
            yield from origin.block(block.index).items()

    _store(folder, origin, config, anatomy, parts())


def _with_rows(tensor: Tensor, rows: int) -> Tensor:
    """The first rows of a tensor, or all and behind them their mean."""
    import torch

    missing = rows - len(tensor)
    if missing <= 0:
        return tensor[:rows].clone()
    total = torch.zeros(tensor.shape[1:], dtype=torch.float64)
    for part in tensor.split(_ROWS):  # the whole in float64 would be four times the embedding
        total += part.sum(0, dtype=torch.float64)
    mean = (total / len(tensor)).to(tensor.dtype)
    return torch.cat([tensor, mean.expand(missing, *tensor.shape[1:])])
