"""manifest.json: the sha256 of every file and every tensor, and the facts that decided them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress import storage
from compress.artifact import gguf_file
from compress.artifact.formats import gguf
from compress.errors import ArtifactError, ModelError
from compress.storage import Checkpoint, write_text

if TYPE_CHECKING:
    from torch import Tensor

NAME = "manifest.json"
SCHEMA_VERSION = 1
MAX_BYTES = 64 * 1024**2  # a tensor takes some 150
# times, memory and looks may differ between two runs that made the same model
LEFT_OUT = frozenset(
    (NAME, "measured.json", "report.html", "report.md", "verification.json", "model.sig")
)
_SHA256 = re.compile("[0-9a-f]{64}")


def write_manifest(
    folder: Path, facts: Mapping[str, Any], reference: Mapping[str, Any] | None = None
) -> None:
    """Write ``manifest.json`` for the files that lie in `folder` now.

    Args:
        folder: an artifact. Hidden files and subfolders are no part of one.
        facts: as `provenance.facts` gives them: plain values, kept as they are.
        reference: the student as it was before it was written, by `verify.reference.record`.

    Raises:
        ModelError: the weights cannot be read.
        StorageError: the disk refused.
    """
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "facts": dict(facts),
        "files": file_hashes(folder),
        "tensors": tensor_hashes(folder),
        **({} if reference is None else {"reference": dict(reference)}),
    }
    write_text(folder / NAME, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


def check_manifest(folder: Path) -> list[str]:
    """Compare `folder` with its manifest: one line a problem, none when all is as written.

    Raises:
        ArtifactError: there is no manifest, or it cannot be read.
    """
    manifest = read_manifest(folder)
    files = _differences("file", manifest["files"], file_hashes(folder))
    try:
        return files + _differences("tensor", manifest["tensors"], tensor_hashes(folder))
    except ModelError as error:
        return [*files, str(error)]


def refuse_changed(folder: Path) -> None:
    """Refuse an artifact that is not what its manifest says; one without a manifest passes.

    Files that it does not name are let be: whoever serves may put something beside an artifact.

    Raises:
        ArtifactError: names every file that is missing or changed.
    """
    if not (folder / NAME).is_file():
        return
    promised = read_manifest(folder)["files"]
    found = {name: _file_hash(folder / name) for name in promised if (folder / name).is_file()}
    wrong = _differences("file", promised, found)
    if wrong:
        raise ArtifactError(
            f"{folder}: not what its manifest says ({'; '.join(wrong)}). Fetch the artifact again; "
            "`compress verify` says more."
        )


def file_hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file of an artifact by name, in order of names."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    return {path.name: _file_hash(path) for path in files if path.name not in LEFT_OUT}


def tensor_hashes(folder: Path) -> dict[str, str]:
    """sha256 of the bytes of every stored tensor by name, read from disk one at a time."""
    if (folder / gguf.FILE).is_file():
        return {name: _sha256(raw) for name, raw in gguf_file.hashed_bytes(folder)}
    checkpoint = Checkpoint(folder)
    return {name: _tensor_hash(checkpoint, name) for name in sorted(checkpoint.tensors)}


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tensor_hash(checkpoint: Checkpoint, name: str) -> str:
    import torch

    return _sha256(checkpoint.read(name).reshape(-1).view(torch.uint8))


def _sha256(raw: Tensor) -> str:
    return hashlib.sha256(raw.numpy().data).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of `folder`: its ``facts``, and a sha256 for each of ``files`` and ``tensors``.

    Raises:
        ArtifactError: there is none, or it is not what this version writes.
    """
    path = folder / NAME
    try:
        manifest = storage.read_json(path, MAX_BYTES)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise ArtifactError(f"{path}: not a manifest ({error}). Write it again.") from error
    known = isinstance(manifest, dict) and manifest.get("schema_version") == SCHEMA_VERSION
    if not known or not all(_are_hashes(manifest.get(key)) for key in ("files", "tensors")):
        raise ArtifactError(
            f"{path}: not a manifest of version {SCHEMA_VERSION}: it must give a sha256 for each "
            "of its files and tensors. Write it again."
        )
    return {"facts": {}, **manifest}


def _are_hashes(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(text, str) and _SHA256.fullmatch(text) for text in value.values()
    )


def _differences(kind: str, promised: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    lost = [f"{kind} {name}: missing" for name in promised if name not in found]
    changed = [f"{kind} {n}: changed" for n, h in promised.items() if n in found and found[n] != h]
    added = [f"{kind} {name}: not in the manifest" for name in found if name not in promised]
    return lost + changed + added
