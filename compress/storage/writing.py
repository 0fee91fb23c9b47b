"""Files written whole or not at all, and on the disk when the call returns."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from compress.errors import StorageError
from compress.storage.checkpoint import INDEX, SINGLE

if TYPE_CHECKING:
    import torch

R = TypeVar("R")
_HELD_BYTES = 256 * 1024**2  # of a shard in the making; what comes after waits in mapped files


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


def link_file(source: Path, path: Path) -> None:
    """Give a file that is never changed in place a second name; copy it where that cannot be."""
    try:
        path.unlink(missing_ok=True)
        path.hardlink_to(source)
    except OSError:  # another file system, or one without such links
        copy_file(source, path)


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


def mapped(path: Path, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """An empty tensor in a file without a name: its pages can leave memory, and it goes with it.

    Args:
        path: where the file is made, to be unlinked at once.
        shape: of the tensor.
        dtype: of the tensor.

    Raises:
        StorageError: the disk is full. Its room is taken now, so that no write can fail later.
    """
    import torch

    count = math.prod(shape)
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, count * dtype.itemsize))
        tensor = torch.from_file(str(path), shared=True, size=count, dtype=dtype).view(*shape)
        path.unlink()
    except OSError as error:
        path.unlink(missing_ok=True)
        raise StorageError(
            f"{path}: no room for {count * dtype.itemsize:,} bytes ({error.strerror}). Free some "
            "space, choose another --out, or calibrate on fewer samples."
        ) from error
    return tensor


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
    However large a shard, little of it is held in memory.
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
        if self._pending_bytes + nbytes > _HELD_BYTES:
            tensor = mapped(self._folder / "shard.tmp", tensor.shape, tensor.dtype).copy_(tensor)
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
