"""One process at a time: locks that are named by a file and end with whoever holds them."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from compress.errors import StorageError


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a name, after waiting for whoever holds it.

    The system lets go of it however the holder ends, also when it is killed. The file stays: a lock
    whose file is removed can be held twice.

    Args:
        path: a file that only locks; its folder is made.

    Raises:
        StorageError: it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise StorageError(f"{path}: cannot be locked ({error.strerror}).") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
