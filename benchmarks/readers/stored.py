"""Stored bytes of a model folder, from the headers of its files alone.

    python stored.py MODEL_DIR TEACHER_DIR

Shares no code with compress. Prints one JSON line: bytes of all files that a loader needs, of the
weight files, and the bits that a weight costs in the linears of the blocks, everything stored for
them (codes, scales, zeros, order) counted; with the head once more, which is the embedding where
the two are tied. A folder that holds `model.gguf` is that file alone.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

GGUF = "model.gguf"
NEEDED = (".safetensors", ".gguf", ".json", ".txt", ".model", ".jinja")
RECORDS = ("results.json", "measured.json", "verification.json", "manifest.json", "export.json")
HEADS = ("lm_head", "embed_out", "output")
EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "token_embd")
POSITIONS = ("wpe", "embed_positions")


def headers(folder: Path) -> dict[str, dict[str, Any]]:
    """Header entry of every tensor in the folder's `*.safetensors`, by name."""
    entries: dict[str, dict[str, Any]] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        with shard.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            entries |= json.loads(file.read(length))
    entries.pop("__metadata__", None)
    return entries


def linears_of(model: Path, teacher: Path) -> dict[str, tuple[int, int]]:
    """Stored bytes and weights of every matrix, by module; a bias is no part of one.

    The teacher's folder says how many weights a matrix has, and which tensors are matrices.
    """
    if (model / GGUF).is_file():
        return _linears_of_gguf(model / GGUF)
    stored: dict[str, int] = {}
    for name, entry in headers(model).items():
        module, _, ending = name.rpartition(".")
        begin, end = entry["data_offsets"]
        stored[module] = stored.get(module, 0) + (end - begin) * (ending != "bias")
    dense = {
        name.removesuffix(".weight"): math.prod(entry["shape"])
        for name, entry in headers(teacher).items()
        if name.endswith(".weight") and len(entry["shape"]) == 2
    }
    return {module: (stored[module], count) for module, count in dense.items() if module in stored}


def _linears_of_gguf(path: Path) -> dict[str, tuple[int, int]]:
    from gguf import GGUFReader

    return {
        tensor.name.removesuffix(".weight"): (int(tensor.n_bytes), int(tensor.n_elements))
        for tensor in GGUFReader(path).tensors
        if tensor.name.endswith(".weight") and len(tensor.shape) == 2
    }


def files_of(model: Path) -> list[Path]:
    """The files that a loader needs; records of a run are none."""
    if (model / GGUF).is_file():
        return [model / GGUF]
    return [p for p in model.iterdir() if p.suffix in NEEDED and p.name not in RECORDS]


def measure(model: Path, teacher: Path) -> dict[str, float | int]:
    """Sizes of a folder; the teacher's says how many weights each matrix has."""
    found = linears_of(model, teacher)
    inside = {m: n for m, n in found.items() if _last(m) not in (*HEADS, *EMBEDDINGS, *POSITIONS)}
    heads = {m: n for m, n in found.items() if _last(m) in HEADS}
    heads = heads or {m: n for m, n in found.items() if _last(m) in EMBEDDINGS}
    files = files_of(model)
    weights = [path for path in files if path.suffix in (".safetensors", ".gguf")]
    return {
        "size_bytes": _bytes(files),
        "weights_bytes": _bytes(weights),
        "linears": len(inside),
        "linear_weights": sum(count for _, count in inside.values()),
        "bits_per_weight": _bits(inside),
        "bits_per_weight_with_head": _bits({**inside, **heads}),
    }


def _last(module: str) -> str:
    return module.rpartition(".")[2]


def _bytes(files: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in files)


def _bits(found: Mapping[str, tuple[int, int]]) -> float:
    held = sum(nbytes for nbytes, _ in found.values())
    weights = sum(count for _, count in found.values())
    return round(8 * held / weights, 4) if weights else 0.0


def main() -> None:
    """Print the sizes of one folder as a JSON line."""
    parser = argparse.ArgumentParser(description="Stored bytes of a model folder.")
    parser.add_argument("model", type=Path)
    parser.add_argument("teacher", type=Path)
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.model, arguments.teacher)))


if __name__ == "__main__":
    main()
