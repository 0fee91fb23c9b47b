"""What a student is, written down before it is stored: hashes of its weights, a few of its logits.

`record` is asked of the student that a run has journaled, `disagreements` of what was read back
from disk. Between the two lies everything that packs, writes, reads and unpacks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from compress.anatomy import Anatomy
from compress.errors import ArtifactError
from compress.kernels.activations import Rounds
from compress.kernels.kv import KVScales
from compress.surgery.walk import Watch, Weights, hidden_states, logits

VERSION = 1
TOLERANCE = 1e-3  # of float32 logits
TEXT = "The capital of France is Paris. Naïve: x² + 3 ≠ 1,024;\n\tdef f(x): return [x, 'y'] # ok"
_TOKENS, _POSITIONS, _TOP = 32, 4, 16


class _Hashed:
    """Weights as an artifact of some dtype holds them; hashes each tensor as it is handed out."""

    def __init__(self, weights: Weights, dtype: torch.dtype | None) -> None:
        self._weights, self._dtype = weights, dtype
        self.hashes: dict[str, str] = {}

    @property
    def config(self) -> Mapping[str, Any]:
        return self._weights.config

    @property
    def anatomy(self) -> Anatomy:
        return self._weights.anatomy

    def block(self, index: int) -> dict[str, Tensor]:
        return self._seen(self._weights.block(index))

    def outside(self) -> dict[str, Tensor]:
        return self._seen(self._weights.outside())

    def inputs(self, index: int) -> Mapping[str, Rounds]:
        return self._weights.inputs(index)

    def kv(self, index: int) -> KVScales | None:
        scales = self._weights.kv(index)
        if scales is not None and scales.keys is not None and scales.values is not None:
            attention = self.anatomy.blocks[index].attention
            self.hashes[f"{attention}.k_scale"] = weight_hash(scales.keys)
            self.hashes[f"{attention}.v_scale"] = weight_hash(scales.values)
        return scales

    def _seen(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {name: self._stored(tensor) for name, tensor in tensors.items()}
        for name, tensor in found.items():
            if name not in self.hashes:
                self.hashes[name] = weight_hash(tensor)
        return found

    def _stored(self, tensor: Tensor) -> Tensor:
        narrowed = self._dtype is not None and tensor.is_floating_point()
        return tensor.to(self._dtype) if narrowed else tensor


def record(
    weights: Weights, tokenizer: Any | None, *, stored_as: str | None = None, watch: Watch = None
) -> dict[str, Any]:
    """Write a student down, for the `reference` of its manifest.

    Args:
        weights: the student, read block by block.
        tokenizer: transformers' tokenizer of its teacher; None where it has none.
        stored_as: the dtype (bfloat16, float16, float32) of `artifact.format: dense`, which rounds
            the weights once more; None for the other formats, which hold them bit for bit.
        watch: told of each block.

    Returns:
        Plain data: a text and its token ids, the sha256 of every dense tensor in float32
        (little-endian, row by row) by full name, and for the last positions of the text the 16
        largest logits and the log of the sum of the exponentials of all.
    """
    ids = probe(tokenizer, weights.anatomy.vocab_size)
    hashes, found = observe(weights, ids, stored_as=stored_as, watch=watch)
    return {
        "version": VERSION,
        "text": None if tokenizer is None else TEXT,
        "vocabulary": None if tokenizer is None else vocabulary(tokenizer),
        "ids": ids,
        "weights": dict(sorted(hashes.items())),
        "logits": [_told(row) for row in found],
    }


def probe(tokenizer: Any | None, rows: int) -> list[int]:
    """Token ids of the text, or some by rule where there is no tokenizer."""
    found = [] if tokenizer is None else tokenizer(TEXT)["input_ids"][:_TOKENS]
    return [one for one in found if one < rows] or [
        (7919 * position + 11) % rows for position in range(_TOKENS)
    ]


def vocabulary(tokenizer: Any) -> int:
    """One more than the largest token id."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def observe(
    weights: Weights, ids: list[int], *, stored_as: str | None = None, watch: Watch = None
) -> tuple[dict[str, str], Tensor]:
    """Hashes of all weights by full name, and logits [P, V] float32 after the last P ids."""
    hashed = _Hashed(weights, getattr(torch, stored_as) if stored_as else None)
    batch = torch.tensor([ids])
    hidden = hidden_states(hashed, batch, device="cpu", dtype=torch.float32, watch=watch)
    return hashed.hashes, logits(hashed, hidden[0, -_POSITIONS:])


def weight_hash(tensor: Tensor) -> str:
    """sha256 of a tensor's values as float32, little-endian, row by row."""
    values = tensor.detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4", copy=False)
    return hashlib.sha256(values.data).hexdigest()


def disagreements(
    reference: Mapping[str, Any], hashes: Mapping[str, str], found: Tensor
) -> tuple[list[str], list[str], float]:
    """Hold what was observed of an artifact against its reference.

    Args:
        reference: as `record` made it.
        hashes: sha256 of each dense tensor read back.
        found: logits [P, V] read back.

    Returns:
        What is wrong with the weights, what is wrong with the logits, and the largest difference
        of a logit.
    """
    promised = reference["weights"]
    lost = [f"{name}: missing" for name in promised if name not in hashes]
    added = [f"{name}: not in the reference" for name in hashes if name not in promised]
    changed = [
        f"{name}: other weights than the student had"
        for name, digest in hashes.items()
        if promised.get(name, digest) != digest
    ]
    errors = list(_logit_errors(reference["logits"], found))
    worst = max(errors, default=0.0)
    far = [
        f"position {position} of {len(errors)}: off by {error:.2g}, allowed are {TOLERANCE:g}"
        for position, error in enumerate(errors, 1)
        if not error <= TOLERANCE  # a NaN is far, too
    ]
    return lost + added + changed, far, worst


def check_reference(reference: Any) -> None:
    """Check that a manifest's reference is one that is read here.

    Raises:
        ArtifactError: it is of another version, or not whole.
    """
    fields = {"version", "text", "vocabulary", "ids", "weights", "logits"}
    if not isinstance(reference, dict) or reference.get("version") != VERSION:
        raise ArtifactError(f"manifest.json: its reference is not of version {VERSION}.")
    if set(reference) != fields:
        raise ArtifactError(f"manifest.json: its reference must have {', '.join(sorted(fields))}.")


def _told(row: Tensor) -> dict[str, Any]:
    values, ids = row.topk(min(_TOP, len(row)))
    return {
        "ids": ids.tolist(),
        "values": values.tolist(),
        "logsumexp": float(row.logsumexp(-1)),
    }


def _logit_errors(promised: list[dict[str, Any]], found: Tensor) -> Iterator[float]:
    """The largest difference at each position."""
    for told, row in zip(promised, found, strict=True):
        values = torch.cat([row[torch.tensor(told["ids"])], row.logsumexp(-1, keepdim=True)])
        wanted = torch.tensor([*told["values"], told["logsumexp"]])
        yield float((values - wanted).abs().max())
