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
    why = load.spelled_otherwise(ours, theirs)
    last = max(ours.get_vocab().values(), default=0)
    if why is None and rows is not None and last >= rows:
        why = f"its last token is {last:,}, and one of the two vocabularies has {rows:,} rows"
    if why:
        raise ModelError(
            f"student.model {origin.name}: its tokenizer is not the teacher's: {why}. What both "
            "expect next is compared token by token. Choose a model with the same tokenizer."
        )
