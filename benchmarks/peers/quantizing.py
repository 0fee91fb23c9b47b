"""What every peer that quantizes does the same way, so that its run can be held against ours."""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def options(description: str) -> argparse.ArgumentParser:
    """What every such peer is told on its command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("teacher")
    parser.add_argument("text", type=Path, help="a text of exactly samples x seq-len tokens")
    parser.add_argument("out", type=Path)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    return parser


def windows_of(given: argparse.Namespace, tokenizer: Any) -> list[list[int]]:
    """The token windows of the text that was given."""
    ids = tokenizer(given.text.read_text("utf-8")).input_ids
    return [ids[i * given.seq_len : (i + 1) * given.seq_len] for i in range(given.samples)]


def tell(seconds: float, windows: list[list[int]], packages: Sequence[str]) -> None:
    """Print seconds, windows and versions as one JSON line."""
    print(
        json.dumps(
            {
                "seconds": seconds,
                "calibration_fingerprint": fingerprint(windows),
                "versions": {name: importlib.metadata.version(name) for name in packages},
            }
        )
    )


def flush(folder: Path) -> None:
    """Force the shards to the disk, as ours are before its clock stops."""
    for shard in folder.glob("*.safetensors"):
        with shard.open("rb") as file:
            os.fsync(file.fileno())


def fingerprint(windows: list[list[int]]) -> str:
    """sha256 of all token ids as little-endian 64-bit integers, then their shape in words."""
    content = b"".join(i.to_bytes(8, "little") for window in windows for i in window)
    return hashlib.sha256(content + f"{len(windows)}x{len(windows[0])}".encode()).hexdigest()
