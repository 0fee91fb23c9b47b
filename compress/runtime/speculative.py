"""Exact speculative decoding: tokens are proposed, the model reads them at once, some are kept.

    lookup or draft ─▶ k tokens ─ model ─▶ k + 1 distributions ─ choosing ─▶ 1 to k + 1 tokens

What is kept is distributed as without proposals. A token that was proposed for certain (from a
lookup, or the likeliest of a draft) stays when the request's own draw is that token: the very same
draws, so a seed gives the same text. A token d that a draft drew from q stays with probability
min(1, p(d) / q(d)), else one is drawn from max(p - q, 0) (Leviathan et al. 2023, arXiv:2211.17192).
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from compress.runtime.sampling import draw
from compress.runtime.scheduler import Job, Work

if TYPE_CHECKING:
    from compress.runtime.choosing import Chooser
    from compress.runtime.draft import Draft

WIDTHS = (3, 7)  # with the last token that makes 4 or 8 rows, which products like best
_CROWD = 8  # requests that write: rows of proposals bring no more than they cost, and unevenness
_LONGEST, _SHORTEST = 4, 2  # tokens that must be the same in front of what a lookup proposes
_PATIENCE = 32  # steps without proposals before the first new try; doubled by every failure
_MOST_PATIENCE = 512
_MEMORY = 0.05  # share of a new measurement in the mean of a cost
_CAUTION = 0.9  # share of the expected gain that is counted on: luck is known roughly
_FADING = 0.92  # weight of what is known of a request's luck, against the next verification


@dataclass(frozen=True)
class Proposal:
    """Tokens that may come next."""

    tokens: tuple[int, ...] = ()
    probabilities: Tensor | None = None  # [k, V] they were drawn from; None: proposed for certain


NOTHING = Proposal()


def accept(target: Tensor, draft: Tensor, token: int, chance: random.Random) -> int:
    """Keep `token`, which was drawn from `draft`, or draw another, so that it follows `target`.

    Args:
        target: probabilities [V] of the model.
        draft: probabilities [V] of the draft.
        token: what the draft drew.
        chance: of the request.
    """
    if chance.random() * float(draft[token]) < float(target[token]):
        return token
    rest = (target - draft).clamp(min=0)
    # Nothing is left when both are equal up to rounding.
    return draw(rest if float(rest.sum()) > 0 else target, chance.random())


class Lookup:
    """Proposes what followed the last time that a text ended as it does now."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}  # tokens → where they last went on
        self._read = 0

    def propose(self, tokens: Sequence[int], count: int) -> tuple[int, ...]:
        """`count` tokens that may follow `tokens`, or none.

        Args:
            tokens: all of one request; only its end differs from call to call.
            count: how many.
        """
        for end in range(self._read, len(tokens)):
            for size in range(_SHORTEST, min(_LONGEST, end) + 1):
                self._after[tuple(tokens[end - size : end])] = end
        self._read = len(tokens)
        for size in range(_LONGEST, _SHORTEST - 1, -1):
            start = self._after.get(tuple(tokens[-size:]))
            if start is not None:
                return _copied(tokens, start, count)
        return ()


def _copied(tokens: Sequence[int], start: int, count: int) -> tuple[int, ...]:
    """`count` tokens from `start` on; at the end the copy goes on with itself."""
    period = len(tokens) - start
    return tuple(tokens[start + i % period] for i in range(count))


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

        Args:
            share: of a step, one over its requests: together they try no oftener than one alone.
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
        self._times: dict[int, int] = {}

    def note(self, size: int, seconds: float) -> None:
        """Remember one measurement. The first of a size warms up; an outlier counts as twice."""
        times = self._times[size] = self._times.get(size, -1) + 1
        if times == 1:
            self._seconds[size] = seconds
        elif times > 1:
            old = self._seconds[size]
            self._seconds[size] += max(1 / times, _MEMORY) * (min(seconds, 2 * old) - old)

    def of(self, size: int) -> float:
        """Seconds of a size, between its neighbours'; above all, the largest's: it is tried."""
        if size in self._seconds:
            return self._seconds[size]
        below = max((one for one in self._seconds if one < size), default=0)
        above = min((one for one in self._seconds if one > size), default=None)
        low = self._seconds.get(below, 0.0)
        if above is None:
            return low
        return low + (self._seconds[above] - low) * (size - below) / (above - below)


@dataclass
class Counts:
    """What became of proposals, for the metrics."""

    drafts: int = 0
    proposed: int = 0
    kept: int = 0
    kept_at: list[int] = field(default_factory=lambda: [0] * WIDTHS[-1])  # by position

    def add(self, proposed: int, kept: int) -> None:
        """Count one verification."""
        self.drafts, self.proposed = self.drafts + 1, self.proposed + proposed
        self.kept += kept
        for position in range(kept):
            self.kept_at[position] += 1


def width(rate: float, tokens: float, rows: int, step: Cost, extra: Cost) -> int:
    """How many tokens to propose to one request so that a step makes the most tokens a second.

    Args:
        rate: probability that each proposed token is kept.
        tokens: that the step is expected to make without.
        rows: of the step without.
        step: seconds of a step by rows.
        extra: seconds of making a proposal by tokens.

    Returns:
        0 or one of `WIDTHS`.
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

    def __init__(self, source: Draft | Literal["lookup"] | None = "lookup") -> None:
        """Propose what a draft writes, or what a request's own text said before, or nothing."""
        self.counts = Counts()
        self._source = source
        self._step, self._extra = Cost(), Cost()
        self._lookups: dict[int, Lookup] = {}
        self._luck: dict[int, Luck] = {}
        self._proposals: dict[int, Proposal] = {}
        self._forced: set[int] = set()  # whose proposals a grammar leaves no choice about
        self._share, self._tokens, self._rows = 1.0, 0.0, 0  # of the next step, as it is planned
        self._began = 0.0

    def propose(self, running: Sequence[tuple[Job, Chooser]]) -> None:
        """Fill `Job.drafts` of jobs whose tokens are all computed but the last."""
        writing = [one for one in running if one[0].computed == len(one[0].tokens) - 1]
        self._proposals, self._forced = {}, set()
        self._tokens, self._rows = float(len(writing)), len(writing)
        self._share = 1 / max(1, len(writing))
        if self._source is not None:
            free = [one for one in writing if not self._force(*one)]
            if len(writing) >= _CROWD:
                pass
            elif self._source == "lookup":
                self._look_up([job for job, _ in free])
            else:
                self._let_draft(self._source, free)
        for job, _ in writing:
            job.drafts = list(self._proposals.get(job.ticket, NOTHING).tokens)
        self._began = time.perf_counter()

    def proposal(self, work: Work) -> Proposal:
        """What a step verifies of what was proposed to a request."""
        return Proposal(work.drafts, self._proposals.get(work.job.ticket, NOTHING).probabilities)

    def learn(self, work: Sequence[Work], tokens: Sequence[Sequence[int]]) -> None:
        """A step is over: what it computed, and the tokens that each request got."""
        seconds = time.perf_counter() - self._began
        if all(one.span.wanted == len(one.span.ids) for one in work):  # no prompt was read
            self._step.note(sum(len(one.span.ids) for one in work), seconds)
        for one, chosen in zip(work, tokens, strict=True):
            if one.drafts:
                pairs = zip(one.drafts, chosen, strict=False)
                kept = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
                self.counts.add(len(one.drafts), kept)
                if one.job.ticket not in self._forced:
                    self._luck[one.job.ticket].learn(len(one.drafts), kept)

    def forget(self, ticket: int) -> None:
        """A request is over."""
        self._lookups.pop(ticket, None)
        self._luck.pop(ticket, None)
        if self._source is not None and self._source != "lookup":
            self._source.forget(ticket)

    def _force(self, job: Job, chooser: Chooser) -> bool:
        """Propose what a grammar leaves no choice about; whether there is such."""
        forced = chooser.forced()[: WIDTHS[-1]]
        if forced:
            self._proposals[job.ticket] = Proposal(forced)
            self._forced.add(job.ticket)
            self._tokens, self._rows = self._tokens + len(forced), self._rows + len(forced)
        return bool(forced)

    def _look_up(self, writing: Sequence[Job]) -> None:
        for job in writing:
            found = self._lookups.setdefault(job.ticket, Lookup()).propose(job.tokens, WIDTHS[-1])
            if found and (count := self._width(job)):
                self._proposals[job.ticket] = Proposal(found[:count])

    def _let_draft(self, draft: Draft, writing: Sequence[tuple[Job, Chooser]]) -> None:
        asked = [
            (job, chooser.sampling, count)
            for job, chooser in writing
            if (count := self._width(job))
        ]
        if not asked:
            return
        began, behind = time.perf_counter(), draft.behind([job for job, _, _ in asked])
        for (job, _, _), proposal in zip(asked, draft.propose(asked), strict=True):
            self._proposals[job.ticket] = proposal
        if not behind:
            seconds = (time.perf_counter() - began) / len(asked)
            self._extra.note(max(count for _, _, count in asked), seconds)

    def _width(self, job: Job) -> int:
        """How many tokens to propose to a job, beside what this step does already."""
        luck = self._luck.setdefault(job.ticket, Luck())
        count = width(luck.rate, self._tokens, self._rows, self._step, self._extra)
        if count == 0 and luck.retry(self._share):
            count = WIDTHS[0]
        self._tokens, self._rows = self._tokens + gain(luck.rate, count), self._rows + count
        return count
