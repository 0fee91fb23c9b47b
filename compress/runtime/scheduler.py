"""Which tokens the next step computes. Numbers only, no tensors.

There is no phase of reading and none of writing: a job is its tokens, and how many of them are
computed. What is missing is computed as the budget of a step allows, so a prompt read in chunks, a
prefix found in the cache, a job put back and proposed tokens are all the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from compress.runtime.ledger import PAGE_TOKENS, Ledger, Table

_CROWD = 4  # requests, and at least half as many as are answered: reading them goes first


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
    drafts: list[int] = field(default_factory=list)  # proposed behind its last token, for one step


@dataclass(frozen=True)
class Span:
    """Tokens of one request that a step computes, one behind the other."""

    ids: Sequence[int]
    start: int  # the position of the first
    pages: Sequence[int]  # of the request, from its first token on
    wanted: int = 1  # of so many rows, the last ones, logits are wanted


@dataclass(frozen=True)
class Work:
    """What a step does for a job."""

    job: Job
    span: Span
    drafts: tuple[int, ...] = ()  # the last of the span's tokens; logits of all are wanted


class Scheduler:
    """Jobs that wait, in order, and jobs that run, the oldest first."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        step_tokens: int,
        max_running: int,
        beside_tokens: int | None = None,
    ) -> None:
        """Plan steps.

        Args:
            ledger: of the pages.
            step_tokens: computed in a step at most.
            max_running: jobs at most that run at once.
            beside_tokens: of prompts, in a step that gives others tokens of their answers, so that
                these come soon; unless a crowd waits to be read. None: as many as fit.
        """
        self.ledger = ledger
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []
        self.preemptions = 0
        self.queried_tokens = self.hit_tokens = 0  # of prompts, in the prefix cache
        self.computed_tokens = 0  # of prompts, answers and proposals
        self._step_tokens, self._max_running = step_tokens, max_running
        self._beside_tokens = beside_tokens or step_tokens

    def add(self, job: Job) -> None:
        """Let a job wait for its turn."""
        self.waiting.append(job)

    def remove(self, job: Job) -> None:
        """Forget a job, wherever it is, and free its pages."""
        if job.table.pages:
            self.running.remove(job)
            self.ledger.release(job.table)
        else:
            self.waiting.remove(job)

    def schedule(self) -> list[Work]:
        """Plan a step: running jobs first, then those that wait, as budget and pages allow."""
        self.ledger.begin()
        work: list[Work] = []
        budget = self._budget()
        for index, job in enumerate(tuple(self.running)):
            if not job.table.pages or not self._make_room(job):
                break  # it was put back, and all behind it
            behind = len(self.running) - index - 1  # each of them is to get a token at least
            work.append(self._work(job, budget - behind))
            budget -= len(work[-1].span.ids)
        while self.waiting and budget > 0 and len(self.running) < self._max_running:
            if not self._admit(self.waiting[0]):
                break
            self.running.append(self.waiting.popleft())
            work.append(self._work(self.running[-1], budget))
            budget -= len(work[-1].span.ids)
        return work

    def advance(self, work: Work, tokens: Sequence[int]) -> None:
        """A step is done and gave a job these tokens: proposed ones that hold, then a new one."""
        job = work.job
        job.computed += len(work.span.ids) - len(work.drafts) + max(0, len(tokens) - 1)
        job.tokens += tokens

    def _budget(self) -> int:
        """Tokens of a step; each job that runs gets one at least."""
        answering = [job for job in self.running if len(job.tokens) - job.computed == 1]
        read = len(self.running) - len(answering) + len(self.waiting)
        if not answering or read >= max(_CROWD, len(answering) / 2):
            return self._step_tokens
        wanted = self._beside_tokens + sum(1 + len(job.drafts) for job in answering)
        return min(self._step_tokens, max(wanted, len(self.running)))

    def _make_room(self, job: Job) -> bool:
        """Pages for all tokens of a running job; the newest are put back for it, at last itself."""
        while not self.ledger.grow(job.table, len(job.tokens)):
            newest = self.running.pop()
            self._put_back(newest)
            if newest is job:
                return False
        return True

    def _put_back(self, job: Job) -> None:
        """To the head of the queue; what it has computed is computed again."""
        self.ledger.release(job.table)
        job.computed = 0
        self.waiting.appendleft(job)
        self.preemptions += 1

    def _admit(self, job: Job) -> bool:
        """Give a waiting job pages for all of its tokens, those found in the cache among them."""
        opened = self.ledger.open(job.tokens, job.salt)
        if opened is None:
            return False
        job.table, job.computed = opened
        if job.cached is None:
            job.cached = job.computed
            self.queried_tokens += len(job.tokens)
            self.hit_tokens += job.computed
        return True

    def _work(self, job: Job, budget: int) -> Work:
        """As much of a job as the budget allows. Its pages have room, but for proposed tokens."""
        ids = job.tokens[job.computed : job.computed + budget]
        end = job.computed + len(ids)
        wanted = int(end == len(job.tokens))
        drafts = self._drafts(job, budget - len(ids)) if wanted else ()
        job.drafts = []
        self.computed_tokens += len(ids) + len(drafts)
        self.ledger.note(job.table, job.tokens, end)
        pages = tuple(job.table.pages)
        return Work(job, Span([*ids, *drafts], job.computed, pages, wanted + len(drafts)), drafts)

    def _drafts(self, job: Job, budget: int) -> tuple[int, ...]:
        """Proposed tokens, as budget, limit and pages allow: nobody is put back for them."""
        count = max(0, min(len(job.drafts), budget, job.limit - len(job.tokens) - 1))
        if not self.ledger.grow(job.table, len(job.tokens) + count):
            count = min(count, len(job.table.pages) * PAGE_TOKENS - len(job.tokens))
        return tuple(job.drafts[:count])
