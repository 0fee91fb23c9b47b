"""Quantize one GGUF file with llama.cpp's own quantizer.

    npm install --prefix llama @node-llama-cpp/linux-x64
    python llamacpp_run.py TEACHER.gguf OUT_DIR --llama llama --kind Q4_K_M

Any folder that holds llama.cpp's shared library will do; that npm package carries one which runs on
older systems too. Called is `llama_model_quantize`, as its program `llama-quantize` does, with its
defaults and no importance matrix. `--kind Q4_0+Q4_0` names the type of the embedding, too: the
defaults keep one that is also the head at 6 or 8 bits. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import time
from pathlib import Path

from gguf import GGMLQuantizationType, LlamaFileType


class Settings(ctypes.Structure):
    """llama_model_quantize_params: the fields that are set here, and room for all others."""

    _fields_ = (
        ("threads", ctypes.c_int32),
        ("kind", ctypes.c_int32),
        ("output", ctypes.c_int32),
        ("embedding", ctypes.c_int32),
        ("others", ctypes.c_byte * 496),
    )


def library(folder: Path) -> Path:
    """Where llama.cpp's library lies.

    Raises:
        SystemExit: nowhere in the folder.
    """
    found = sorted(folder.rglob("libllama[.-]*so*")) + sorted(folder.rglob("libllama*.dylib"))
    found = [path for path in found if "common" not in path.name]
    if not found:
        raise SystemExit(f"{folder}: no libllama in it; see benchmarks/README.md")
    return found[0].resolve()


def quantize(lib: ctypes.CDLL, source: Path, file: Path, *, kind: str, threads: int) -> None:
    """Write one file in another type.

    Raises:
        SystemExit: there is no such type, or llama.cpp refuses.
    """
    lib.llama_model_quantize_default_params.restype = Settings
    settings = lib.llama_model_quantize_default_params()
    most, _, embedding = kind.partition("+")
    try:
        settings.threads, settings.kind = threads, LlamaFileType[f"MOSTLY_{most}"]
        if embedding:
            settings.output = settings.embedding = GGMLQuantizationType[embedding]
    except KeyError as error:
        raise SystemExit(f"--kind {kind}: llama.cpp knows no {error}") from error
    lib.llama_backend_init()
    if code := lib.llama_model_quantize(bytes(source), bytes(file), ctypes.byref(settings)):
        raise SystemExit(f"llama_model_quantize: {code}")


def main() -> None:
    """Quantize, and print the seconds and the library as one JSON line."""
    parser = argparse.ArgumentParser(description="Quantize one GGUF file with llama.cpp.")
    parser.add_argument("teacher", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--llama", type=Path, required=True, help="folder of llama.cpp's library")
    parser.add_argument("--kind", required=True, help="Q4_0, Q4_K_M, … or with the embedding's")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    file, lib = given.out / "model.gguf", library(given.llama)
    begun = time.perf_counter()
    quantize(ctypes.CDLL(str(lib)), given.teacher, file, kind=given.kind, threads=given.threads)
    with file.open("rb") as written:
        os.fsync(written.fileno())
    seconds = time.perf_counter() - begun
    print(json.dumps({"seconds": seconds, "versions": {"llama.cpp": lib.name}}))


if __name__ == "__main__":
    main()
