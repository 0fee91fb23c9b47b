"""One GGUF file as the weights of an artifact: under transformers' names, rows in their order.

Written as a `ShardWriter` is, read as a `Checkpoint` is. Matrices of blocks go by ``M.Q4_0`` and
the like, see `formats.gguf`; vectors are float32 in the file, as llama.cpp computes with them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress import storage
from compress.anatomy import Anatomy
from compress.artifact import gguf_header, gguf_names
from compress.artifact.formats import gguf
from compress.artifact.formats.gguf import BLOCK_BYTES, FAMILIES, FILE
from compress.errors import ArtifactError, ModelError, shown
from compress.storage import Checkpoint, GgufTensor, TensorInfo

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_FLOATS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_DERIVED = "rope_freqs.weight"  # of llama3's rotation, made from config.json


class GgufShard:
    """Write the tensors of a model into one GGUF file, one at a time."""

    def __init__(
        self,
        folder: Path,
        anatomy: Anatomy,
        config: Mapping[str, Any],
        tokenizer_files: Sequence[Path],
    ) -> None:
        """Write into `folder`.

        Raises:
            ArtifactError: llama.cpp computes something of the model otherwise, or it has no
                tokenizer.json.
            ModelError: llama.cpp has no such tokenizer.
        """
        if found := gguf.refusals(anatomy, {}):
            raise ArtifactError(found[0])
        homes = [path.parent for path in tokenizer_files if path.name == "tokenizer.json"]
        if not homes:
            raise ArtifactError(
                "artifact.format gguf: the model has no tokenizer.json, and a GGUF file holds its "
                "tokenizer. Use artifact.format: packed."
            )
        self._anatomy, self._config = anatomy, config
        self._architecture = FAMILIES[anatomy.model_type]
        self._writer = gguf_header.start(folder / FILE, anatomy, config, homes[0])
        self._kinds: Counter[str] = Counter()
        if (divisors := gguf_header.frequencies(config, anatomy)) is not None:
            self._writer.add(_DERIVED, "F32", divisors)

    def add(self, name: str, tensor: Tensor) -> None:
        """Queue one tensor by the name its format gives it.

        Raises:
            ArtifactError: the file has no name for it, or no type.
            StorageError: the disk refused.
        """
        module, _, ending = name.rpartition(".")
        called = gguf_names.there(module)
        if called is None:
            raise ArtifactError(
                f"{name}: a GGUF file of {self._architecture} has no such tensor. Use "
                "artifact.format: packed."
            )
        kind = ending if ending in BLOCK_BYTES else _FLOATS.get(str(tensor.dtype).split(".")[1])
        if kind is None or (ending in ("weight", "bias") and tensor.dim() == 1):
            kind, tensor = "F32", tensor.float()
        heads = gguf_names.heads(module, self._config, self._architecture)
        rows = tensor if heads is None else gguf_names.interleaved(tensor, heads)
        weight = "bias" if ending == "bias" else "weight"
        self._writer.add(f"{called}.{weight}", kind, rows)
        self._kinds[kind] += tensor.numel()

    def close(self) -> None:
        """Write the header, then the file.

        Raises:
            StorageError: the disk refused.
        """
        most = self._kinds.most_common(1)[0][0]
        told = gguf_header.fields(self._architecture, self._config, self._anatomy, most)
        for key, value in told.items():
            self._writer.set(key, value)
        self._writer.close()


class GgufCheckpoint(Checkpoint):
    """The tensors of a GGUF file, read when asked for as those of shards are."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Read the header of the file in `folder`; `config` is its config.json.

        Raises:
            ModelError: it is not whole, or beyond the bounds of `storage.read_gguf`.
            ArtifactError: another architecture than config.json's, or tensors not known here.
        """
        storage.check_links(folder)
        self.folder, self._config = folder, config
        self._file = folder / FILE
        header = storage.read_gguf(self._file)
        self._architecture = str(header.fields.get("general.architecture"))
        if self._architecture != FAMILIES.get(str(config.get("model_type"))):
            raise ArtifactError(
                f"{self._file}: architecture {shown(self._architecture)}, config.json says "
                f"{shown(config.get('model_type'))}. Written are {', '.join(FAMILIES)}."
            )
        self._stored: dict[str, GgufTensor] = {}
        self.tensors: dict[str, TensorInfo] = {}
        for called, tensor in header.tensors.items():
            if called != _DERIVED:
                name, info = self._described(called, tensor)
                self._stored[name], self.tensors[name] = tensor, info

    def _described(self, called: str, tensor: GgufTensor) -> tuple[str, TensorInfo]:
        module, _, ending = called.rpartition(".")
        name = gguf_names.here(module)
        blocks, rank = tensor.kind in BLOCK_BYTES, len(tensor.shape)
        known = tensor.kind in _FLOATS.values() or (blocks and ending == "weight" and rank == 2)
        if name is None or ending not in ("weight", "bias") or not known or rank > 2:
            raise ArtifactError(
                f"{self._file}: {shown(called)}, {tensor.kind} {list(tensor.shape)}: no tensor "
                "that is written here. Write the artifact again."
            )
        heads = gguf_names.heads(name, self._config, self._architecture)
        if heads is not None and (heads < 1 or tensor.shape[0] % (2 * heads)):
            raise ArtifactError(
                f"{self._file}: {called} has {tensor.shape[0]} rows, no two for each of {heads} "
                "heads. Write the artifact again."
            )
        if not blocks:
            info = TensorInfo(self._file, tensor.kind, tensor.shape, tensor.nbytes)
            return f"{name}.{ending}", info
        shape = (tensor.shape[0], tensor.nbytes // max(1, tensor.shape[0]))
        return f"{name}.{tensor.kind}", TensorInfo(self._file, "U8", shape, tensor.nbytes)

    def read_many(self, names: list[str] | tuple[str, ...]) -> dict[str, Tensor]:
        """Read several tensors.

        Raises:
            ModelError: there is none of such a name, or the file cannot be read.
        """
        return {name: self._read(name) for name in names}

    def _read(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise ModelError(f"{self.folder}: tensor {name} is missing.")
        info = self.tensors[name]
        raw = storage.read_gguf_bytes(self._file, self._stored[name])
        rows = raw.view(_dtype(info.dtype)).view(info.shape)
        heads = gguf_names.heads(name.rpartition(".")[0], self._config, self._architecture)
        return rows if heads is None else gguf_names.straightened(rows, heads)


def hashed_bytes(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and bytes of every tensor of a GGUF file, as they lie there, in order of their names.

    Names are those that a `GgufCheckpoint` gives them.

    Raises:
        ModelError: the file cannot be read.
    """
    file, found = folder / FILE, {}
    for called, tensor in storage.read_gguf(file).tensors.items():
        if (name := _named(called, tensor)) is not None:
            found[name] = tensor
    for name, tensor in sorted(found.items()):
        yield name, storage.read_gguf_bytes(file, tensor)


def _named(called: str, tensor: GgufTensor) -> str | None:
    """The name of a tensor here; None where it is none of a model."""
    module, _, ending = called.rpartition(".")
    name = gguf_names.here(module)
    if name is None or ending not in ("weight", "bias"):
        return None
    return f"{name}.{tensor.kind if tensor.kind in BLOCK_BYTES else ending}"


def _dtype(spelled: str) -> torch.dtype:
    import torch

    kinds = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "U8": torch.uint8}
    return kinds[spelled]
