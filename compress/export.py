"""An artifact in another format: the same integers laid out for another engine; nothing is solved.

What a format cannot hold is refused before anything is written. What it can only round (an
asymmetric grid in GGUF, everything in `dense`) is measured, weight by weight, and told.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress import __version__
from compress.artifact import manifest, output
from compress.artifact.formats import FORMATS, kv
from compress.artifact.held import Held
from compress.artifact.layout import Artifact, open_artifact
from compress.artifact.write import companions, write
from compress.errors import ArtifactError, VerificationFailed
from compress.kernels.grid import Rounded
from compress.kernels.kv import KVScales
from compress.results import Progress
from compress.storage import write_text
from compress.surgery import load
from compress.surgery.walk import Watch
from compress.verify import reference
from compress.verify.run import verify

RECORD = "export.json"
_PLAIN = ("dense", "compressed-tensors", "packed")  # what also holds pruned weights, not quantized
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Difference:
    """How far the exported weights are from those of the artifact they come from."""

    weights: int  # of quantized and pruned matrices
    changed_weights: int
    largest: float  # of all absolute differences
    mean: float  # over all these weights
    worst: str | None  # the matrix with the largest

    @property
    def exact(self) -> bool:
        """Whether every weight is the same, bit for bit."""
        return self.changed_weights == 0


@dataclass(frozen=True)
class Export:
    """What an export has made."""

    folder: Path
    format: str
    source_format: str
    size_bytes: int
    difference: Difference


def export(
    source: Path,
    *,
    format: str,
    out: Path,
    max_shard_bytes: int = 2 * 1024**3,
    watch: Watch = None,
) -> Export:
    """Write the integers of an artifact in another format, read them back, and verify them.

    Args:
        source: the folder of a finished run, in a format that holds integers.
        format: a key of `FORMATS`.
        out: the folder to make.
        max_shard_bytes: largest safetensors file; a GGUF file is one.
        watch: told of progress.

    Raises:
        ArtifactError: the source is broken or holds no integers, the format cannot hold something
            of it, or `out` is there already.
        ModelError: llama.cpp does not have its tokenizer.
        StorageError: the disk refused.
        VerificationFailed: what was written is not what was meant.
    """
    artifact = open_artifact(source)
    _check(artifact, format)
    output.refuse_unfinished(out)
    with output.in_the_making(out) as folder:
        _tell(watch, 0, "write")
        write(
            folder,
            _parts(artifact),
            anatomy=artifact.anatomy,
            config=artifact.config,
            tokenizer_files=companions(source),
            format=format,
            max_shard_bytes=max_shard_bytes,
            kept={name: weights.kept for name, weights in artifact.pruned.items()},
        )
        _tell(watch, 1, "compare")
        written = open_artifact(folder)
        found = _difference(artifact, written)
        _record(artifact, format, folder, found)
        _tell(watch, 2, "verify")
        checked = verify(folder, consumers=())
        if not checked.passed:
            failed = [f"{one.name}: {one.detail}" for one in checked.failures]
            told = f"{out}: not what was meant; nothing was kept."
            raise VerificationFailed("\n".join([told, *failed]))
        size_bytes = written.size_bytes
        _tell(watch, 3, "verify")
    return Export(out, format, artifact.format, size_bytes, found)


def _tell(watch: Watch, done: int, doing: str) -> None:
    if watch:
        watch(Progress("export", done, 3, "step", doing))


def _check(artifact: Artifact, format: str) -> None:
    if not artifact.matrices and not (artifact.pruned and format in _PLAIN):
        raise ArtifactError(
            f"{artifact.folder}: {artifact.format}, holds weights and no integers. Export from the "
            "artifact that a recipe made, best in artifact.format: packed."
        )
    schemes = {name: matrix.scheme for name, matrix in artifact.matrices.items()}
    if artifact.format == "gguf" and not all(scheme.sym for scheme in schemes.values()):
        raise ArtifactError(
            f"{artifact.folder}: its minima were rounded to float16, so its weights are no longer "
            "those of a grid. Export from the artifact that it was made of."
        )
    refused = FORMATS[format].refusals(artifact.anatomy, schemes)
    if artifact.cached and (reason := kv.refusal(format, artifact.cached)):
        refused.append(reason)
    if refused:
        # the remedies of a recipe are none here
        told = [reason.partition(" Use artifact.format")[0] for reason in refused]
        told = [reason.removeprefix("artifact.format ") for reason in told]
        raise ArtifactError("\n".join([*told, f"{artifact.folder}: nothing was exported."]))


def _parts(artifact: Artifact) -> Iterator[tuple[str, Tensor | Rounded | KVScales]]:
    """What a student hands over, from disk: outside first, then block by block."""
    yield from _group(artifact, artifact.anatomy.outside())
    for block in artifact.anatomy.blocks:
        yield from _group(artifact, artifact.anatomy.inside(block.index))
        if (scales := artifact.kv(block.index)) is not None:
            yield block.attention, scales


def _group(artifact: Artifact, names: tuple[str, ...]) -> Iterator[tuple[str, Tensor | Rounded]]:
    for name in names:
        module = name.removesuffix(".weight")
        rounded = artifact.rounded(module) if name.endswith(".weight") else None
        yield (name, artifact.tensor(name)) if rounded is None else (module, rounded)


def _difference(before: Artifact, after: Artifact) -> Difference:
    """Hold every weight of quantized and pruned matrices, as read back, against the artifact's."""
    count = changed = 0
    total, largest, worst = 0.0, 0.0, None
    for name in (*before.matrices, *before.pruned):
        wanted, found = before.tensor(f"{name}.weight"), after.tensor(f"{name}.weight")
        error = (found.float() - wanted.float()).abs_()
        count += error.numel()
        changed += int(error.count_nonzero())
        total += float(error.sum(dtype=torch.float64))
        if (most := float(error.amax())) > largest:
            largest, worst = most, name
    return Difference(count, changed, largest, total / count, worst)


def _record(artifact: Artifact, format: str, folder: Path, found: Difference) -> None:
    """Write export.json, and the manifest with a reference of what the format means."""
    path = artifact.folder / manifest.NAME
    source = manifest.read_manifest(artifact.folder) if path.is_file() else {}
    told = {
        "schema_version": SCHEMA_VERSION,
        "format": format,
        "source": {
            "format": artifact.format,
            "manifest_sha256": _sha256(path) if source else None,
        },
        "compress": __version__,
        "exact": found.exact,
        "difference": dataclasses.asdict(found),
    }
    write_text(folder / RECORD, json.dumps(told, indent=2) + "\n")
    known = source.get("reference") if found.exact else None
    if known is None:
        known = reference.record(Held(artifact, format), _tokenizer(artifact, source))
    facts = {key: value for key, value in source.get("facts", {}).items() if key != "evaluation"}
    manifest.write_manifest(folder, {**facts, "export": told}, known)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tokenizer(artifact: Artifact, source: dict[str, Any]) -> Any | None:
    told = (source.get("reference") or {"text": ""}).get("text")
    there = (artifact.folder / "tokenizer.json").is_file()
    return load.tokenizer(artifact.folder) if there and told is not None else None
