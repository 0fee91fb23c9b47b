"""All tokens of one step of the engine, request behind request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from compress.runtime.ledger import PAGE_TOKENS
from compress.runtime.scheduler import Span


@dataclass(frozen=True)
class Batch:
    """N tokens of R requests. Requests may share pages that this very step fills.

    So keys and values of all tokens are to be written before those of any are read. `starts` and
    `lengths` are read by Python and stay on the CPU; the others are used where the weights are.
    """

    ON_DEVICE: ClassVar = ("ids", "positions", "owners", "tables", "slots", "wanted")

    ids: Tensor  # [N] int64
    positions: Tensor  # [N] int64
    owners: Tensor  # [N] int32: the request of each token
    starts: Tensor  # [R + 1] int32: tokens of request r are starts[r]:starts[r + 1]
    lengths: Tensor  # [R] int32: tokens in its pages after this step
    tables: Tensor  # [R, P] int32: the page of every PAGE_TOKENS tokens, 0 where unused
    slots: Tensor  # [N] int64, page * PAGE_TOKENS + offset: where keys and values of a token go
    wanted: Tensor  # [M] int64: rows whose hidden states are wanted

    def on(self, device: str) -> Batch:
        """The same on a device: the only place where a step goes there."""
        if device == "cpu":
            return self
        return replace(self, **{name: getattr(self, name).to(device) for name in self.ON_DEVICE})


def gather(spans: Sequence[Span]) -> Batch:
    """Put what a step computes side by side."""
    ids: list[int] = []
    positions: list[int] = []
    wanted: list[int] = []
    owners, slots, starts, lengths = [], [], [0], []
    for number, span in enumerate(spans):
        places = range(span.start, span.start + len(span.ids))
        ids += span.ids
        positions += places
        owners += [number] * len(places)
        slots += [span.pages[at // PAGE_TOKENS] * PAGE_TOKENS + at % PAGE_TOKENS for at in places]
        wanted += range(len(ids) - span.wanted, len(ids))
        starts.append(len(ids))
        lengths.append(places.stop)
    widest = max(len(span.pages) for span in spans)
    tables = [[*span.pages, *[0] * (widest - len(span.pages))] for span in spans]
    return Batch(
        ids=torch.tensor(ids),
        positions=torch.tensor(positions),
        owners=torch.tensor(owners, dtype=torch.int32),
        starts=torch.tensor(starts, dtype=torch.int32),
        lengths=torch.tensor(lengths, dtype=torch.int32),
        tables=torch.tensor(tables, dtype=torch.int32),
        slots=torch.tensor(slots),
        wanted=torch.tensor(wanted, dtype=torch.int64),
    )


def alone(ids: Sequence[int], start: int = 0, *, wanted: int = 1) -> Batch:
    """Tokens of the only request there is, whose pages are 0, 1, 2 and so on."""
    pages = range(-(-(start + len(ids)) // PAGE_TOKENS))
    return gather([Span(ids, start, pages, wanted)])
