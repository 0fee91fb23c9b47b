"""Who uses which page, and which pages hold the beginning of a prompt. Numbers only, no tensors.

    free   holds nothing
    used   in the tables of one request or more
    idle   full, known by its digest, used by nobody: found again, or taken, the longest idle first

A full page is known by the sha256 of its tokens and of the digest before it, so a digest stands for
all tokens up to its end, and for the salt that a chain of them begins with.
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
    """The pages of one request in the order of its tokens; full ones are known by a digest."""

    root: bytes = b""
    pages: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)  # of the first pages

    @property
    def last(self) -> bytes:
        """What the next digest is chained to."""
        return self.digests[-1] if self.digests else self.root


@dataclass(frozen=True)
class _Known:
    digest: bytes
    before: bytes
    tokens: tuple[int, ...]


class Ledger:
    """Counts the users of every page.

    Pages are noted as known when the step that fills them is planned: requests of one step share
    what one of them computes, since a layer writes all keys and values before it reads any.
    """

    def __init__(self, pages: int) -> None:
        """All of `pages` pages are free."""
        self.pages = pages
        self.copies: list[tuple[int, int]] = []  # from page to page, before the next step, in order
        self._users = [0] * pages
        self._free = list(reversed(range(pages)))
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._by_digest: dict[bytes, int] = {}
        self._known: dict[int, _Known] = {}
        self._behind: dict[bytes, set[int]] = {}  # digest → known pages that go on from there
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
        """Pages for all tokens of a request, those that hold what is known of its beginning first.

        Full pages are shared. Of a page that begins alike and goes on differently, a copy is taken:
        nobody writes into a page that others use. A token at least is left to compute.

        Returns:
            The table, and how many tokens it holds; None, and nothing done, when pages are short.
        """
        table = Table(hashlib.sha256(salt.encode()).digest())
        while (end := (len(table.pages) + 1) * PAGE_TOKENS) < len(tokens):
            digest = _digest(table.last, tokens[end - PAGE_TOKENS : end])
            if digest not in self._by_digest:
                break
            table.pages.append(self._by_digest[digest])
            table.digests.append(digest)
        held, idle = len(table.pages) * PAGE_TOKENS, sum(page in self._idle for page in table.pages)
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
        while (end := (len(table.digests) + 1) * PAGE_TOKENS) <= count:
            page, part = table.pages[len(table.digests)], tokens[end - PAGE_TOKENS : end]
            before, digest = table.last, _digest(table.last, part)
            table.digests.append(digest)
            if digest not in self._by_digest:  # else someone computed the same beside it
                self._by_digest[digest] = page
                self._known[page] = _Known(digest, before, tuple(part))
                self._behind.setdefault(before, set()).add(page)
                self._unwritten.add(page)

    def release(self, table: Table) -> None:
        """Use the pages of a table no more; their end is taken before their beginning."""
        for page in reversed(table.pages):
            self._users[page] -= 1
            if self._users[page] == 0:
                if page in self._known:
                    self._idle[page] = None
                else:
                    self._free.append(page)
        table.pages, table.digests = [], []

    def _take(self) -> int:
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._idle.popitem(last=False)
            self._forget(page)
        self._users[page] = 1
        return page

    def _forget(self, page: int) -> None:
        known = self._known.pop(page)
        del self._by_digest[known.digest]
        behind = self._behind[known.before]
        behind.remove(page)
        if not behind:
            del self._behind[known.before]

    def _copied(self, table: Table, tokens: Sequence[int]) -> int:
        """Append a copy of the page that begins most like `tokens`; how many are alike."""
        candidates = self._behind.get(table.last, set()) - self._unwritten
        alike = {page: _alike(self._known[page].tokens, tokens) for page in sorted(candidates)}
        best = max(alike, key=alike.__getitem__, default=None)
        if best is None or alike[best] == 0:
            return 0
        page = self._take()  # may be `best` itself, if that was the longest idle
        self.copies.append((best, page))
        table.pages.append(page)
        return alike[best]


def _digest(before: bytes, tokens: Sequence[int]) -> bytes:
    return hashlib.sha256(before + array("q", tokens).tobytes()).digest()


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that two sequences begin with alike."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
