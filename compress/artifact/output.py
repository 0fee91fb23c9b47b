"""One finished output: made under another name, given its own when it is whole.

``OUT.partial`` belongs to one run at a time. It stays when a run that has finished anything is cut
short, and the same run goes on there; it becomes ``OUT``, or ``OUT.rejected`` when a gate was
missed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from compress import storage
from compress.errors import ArtifactError, GateMissed, RequestError
from compress.recipe.schema import Recipe

WORK = ".work"  # the subfolder for what only the run needs
JOURNAL = f"{WORK}/journal.jsonl"  # there is something to go on from
_UNFINISHED = ("*.tmp", "*.part")


@contextlib.contextmanager
def in_the_making(out: Path, *, fresh: bool = False) -> Iterator[Path]:
    """The folder in which `out` is made, maybe begun by an earlier run that was cut short.

    Args:
        out: what to make.
        fresh: forget what an earlier run has begun.

    Raises:
        ArtifactError: `out` is there already, or another run is at work, or what is in the way
            is no unfinished run.
        RequestError: nothing can be made there.
    """
    partial, rejected = beside(out, "partial"), beside(out, "rejected")
    refuse_finished(out)
    with _mine(partial):
        _tidy(partial, fresh=fresh)
        try:
            yield partial
        except GateMissed:
            _rename(partial, rejected)
            raise
        except BaseException:
            if not (partial / JOURNAL).is_file():
                shutil.rmtree(partial, ignore_errors=True)
            raise
        _rename(partial, out)


def beside(out: Path, ending: str) -> Path:
    """`OUT.ending`."""
    return out.with_name(f"{out.name}.{ending}")


def default_folder(recipe: Recipe) -> Path:
    """Where a run goes that was given no place: ./<recipe>-<teacher>."""
    return Path(f"{recipe.resolved.recipe}-{short_name(recipe.teacher.model)}")


def short_name(model: str) -> str:
    """The part of a teacher's name that fits a folder: no owner, no version, no ending.

    Args:
        model: as in a recipe: a hub id, a folder, a GGUF file, or `pypi:name==version`.
    """
    return (
        Path(model.removeprefix("pypi:").partition("==")[0]).name.removesuffix(".gguf") or "teacher"
    )


def refuse_finished(out: Path) -> None:
    """Refuse to make what is there already; also what a gate rejected is a finished run's.

    Raises:
        ArtifactError: `out` or `OUT.rejected` exists.
    """
    for path in (out, beside(out, "rejected")):
        if path.exists():
            shutil.rmtree(path / WORK, ignore_errors=True)  # of a run cut short in its last moment
            raise ArtifactError(
                f"{path}: exists. What a run has finished is never written over: choose another "
                "--out, or move it away."
            )


def refuse_unfinished(out: Path) -> None:
    """Refuse to begin anew where a run was cut short: hours may lie there.

    Raises:
        ArtifactError: ``OUT.partial`` holds what a run can go on from.
    """
    partial = beside(out, "partial")
    if (partial / JOURNAL).is_file():
        raise ArtifactError(
            f"{partial}: holds an unfinished run. Finish it by the same compress apply, or choose "
            "another --out."
        )


@contextlib.contextmanager
def _mine(partial: Path) -> Iterator[None]:
    """Hold the folder against other runs; the system lets go of it however this one ends."""
    try:
        partial.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(partial, os.O_RDONLY)
    except OSError as error:
        raise RequestError(
            f"{partial}: cannot be made ({error.strerror}). Choose another --out."
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            gone = not os.path.samestat(os.fstat(descriptor), partial.stat())
        except OSError as error:
            raise ArtifactError(
                f"{partial}: exists: another run is at work there. Wait for it, or choose another "
                "--out."
            ) from error
        if gone:
            raise ArtifactError(f"{partial}: another run has just finished there.")
        yield
    finally:
        os.close(descriptor)


def _tidy(partial: Path, *, fresh: bool) -> None:
    """Make the folder ready for work, and remove what a killed run had not finished writing."""
    work = partial / WORK
    if not work.is_dir() and any(partial.iterdir()):
        raise ArtifactError(
            f"{partial}: exists, and is no unfinished run. Move it away, or choose another --out."
        )
    if fresh or not (partial / JOURNAL).is_file():
        for path in partial.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    work.mkdir(exist_ok=True)
    for pattern in _UNFINISHED:
        for path in (*partial.glob(pattern), *work.glob(pattern)):
            path.unlink()


def _rename(partial: Path, finished: Path) -> None:
    """Give the folder its name; what only the run needed goes last, so that no crash loses both."""
    partial.rename(finished)
    storage.sync_folder(finished.parent)
    shutil.rmtree(finished / WORK)
