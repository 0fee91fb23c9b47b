"""Text and JSON that strangers wrote: never more of it than a bound, and each key once.

JSON takes up to twenty times its bytes in memory, so the bound on bytes is the bound on memory.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from compress.errors import shown

MAX_JSON_BYTES = 16 * 1024**2
MAX_TOKENIZER_BYTES = 64 * 1024**2  # the largest vocabularies of today take half of it


def read_bytes(path: Path, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Read a small file whole.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger than `max_bytes`, or no ordinary file (a pipe would never end).
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("not an ordinary file")
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"larger than {max_bytes:,} bytes")
    return data


def read_text(path: Path, max_bytes: int = MAX_JSON_BYTES) -> str:
    """Read a small file of UTF-8 text; raises as `read_bytes` does, ValueError also for no text."""
    return read_bytes(path, max_bytes).decode("utf-8")


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Read a small JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: as `read_bytes` and `parse_json` say.
    """
    return parse_json(read_bytes(path, max_bytes))


def parse_json(data: bytes | str) -> Any:
    """Parse JSON whose size is bounded already.

    Raises:
        ValueError: not UTF-8, not JSON, nested too deeply, or an object that says something twice
            (readers disagree about which of the two holds).
    """
    text = data if isinstance(data, str) else data.decode("utf-8")
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{shown(name)!r} is there twice")
        found[name] = value
    return found
