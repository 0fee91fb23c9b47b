"""Random submissions, cancels and proposals on tiny pools, with a model that is a hash."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from compress.runtime.ledger import PAGE_TOKENS, Ledger
from compress.runtime.scheduler import NOTHING, Job, Proposal, Scheduler

RUNS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from([1, 5, 31, 32, 33])), min_size=1)


def said(tokens):
    """The token that a model of no sense puts behind others."""
    return hashlib.sha256(bytes(tokens)).digest()[0] % 3


def alone(prompt, limit):
    tokens = list(prompt)
    while len(tokens) < limit:
        tokens.append(said(tokens))
    return tokens


class Machine:
    """Pages that hold tokens in place of keys and values, and what an engine does with them."""

    def __init__(self, pages, step_tokens, max_running, beside_tokens=None):
        self.ledger = Ledger(pages)
        self.held = [[None] * PAGE_TOKENS for _ in range(pages)]
        beside = step_tokens if beside_tokens is None else beside_tokens
        self.scheduler = Scheduler(self.ledger, step_tokens, max_running, beside)
        self.step_tokens, self.jobs, self.expected, self.done = step_tokens, {}, {}, {}

    def submit(self, prompt, new, salt=""):
        most = len(self.held) * PAGE_TOKENS
        prompt = prompt[:most]
        job = Job(len(self.expected), list(prompt), min(len(prompt) + new, most + 1), salt)
        self.jobs[job.ticket], self.expected[job.ticket] = job, alone(prompt, job.limit)
        self.scheduler.waiting.append(job)

    def step(self):
        plan = self.scheduler.schedule()
        assert sum(len(span.ids) for _, span in plan) <= self.step_tokens
        assert {job for job, _ in plan} == set(self.scheduler.running)
        for source, target in self.ledger.copies:
            self.held[target] = list(self.held[source])
        for _, span in plan:
            assert span.ids
            for at, token in enumerate(span.ids, span.start):
                self.held[span.pages[at // PAGE_TOKENS]][at % PAGE_TOKENS] = token
        for job, span in plan:
            self.take(job, span)
        return plan

    def take(self, job, span):
        end, drafts = span.start + len(span.ids), job.proposal.tokens
        read = [token for page in span.pages for token in self.held[page]][:end]
        assert read == (job.tokens + list(drafts))[:end]
        tokens = []
        if span.wanted:
            assert span.wanted == 1 + len(drafts)
            tokens = [said(job.tokens)]
            for draft in drafts:
                if draft != tokens[-1]:
                    break
                tokens.append(said(job.tokens + tokens))
        else:
            assert not drafts
        self.scheduler.advance(job, span, tokens)
        job.proposal = NOTHING  # nobody proposes for every step here
        assert len(job.tokens) <= job.limit
        if len(job.tokens) == job.limit:
            self.scheduler.remove(self.jobs.pop(job.ticket))
            self.done[job.ticket] = job.tokens

    def check(self):
        ledger, users = self.ledger, Counter(p for j in self.jobs.values() for p in j.table.pages)
        pages = range(ledger.pages)
        assert ledger._users == [users[page] for page in pages]
        assert sorted([*ledger._free, *ledger._idle, *users]) == list(pages)
        assert set(ledger._idle) <= set(ledger._known)
        behind = {
            page: (digest, part)
            for digest, parts in ledger._behind.items()
            for part, page in parts.items()
        }
        assert behind == ledger._known
        assert all(ledger._behind.values())
        assert all(job.computed == 0 for job in self.scheduler.waiting)
        for job in self.jobs.values():
            own = job.table.pages[job.table.known :]
            assert all(users[page] == 1 and page not in ledger._known for page in own)

    def finish(self):
        steps = 0
        while self.jobs:
            assert self.step()
            steps += 1
            assert steps < 5_000
        self.check()
        assert self.ledger.available == self.ledger.pages
        assert all(self.expected[ticket] == tokens for ticket, tokens in self.done.items())


class Anything(RuleBasedStateMachine):
    @initialize(
        pages=st.integers(1, 9), running=st.integers(1, 5), more=st.sampled_from([0, 3, 70])
    )
    def open(self, pages, running, more):
        self.machine = Machine(pages, running + more, running)

    @rule(runs=RUNS, new=st.integers(1, 40), salt=st.sampled_from(["", "", "a"]))
    def submit(self, runs, new, salt):
        self.machine.submit([token for token, count in runs for _ in range(count)], new, salt)

    @rule(steps=st.integers(1, 8))
    def step(self, steps):
        for _ in range(steps):
            self.machine.step()

    @precondition(lambda self: self.machine.jobs)
    @rule(which=st.integers(0, 100))
    def cancel(self, which):
        tickets = list(self.machine.jobs)
        job = self.machine.jobs.pop(tickets[which % len(tickets)])
        self.machine.scheduler.remove(job)

    @precondition(lambda self: self.machine.jobs)
    @rule(which=st.integers(0, 100), right=st.integers(0, 7), wrong=st.integers(0, 2))
    def propose(self, which, right, wrong):
        tickets = list(self.machine.jobs)
        job = self.machine.jobs[tickets[which % len(tickets)]]
        tokens = alone(job.tokens, len(job.tokens) + right)
        guess = [*tokens[len(job.tokens) :], *[(said(tokens) + 1) % 3] * wrong]
        job.proposal = Proposal(tuple(guess))

    @invariant()
    def counts(self):
        if hasattr(self, "machine"):
            self.machine.check()

    def teardown(self):
        if hasattr(self, "machine"):
            self.machine.finish()


TestAnything = Anything.TestCase
TestAnything.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip


def test_a_long_prompt_leaves_each_of_those_that_write_a_token_a_step():
    machine = Machine(pages=20, step_tokens=16, max_running=8)
    machine.submit([0], 30)
    machine.step()
    machine.submit([1] * 200, 5)
    machine.submit([2], 30)
    for _ in range(10):
        counts = [len(span.ids) for _, span in machine.step()]
        assert counts[0] == 1
        assert sum(counts) == 16 or counts[1:] == [1]
    machine.finish()


def test_prompts_are_read_in_smaller_parts_beside_answers():
    machine = Machine(pages=20, step_tokens=64, max_running=8, beside_tokens=9)
    machine.submit([0] * 100, 3)
    machine.submit([1] * 100, 3)
    counts = [[len(span.ids) for _, span in machine.step()] for _ in range(12)]
    assert counts[:4] == [[64], [36, 28], [1, 9], [1, 9]]
    assert counts[4:] == [[54], [1], [1], *[[]] * 5]
    machine.finish()


def test_a_crowd_that_waits_is_read_first():
    machine = Machine(pages=60, step_tokens=64, max_running=8, beside_tokens=9)
    for token in range(6):
        machine.submit([token] * 50, 3)
    counts = [[len(span.ids) for _, span in machine.step()] for _ in range(3)]
    assert counts == [[50, 14], [1, 36, 27], [1, 1, 23, 39]]
    machine.finish()


def test_the_newest_is_put_back_and_finds_its_full_pages_again():
    machine = Machine(pages=5, step_tokens=64, max_running=4)
    machine.submit([0] * 60, 60)
    machine.submit([1] * 60, 30)
    machine.finish()
    assert machine.scheduler.preemptions == 1
    assert machine.scheduler.hit_tokens == 0  # what is put back does not count as a hit


def test_requests_that_come_together_read_what_they_share_once():
    machine = Machine(pages=40, step_tokens=200, max_running=8)
    for token in range(3):
        machine.submit([0] * 100 + [token], 3)
    assert [len(span.ids) for _, span in machine.step()] == [101, 5, 5]
    assert machine.scheduler.hit_tokens == 2 * 96
    assert machine.scheduler.queried_tokens == 303
    machine.finish()


@pytest.mark.parametrize("when", [0, 1, 2, 5])
def test_a_cancelled_request_holds_no_page(when):
    machine = Machine(pages=8, step_tokens=16, max_running=1)
    machine.submit([0] * 40, 10)
    for _ in range(when):
        machine.step()
    machine.scheduler.remove(machine.jobs.pop(0))
    assert machine.ledger.available == 8
    assert machine.step() == []
