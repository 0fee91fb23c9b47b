"""Text shared out, so that what is chosen on some shares is asked of another.

Of one text every other batch is a share. Of several kinds each kind is one: what helps on the text
that it was fitted to and on no other is not chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Fold:
    """Some windows of batches, one batch at a time."""

    batches: tuple[int, ...]  # that hold any
    firsts: tuple[int, ...]  # window in each
    every: int  # so many-th window behind it
    seq_len: int

    def of(self, x: Sequence[Tensor]) -> Iterator[Tensor]:
        """What belongs to its windows of batches [N, I], each of N / seq_len windows."""
        for number, first in zip(self.batches, self.firsts, strict=True):
            part = x[number]
            if self.every > 1:
                windows = part.view(-1, self.seq_len, part.shape[1])
                part = windows[first :: self.every].flatten(0, 1)
            yield part

    def tokens(self, x: Sequence[Tensor]) -> int:
        """How many tokens of batches [N, I] those are."""
        pairs = zip(self.batches, self.firsts, strict=True)
        sizes = (len(range(first, len(x[n]) // self.seq_len, self.every)) for n, first in pairs)
        return self.seq_len * sum(sizes)


def folds(x: Sequence[Tensor], kinds: int, seq_len: int) -> list[Fold]:
    """The shares of a text.

    Args:
        x: batches [N, I] of whole windows, in their order.
        kinds: of text; they take turns, window by window.
        seq_len: tokens in a window.

    Returns:
        Two halves of a text of one kind, or one where a single batch cannot be halved; else one
        share for each kind of which there is a window.
    """
    numbers = tuple(range(len(x)))
    if kinds == 1:
        halves = (numbers[::2], numbers[1::2])
        return [Fold(half, (0,) * len(half), 1, seq_len) for half in halves if half]
    begins, counted = [], 0
    for part in x:
        begins.append(counted)
        counted += len(part) // seq_len
    found = []
    for kind in range(kinds):
        firsts = {n: (kind - begin) % kinds for n, begin in enumerate(begins)}
        held = tuple(n for n in numbers if firsts[n] * seq_len < len(x[n]))
        found.append(Fold(held, tuple(firsts[n] for n in held), kinds, seq_len))
    return [fold for fold in found if fold.batches]
