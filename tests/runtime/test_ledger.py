from __future__ import annotations

from compress.runtime.ledger import PAGE_TOKENS, Ledger


def filled(ledger, tokens, salt=""):
    """A request that has read its tokens, step done."""
    ledger.begin()
    table, held = ledger.open(tokens, salt)
    ledger.note(table, tokens, len(tokens))
    ledger.begin()
    return table, held


def test_requests_share_full_pages_and_copy_the_one_where_they_part():
    ledger = Ledger(10)
    first, _ = filled(ledger, list(range(100)))
    ledger.begin()
    second, held = ledger.open([*range(70), 7, 8, 9], "")
    assert held == 70
    assert second.pages[:2] == first.pages[:2]
    assert ledger.copies == [(first.pages[2], second.pages[2])]
    assert second.pages[2] not in first.pages


def test_a_prompt_that_is_known_whole_leaves_its_last_token_to_compute():
    ledger, tokens = Ledger(10), list(range(3 * PAGE_TOKENS))
    first, _ = filled(ledger, tokens)
    second, held = ledger.open(tokens, "")
    assert held == len(tokens) - 1
    assert ledger.copies == [(first.pages[2], second.pages[2])]


def test_another_salt_shares_nothing():
    ledger, tokens = Ledger(10), list(range(100))
    filled(ledger, tokens, "one")
    assert filled(ledger, tokens, "other")[1] == 0
    assert filled(ledger, tokens, "one")[1] == 99 // PAGE_TOKENS * PAGE_TOKENS


def test_equal_tokens_behind_another_beginning_are_not_shared():
    ledger = Ledger(10)
    filled(ledger, [1] * PAGE_TOKENS + [2] * PAGE_TOKENS)
    assert filled(ledger, [3] * PAGE_TOKENS + [2] * PAGE_TOKENS)[1] == 0


def test_pages_of_one_step_are_shared_but_not_copied():
    ledger, tokens = Ledger(10), list(range(100))
    ledger.begin()
    table, _ = ledger.open(tokens, "")
    ledger.note(table, tokens, 100)
    assert ledger.open(tokens, "")[1] == 3 * PAGE_TOKENS
    assert ledger.open([*range(90), 1, 2], "")[1] == 2 * PAGE_TOKENS  # the third is not yet there
    assert ledger.copies == []


def test_what_was_idle_longest_is_taken_first_and_the_end_of_a_prompt_before_its_beginning():
    ledger = Ledger(6)
    old, new = (filled(ledger, [n] * 3 * PAGE_TOKENS)[0] for n in (1, 2))
    pages = [*reversed(old.pages), *reversed(new.pages)]
    for table in (old, new):
        ledger.release(table)
    assert ledger.available == 6
    taken, _ = ledger.open([3, 3], "")
    found = []
    for tokens in range(PAGE_TOKENS, 6 * PAGE_TOKENS + 1, PAGE_TOKENS):
        assert ledger.grow(taken, tokens)
        found.append(taken.pages[-1])
    assert found == pages
    assert not ledger.grow(taken, 7 * PAGE_TOKENS)


def test_what_does_not_fit_changes_nothing():
    ledger = Ledger(3)
    table, _ = filled(ledger, [1] * 2 * PAGE_TOKENS)
    ledger.release(table)
    before = (list(ledger._idle), list(ledger._free), list(ledger._users))
    assert ledger.open([1] * 3 * PAGE_TOKENS + [2], "") is None
    assert (list(ledger._idle), list(ledger._free), list(ledger._users)) == before
    assert ledger.copies == []


def test_a_page_that_was_idle_longest_can_be_copied_onto_itself():
    ledger = Ledger(1)
    table, _ = filled(ledger, [1] * PAGE_TOKENS)
    ledger.release(table)
    table, held = ledger.open([1] * 20 + [2] * 5, "")
    assert (held, ledger.copies, table.pages) == (20, [(0, 0)], [0])
    ledger.release(table)
    assert ledger.open([1] * 25, "")[1] == 0
