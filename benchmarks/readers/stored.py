"""Stored bytes of a model folder, from the headers of its safetensors files alone.

    python stored.py MODEL_DIR TEACHER_DIR

Shares no code with compress. Prints one JSON line: bytes of the weight files, and the bits a weight
costs in the quantized linears, everything stored for them (codes, scales, zeros, order) counted.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
from pathlib import Path
from typing import Any


def headers(folder: Path) -> dict[str, dict[str, Any]]:
    """Header entry of every tensor in the folder's `*.safetensors`, by name."""
    entries: dict[str, dict[str, Any]] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        with shard.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            entries |= json.loads(file.read(length))
    entries.pop("__metadata__", None)
    return entries


def measure(model: Path, teacher: Path) -> dict[str, float | int]:
    """Sizes of a quantized folder; the teacher's folder says how many weights each linear has."""
    entries, dense = headers(model), headers(teacher)
    stored: dict[str, int] = {}
    for name, entry in entries.items():
        linear = name.rpartition(".")[0]
        begin, end = entry["data_offsets"]
        stored[linear] = stored.get(linear, 0) + end - begin
    replaced = {name.removesuffix(".weight") for name in dense if name not in entries}
    linears = sorted(replaced & stored.keys())
    weights = sum(math.prod(dense[f"{linear}.weight"]["shape"]) for linear in linears)
    held = sum(stored[linear] for linear in linears)
    return {
        "size_bytes": sum(shard.stat().st_size for shard in model.glob("*.safetensors")),
        "quantized_linears": len(linears),
        "quantized_weights": weights,
        "bits_per_weight": round(8 * held / weights, 4) if weights else 0.0,
    }


def main() -> None:
    """Print the sizes of one folder as a JSON line."""
    parser = argparse.ArgumentParser(description="Stored bytes of a quantized folder.")
    parser.add_argument("model", type=Path)
    parser.add_argument("teacher", type=Path)
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.model, arguments.teacher)))


if __name__ == "__main__":
    main()
