"""The texts of a side-by-side measurement: cut so that everybody sees the same token windows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

PYDOC_TOPICS = "pydoc-topics"


@dataclass(frozen=True)
class Windows:
    """The first windows of a text: a file of exactly those, and what identifies their ids."""

    path: Path
    tokens: int
    fingerprint: str


def resolve(name: str, folder: Path) -> Path:
    """A path of a text: `name` itself, or `pydoc-topics` written out into `folder`.

    `pydoc-topics` is the help text that every CPython carries (`pydoc_data.topics`, 65,000 words of
    technical English): a second kind of text that needs no download. It changes a little between
    versions of Python, so its sha256 stands beside every number that was taken on it.

    Raises:
        FileNotFoundError: no such file.
    """
    if name != PYDOC_TOPICS:
        path = Path(name).resolve()
        if not path.is_file():
            raise FileNotFoundError(
                f"{name}: no such text; give a file, or {PYDOC_TOPICS} for the one built in"
            )
        return path
    from pydoc_data.topics import topics

    path = folder / f"{PYDOC_TOPICS}.txt"
    path.write_text("\n\n".join(topics[key].strip() for key in sorted(topics)) + "\n", "utf-8")
    return path


def cut(teacher: Path, text: Path, out: Path, *, samples: int, seq_len: int) -> Windows:
    """Write the start of a text that makes exactly `samples * seq_len` tokens.

    Both sides then tokenize this one file, so "the first windows" cannot mean two things. Fewer
    characters can end in other tokens than more did, so the cut is checked by tokenizing it again
    and moved until it holds.

    Raises:
        FileNotFoundError: the teacher folder has no tokenizer.json.
        ValueError: the text is too short.
    """
    from tokenizers import Tokenizer

    definition = teacher / "tokenizer.json"
    if not definition.is_file():
        raise FileNotFoundError(f"{definition}: missing; the windows are cut with it")
    tokenizer = Tokenizer.from_file(str(definition))
    content = text.read_text("utf-8")
    wanted = samples * seq_len
    whole = tokenizer.encode(content)
    if len(whole.ids) < wanted:
        raise ValueError(
            f"{text}: {len(whole.ids)} tokens, {samples} windows of {seq_len} need {wanted}; "
            "give a longer text or ask for fewer samples"
        )
    for end in range(whole.offsets[wanted - 1][1], len(content) + 1):
        ids = tokenizer.encode(content[:end]).ids
        if len(ids) >= wanted:
            break
    if ids != whole.ids[:wanted]:
        raise ValueError(f"{text}: cannot be cut after {wanted} tokens; choose other samples")
    out.write_text(content[:end], "utf-8")
    return Windows(out, wanted, fingerprint(ids, samples, seq_len))


def fingerprint(ids: list[int], samples: int, seq_len: int) -> str:
    """sha256 of token ids as little-endian 64-bit integers, then their shape in words."""
    content = b"".join(i.to_bytes(8, "little") for i in ids)
    return hashlib.sha256(content + f"{samples}x{seq_len}".encode()).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Fingerprint of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
