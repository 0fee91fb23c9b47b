"""Coverage-guided fuzzing of the readers of strangers' files; no part of the default tests.

    pip install atheris
    python tests/fuzz/atheris_readers.py READER [-max_total_time=60] [libFuzzer options]

READER is recipe, safetensors, gguf, manifest, results or template. It runs until something is
raised that is no error of ours, and then writes the input that raised it.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["compress"]):
    from compress import results, storage
    from compress.artifact import manifest
    from compress.chat import render
    from compress.errors import RequestError
    from compress.recipe.load import load

FOLDER = Path(tempfile.mkdtemp())


def at(name: str, read: Callable[[Path], object]) -> Callable[[bytes], None]:
    """A target that writes its input to a file and reads it."""

    def target(data: bytes) -> None:
        path = FOLDER / name
        path.write_bytes(data)
        with contextlib.suppress(RequestError):
            read(path)

    return target


def _results(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        results.from_json(results.Results, data.decode("utf-8", "replace"))


def _template(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        render.check(data.decode("utf-8", "replace"))


READERS: dict[str, Callable[[bytes], None]] = {
    "recipe": at("a.yaml", lambda path: load(str(path))),
    "safetensors": at("model.safetensors", storage.read_header),
    "gguf": at("a.gguf", storage.read_gguf),
    "manifest": at(manifest.NAME, lambda path: manifest.read_manifest(path.parent)),
    "results": _results,
    "template": _template,
}

if __name__ == "__main__":
    reader = READERS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, reader)
    atheris.Fuzz()
