"""Whether two models read the same tokens."""

from __future__ import annotations

from compress.errors import ModelError
from compress.teacher.folder import Teacher


def check(origin: Teacher, teacher: Teacher, *, rows: int | None = None) -> None:
    """Check that a student reads the same tokens as its teacher.

    Args:
        origin: what the student begins as.
        teacher: its teacher.
        rows: of a vocabulary that must hold all tokens; by default nobody asks.

    Raises:
        ModelError: their tokenizers differ, or tokens have no row.
    """
    from compress.surgery import load

    ours, theirs = (load.tokenizer(one.folder) for one in (origin, teacher))
    if why := load.spelled_otherwise(ours, theirs):
        raise ModelError(
            f"student.model {origin.name}: its tokenizer is not the teacher's: {why}. What both "
            "expect next is compared token by token. Choose a model with the same tokenizer."
        )
    last = max(ours.get_vocab().values(), default=0)
    if rows is not None and last >= rows:
        short = min(origin, teacher, key=lambda one: one.anatomy.vocab_size)
        raise ModelError(
            f"student.model {origin.name}: both read the same tokens, the last of which is "
            f"{last:,}, and the vocabulary of {short.name} has {rows:,} rows: rows that tokens "
            "have are neither cut nor made up. Choose a model with a row for every token."
        )
