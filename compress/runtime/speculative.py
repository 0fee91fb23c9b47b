"""Exact speculative decoding: tokens are proposed, the model reads them at once, some are kept.

    lookup or draft ─▶ k tokens ─ model ─▶ k + 1 distributions ─ choosing ─▶ 1 to k + 1 tokens

What is kept is distributed as without proposals. A token that was proposed for certain (from a
lookup, or the likeliest of a draft) stays when the request's own draw is that token: the very same
draws, so a seed gives the same text. A token d that a draft drew from q stays with probability
min(1, p(d) / q(d)), else one is drawn from max(p - q, 0) (Leviathan et al. 2023, arXiv:2211.17192).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from compress.runtime.draft import Draft
from compress.runtime.ledger import alike
from compress.runtime.sampling import Chooser
from compress.runtime.scheduler import NOTHING, Job, Proposal, Span

WIDTHS = (3, 7)  # with the last token that makes 4 or 8 rows, which products like best
_CROWD = 8  # requests that write: rows of proposals bring no more than they cost, and unevenness
_LONGEST, _SHORTEST = 4, 2  # tokens that must be the same in front of what a lookup proposes
_PATIENCE = 32  # steps without proposals before the first new try; doubled by every failure
_MOST_PATIENCE = 512
_MEMORY = 0.05  # share of a new measurement in the mean of a cost
_CAUTION = 0.9  # share of the expected gain that is counted on: luck is known roughly
_FADING = 0.92  # weight of what is known of a request's luck, against the next verification


class Lookup:
    """Proposes what followed the last time that a text ended as it does now."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}  # tokens → where they last went on
        self._read = 0

    def propose(self, tokens: Sequence[int], count: int) -> tuple[int, ...]:
        """`count` tokens that may follow all those of one request, or none."""
        for end in range(self._read, len(tokens)):
            for size in range(_SHORTEST, min(_LONGEST, end) + 1):
                self._after[tuple(tokens[end - size : end])] = end
        self._read = len(tokens)
        for size in range(_LONGEST, _SHORTEST - 1, -1):
            start = self._after.get(tuple(tokens[-size:]))
            if start is not None:  # at the end the copy goes on with itself
                period = len(tokens) - start
                return tuple(tokens[start + i % period] for i in range(count))
        return ()


@dataclass
class Luck:
    """How often what is proposed to one request is right."""

    kept: float = 1.0
    tried: float = 2.0
    waited: float = 0  # steps without a proposal
    patience: int = _PATIENCE

    @property
    def rate(self) -> float:
        """Probability that a proposed token is kept when all before it were."""
        return self.kept / self.tried

    def learn(self, proposed: int, kept: int) -> None:
        """Remember one verification; what comes after the first wrong token was never tried."""
        self.kept = self.kept * _FADING + kept
        self.tried = self.tried * _FADING + min(kept + 1, proposed)
        if kept == proposed:
            self.waited = self.patience = _PATIENCE  # try again at once

    def retry(self, share: float) -> bool:
        """Whether it is time to propose again although it does not seem to pay.

        `share` is one over the requests of a step: together they try no oftener than one alone.
        """
        self.waited += share
        if self.waited < self.patience:
            return False
        self.waited, self.patience = 0, min(2 * self.patience, _MOST_PATIENCE)
        return True


class Cost:
    """Running mean of the seconds that something takes, by its size."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._times: dict[int, int] = defaultdict(int)

    def note(self, size: int, seconds: float) -> None:
        """Remember one measurement. The first of a size warms up; an outlier counts as twice."""
        times = self._times[size]
        if times > 0:
            old = self._seconds.get(size, seconds)
            self._seconds[size] = old + max(1 / times, _MEMORY) * (min(seconds, 2 * old) - old)
        self._times[size] += 1

    def of(self, size: int) -> float:
        """Seconds of a size, between its neighbours'; above all, the largest's: it is tried."""
        if size in self._seconds:
            return self._seconds[size]
        sizes, seconds = zip((0, 0.0), *sorted(self._seconds.items()), strict=True)
        return float(np.interp(size, sizes, seconds))


def width(rate: float, tokens: float, rows: int, step: Cost, extra: Cost) -> int:
    """How many tokens, 0 or of `WIDTHS`, to propose to one request for the most tokens a second.

    Each is kept with probability `rate` where those before it were; without them the step is
    expected to make `tokens` of `rows`. Seconds: of a `step` by rows, of a proposal (`extra`) by
    tokens.
    """
    now = step.of(rows)
    if now == 0:
        return 0  # nothing was measured yet
    speeds = {0: tokens / now}
    for count in WIDTHS:
        seconds = step.of(rows + count) + extra.of(count)
        speeds[count] = (tokens + _CAUTION * gain(rate, count)) / seconds
    return max(speeds, key=lambda count: speeds[count])


def gain(rate: float, count: int) -> float:
    """How many of `count` proposed tokens will be kept: each only if all before it were."""
    return sum(rate**place for place in range(1, count + 1))


class Speculation:
    """Proposes to the requests that write, as wide as pays, and learns what comes of it."""

    def __init__(self, source: Draft | Literal["lookup"] | None) -> None:
        """Propose what a draft writes, or what a request's own text said before, or nothing."""
        self.drafts = self.proposed = self.kept = 0  # proposals, their tokens, and those kept
        self.kept_at = [0] * WIDTHS[-1]  # by position
        self._source = source
        self._step, self._extra = Cost(), Cost()
        self._lookups: dict[int, Lookup] = defaultdict(Lookup)
        self._luck: dict[int, Luck] = defaultdict(Luck)
        self._share, self._tokens, self._rows = 1.0, 0.0, 0  # of the next step, as it is planned
        self._began = 0.0

    def propose(self, running: Sequence[tuple[Job, Chooser]]) -> None:
        """Tell jobs whose tokens are all computed but the last what may come next."""
        writing = [one for one in running if one[0].computed == len(one[0].tokens) - 1]
        self._tokens, self._rows = float(len(writing)), len(writing)
        self._share = 1 / max(1, len(writing))
        for job, chooser in writing:
            forced = chooser.forced()[: WIDTHS[-1]] if self._source is not None else ()
            job.proposal = Proposal(forced, forced=True) if forced else NOTHING
            self._tokens, self._rows = self._tokens + len(forced), self._rows + len(forced)
        if self._source is not None and len(writing) < _CROWD:
            free = [one for one in writing if not one[0].proposal.forced]
            if self._source == "lookup":
                for job, _ in free:
                    found = self._lookups[job.ticket].propose(job.tokens, WIDTHS[-1])
                    if found and (count := self._width(job)):
                        job.proposal = Proposal(found[:count])
            else:
                self._let_draft(self._source, free)
        self._began = time.perf_counter()

    def learn(self, plan: Sequence[tuple[Job, Span]], tokens: Sequence[Sequence[int]]) -> None:
        """A step is over: what it computed, and the tokens that each request got."""
        seconds = time.perf_counter() - self._began
        if all(span.wanted == len(span.ids) for _, span in plan):  # no prompt was read
            self._step.note(sum(len(span.ids) for _, span in plan), seconds)
        for (job, _), chosen in zip(plan, tokens, strict=True):
            if proposed := job.proposal.tokens:
                kept = alike(proposed, chosen)
                self.drafts += 1
                self.proposed += len(proposed)
                self.kept += kept
                for position in range(kept):
                    self.kept_at[position] += 1
                if not job.proposal.forced:
                    self._luck[job.ticket].learn(len(proposed), kept)

    def forget(self, ticket: int) -> None:
        """A request is over."""
        self._lookups.pop(ticket, None)
        self._luck.pop(ticket, None)
        if self._source is not None and self._source != "lookup":
            self._source.forget(ticket)

    def _let_draft(self, draft: Draft, writing: Sequence[tuple[Job, Chooser]]) -> None:
        counts = [(job, chooser.sampling, self._width(job)) for job, chooser in writing]
        asked = [one for one in counts if one[-1]]
        if not asked:
            return
        began = time.perf_counter()
        for (job, _, _), proposal in zip(asked, draft.propose(asked), strict=True):
            job.proposal = proposal
        if not draft.behind:
            seconds = (time.perf_counter() - began) / len(asked)
            self._extra.note(max(count for _, _, count in asked), seconds)

    def _width(self, job: Job) -> int:
        """How many tokens to propose to a job, beside what this step does already."""
        luck = self._luck[job.ticket]
        count = width(luck.rate, self._tokens, self._rows, self._step, self._extra)
        if count == 0 and luck.retry(self._share):
            count = WIDTHS[0]
        self._tokens, self._rows = self._tokens + gain(luck.rate, count), self._rows + count
        return count
