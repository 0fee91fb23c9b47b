"""Coverage-guided fuzzing of the readers of strangers' files; no part of the default tests.

    pip install atheris
    python tests/fuzz/atheris_readers.py READER [-max_total_time=60] [libFuzzer options]

READER is recipe, safetensors, gguf, manifest, results or template. It begins with one sound input
and runs until something is raised that is no error of ours; the input that raised it is written.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parents[1])]  # tests/, for the inputs

with atheris.instrument_imports(include=["compress"]):
    from compress import results, storage
    from compress.artifact import manifest
    from compress.chat import render
    from compress.errors import RequestError
    from compress.recipe.load import load

from hostile import entry, gguf_file, gguf_tensor, safetensors, word  # noqa: E402

MEMORY = Path("/dev/shm")
FOLDER = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
RECIPE = """\
version: 1
teacher: {model: owner/name, dtype: bfloat16}
calibration: {set: self, samples: 8, seq_len: 64}
stages:
  - quantize: {method: gptq, bits: 4, overrides: {"*.down_proj": {bits: 8}}}
"""
MANIFEST = '{"schema_version": 1, "facts": {}, "files": {"a": "%s"}, "tensors": {}}' % ("0" * 64)
MEASURED = '{"seconds": {"total": 1.5}, "peak_memory_bytes": 1, "hardware": "h", "date": "d"}'
TEMPLATE = "{% for m in messages %}<|{{ m['role'] | upper }}|>{{ m.content }}{% endfor %}"


def at(name: str, read: Callable[[Path], object]) -> Callable[[bytes], None]:
    """A target that writes its input to a file and reads it."""

    def target(data: bytes) -> None:
        path = FOLDER / name
        path.write_bytes(data)
        with contextlib.suppress(RequestError):
            read(path)

    return target


def of_text(read: Callable[[str], object]) -> Callable[[bytes], None]:
    """A target that reads its input as text."""

    def target(data: bytes) -> None:
        with contextlib.suppress(ValueError):
            read(data.decode("utf-8", "replace"))

    return target


READERS: dict[str, tuple[Callable[[bytes], None], bytes]] = {
    "recipe": (at("a.yaml", lambda path: load(str(path))), RECIPE.encode()),
    "safetensors": (
        at("model.safetensors", storage.read_header),
        safetensors(f'{{"a": {entry([2, 2], 0, 16)}}}', b"0" * 16),
    ),
    "gguf": (
        at("a.gguf", storage.read_gguf),
        gguf_file(
            word("a") + b"\x09\0\0\0" + b"\x08\0\0\0\x01" + b"\0" * 7 + word("b"),
            1, gguf_tensor("t", [4, 2]), 1, b"0" * 32,
        ),
    ),
    "manifest": (
        at(manifest.NAME, lambda path: manifest.read_manifest(path.parent)), MANIFEST.encode()
    ),
    "results": (
        of_text(lambda text: results.from_json(results.Measured, text)), MEASURED.encode()
    ),
    "template": (of_text(render.check), TEMPLATE.encode()),
}  # fmt: skip

if __name__ == "__main__":
    reader, sound = READERS[sys.argv.pop(1)]
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    (corpus / "sound").write_bytes(sound)
    atheris.Setup([*sys.argv, str(corpus)], reader)
    atheris.Fuzz()
