"""A small model that writes ahead of a large one, with keys and values of its own.

Its pages follow the request's tokens: what it read of a proposal that was refused is overwritten,
what was refused of it or written without it is read when it is asked next.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from compress.artifact.layout import open_artifact
from compress.errors import RequestError, shown
from compress.runtime.batch import gather
from compress.runtime.ledger import PAGE_TOKENS, Ledger, Table, alike
from compress.runtime.model import Model
from compress.runtime.request import Sampling
from compress.runtime.sampling import distribution, draw
from compress.runtime.scheduler import NOTHING, Job, Proposal, Span
from compress.runtime.tokenizer import Tokenizer


@dataclass(eq=False)
class _Seat:
    """One request: what was read of its tokens, and what was written behind them the last time."""

    table: Table
    read: int  # of its tokens, whose keys and values lie in pages
    written: list[int] = field(default_factory=list)  # all but the last lie there too
    drawn: list[Tensor] = field(default_factory=list)  # distributions of what was written

    def known(self, tokens: Sequence[int]) -> int:
        """How many of a request's tokens it has read, all but the last one at most."""
        ahead = tokens[self.read : self.read + len(self.written)]
        return min(self.read + alike(self.written[:-1], ahead), len(tokens) - 1)

    def write(self, logits: Tensor, sampling: Sampling, chance: random.Random) -> None:
        """Add a token. Where a seed is to give one text, it is the likeliest: see `speculative`."""
        if sampling.greedy or sampling.seed is not None:
            self.written.append(int(logits.argmax(-1)))
        else:
            self.drawn.append(distribution(logits, sampling))
            self.written.append(draw(self.drawn[-1], chance))

    def proposal(self) -> Proposal:
        return Proposal(tuple(self.written), torch.stack(self.drawn) if self.drawn else None)


class Draft:
    """Writes ahead for the requests of an engine."""

    def __init__(self, model: Model, *, vocab_size: int, kv_tokens: int, step_tokens: int) -> None:
        """Let the small `model` write for a large one of `vocab_size`.

        There is room for keys and values of `kv_tokens`; it reads `step_tokens` at once, of all
        requests together.
        """
        self._model, self._vocab_size, self._step_tokens = model, vocab_size, step_tokens
        self._pages = model.pages(kv_tokens)
        self._ledger = Ledger(-(-kv_tokens // PAGE_TOKENS))
        self._seats: dict[int, _Seat] = {}
        self._chance = random.Random()
        self.behind = False  # whether there was more to read, the last time, than a step adds

    @torch.inference_mode()
    def propose(self, asks: Sequence[tuple[Job, Sampling, int]]) -> list[Proposal]:
        """Go on from the tokens of each job: drawn how, and how many.

        Nothing where there is no room, or a prompt is still being read.
        """
        self._ledger.begin()
        seats = [self._seat(job, count) for job, _, count in asks]
        asked = list(zip(asks, seats, strict=True))
        self.behind = any(
            not seat or len(one.tokens) - seat.read > 2 for (one, _, _), seat in asked
        )
        writing, spans, budget = [], [], self._step_tokens
        for (job, sampling, count), seat in asked:
            if seat is None or budget == 0:
                continue
            start, end = seat.read, min(len(job.tokens), seat.read + budget)
            self._ledger.note(seat.table, job.tokens, end)
            seat.read, budget = end, budget - (end - start)
            whole = end == len(job.tokens)
            spans.append(Span(job.tokens[start:end], start, seat.table.pages, int(whole)))
            if whole:
                writing.append((seat, sampling, count))
        self._pages.copy(self._ledger.copies)
        while spans:
            logits = self._model.next_logits(gather(spans), self._pages).cpu()
            missing = self._vocab_size - logits.shape[-1]  # rows that only fill up a matrix
            rows = pad(logits, (0, missing), value=-torch.inf)
            for (seat, sampling, _), row in zip(writing, rows, strict=True):
                seat.write(row, sampling, self._chance)
            writing = [one for one in writing if len(one[0].written) < one[2]]
            spans = [
                Span(seat.written[-1:], seat.read + len(seat.written) - 1, seat.table.pages)
                for seat, _, _ in writing
            ]
        return [seat.proposal() if seat and seat.written else NOTHING for seat in seats]

    def forget(self, ticket: int) -> None:
        """A request is over: its pages are free, what they hold of its beginning is known."""
        if seat := self._seats.pop(ticket, None):
            self._ledger.release(seat.table)

    def _seat(self, job: Job, count: int) -> _Seat | None:
        """Where a job's tokens lie, with room for all and those to come but the last."""
        room = len(job.tokens) + count - 1
        if room > self._model.settings.max_tokens:
            return None
        seat = self._seats.get(job.ticket)
        if seat is None:
            opened = self._ledger.open(job.tokens, job.salt)
            if opened is None:
                return None
            seat = self._seats[job.ticket] = _Seat(*opened)
        seat.read, seat.written, seat.drawn = seat.known(job.tokens), [], []
        if self._ledger.grow(seat.table, room):
            return seat
        self.forget(job.ticket)
        return None


def open_draft(
    folder: Path, model: Model, tokenizer: Tokenizer, *, kv_tokens: int, step_tokens: int
) -> Draft:
    """Open an artifact as a draft for a large model and its tokenizer; see `Draft`.

    Raises:
        ArtifactError, ModelError: it is broken or holds a model that is not run here.
        RequestError: its tokens are not those of the large model.
    """
    ours, theirs = tokenizer.vocabulary(), Tokenizer.open(folder).vocabulary()
    if ours != theirs:
        text = min(ours.items() ^ theirs.items(), key=lambda entry: (entry[1], entry[0]))[0]
        raise RequestError(
            f"draft: {folder}: token {shown(repr(text))} is {theirs.get(text)} there and "
            f"{ours.get(text)} here; a draft needs the very tokens of the model it writes for. "
            "Take a student of the same teacher."
        )
    small = Model(open_artifact(folder), model.dtype, model.device)
    return Draft(small, vocab_size=model.vocab_size, kv_tokens=kv_tokens, step_tokens=step_tokens)
