"""What ends an answer, whatever was proposed behind its end."""

from __future__ import annotations

import pytest

from compress.runtime.answer import Answer
from compress.runtime.request import Piece, Request
from compress.runtime.sampling import Chooser
from compress.runtime.scheduler import Job
from compress.runtime.stream import TextStream


def letters(ids):
    return "".join(map(chr, ids))


def answer(limit):
    request = Request((1,), stop=("b",))
    text = TextStream(letters, [1], request.stop)
    return Answer(request, Job(1, [1], limit), text, Chooser(request), 0.0)


@pytest.mark.parametrize(("limit", "tokens", "reason"), [(9, "ab", "stop"), (3, "ac", "length")])
def test_an_error_behind_the_end_of_an_answer_is_none_of_its(limit, tokens, reason):
    chosen = Piece("", tuple(map(ord, tokens)), finish_reason="error", error="of the next one")
    piece = answer(limit).take(chosen, frozenset())
    assert (piece.finish_reason, piece.error) == (reason, None)


def test_an_error_before_the_end_of_an_answer_is_told():
    chosen = Piece("", (ord("a"),), finish_reason="error", error="of the next one")
    piece = answer(9).take(chosen, frozenset())
    assert (piece.text, piece.finish_reason, piece.error) == ("a", "error", "of the next one")
