"""A GGUF file as a teacher: dequantized once into a dense folder of the cache."""

from __future__ import annotations

import re
from pathlib import Path

from compress.errors import ModelError, shown
from compress.storage import GgufHeader, read_gguf
from compress.surgery import load
from compress.teacher import license
from compress.teacher.folder import Teacher, seal, sealed

CONVERTER = 2  # raise it when the dense folder that a GGUF file becomes changes
# GGUF's names of architectures whose dense models transformers rebuilds from such a file.
_ARCHITECTURES = ("gemma2", "gemma3", "gpt2", "llama", "mistral", "qwen2", "qwen3")
_BLOCK = re.compile(r"blk\.([0-9]{1,6})\.")
_WIDTHS = (
    "embedding_length", "feed_forward_length", "vocab_size", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length",
    "rope.dimension_count",
)  # fmt: skip


def dense_folder(cache: Path, source_sha256: str, dtype: str) -> Path:
    """Where the dense form of a GGUF file lies, or will; the hash is the file's or its wheel's."""
    return cache / "dense" / f"{source_sha256}-{dtype}-{CONVERTER}"


def open_converted(folder: Path) -> Teacher | None:
    """The teacher that `convert` made; None when there is none, or it is no longer as made."""
    return sealed(folder)


def convert(gguf: Path, folder: Path, dtype: str) -> Teacher:
    """Dequantize a GGUF file into `folder`, whole or not at all.

    Args:
        gguf: the file.
        folder: as `dense_folder` names it; replaced when it is there.
        dtype: of the dense weights: bfloat16, float16 or float32.

    Raises:
        ModelError: the file is truncated, a mixture of experts, or of another architecture.
        StorageError: the cache cannot be written.
    """
    header = checked(gguf)

    def make(made: Path) -> None:
        load.convert_gguf(gguf, made, dtype)
        license.note(made, header.fields)

    return seal(folder, make)


def checked(gguf: Path) -> GgufHeader:
    """The header of a GGUF file, if `convert` would take it; raises as it does."""
    header = read_gguf(gguf)
    _check_architecture(gguf, header)
    _check_sizes(gguf, header)
    return header


def _check_architecture(gguf: Path, header: GgufHeader) -> None:
    architecture = shown(header.fields.get("general.architecture", "<none>"))
    experts = header.fields.get(f"{architecture}.expert_count")
    if experts not in (None, 0, 1) or architecture.endswith("moe"):
        raise ModelError(
            f"{gguf}: general.architecture {architecture!r} is a mixture of experts. Experts are "
            "not calibrated properly yet, so they are refused. Choose a model with dense "
            "feed-forward blocks."
        )
    if architecture not in _ARCHITECTURES:
        raise ModelError(
            f"{gguf}: general.architecture {architecture!r} is not supported in GGUF files. "
            f"Supported: {', '.join(_ARCHITECTURES)}. Give the Hugging Face folder of the model "
            "instead."
        )


def _check_sizes(gguf: Path, header: GgufHeader) -> None:
    """Hold what a model is built from against the tensors: what is built is as large as it says."""
    architecture = header.fields["general.architecture"]
    blocks = {int(match[1]) for name in header.shapes if (match := _BLOCK.match(name))}
    promised = header.fields.get(f"{architecture}.block_count")
    if promised != len(blocks) or blocks != set(range(len(blocks))):
        raise ModelError(
            f"{gguf}: block_count is {shown(promised)}, the tensors hold {len(blocks)} blocks. "
            "Fetch the file again."
        )
    widest = max((extent for shape in header.shapes.values() for extent in shape), default=0)
    for name in _WIDTHS:
        value = header.fields.get(f"{architecture}.{name}")
        if value is not None and not (type(value) is int and 1 <= value <= widest):
            raise ModelError(
                f"{gguf}: {name} is {shown(value)}; it must be a whole number from 1 to "
                f"{widest:,}, the largest extent of any tensor. Fetch the file again."
            )
