"""Which tokens the next step computes. Numbers only, no tensors.

There is no phase of reading and none of writing: a job is its tokens, and how many of them are
computed. What is missing is computed as the budget of a step allows, so a prompt read in chunks, a
prefix found in the cache, a job put back and proposed tokens are all the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from compress.runtime.ledger import PAGE_TOKENS, Ledger, Table

if TYPE_CHECKING:
    from torch import Tensor

_CROWD = 4  # requests, and at least half as many as are answered: reading them goes first


@dataclass(frozen=True)
class Proposal:
    """Tokens that may come next."""

    tokens: tuple[int, ...] = ()
    probabilities: Tensor | None = None  # [k, V] they were drawn from; None: proposed for certain
    forced: bool = False  # by a grammar, which leaves no choice


NOTHING = Proposal()


@dataclass(eq=False)
class Job:
    """A request on its way."""

    ticket: int
    tokens: list[int]  # of the prompt, then those generated
    limit: int  # tokens at which it ends
    salt: str = ""
    computed: int = 0  # tokens whose keys and values lie in pages
    table: Table = field(default_factory=Table)  # without pages while it waits
    cached: int | None = None  # tokens of the prompt found in pages when it first ran
    proposal: Proposal = NOTHING  # what may follow its last token; behind a plan, what is verified


@dataclass(frozen=True)
class Span:
    """Tokens of one request that a step computes, one behind the other."""

    ids: Sequence[int]
    start: int  # the position of the first
    pages: Sequence[int]  # of the request, from its first token on
    wanted: int = 1  # of so many rows, the last ones, logits are wanted


@dataclass(eq=False)
class Scheduler:
    """Jobs that wait, in order, and jobs that run, the oldest first."""

    ledger: Ledger  # of the pages
    step_tokens: int  # computed in a step at most
    max_running: int  # jobs at most that run at once
    beside_tokens: int  # of prompts, beside tokens of answers, unless a crowd waits to be read
    waiting: deque[Job] = field(default_factory=deque)
    running: list[Job] = field(default_factory=list)
    preemptions: int = 0
    queried_tokens: int = 0  # of prompts, looked for in pages
    hit_tokens: int = 0  # of them, found there
    computed_tokens: int = 0  # of prompts, answers and proposals

    def remove(self, job: Job) -> None:
        """Forget a job, wherever it is, and free its pages."""
        (self.running if job.table.pages else self.waiting).remove(job)
        self.ledger.release(job.table)

    def schedule(self) -> list[tuple[Job, Span]]:
        """Plan a step: running jobs first, then those that wait, as budget and pages allow."""
        self.ledger.begin()
        plan: list[tuple[Job, Span]] = []
        budget = self._budget()
        for index, job in enumerate(tuple(self.running)):
            if not job.table.pages or not self._make_room(job):
                break  # it was put back, and all behind it
            behind = len(self.running) - index - 1  # each of them is to get a token at least
            plan.append((job, self._span(job, budget - behind)))
            budget -= len(plan[-1][1].ids)
        while self.waiting and budget > 0 and len(self.running) < self.max_running:
            job = self.waiting[0]
            if not self._admit(job):
                break
            plan.append((job, self._span(job, budget)))
            budget -= len(plan[-1][1].ids)
        return plan

    def advance(self, job: Job, span: Span, tokens: Sequence[int]) -> None:
        """A step is done and gave a job these tokens: proposed ones that hold, then a new one."""
        job.computed += len(span.ids) - len(job.proposal.tokens) + max(0, len(tokens) - 1)
        job.tokens += tokens

    def _budget(self) -> int:
        """Tokens of a step; each job that runs gets one at least."""
        answering = [job for job in self.running if len(job.tokens) - job.computed == 1]
        read = len(self.running) - len(answering) + len(self.waiting)
        if not answering or read >= max(_CROWD, len(answering) / 2):
            return self.step_tokens
        wanted = self.beside_tokens + sum(1 + len(job.proposal.tokens) for job in answering)
        return min(self.step_tokens, max(wanted, len(self.running)))

    def _make_room(self, job: Job) -> bool:
        """Pages for all tokens of a running job; the newest are put back for it, at last itself."""
        while not self.ledger.grow(job.table, len(job.tokens)):
            newest = self.running.pop()
            self.ledger.release(newest.table)
            newest.computed = 0  # and computed again
            self.waiting.appendleft(newest)
            self.preemptions += 1
            if newest is job:
                return False
        return True

    def _admit(self, job: Job) -> bool:
        """Let the oldest that waits run, if all of its tokens find pages, some in the cache."""
        opened = self.ledger.open(job.tokens, job.salt)
        if opened is None:
            return False
        job.table, job.computed = opened
        if job.cached is None:
            job.cached = job.computed
            self.queried_tokens += len(job.tokens)
            self.hit_tokens += job.computed
        self.running.append(self.waiting.popleft())
        return True

    def _span(self, job: Job, budget: int) -> Span:
        """As much of a job as the budget allows. Its pages have room, but for proposed tokens."""
        ids = job.tokens[job.computed : job.computed + budget]
        end = job.computed + len(ids)
        whole = end == len(job.tokens)
        if job.proposal.tokens:
            job.proposal = self._fitting(job, budget - len(ids)) if whole else NOTHING
        proposed = job.proposal.tokens
        self.computed_tokens += len(ids) + len(proposed)
        self.ledger.note(job.table, job.tokens, end)
        return Span([*ids, *proposed], job.computed, job.table.pages, whole + len(proposed))

    def _fitting(self, job: Job, budget: int) -> Proposal:
        """Of a proposal what budget, limit and pages allow: nobody is put back for it."""
        count = max(0, min(len(job.proposal.tokens), budget, job.limit - len(job.tokens) - 1))
        if not self.ledger.grow(job.table, len(job.tokens) + count):
            count = min(count, len(job.table.pages) * PAGE_TOKENS - len(job.tokens))
        return replace(job.proposal, tokens=job.proposal.tokens[:count])
