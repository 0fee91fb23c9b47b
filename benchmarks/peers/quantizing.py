"""What every peer that quantizes does the same way, so that its run can be held against ours."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def flush(folder: Path) -> None:
    """Force the shards to the disk, as ours are before its clock stops."""
    for shard in folder.glob("*.safetensors"):
        with shard.open("rb") as file:
            os.fsync(file.fileno())


def fingerprint(windows: list[list[int]]) -> str:
    """sha256 of all token ids as little-endian 64-bit integers, then their shape in words."""
    content = b"".join(i.to_bytes(8, "little") for window in windows for i in window)
    return hashlib.sha256(content + f"{len(windows)}x{len(windows[0])}".encode()).hexdigest()
