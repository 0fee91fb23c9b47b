"""A small model that writes ahead of a large one, with keys and values of its own.

Its pages follow the request's tokens: what it read of a proposal that was refused is overwritten,
what was refused of it or written without it is read when it is asked next.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from compress.artifact.layout import open_artifact
from compress.errors import RequestError, shown
from compress.runtime.batch import gather
from compress.runtime.ledger import PAGE_TOKENS, Ledger, Table
from compress.runtime.model import Model
from compress.runtime.sampling import Sampling, distribution, draw
from compress.runtime.scheduler import Job, Span
from compress.runtime.speculative import NOTHING, Proposal
from compress.runtime.tokenizer import Tokenizer

Ask = tuple[Job, Sampling, int]  # whose tokens to go on from, drawn how, how many


@dataclass(eq=False)
class _Seat:
    table: Table
    read: int  # of the request's tokens, whose keys and values lie in pages
    ahead: list[int] = field(default_factory=list)  # proposed tokens read behind them

    def known(self, tokens: Sequence[int]) -> int:
        """How many of a request's tokens it has read, all but the last one at most."""
        pairs = zip(self.ahead, tokens[self.read :], strict=False)
        right = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        return min(self.read + right, len(tokens) - 1)


@dataclass(eq=False)
class _Writing:
    job: Job
    seat: _Seat
    sampling: Sampling
    count: int
    tokens: list[int] = field(default_factory=list)
    drawn: list[Tensor] = field(default_factory=list)  # distributions of the tokens

    def write(self, logits: Tensor, chance: random.Random) -> None:
        """Add a token. Where a seed is to give one text, it is the likeliest: see `speculative`."""
        if self.sampling.greedy or self.sampling.seed is not None:
            self.tokens.append(int(logits.argmax(-1)))
        else:
            self.drawn.append(distribution(logits, self.sampling))
            self.tokens.append(draw(self.drawn[-1], chance.random()))

    def proposal(self) -> Proposal:
        return Proposal(tuple(self.tokens), torch.stack(self.drawn) if self.drawn else None)


class Draft:
    """Writes ahead for the requests of an engine."""

    def __init__(self, model: Model, *, vocab_size: int, kv_tokens: int, step_tokens: int) -> None:
        """Let `model` write.

        Args:
            model: the small one.
            vocab_size: of the large one.
            kv_tokens: whose keys and values there is room for.
            step_tokens: it reads at once, of all requests together.
        """
        self._model, self._vocab_size, self._step_tokens = model, vocab_size, step_tokens
        self._pages = model.pages(kv_tokens)
        self._ledger = Ledger(-(-kv_tokens // PAGE_TOKENS))
        self._seats: dict[int, _Seat] = {}
        self._chance = random.Random()

    def behind(self, jobs: Sequence[Job]) -> bool:
        """Whether it has more to read of one of them than a step adds."""
        seats = [(self._seats.get(job.ticket), job) for job in jobs]
        return any(
            seat is None or len(job.tokens) - seat.known(job.tokens) > 2 for seat, job in seats
        )

    @torch.inference_mode()
    def propose(self, asks: Sequence[Ask]) -> list[Proposal]:
        """Go on from the tokens of each job.

        Returns:
            One for each; none of it where there is no room, or a prompt is still being read.
        """
        self._ledger.begin()
        seats = [self._seat(job, count) for job, _, count in asks]
        writing, spans, budget = [], [], self._step_tokens
        for (job, sampling, count), seat in zip(asks, seats, strict=True):
            if seat is None or budget == 0:
                continue
            start, end = seat.read, min(len(job.tokens), seat.read + budget)
            self._ledger.note(seat.table, job.tokens, end)
            seat.read, budget = end, budget - (end - start)
            whole = end == len(job.tokens)
            spans.append(Span(job.tokens[start:end], start, seat.table.pages, int(whole)))
            if whole:
                writing.append(_Writing(job, seat, sampling, count))
        if spans:
            self._pages.copy(self._ledger.copies)
            self._write(writing, spans)
        made = {one.job.ticket: one.proposal() for one in writing}
        return [made.get(job.ticket, NOTHING) for job, _, _ in asks]

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
        seat.read, seat.ahead = seat.known(job.tokens), []
        if self._ledger.grow(seat.table, room):
            return seat
        self.forget(job.ticket)
        return None

    def _write(self, writing: list[_Writing], spans: list[Span]) -> None:
        """Read the spans, then token after token what comes of them."""
        while True:
            logits = self._model.next_logits(gather(spans), self._pages).cpu()
            if not len(logits):
                return
            missing = self._vocab_size - logits.shape[-1]  # rows that only fill up a matrix
            for one, row in zip(writing, pad(logits, (0, missing), value=-torch.inf), strict=True):
                one.write(row, self._chance)
            writing = [one for one in writing if len(one.tokens) < one.count]
            if not writing:
                return
            spans = []
            for one in writing:
                start = one.seat.read + len(one.seat.ahead)
                spans.append(Span(one.tokens[-1:], start, one.seat.table.pages))
                one.seat.ahead.append(one.tokens[-1])


def open_draft(folder: Path, model: Model, tokenizer: Tokenizer, **room: int) -> Draft:
    """Open an artifact as a draft.

    Args:
        folder: where it lies.
        model: the large one.
        tokenizer: of the large one.
        room: kv_tokens and step_tokens, see `Draft`.

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
    return Draft(small, vocab_size=model.vocab_size, **room)
