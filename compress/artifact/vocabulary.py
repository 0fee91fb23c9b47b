"""A tokenizer as llama.cpp has it: tokens, what each is, and the name of how text is cut first.

llama.cpp knows byte-level BPE, whose first cut it has by name, and BPE over characters with bytes
for what is left (SentencePiece), which it joins by scores. Both are read from tokenizer.json.

Source: llama.cpp, src/llama-vocab.cpp (the regular expressions of each name).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress import storage
from compress.errors import ModelError
from compress.storage.text import MAX_TOKENIZER_BYTES

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CUTS = {_LLAMA3: "llama-bpe", _LLAMA3.replace("{1,3}", ""): "qwen2"}
_SPACE = "▁"  # U+2581, SentencePiece's


@dataclass(frozen=True)
class Vocabulary:
    """Every token by its number."""

    model: str  # gpt2 or llama, as llama.cpp calls its two kinds
    pre: str  # the first cut, by llama.cpp's name
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    scores: tuple[float, ...] | None  # llama only: which pair is joined first
    space_prefix: bool  # whether a text begins with a space of its own


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read tokenizer.json of a model folder.

    Raises:
        ModelError: it is missing, broken, or of a kind that llama.cpp does not have.
    """
    path = folder / "tokenizer.json"
    try:
        told = storage.read_json(path, MAX_TOKENIZER_BYTES)
        model, added = told["model"], told.get("added_tokens") or []
        if model.get("type") == "BPE" and model.get("byte_fallback"):
            return _characters(told, model, added)
        if model.get("type") == "BPE":
            return _bytes(told, model, added)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}).") from error
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: not a tokenizer that is read here ({error}).") from error
    raise ModelError(
        f"{path}: its model is {model.get('type')!r}; llama.cpp gets BPE tokenizers here. Export "
        "to another format."
    )


def _bytes(
    told: Mapping[str, Any], model: Mapping[str, Any], added: Sequence[Mapping[str, Any]]
) -> Vocabulary:
    tokens, types = _numbered(model["vocab"], added)
    return Vocabulary("gpt2", _first_cut(told), tokens, types, None, False)


def _first_cut(told: Mapping[str, Any]) -> str:
    """llama.cpp's name of how a tokenizer cuts text before it joins bytes.

    Raises:
        ValueError: it has none of these.
    """
    normalizer, cut = told.get("normalizer"), told.get("pre_tokenizer") or {}
    steps = cut.get("pretokenizers", []) if cut.get("type") == "Sequence" else [cut]
    kinds = [step.get("type") for step in steps]
    plain = kinds[-1:] == ["ByteLevel"] and not steps[-1].get("add_prefix_space", True)
    own_cut = plain and steps[-1].get("use_regex", True)
    if own_cut and normalizer is None and kinds == ["ByteLevel"]:
        return "gpt-2"
    if own_cut and normalizer is None and kinds == ["Digits", "ByteLevel"]:
        if steps[0].get("individual_digits"):
            return "smollm"
    elif plain and not own_cut and kinds == ["Split", "ByteLevel"]:
        name = _CUTS.get((steps[0].get("pattern") or {}).get("Regex", ""))
        composed = normalizer == {"type": "NFC"} and name == "qwen2"
        if name and (normalizer is None or composed) and steps[0].get("behavior") == "Isolated":
            return name
    raise ValueError(
        f"it cuts text by {', '.join(map(str, kinds)) or 'nothing'} as none of llama.cpp's "
        f"gpt-2, smollm, {', '.join(_CUTS.values())} does"
    )


def _characters(
    told: Mapping[str, Any], model: Mapping[str, Any], added: Sequence[Mapping[str, Any]]
) -> Vocabulary:
    """SentencePiece: joined pairs get falling scores in the order of the merges."""
    prefix = _space_prefix(told)
    tokens, types = _numbered(model["vocab"], added)
    joined: dict[str, float] = {}
    for rank, pair in enumerate(model["merges"]):
        parts = pair if isinstance(pair, list) else pair.split(" ")
        joined.setdefault("".join(parts), -float(rank))
    last = -float(len(model["merges"]))
    scores = tuple(joined.get(token, last) for token in tokens)
    unknown = model.get("unk_token")
    kinds = tuple(
        UNKNOWN if token == unknown else BYTE if re.fullmatch("<0x[0-9A-F]{2}>", token) else kind
        for token, kind in zip(tokens, types, strict=True)
    )
    return Vocabulary("llama", "default", tokens, kinds, scores, prefix)


def _space_prefix(told: Mapping[str, Any]) -> bool:
    """Whether SentencePiece's spaces begin a text, by either of two spellings.

    Raises:
        ValueError: spaces are treated otherwise.
    """
    cut: Mapping[str, Any] | None = told.get("pre_tokenizer")
    steps = (told.get("normalizer") or {}).get("normalizers", [])
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    prefix = {"type": "Prepend", "prepend": _SPACE}
    if cut is None and steps in ([replaced], [prefix, replaced]):
        return prefix in steps
    whole = {"type": "Metaspace", "replacement": _SPACE, "split": False}
    if cut and told.get("normalizer") is None and whole.items() <= cut.items():
        return bool(cut["prepend_scheme"] != "never")
    raise ValueError("it treats spaces otherwise than SentencePiece does")


def _numbered(
    vocabulary: Mapping[str, int], added: Sequence[Mapping[str, Any]]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Tokens in order of their numbers, and what each is; numbers that none has are unused."""
    numbers = {number: token for token, number in vocabulary.items()}
    kinds = dict.fromkeys(numbers, NORMAL)
    for one in added:
        numbers[one["id"]] = one["content"]
        kinds[one["id"]] = CONTROL if one.get("special") else USER_DEFINED
    count = max(numbers, default=-1) + 1
    if not all(type(n) is int and n >= 0 for n in numbers) or count > 2 * len(numbers) + 1024:
        raise ValueError("its tokens are not numbered from 0 on")
    return (
        tuple(str(numbers.get(n, f"[PAD{n}]")) for n in range(count)),
        tuple(kinds.get(n, UNUSED) for n in range(count)),
    )
