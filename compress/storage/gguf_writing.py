"""A GGUF file written whole or not at all, by the `gguf` package.

The header, which names every tensor, comes before the first byte of any: so tensors wait in a file
of their own as they come, and none is held in memory.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from compress.errors import ModelError, StorageError
from compress.storage.writing import sync_folder

if TYPE_CHECKING:
    import torch

Value = bool | int | float | str | list[str] | list[int] | list[float]


class GgufWriter:
    """Collect metadata and tensors, then write one file."""

    def __init__(self, path: Path, architecture: str) -> None:
        """Write to `path`, in a folder that exists; `architecture` is one of llama.cpp's."""
        from gguf import GGUFWriter

        self._path = path
        self._waiting = path.with_name("shard-00001.part")
        self._waiting.unlink(missing_ok=True)
        logging.getLogger("gguf").setLevel(logging.ERROR)  # it tells of every field
        self._writer = GGUFWriter(None, architecture)
        self._spans: list[int] = []  # bytes of each tensor, in order

    def set(self, key: str, value: Value) -> None:
        """Set one field; numbers are uint32 and float32, as llama.cpp reads them."""
        if isinstance(value, bool):
            self._writer.add_bool(key, value)
        elif isinstance(value, int):
            self._writer.add_uint32(key, value)
        elif isinstance(value, float):
            self._writer.add_float32(key, value)
        elif isinstance(value, str):
            self._writer.add_string(key, value)
        else:
            self._writer.add_array(key, value)

    def add_special_tokens(self, folder: Path, size: int, *, merges: bool) -> None:
        """Set merges, ids of special tokens, which of them begin a text, and the chat template.

        Args:
            folder: holds tokenizer.json, tokenizer_config.json and config.json of the model.
            size: rows of the embedding.
            merges: whether the tokenizer joins pairs by a list of them.

        Raises:
            ModelError: one of the files is not what the `gguf` package takes it for.
        """
        from gguf import SpecialVocab

        try:
            found = SpecialVocab(folder, load_merges=merges, n_vocab=size)
            found.add_to_gguf(self._writer, quiet=True)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, OSError) as error:
            raise ModelError(
                f"{folder}: its tokenizer cannot be put into a GGUF file ({error}). Export to "
                "another format, or fetch the tokenizer again."
            ) from error

    def add(self, name: str, kind: str, tensor: torch.Tensor) -> None:
        """Queue one tensor: floats in the kind F32, F16 or BF16, or the bytes [O, n] of blocks.

        Raises:
            StorageError: the disk refused.
        """
        import numpy as np
        import torch
        from gguf import GGMLQuantizationType

        raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        blocks = tensor.dtype == torch.uint8
        self._writer.add_tensor_info(
            name, tuple(tensor.shape), np.dtype(np.uint8 if blocks else np.float32), raw.nbytes,
            raw_dtype=GGMLQuantizationType[kind],
        )  # fmt: skip
        self._spans.append(raw.nbytes)
        try:
            with self._waiting.open("ab") as file:
                raw.tofile(file)
        except OSError as error:
            raise self._refused(error) from error

    def close(self) -> None:
        """Write the file: fields, names, then the bytes that wait.

        Raises:
            StorageError: the disk refused.
        """
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        try:
            self._writer.write_header_to_file(temporary)
            self._writer.write_kv_data_to_file()
            self._writer.write_ti_data_to_file()
            self._append_waiting()
            self._writer.close()
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(self._path)
            self._waiting.unlink(missing_ok=True)
            sync_folder(self._path.parent)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise self._refused(error) from error

    def _append_waiting(self) -> None:
        import numpy as np

        start = 0
        for nbytes in self._spans:
            self._writer.write_tensor_data(
                np.fromfile(self._waiting, np.uint8, nbytes, offset=start)
            )
            start += nbytes

    def _refused(self, error: OSError) -> StorageError:
        return StorageError(
            f"{self._path}: cannot be written ({error.strerror}). Free some space or choose "
            "another --out."
        )
