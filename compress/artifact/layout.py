"""Open an artifact, of any format that is written here, by memory map and without transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress import anatomy as anatomies
from compress import storage
from compress.anatomy import Anatomy
from compress.artifact.formats import FORMATS, METHODS, kv, sparse
from compress.artifact.formats.matrix import Matrix, check_stored
from compress.artifact.formats.sparse import Sparse
from compress.artifact.gguf_file import GgufCheckpoint
from compress.artifact.whole import flaws
from compress.errors import ArtifactError, ModelError, shown
from compress.families import FAMILIES
from compress.storage import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    from compress.kernels.activations import Rounds
    from compress.kernels.grid import Rounded
    from compress.kernels.kv import KVScales

MODEL_SUFFIXES = (".json", ".txt", ".model", ".jinja")  # beside the weights
RECORDS = frozenset(
    ("results.json", "measured.json", "verification.json", "manifest.json", "export.json")
)
PARTS = ("block linears", "head", "embedding", "norms and biases", "other files")


@dataclass(frozen=True)
class Artifact:
    """A model folder as found on disk. Tensors are read when asked for, quantized ones dequantized.

    `config` is config.json without its `quantization_config`; `matrices` are the quantized matrices
    by module name (a tied quantized head goes by the embedding's name). `cached` says how keys and
    values are rounded when they are cached, `pruned` are the weights stored with a mask.
    """

    folder: Path
    format: str
    config: dict[str, Any]
    anatomy: Anatomy
    matrices: Mapping[str, Matrix]
    checkpoint: Checkpoint
    cached: kv.KVScheme | None = None
    pruned: Mapping[str, Sparse] = field(default_factory=dict)

    def names(self) -> tuple[str, ...]:
        """Full names of the tensors this model stands for, as a dense folder would store them."""
        return tuple(self.anatomy.tensors)

    def rounded(self, name: str) -> Rounded | None:
        """The codes, scales and zeros of the module `name`; None when it is dense."""
        if name not in self.matrices:
            return None
        matrix, form = self.matrices[name], FORMATS[self.format]
        tensors = self._read(tuple(form.stored(name, matrix)))
        return form.decode(name, matrix, tensors)

    def tensor(self, name: str) -> Tensor:
        """One dense tensor by full name, lying as its family stores it; float32 if dequantized."""
        return self._dense((name,))[name]

    def block(self, index: int) -> dict[str, Tensor]:
        """The dense tensors of one decoder block by full name."""
        return self._dense(self.anatomy.inside(index))

    def outside(self) -> dict[str, Tensor]:
        """The dense tensors that belong to no block, by full name."""
        return self._dense(self.anatomy.outside())

    def inputs(self, index: int) -> dict[str, Rounds]:
        """How linears of one block round their inputs, by name; none where none does."""
        from compress.kernels.int8 import product

        names = [linear.name for linear in self.anatomy.blocks[index].linears]
        known = {name: self.matrices[name] for name in names if name in self.matrices}
        found = [(n, self.rounded(n)) for n, matrix in known.items() if matrix.scheme.inputs]
        rounding = {name: product(rounded) for name, rounded in found if rounded is not None}
        return {name: rounds for name, rounds in rounding.items() if rounds is not None}

    def kv(self, index: int) -> KVScales | None:
        """How one block rounds the keys and values that it caches; None: it does not."""
        if self.cached is None:
            return None
        attention = self.anatomy.blocks[index].attention
        scales = kv.stored(self.format, self.anatomy, self.config, self.cached)
        names = tuple(name for name in scales if name.startswith(attention + "."))
        return kv.decode(attention, self.cached, self._read(names))

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values that a token takes in a cache, over all blocks."""
        return kv.bytes_per_token(self.anatomy, self.config, self.cached)

    def _dense(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        changed = self.matrices.keys() | self.pruned.keys()
        plain = self._read(tuple(n for n in names if n.removesuffix(".weight") not in changed))
        return {name: plain[name] if name in plain else self._expanded(name) for name in names}

    def _expanded(self, name: str) -> Tensor:
        """A weight that is stored as codes, or with a mask, lying as its family stores it."""
        module = name.removesuffix(".weight")
        if module in self.pruned:
            found = self.pruned[module]
            weight = sparse.decode(module, found, self._read(tuple(sparse.stored(module, found))))
        elif (rounded := self.rounded(module)) is not None:
            weight = rounded.dequantize()
        else:
            raise ArtifactError(f"{self.folder}: holds no tensor {name}.")
        return weight.T.contiguous() if _transposed(self.config, module) else weight

    def _read(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        try:
            return self.checkpoint.read_many(names)
        except ModelError as error:
            raise ArtifactError(str(error)) from error

    @property
    def size_bytes(self) -> int:
        """Bytes of all files that a loader needs: weights, config, tokenizer.

        Records of the run (results, report, manifest) are not the model and do not count.
        """
        return sum(path.stat().st_size for path in self._files())

    def _files(self) -> set[Path]:
        beside = (p for p in self.folder.iterdir() if p.suffix in MODEL_SUFFIXES)
        named = {p for p in beside if p.name not in RECORDS and not p.name.startswith(".")}
        return named | {info.file for info in self.checkpoint.tensors.values()}

    def parts_sizes(self) -> dict[str, int]:
        """Stored bytes by part, as `results.SizePart` names them; they add up to `size_bytes`."""
        sizes = dict.fromkeys(PARTS, 0)
        for name, info in self.checkpoint.tensors.items():
            sizes[part_of(self.anatomy, name)] += info.nbytes
        sizes["other files"] = self.size_bytes - sum(sizes.values())
        return sizes

    def parts_weights(self) -> dict[str, int]:
        """Weights by part."""
        counts = dict.fromkeys(PARTS, 0)
        for name, shape in self.anatomy.tensors.items():
            counts[part_of(self.anatomy, name)] += math.prod(shape)
        return counts

    @property
    def bits_per_weight(self) -> float:
        """All stored bytes of the block linears (codes, scales, zeros) × 8 / their weights."""
        return self.parts_sizes()["block linears"] * 8 / self.anatomy.weights


def part_of(anatomy: Anatomy, name: str) -> str:
    """The part of a model, as `results.SizePart` names it, that a stored tensor belongs to."""
    module, _, ending = name.rpartition(".")
    if ending == "bias":
        return "norms and biases"
    if module == anatomy.head.name:
        return "head"
    if module in anatomy.linear_names:
        return "block linears"
    matrix = len(anatomy.tensors.get(f"{module}.weight", ())) == 2  # positions, too
    return "embedding" if matrix else "norms and biases"


def open_artifact(folder: Path) -> Artifact:
    """Open a packed, compressed-tensors or dense folder; only headers are read.

    Raises:
        ArtifactError: no model folder, a format or version that is not read here, or tensors that
            are missing, extra, mis-shaped or truncated; the message names them.
    """
    config = _config(folder)
    quantization = config.pop("quantization_config", None)
    format = _format(folder, quantization)
    try:
        gguf = format == "gguf"
        checkpoint = GgufCheckpoint(folder, config) if gguf else Checkpoint(folder)
        matrices = FORMATS[format].matrices(checkpoint, quantization or {})
        pruned = sparse.find(checkpoint) if format == "packed" else {}
        shapes = _dense_shapes(config, checkpoint, format, matrices, pruned)
        anatomy = anatomies.read(config, shapes)
        cached = kv.read(format, quantization or {})
        kv.check(format, anatomy, config, cached, checkpoint.tensors)
    except ModelError as error:
        raise ArtifactError(str(error)) from error
    if found := list(flaws(anatomy, config)):
        raise ArtifactError(
            "\n".join(f"{folder}: {flaw}. Write or fetch it again." for flaw in found)
        )
    return Artifact(folder, format, config, anatomy, matrices, checkpoint, cached, pruned)


def _config(folder: Path) -> dict[str, Any]:
    at_hand = folder if folder.name else folder.absolute()  # "" and . are the working directory
    path = at_hand / "config.json"
    try:
        config = storage.read_json(path)
    except OSError as error:
        raise ArtifactError(
            f"{path}: cannot be read ({error.strerror}). Give the folder of a finished artifact or "
            "of a Hugging Face model."
        ) from error
    except ValueError as error:
        raise ArtifactError(f"{path}: not JSON ({error}). Write or fetch it again.") from error
    if not isinstance(config, dict):
        raise ArtifactError(f"{path}: not a JSON object. Write or fetch it again.")
    return config


def _format(folder: Path, quantization: Any) -> str:
    if quantization is None:
        return "dense"
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    if not isinstance(method, str) or method not in METHODS:
        raise ArtifactError(
            f"{folder / 'config.json'}: quant_method {shown(repr(method))} is not read here. "
            f"Read are {', '.join(METHODS)}, and dense folders."
        )
    return METHODS[method]


def _dense_shapes(
    config: Mapping[str, Any],
    checkpoint: Checkpoint,
    format: str,
    matrices: Mapping[str, Matrix],
    pruned: Mapping[str, Sparse],
) -> dict[str, tuple[int, ...]]:
    """Shapes of the dense tensors these stored tensors stand for; checks those of every matrix."""
    form = FORMATS[format]
    known = checkpoint.shapes().items()
    shapes = {name: shape for name, shape in known if not name.endswith(kv.SUFFIXES)}
    if twice := sorted(matrices.keys() & pruned.keys()):
        raise ArtifactError(f"{twice[0]}.kept: extra, {twice[0]} is stored quantized already.")
    stored = {name: form.stored(name, matrix) for name, matrix in matrices.items()}
    stored |= {name: sparse.stored(name, found) for name, found in pruned.items()}
    sizes = {name: (matrix.rows, matrix.columns) for name, matrix in matrices.items()}
    sizes |= {name: (found.rows, found.columns) for name, found in pruned.items()}
    for name, size in sizes.items():
        check_stored(stored[name], checkpoint.tensors)
        for stored_name in stored[name]:
            del shapes[stored_name]
        if f"{name}.weight" in shapes:
            raise ArtifactError(f"{name}.weight: extra, {name} is stored otherwise already.")
        shapes[f"{name}.weight"] = size[::-1] if _transposed(config, name) else size
    if extra := sorted(name for name in shapes if _unexplained(name, form.SUFFIXES, matrices)):
        raise ArtifactError(
            f"{', '.join(extra[:3])}: extra: no quantized matrix of config.json has them (are its "
            "codes missing, or was it written by a newer version?). Write the artifact again."
        )
    return shapes


def _unexplained(name: str, suffixes: tuple[str, ...], matrices: Mapping[str, Matrix]) -> bool:
    """Whether a tensor belongs to quantization and yet to no matrix as it is known here."""
    module, _, ending = name.rpartition(".")
    return name.endswith(suffixes) or (module in matrices and ending not in ("weight", "bias"))


def _transposed(config: Mapping[str, Any], module: str) -> bool:
    """Whether a dense folder of this family stores the module's weight as [I, O]."""
    family = FAMILIES.get(str(config.get("model_type")))
    return (
        family is not None and family.transposed and module not in (family.embedding, family.head)
    )
