"""The checks of an artifact, each a generator of what is wrong: nothing yielded, nothing found."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.errors import ArtifactError, ModelError
from compress.verify import caching, rounding, sparse
from compress.verify import reference as references
from compress.verify.bits import spare_bits
from compress.verify.layout import told_scheme
from compress.verify.reader import Reading, layout_of, read_json

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1  # of the manifest
# files that two runs of one recipe may leave otherwise, so that the manifest does not hold them
LEFT_OUT = frozenset(
    (MANIFEST, "measured.json", "report.html", "report.md", "verification.json", "model.sig")
)
SMALLEST, LARGEST = 2.0**-17, 65280.0  # scales: within, bfloat16 and float16 hold 8 bits exactly
Problems = Iterator[str]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder.

    Raises:
        ArtifactError: it is missing, malformed, or of another version.
    """
    manifest = read_json(folder / MANIFEST)
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise ArtifactError(
            f"{MANIFEST}: schema_version {manifest.get('schema_version')!r}; {SCHEMA_VERSION} is "
            "verified."
        )
    if not all(isinstance(manifest.get(table), dict) for table in ("files", "tensors")):
        raise ArtifactError(f"{MANIFEST}: files and tensors are not tables of hashes.")
    return manifest


def files(folder: Path, manifest: Mapping[str, Any]) -> Problems:
    """sha256 of every file against the manifest; links must not lead out of the folder."""
    there = sorted(path for path in folder.iterdir() if _belongs(path))
    if strays := [path.name for path in there if path.is_symlink() and not _stays(path)]:
        yield from (f"{name}: a link out of the folder" for name in strays)
        return
    found = {}
    for path in there:
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    yield from _unequal(manifest["files"], found)


def tensors(reading: Reading, manifest: Mapping[str, Any]) -> Problems:
    """sha256 of the bytes of every stored tensor against the manifest."""
    found = {
        name: hashlib.sha256(entry.raw().data).hexdigest()
        for name, entry in reading.entries.items()
    }
    yield from _unequal(manifest["tensors"], found)


def numbers(reading: Reading) -> Problems:
    """Scales that every reader takes alike, codes that end where they should, all of it finite."""
    for name in reading.matrices:
        matrix = reading.matrices[name]
        yield from rounding.problems(reading.entries, name, matrix)
        if matrix.kind in ("int", "fp8"):
            yield from _scales(f"{name} scales", reading.scales(name))
        if layout := layout_of(reading.format, matrix):
            yield from layout.problems(reading.entries, name, matrix)
        else:
            yield from _spare(reading, name)
    for name in reading.masked:
        yield from sparse.problems(reading.entries, name, None)
    if reading.cached:
        yield from caching.problems(reading.entries, reading.anatomy)
    quantized = {entry for m in reading.matrices.values() for entry in (m.codes, m.scales, m.zeros)}
    for name, entry in reading.entries.items():
        plain = name not in quantized and entry.dtype in ("F32", "F16", "BF16")
        if plain and not np.isfinite(entry.floats()).all():
            yield f"{name}: holds NaN or infinity"


def fused(reading: Reading) -> Problems:
    """Linears that serving engines fuse and that do not share one scheme."""
    for block in reading.anatomy.blocks:
        groups: dict[str, dict[str, str]] = {}
        for linear in block.linears:
            if linear.fused:
                role = linear.name.rpartition(".")[2]
                groups.setdefault(linear.fused, {})[role] = told_scheme(reading, linear.name)
        for roles in groups.values():
            if len(set(roles.values())) > 1:
                yield f"{block.prefix}: " + ", ".join(f"{r} {told}" for r, told in roles.items())


def tokenizer(reading: Reading, reference: Mapping[str, Any] | None) -> Problems:
    """Loads, fits the embedding, and reads the reference's text as the teacher's did."""
    from compress.surgery.load import tokenizer as load

    try:
        found = load(reading.folder)
    except ModelError as error:
        yield str(error)
        return
    words, rows = references.vocabulary(found), reading.anatomy.vocab_size
    if reference is None or reference["text"] is None:
        if words > rows:
            yield f"token ids up to {words - 1}, the embedding has {rows} rows"
        return
    if words != reference["vocabulary"]:  # some teachers' own have more words than rows
        yield f"{words} token ids, the teacher's has {reference['vocabulary']}"
    if references.probe(found, rows) != reference["ids"]:
        yield "reads the reference's text as other token ids than the teacher's did"


def _belongs(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and path.name not in LEFT_OUT


def _stays(path: Path) -> bool:
    return path.resolve().parent == path.parent.resolve()


def _unequal(promised: Mapping[str, str], found: Mapping[str, str]) -> Problems:
    yield from (f"{name}: missing" for name in promised if name not in found)
    yield from (f"{name}: not in the manifest" for name in found if name not in promised)
    for name, digest in found.items():
        if promised.get(name, digest) != digest:
            yield f"{name}: other bytes than the manifest's sha256 says"


def _scales(where: str, scales: NDArray[np.float32]) -> Problems:
    """Each is finite, of either sign, in range, and has 8 significant bits."""
    if not np.isfinite(scales).all():
        yield f"{where}: NaN or infinity"
        return
    size = np.abs(scales)
    if outside := int(((size < SMALLEST) | (size > LARGEST)).sum()):
        yield f"{where}: {outside} outside 2^-17 … 65280, where float16 is denormal, zero or none"
    if inexact := int((scales.view(np.uint32) & 0xFFFF).astype(bool).sum()):
        yield f"{where}: {inexact} that bfloat16 does not hold exactly"


def _spare(reading: Reading, name: str) -> Problems:
    matrix = reading.matrices[name]
    if sparse.has_codes(reading.entries, name):
        yield from sparse.problems(reading.entries, name, matrix.bits)
    elif spare_bits(reading.entries[matrix.codes].array(), matrix.bits, matrix.columns):
        yield f"{matrix.codes}: bits are set behind a row's last code"
    if matrix.zeros is not None:
        words = np.ascontiguousarray(reading.entries[matrix.zeros].array().T)
        if spare_bits(words, matrix.bits, matrix.rows):
            yield f"{matrix.zeros}: bits are set behind the last zero"
    told = reading.entries.get(f"{name}.weight_shape")
    if told and told.array().tolist() != [matrix.rows, matrix.columns]:
        yield f"{name}.weight_shape: {told.array().tolist()}, not {[matrix.rows, matrix.columns]}"
