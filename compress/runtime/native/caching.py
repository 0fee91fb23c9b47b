"""Where compiled kernels are kept: compiling takes seconds, loading what was compiled does not."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numba

from compress import library

_ALSO = ("packed.py", "ledger.py")  # whose numbers the kernels are made with


@contextmanager
def cached() -> Iterator[None]:
    """What numba is told to compile here is kept from run to run.

    numba looks for changes in the file of a function only, not in those of the functions that it
    calls. So each state of all our sources has a folder of its own.
    """
    settings: Any = numba.config
    before, settings.CACHE_DIR = settings.CACHE_DIR, str(_folder())
    try:
        yield
    finally:
        settings.CACHE_DIR = before


@cache
def _folder() -> Path:
    """The folder of these sources, where numba is told to keep things or else in our cache.

    Where it cannot be written, it is one that ends with the process.
    """
    here = Path(__file__).parent
    sources = [*sorted(here.glob("*.py")), *(here.parent / name for name in _ALSO)]
    said = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    kept = os.environ.get("NUMBA_CACHE_DIR") or library.cache_folder() / "kernels"
    folder = Path(kept) / said[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return _passing()
    return folder if os.access(folder, os.W_OK) else _passing()


def _passing() -> Path:
    return Path(tempfile.mkdtemp(prefix="compress-kernels-"))
