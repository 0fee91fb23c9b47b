"""The only door to safetensors and GGUF files: checked headers, mapped reads, durable writes.

Headers are read without torch, so that planning and inspecting stay light. Nothing here executes
what it reads: pickles are refused. Format: https://huggingface.co/docs/safetensors (an 8-byte
length, a JSON header, raw bytes).
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from compress.errors import ModelError, StorageError

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ITEM_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8,
    "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
}  # fmt: skip
_MAX_HEADER = 100 * 1024 * 1024
R = TypeVar("R")


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies and what it is, from a header alone."""

    file: Path
    dtype: str  # as safetensors spells it: F32, BF16, I32, …
    shape: tuple[int, ...]
    nbytes: int


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Read and check the header of one safetensors file.

    Raises:
        ModelError: the file is missing, truncated, or its header contradicts its size.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else _MAX_HEADER + 1
            if length > min(_MAX_HEADER, size - 8):
                raise ModelError(
                    f"{path}: not a whole safetensors file ({size:,} bytes; its first 8 bytes "
                    f"promise a header of {length:,}). Fetch it again."
                )
            header = json.loads(file.read(length))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise ModelError(
            f"{path}: its safetensors header is not JSON ({error}). Fetch the file again."
        ) from error
    return _checked(path, header, size - 8 - length)


def _checked(path: Path, header: Any, data_bytes: int) -> dict[str, TensorInfo]:
    found: dict[str, TensorInfo] = {}
    if not isinstance(header, dict):
        raise ModelError(
            f"{path}: its safetensors header is not a JSON object. Fetch the file again."
        )
    end = 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])
            start, stop = (int(n) for n in entry["data_offsets"])
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"{path}: header entry {name!r} is malformed. Fetch the file again."
            ) from error
        count = 1
        for extent in shape:
            count *= extent
        if (
            dtype not in ITEM_BITS
            or min(shape, default=0) < 0
            or stop - start != count * ITEM_BITS[dtype] // 8
        ):
            raise ModelError(
                f"{path}: {name} says {dtype} {list(shape)} but spans {stop - start:,} bytes."
            )
        if start < 0 or stop > data_bytes:
            raise ModelError(
                f"{path}: truncated: {name} ends at byte {stop:,} of {data_bytes:,} data bytes. "
                "Fetch the file again."
            )
        found[name] = TensorInfo(path, dtype, shape, stop - start)
        end = max(end, stop)
    if end != data_bytes:
        raise ModelError(
            f"{path}: {data_bytes - end:,} bytes belong to no tensor. Fetch the file again."
        )
    return found


class Checkpoint:
    """A folder of safetensors shards, read lazily by memory map."""

    def __init__(self, folder: Path) -> None:
        """Read the headers of all shards in `folder`.

        Raises:
            ModelError: no safetensors, a pickle instead, a broken shard, or an index that names a
                missing tensor.
        """
        self.folder = folder
        self.tensors: dict[str, TensorInfo] = {}
        for path in _shards(folder):
            self.tensors.update(read_header(path))
        index = folder / INDEX
        for name, file in (_weight_map(index) if index.is_file() else {}).items():
            if name not in self.tensors or self.tensors[name].file.name != file:
                raise ModelError(
                    f"{index}: promises {name} in {file}, which does not hold it. Fetch both again."
                )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor by name."""
        return {name: info.shape for name, info in self.tensors.items()}

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor, mapped from its file."""
        return self.read_many([name])[name]

    def read_many(self, names: list[str] | tuple[str, ...]) -> dict[str, torch.Tensor]:
        """Read several tensors; each file is mapped once."""
        by_file: dict[Path, list[str]] = {}
        for name in names:
            if name not in self.tensors:
                raise ModelError(f"{self.folder}: tensor {name} is missing.")
            by_file.setdefault(self.tensors[name].file, []).append(name)
        return {
            name: tensor
            for path, wanted in by_file.items()
            for name, tensor in read_file(path, wanted).items()
        }


def read_file(path: Path, names: list[str] | None = None) -> dict[str, torch.Tensor]:
    """Read tensors (all of them by default) of one safetensors file, mapped."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {
                name: file.get_tensor(name) for name in (file.keys() if names is None else names)
            }
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: cannot be read ({error}).") from error


def _shards(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.is_file():
        return _indexed(index)
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"{folder}: holds {pickles[0]}, a pickle, and no safetensors. Loading a pickle runs "
            "code from it, so it is refused. Convert it where you trust it: "
            "AutoModelForCausalLM.from_pretrained(…).save_pretrained(…)."
        )
    raise ModelError(
        f"{folder}: holds neither {SINGLE} nor {INDEX}. Give a Hugging Face model folder."
    )


def _indexed(index: Path) -> list[Path]:
    names = set(_weight_map(index).values())
    outside = sorted(
        name for name in names if Path(name).name != name or not name.endswith(".safetensors")
    )
    if outside:
        raise ModelError(
            f"{index}: names {outside[0]!r}; shards must be .safetensors files in the same folder."
        )
    return [index.parent / name for name in sorted(names)]


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index}: not a safetensors index ({error}).") from error


def write_file(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write one safetensors file whole or not at all."""
    from safetensors.torch import save_file

    def save(temporary: Path) -> None:
        save_file(
            {name: t.contiguous() for name, t in tensors.items()},
            temporary,
            {"format": "pt", **(metadata or {})},
        )

    _durably(path, save)


def write_text(path: Path, text: str) -> None:
    """Write one text file whole or not at all."""
    _durably(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def copy_file(source: Path, path: Path) -> None:
    """Copy one file whole or not at all."""
    _durably(path, lambda temporary: shutil.copyfile(source, temporary))


def _durably(path: Path, save: Callable[[Path], R]) -> None:
    """Save under a temporary name, then fsync, rename, and fsync the folder."""
    from safetensors import SafetensorError

    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the user's umask has it; safetensors makes files 0600
        save(temporary)
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error)
        raise StorageError(
            f"{path}: cannot be written ({reason}). Free some space or choose another --out."
        ) from error


def append(path: Path, text: str) -> None:
    """Add to the end of a text file, and return when it is on the disk.

    Raises:
        StorageError: the disk refused; what was added may be there in part.
    """
    try:
        with path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror}).") from error


def cut(path: Path, nbytes: int) -> None:
    """Keep the first `nbytes` of a file.

    Raises:
        StorageError: the disk refused.
    """
    try:
        os.truncate(path, nbytes)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror}).") from error


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where they are missing.

    Raises:
        StorageError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot be made ({error.strerror}). Free some space, or point "
            "COMPRESS_CACHE or --out elsewhere."
        ) from error


def reserve(path: Path, nbytes: int) -> None:
    """Make a file of `nbytes` that really has its room on disk, so that mapping it cannot fail.

    Raises:
        StorageError: the disk is full.
    """
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, nbytes)
    except OSError as error:
        raise StorageError(
            f"{path}: no room for {nbytes:,} bytes of activations ({error.strerror}). Free some "
            "space, choose another --out, or calibrate on fewer samples."
        ) from error


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class ShardWriter:
    """Write named tensors into shards of at most `max_bytes`, then one index.

    Each shard is durable when it is full. A tensor larger than `max_bytes` has a shard to itself.
    """

    def __init__(self, folder: Path, max_bytes: int = 2 * 1024**3) -> None:
        """Write into `folder`, which exists."""
        self._folder, self._max = folder, max_bytes
        self._pending: dict[str, torch.Tensor] = {}
        self._pending_bytes = 0
        self._shards: list[tuple[Path, list[str]]] = []
        self._total = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Queue one tensor; writes a shard when the next would not fit."""
        nbytes = tensor.numel() * tensor.element_size()
        if self._pending and self._pending_bytes + nbytes > self._max:
            self._flush()
        self._pending[name] = tensor
        self._pending_bytes += nbytes
        self._total += nbytes

    def close(self) -> None:
        """Write what is pending, give the shards their final names, index them if several."""
        self._flush()
        count = len(self._shards)
        weight_map: dict[str, str] = {}
        for number, (path, names) in enumerate(self._shards, 1):
            name = SINGLE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
            path.replace(self._folder / name)
            weight_map.update(dict.fromkeys(names, name))
        if count > 1:
            index = {
                "metadata": {"total_size": self._total},
                "weight_map": dict(sorted(weight_map.items())),
            }
            write_text(self._folder / INDEX, json.dumps(index, indent=2) + "\n")
        sync_folder(self._folder)

    def _flush(self) -> None:
        if self._pending:
            path = self._folder / f"shard-{len(self._shards) + 1:05d}.part"
            write_file(path, self._pending)
            self._shards.append((path, list(self._pending)))
            self._pending, self._pending_bytes = {}, 0


def gguf_fields(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the metadata of a GGUF file.

    Raises:
        ModelError: the file is missing, truncated or not GGUF.
    """
    for name, field in _gguf(path).fields.items():
        yield name, field.contents()


def check_gguf(path: Path) -> None:
    """Check that every tensor that a GGUF file promises lies inside it.

    Raises:
        ModelError: it does not.
    """
    size = path.stat().st_size if path.is_file() else 0
    for tensor in _gguf(path).tensors:
        if tensor.data_offset + tensor.n_bytes > size:
            raise ModelError(
                f"{path}: truncated: {tensor.name} ends past the file's {size:,} bytes. "
                "Fetch the file again."
            )


def _gguf(path: Path) -> Any:
    if not path.is_file():
        raise ModelError(f"{path}: no such file.")
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise ModelError(f"{path}: not a whole GGUF file ({error}). Fetch it again.") from error
