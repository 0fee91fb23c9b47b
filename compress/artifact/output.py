"""One finished output: made under another name, given its own when it is whole."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from compress import storage
from compress.errors import ArtifactError, RequestError


@contextlib.contextmanager
def in_the_making(out: Path) -> Iterator[Path]:
    """The folder in which `out` is made: renamed when all is done, removed when anything fails.

    It holds a subfolder ``.work`` for what only the run needs.

    Raises:
        ArtifactError: `out`, or the unfinished work of another run, is there already.
        RequestError: nothing can be made there.
    """
    if out.exists():
        raise ArtifactError(
            f"{out}: exists. A finished output is never written over: choose another --out, or "
            "move it away."
        )
    partial = out.with_name(out.name + ".partial")
    if partial.exists():
        raise ArtifactError(
            f"{partial}: exists: another run is at work there, or one was killed. Remove it, or "
            "choose another --out."
        )
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise RequestError(
            f"{partial}: cannot be made ({error.strerror}). Choose another --out."
        ) from error
    try:
        (partial / ".work").mkdir()
        yield partial
        shutil.rmtree(partial / ".work")
        partial.rename(out)
        storage.sync_folder(out.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
