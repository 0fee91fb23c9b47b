"""Documents → token ids → windows: consecutive, full, never padded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compress.errors import CalibrationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokenizing costs some 100 bytes a token, so a text far longer than what is asked for is cut first:
# behind 16 characters for each token wanted, and never before this many.
MIN_CUT_CHARACTERS = 4_000_000
_CUT_CHARACTERS_PER_TOKEN = 16


@dataclass(frozen=True)
class Document:
    """One piece of text; a rendered conversation holds its special tokens already."""

    text: str
    rendered: bool = False


@dataclass(frozen=True)
class Windows:
    """Calibration tokens, ready to be run."""

    ids: Tensor  # [samples, seq_len] int64
    fingerprint: str  # sha256 of the ids and their shape
    source: str  # what the tokens were read from, in words
    revision: str | tuple[str | None, ...] | None = None  # commits of hub data sets
    weights: Tensor | None = None  # [samples, seq_len], how much each token counts; None: alike


def encode(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    *,
    wanted: int | None,
    separator: str | None = None,
) -> Tensor:
    """Token ids of documents, one after another.

    Args:
        documents: read only as far as needed.
        tokenizer: adds its own beginning-of-text token, if it has that habit, once a document.
        wanted: tokens after which to stop; None reads everything.
        separator: text between documents, which are then tokenized as one; by default an
            end-of-text token stands between them.

    Returns:
        [N] int64; fewer than `wanted` when the documents end before.
    """
    if separator is not None:
        documents = [Document(separator.join(document.text for document in documents))]
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    ids: list[int] = []
    for document in documents:
        if ids and ids[-1:] != end:
            ids += end
        ids += _encode_one(document, tokenizer, wanted)
        if wanted is not None and len(ids) >= wanted:
            break
    return torch.tensor(ids, dtype=torch.long)


def _encode_one(
    document: Document, tokenizer: PreTrainedTokenizerBase, wanted: int | None
) -> list[int]:
    text = document.text
    if wanted is not None:
        text = text[: max(MIN_CUT_CHARACTERS, wanted * _CUT_CHARACTERS_PER_TOKEN)]
    encoded = tokenizer(
        text,
        add_special_tokens=not document.rendered,
        return_attention_mask=False,
        verbose=False,  # a text longer than the model's context is what windows are cut from
    )
    return [int(token) for token in encoded["input_ids"]]


def windows(
    ids: Tensor,
    samples: int,
    seq_len: int,
    seed: int = 0,
    *,
    shuffle: bool = False,
    source: str = "",
    revision: str | None = None,
) -> Windows:
    """Cut token ids into windows.

    Args:
        ids: [N] token ids.
        samples: windows wanted.
        seq_len: tokens in each.
        seed: decides which windows are drawn when `shuffle` is set.
        shuffle: draw among all windows of the text; by default the first ones are taken.
        source: what the ids were read from.
        revision: commit of a hub data set.

    Raises:
        CalibrationError: the text is too short.
    """
    if not ids.numel():
        raise CalibrationError(f"{source or 'calibration text'}: holds no text.")
    available = ids.numel() // seq_len
    if available < samples:
        remedy = f"samples: {available}, " if available else ""
        raise CalibrationError(
            f"{source or 'calibration text'}: found {ids.numel():,} tokens, enough for {available} "
            f"windows of {seq_len}; samples: {samples} x seq_len: {seq_len} needs "
            f"{samples * seq_len:,}. Use {remedy}a shorter seq_len or a longer text."
        )
    rows = ids[: available * seq_len].view(available, seq_len)
    if shuffle:
        generator = torch.Generator().manual_seed(seed)
        rows = rows[torch.randperm(available, generator=generator)[:samples]]
    return whole(rows[:samples].clone(), source=source, revision=revision)


def whole(
    ids: Tensor,
    *,
    source: str,
    revision: str | tuple[str | None, ...] | None = None,
) -> Windows:
    """Windows of ids [samples, seq_len] that are windows already."""
    return Windows(ids, fingerprint(ids), source, revision)


def fingerprint(ids: Tensor) -> str:
    """sha256 of token ids as little-endian 64-bit integers, then their shape in words."""
    digest = hashlib.sha256(ids.cpu().contiguous().numpy().astype("<i8").tobytes())
    digest.update("x".join(map(str, ids.shape)).encode())
    return digest.hexdigest()
