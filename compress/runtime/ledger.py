"""Who uses which page, and which pages hold the beginning of a prompt. Numbers only, no tensors.

    free   holds nothing
    used   in the tables of one request or more
    idle   full and known, used by nobody: found again, or taken, the longest idle first

A full page is known by its tokens and by what is before it: the sha256 of a salt, and of all tokens
up to there, page by page.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

PAGE_TOKENS = 32


@dataclass(eq=False)
class Table:
    """The pages of one request in the order of its tokens; the first ones are full and known."""

    digest: bytes = b""  # of what the known ones hold
    pages: list[int] = field(default_factory=list)
    known: int = 0

    def follow(self, tokens: Sequence[int]) -> None:
        """Count one more page as known, which holds `tokens`."""
        self.digest = hashlib.sha256(self.digest + array("q", tokens).tobytes()).digest()
        self.known += 1


class Ledger:
    """Counts the users of every page.

    Pages are noted as known when the step that fills them is planned: requests of one step share
    what one of them computes, since a layer writes all keys and values before it reads any.
    """

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self.copies: list[tuple[int, int]] = []  # from page to page, before the next step, in order
        self._users = [0] * pages
        self._free = list(reversed(range(pages)))
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._behind: dict[bytes, dict[tuple[int, ...], int]] = {}  # digest → tokens → known page
        self._known: dict[int, tuple[bytes, tuple[int, ...]]] = {}  # page → its place in `_behind`
        self._unwritten: set[int] = set()  # known, and filled by the step that is being planned

    @property
    def available(self) -> int:
        """Pages that can be taken."""
        return len(self._free) + len(self._idle)

    def begin(self) -> None:
        """Plan a new step: the one before has been computed, its copies made."""
        self.copies = []
        self._unwritten.clear()

    def open(self, tokens: Sequence[int], salt: str) -> tuple[Table, int] | None:
        """Pages for all tokens of a request, and how many of these they hold: all but one at most.

        Full pages are shared. Of a page that begins alike and goes on differently, a copy is taken:
        nobody writes into a page that others use. None, and nothing done, when pages are short.
        """
        table, held = Table(hashlib.sha256(salt.encode()).digest()), 0
        while held + PAGE_TOKENS < len(tokens):
            part = tuple(tokens[held : held + PAGE_TOKENS])
            page = self._behind.get(table.digest, {}).get(part)
            if page is None:
                break
            table.pages.append(page)
            table.follow(part)
            held += PAGE_TOKENS
        idle = sum(page in self._idle for page in table.pages)
        if -(-len(tokens) // PAGE_TOKENS) - len(table.pages) > self.available - idle:
            return None
        for page in table.pages:
            self._idle.pop(page, None)
            self._users[page] += 1
        held += self._copied(table, tokens[held:-1][:PAGE_TOKENS])
        self.grow(table, len(tokens))
        return table, held

    def grow(self, table: Table, tokens: int) -> bool:
        """Give a table room for `tokens` in all; False, and nothing done, when pages are short."""
        more = -(-tokens // PAGE_TOKENS) - len(table.pages)
        if more > self.available:
            return False
        table.pages += [self._take() for _ in range(more)]
        return True

    def note(self, table: Table, tokens: Sequence[int], count: int) -> None:
        """Make known which full pages hold the first `count` tokens, once the next step is done."""
        while (end := (table.known + 1) * PAGE_TOKENS) <= count:
            page, part = table.pages[table.known], tuple(tokens[end - PAGE_TOKENS : end])
            behind = self._behind.setdefault(table.digest, {})
            if part not in behind:  # else someone computed the same beside it
                behind[part] = page
                self._known[page] = table.digest, part
                self._unwritten.add(page)
            table.follow(part)

    def release(self, table: Table) -> None:
        """Use the pages of a table no more; their end is taken before their beginning."""
        for page in reversed(table.pages):
            self._users[page] -= 1
            if self._users[page] == 0 and page in self._known:
                self._idle[page] = None
            elif self._users[page] == 0:
                self._free.append(page)
        table.pages = []

    def _take(self) -> int:
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._idle.popitem(last=False)
            digest, part = self._known.pop(page)
            del self._behind[digest][part]
            if not self._behind[digest]:
                del self._behind[digest]
        self._users[page] = 1
        return page

    def _copied(self, table: Table, tokens: Sequence[int]) -> int:
        """Append a copy of the page that begins most like `tokens`; how many are alike."""
        candidates = (
            (alike(part, tokens), page)
            for part, page in self._behind.get(table.digest, {}).items()
            if page not in self._unwritten
        )
        count, best = max(candidates, default=(0, 0))
        if count:
            page = self._take()  # may be `best` itself, if that was the longest idle
            self.copies.append((best, page))
            table.pages.append(page)
        return count


def alike(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that two sequences begin with alike."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
