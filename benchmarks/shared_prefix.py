"""Log-likelihoods of all choices of an item from one row of tokens, what they share computed once.

A row is the beginning that all requests of an item have in common, then the rest of each. A rest
attends to the beginning and to itself, at the positions it would have alone, so every number is
that of the request by itself. An item of four endings after 70 tokens is one row of 170 tokens
where a plain reader takes four rows of 95.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from compress.surgery.load import materialize
from compress.surgery.walk import Weights, head_of, logits

Request = tuple[Sequence[int], Sequence[int]]  # ids of the context, ids of the continuation
Answer = tuple[float, bool]  # log-likelihood of the continuation, and whether it is greedy


@dataclass(frozen=True)
class Row:
    """An item laid out.

    ids, positions: [T], the tokens and where each would stand alone.
    segments: [T], 0 for the shared beginning, j + 1 for the rest of request j.
    places, targets, owners: [N], for every token of a continuation the column that predicts it, the
    token, and the request it belongs to.
    """

    ids: list[int]
    positions: list[int]
    segments: list[int]
    places: list[int]
    targets: list[int]
    owners: list[int]


def row_of(requests: Sequence[Request]) -> Row:
    """Lay out the requests of one item; no continuation may be empty."""
    whole = [[*context, *continuation] for context, continuation in requests]
    read = [tokens[:-1] for tokens in whole]  # the last token predicts nothing
    columns = takewhile(lambda column: len(set(column)) == 1, zip(*read, strict=False))
    shared = sum(1 for _ in columns)
    row = Row(list(read[0][:shared]), list(range(shared)), [0] * shared, [], [], [])
    for number, (context, continuation) in enumerate(requests):
        begin, rest = len(row.ids), read[number][shared:]
        row.ids.extend(rest)
        row.positions.extend(range(shared, shared + len(rest)))
        row.segments.extend([number + 1] * len(rest))
        before = range(len(context) - 1, len(whole[number]) - 1)
        row.places.extend(at if at < shared else begin + at - shared for at in before)
        row.targets.extend(continuation)
        row.owners.extend([number] * len(continuation))
    return row


def batches(rows: Mapping[int, Row], tokens: int) -> Iterator[list[int]]:
    """Keys of rows in batches of at most so many tokens, longest first, like lengths together."""
    batch: list[int] = []
    longest = 0
    for key in sorted(rows, key=lambda key: -len(rows[key].ids)):
        if batch and (len(batch) + 1) * longest > tokens:
            yield batch
            batch = []
        longest = longest if batch else len(rows[key].ids)
        batch.append(key)
    if batch:
        yield batch


class Reader:
    """A whole model that answers rows."""

    def __init__(self, weights: Weights, dtype: torch.dtype) -> None:
        """Hold a model in memory, its rounding of inputs included."""
        self.model: Any = materialize(weights, dtype)
        self._weights = weights
        weight, bias = head_of(weights)
        self._head = weight.to(dtype), bias
        self._dtype = dtype

    @torch.inference_mode()
    def answers(self, rows: Sequence[Row]) -> list[list[Answer]]:
        """For every row the answers of its requests, in order."""
        hidden = self._hidden(rows)  # [B, T, D]
        return [self._of_row(row, states) for row, states in zip(rows, hidden, strict=True)]

    def _hidden(self, rows: Sequence[Row]) -> Tensor:
        longest = max(len(row.ids) for row in rows)

        def padded(name: str, filling: int) -> Tensor:
            lists = [getattr(row, name) for row in rows]
            return torch.tensor([one + [filling] * (longest - len(one)) for one in lists])

        found: Tensor = self.model.base_model(
            input_ids=padded("ids", 0),
            position_ids=padded("positions", 0),
            attention_mask=mask(padded("segments", -1), self._dtype),
            use_cache=False,
        )[0]
        return found

    def _of_row(self, row: Row, hidden: Tensor) -> list[Answer]:
        columns, at = torch.tensor(row.places).unique(return_inverse=True)
        targets, owners = torch.tensor(row.targets), torch.tensor(row.owners)
        scores = logits(self._weights, hidden[columns], head=self._head)  # [n, V]
        found = scores[at, targets] - scores.logsumexp(-1)[at]
        missed = (scores.argmax(-1)[at] != targets).long()
        count = max(row.owners) + 1
        totals = found.new_zeros(count).index_add(0, owners, found)
        misses = missed.new_zeros(count).index_add(0, owners, missed)
        return list(zip(totals.tolist(), (misses == 0).tolist(), strict=True))


def mask(segments: Tensor, dtype: torch.dtype) -> Tensor:
    """What attention adds to its scores, [B, 1, T, T]: 0 to be seen, the least number to be not.

    A column sees what lies before it of the shared beginning and of its own segment. Padding,
    segment -1 and always last, sees itself, and nobody sees it.
    """
    earlier = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool).tril()
    own = segments[:, None, :] == segments[:, :, None]
    seen = earlier & (own | (segments[:, None, :] == 0))
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(
        ~seen, torch.finfo(dtype).min
    ).unsqueeze(1)  # fmt: skip
