"""Rows of documents as they are being written: what is given, what is drawn, where each ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

GIVEN, REASON, ANSWER = range(3)  # parts of a document, in order; a plain one ends with an ANSWER


@dataclass(frozen=True)
class Part:
    """A piece of a document: given tokens, or drawn ones until it ends."""

    kind: int
    given: tuple[int, ...] = ()
    most: int | None = None  # tokens that are drawn; None: until the document ends


Script = tuple[Part, ...]  # of one document


def plain(opener: Sequence[int]) -> Script:
    """A document that begins in a certain way."""
    return Part(GIVEN, tuple(opener)), Part(ANSWER)


class Row:
    """Tokens of one document after another."""

    def __init__(self, pick: Callable[[], Script], end: int | None) -> None:
        """Begin with the script that `pick` gives; `end` ends a document, where there is one."""
        self.tokens: list[int] = []
        self.kinds: list[int] = []  # the part that each token belongs to
        self._starts: list[int] = []
        self._pick, self._end = pick, end
        self._begin()
        self._write(self._given.pop(0))

    def append(self, drawn: int) -> None:
        """Append what was drawn, unless something else has to come."""
        if not self._given:
            self._go_on(drawn)
        self._write(self._given.pop(0) if self._given else drawn)

    def documents(self) -> list[tuple[list[int], list[int]]]:
        """Tokens and their parts of every document; the last may be cut."""
        cuts = [*self._starts, len(self.tokens)]
        return [(self.tokens[a:b], self.kinds[a:b]) for a, b in pairwise(cuts)]

    def _begin(self) -> None:
        self._starts.append(len(self.tokens))
        self._rest = list(self._pick())
        self._enter()

    def _enter(self) -> None:
        part = self._rest.pop(0)
        self._kind, self._given, self._left = part.kind, list(part.given), part.most

    def _go_on(self, drawn: int) -> None:
        """Nothing is given any more: whatever is now drawn belongs to this part or ends it."""
        if self._kind == GIVEN and self._rest:
            self._enter()
        if self._given:
            return
        over = self._left == 0
        ended = self.tokens[-1] == self._end and self.kinds[-1] != GIVEN  # an opener may hold it
        if ended or (over and not self._rest and self._end is None):
            self._begin()
        elif self._rest and (over or drawn == self._end):
            self._enter()  # what it was cued with takes the place of an end that came too early
        elif over and self._end is not None:
            self._given = [self._end]

    def _write(self, token: int) -> None:
        self.tokens.append(token)
        self.kinds.append(self._kind)
        if self._left:
            self._left -= 1


class Page:
    """Rows that are written in step."""

    def __init__(
        self, scripts: Sequence[Script], end: int | None, rows: int, generator: torch.Generator
    ) -> None:
        """Begin so many rows, each document by one of the scripts, drawn."""

        def pick() -> Script:
            return scripts[int(torch.randint(len(scripts), (1,), generator=generator))]

        self.rows = [Row(pick, end) for _ in range(rows)]

    def last(self) -> Tensor:
        """[B] the newest token of each row."""
        return torch.tensor([row.tokens[-1] for row in self.rows])

    def append(self, drawn: Tensor) -> None:
        """Append to each row what is drawn, [B], unless something else has to come."""
        for row, token in zip(self.rows, drawn.tolist(), strict=True):
            row.append(token)
