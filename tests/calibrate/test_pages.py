"""Rows of documents: what is given comes first, what is drawn until it ends, then the next."""

import torch

from compress.calibrate.pages import ANSWER, GIVEN, REASON, Page, Part, Row, plain

END = 9
REASONED = (
    Part(GIVEN, (1, 2)), Part(REASON, most=3), Part(GIVEN, (7, 8)), Part(ANSWER, most=2)
)  # fmt: skip


def written(script, drawn, end=END):
    row = Row(lambda: script, end)
    for token in drawn:
        row.append(token)
    return row


def test_a_document_is_its_opener_then_what_is_drawn_until_its_end():
    row = written(plain([1, 2]), [0, 5, 6, END, 4, 3, 5])
    assert row.tokens == [1, 2, 5, 6, END, 1, 2, 5]
    assert row.kinds == [GIVEN] * 2 + [ANSWER] * 3 + [GIVEN] * 2 + [ANSWER]
    assert [tokens for tokens, _ in row.documents()] == [[1, 2, 5, 6, END], [1, 2, 5]]


def test_reasons_of_all_their_tokens_are_followed_by_the_cue_and_the_answer():
    row = written(REASONED, [0, 3, 4, 5, 0, 0, 6, 6, 0, 0, 0])
    assert row.tokens == [1, 2, 3, 4, 5, 7, 8, 6, 6, END, 1, 2]
    expected = [GIVEN] * 2 + [REASON] * 3 + [GIVEN] * 2 + [ANSWER] * 3 + [GIVEN] * 2
    assert row.kinds == expected


def test_reasons_that_end_early_are_cued_where_their_end_was():
    row = written(REASONED, [0, 3, END, 0, END, 0])
    assert row.tokens == [1, 2, 3, 7, 8, END, 1]
    assert [tokens for tokens, _ in row.documents()] == [[1, 2, 3, 7, 8, END], [1]]


def test_without_a_token_that_ends_an_answer_ends_by_its_length():
    row = written(REASONED, [0, 3, 4, 5, 0, 0, 6, 6, 0, 0], end=None)
    assert row.tokens == [1, 2, 3, 4, 5, 7, 8, 6, 6, 1, 2]


def test_rows_begin_with_scripts_that_are_drawn():
    generator = torch.Generator().manual_seed(0)
    page = Page([plain([1]), plain([2])], END, 40, generator)
    assert set(page.last().tolist()) == {1, 2}
    page.append(torch.full((40,), 5))
    assert page.last().tolist() == [5] * 40


def test_an_opener_that_ends_in_the_end_is_gone_on_from():
    row = written(plain([END]), [5, 6, END, 4, 3])
    assert row.tokens == [END, 5, 6, END, END, 3]
