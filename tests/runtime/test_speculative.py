from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.runtime.request import Request, Sampling
from compress.runtime.sampling import Chooser, accept, distribution, draw
from compress.runtime.scheduler import Job, Proposal, Span
from compress.runtime.speculative import (
    WIDTHS,
    Cost,
    Lookup,
    Luck,
    Speculation,
    width,
)

DRAWS = 20_000


def one(seed, vocab=6, sharp=2.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(vocab, generator=generator) * sharp).softmax(-1)


@pytest.mark.parametrize("seed", range(4))
def test_what_a_draft_drew_is_kept_or_replaced_so_that_it_follows_the_model(seed):
    from scipy.stats import chisquare  # a second of imports

    target, draft, chance = one(seed), one(seed + 100), random.Random(seed)
    found, kept = torch.zeros(6), 0
    for _ in range(DRAWS):
        token = draw(draft, chance)
        chosen = accept(target, draft, token, chance)
        found[chosen] += 1
        kept += chosen == token
    assert chisquare(found, target.double() / target.double().sum() * DRAWS).pvalue > 0.01
    expected = float(torch.minimum(target, draft).sum())  # no rule keeps more
    assert kept / DRAWS == pytest.approx(expected, abs=0.015)


def test_a_draft_that_agrees_is_always_kept_and_a_forbidden_token_never():
    target, chance = one(0), random.Random(0)
    assert all(accept(target, target, token, chance) == token for token in range(6))
    forbidden = torch.tensor([0.0, 1.0])
    assert accept(forbidden, torch.tensor([1.0, 0.0]), 0, chance) == 1


def walk(logits, sampling, propose, seed):
    """Two tokens of a model whose second distribution depends on its first token."""
    chooser = Chooser(Request((0,), sampling))
    chooser._chance = random.Random(seed)
    tokens: list[int] = []
    while len(tokens) < 2:
        proposal = propose(tokens)
        path = [*tokens, *proposal.tokens]
        rows = [logits[path[at - 1] if at else 0] for at in range(len(tokens), len(path) + 1)]
        tokens += chooser.choose(torch.stack(rows), proposal).tokens
    return tuple(tokens[:2])


@pytest.mark.parametrize("kind", ["certain", "drawn"])
def test_pairs_of_tokens_are_distributed_as_without_proposals(kind):
    from scipy.stats import chi2_contingency  # a second of imports

    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(1)) * 1.5
    guess = torch.randn(4, 4, generator=torch.Generator().manual_seed(2)) * 1.5
    sampling, chance = Sampling(0.9, top_p=0.95), random.Random(3)

    def nothing(tokens):
        return Proposal()

    def certain(tokens):
        return Proposal((1, 2, 0))

    def drawn(tokens):
        q, proposed, last = [], [], tokens[-1] if tokens else 0
        for _ in range(3):
            q.append(distribution(guess[last], sampling))
            last = draw(q[-1], chance)
            proposed.append(last)
        return Proposal(tuple(proposed), torch.stack(q))

    propose = {"certain": certain, "drawn": drawn}[kind]
    tables = torch.zeros(2, 16)
    for seed in range(3_000):
        for row, way in enumerate((nothing, propose)):
            first, second = walk(logits, sampling, way, seed + row * 10_000)
            tables[row, 4 * first + second] += 1
    possible = tables.sum(0) > 0
    assert chi2_contingency(tables[:, possible].numpy()).pvalue > 0.01


def test_lookup_proposes_what_followed_the_longest_ending_last_time():
    tokens = [1, 2, 3, 9, 4, 2, 3, 8, 5, 1, 2, 3]
    assert Lookup().propose(tokens, 3) == (9, 4, 2)  # 1 2 3, not the later 2 3
    assert Lookup().propose([5, 2, 3, 8, 2, 3, 7, 2, 3], 2) == (7, 2)  # the later of two
    assert Lookup().propose([1, 2, 3, 4], 3) == ()
    assert Lookup().propose([1], 3) == ()


def test_lookup_goes_on_with_a_period_that_is_shorter_than_what_is_asked():
    assert Lookup().propose([7, 8, 7, 8, 7, 8], 7) == (7, 8, 7, 8, 7, 8, 7)
    assert Lookup().propose([5, 5, 5], 3) == (5, 5, 5)


def slow_lookup(tokens, count):
    for size in (4, 3, 2):
        for end in range(len(tokens) - 1, size - 1, -1):
            if len(tokens) > size and tokens[end - size : end] == tokens[-size:]:
                grown = list(tokens)
                while len(grown) < len(tokens) + count:
                    grown.append(grown[end + len(grown) - len(tokens)])
                return tuple(grown[len(tokens) :])
    return ()


@given(st.lists(st.integers(0, 3), max_size=30), st.sampled_from(WIDTHS))
@settings(deadline=None, max_examples=200)
def test_lookup_token_by_token_equals_a_search_through_everything(tokens, count):
    lookup = Lookup()
    for end in range(1, len(tokens) + 1):
        assert lookup.propose(tokens[:end], count) == slow_lookup(tokens[:end], count)


def cost(seconds):
    made = Cost()
    for size, value in seconds.items():
        for _ in range(3):
            made.note(size, value)
    return made


FREE = Cost()


def test_proposals_are_as_wide_as_pays():
    packed = cost({1: 1.0, 4: 1.42, 8: 2.6})
    assert width(0.99, 1, 1, packed, FREE) == 7
    assert width(0.6, 1, 1, packed, FREE) == 3
    assert width(0.2, 1, 1, packed, FREE) == 0
    assert width(0.7, 1, 1, packed, cost({3: 0.2 * 3})) == 3
    assert width(0.7, 1, 1, packed, cost({3: 0.5 * 3})) == 0


def test_nothing_is_proposed_before_a_step_was_measured_and_an_unknown_width_is_tried():
    assert width(0.9, 1, 1, Cost(), FREE) == 0
    assert width(0.3, 1, 1, cost({1: 1.0}), FREE) > 0


def test_a_full_batch_proposes_less():
    linear = cost({rows: 1 + 0.1 * rows for rows in range(1, 64)})
    assert width(0.5, 1, 1, linear, FREE) > 0
    assert width(0.5, 32, 32, linear, FREE) == 0


def test_a_cost_forgets_the_first_time_and_clips_outliers():
    seen = Cost()
    seen.note(4, 100.0)
    assert seen.of(4) == 0
    for _ in range(50):
        seen.note(4, 1.0)
    seen.note(4, 1000.0)
    assert seen.of(4) < 1.1
    assert (seen.of(2), seen.of(7)) == (seen.of(4) / 2, seen.of(4))


def test_luck_follows_what_is_kept():
    luck = Luck()
    for _ in range(50):
        luck.learn(3, 3)
    assert luck.rate > 0.95
    for _ in range(50):
        luck.learn(3, 0)
    assert luck.rate < 0.1


def test_failures_make_patient():
    luck = Luck()
    tries = [step for step in range(3000) if luck.retry(1)]
    assert len(tries) < 12
    gaps = [b - a for a, b in pairwise(tries)]
    assert gaps == sorted(gaps)
    luck.learn(3, 3)
    assert luck.patience == 32


def test_counts_tell_positions():
    speculation = Speculation("lookup")
    jobs = [Job(ticket, [1], 99) for ticket in range(3)]
    jobs[0].proposal, jobs[1].proposal = Proposal((5, 6, 7)), Proposal((5,) * 7)
    plan = [(job, Span([1, *job.proposal.tokens], 0, ())) for job in jobs]
    speculation.learn(plan, [[5, 6, 8], [6], [5]])
    assert (speculation.drafts, speculation.proposed, speculation.kept) == (2, 10, 2)
    assert speculation.kept_at == [1, 1, 0, 0, 0, 0, 0]


class Clock:
    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr("compress.runtime.speculative.time.perf_counter", lambda: self.now)


class Guesses:
    """A draft that takes its time."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds, self.behind = clock, seconds, False

    def propose(self, asks):
        self.clock.now += self.seconds * max(count for _, _, count in asks)
        return [Proposal((0,) * count) for _, _, count in asks]


def simulated(monkeypatch, *, right, step, draft=0.0, jobs=1, steps=4000):
    """Tokens a second with speculation over those without, of a machine made up."""
    clock, chance = Clock(monkeypatch), random.Random(0)
    speculation = Speculation(Guesses(clock, draft))
    running = [
        (Job(ticket, [1], 10**9), Chooser(Request((1,), Sampling()))) for ticket in range(jobs)
    ]
    made = 0
    for _ in range(steps):
        speculation.propose(running)
        plan, chosen = [], []
        for job, _ in running:
            drafts = job.proposal.tokens
            kept = next((i for i in range(len(drafts)) if chance.random() > right), len(drafts))
            span = Span([*job.tokens[-1:], *drafts], job.computed, (), 1 + len(drafts))
            plan.append((job, span))
            chosen.append([0] * kept + [1])
            job.tokens, job.computed = [1] * (job.computed + kept + 2), job.computed + kept + 1
            made += kept + 1
        noise = 1 + 0.1 * chance.random()
        clock.now += noise * step(sum(len(span.ids) for _, span in plan))
        speculation.learn(plan, chosen)
        for job, _ in running:  # the simulation needs no text
            job.tokens, job.computed = [1], 0
    return made / clock.now / (jobs / 1.05 / step(jobs))


def packed(rows):
    return 1.0 if rows < 4 else 0.4 + rows * 0.26


def flat(rows):
    return 1 + rows * 0.02


@pytest.mark.parametrize("step", [packed, flat])
@pytest.mark.parametrize("jobs", [1, 7])
@pytest.mark.parametrize("right", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("draft", [0.0, 0.3])
def test_speculation_is_never_much_worse(monkeypatch, step, jobs, right, draft):
    found = simulated(monkeypatch, right=right, step=step, draft=draft, jobs=jobs, steps=1500)
    assert found > 0.97


def test_a_crowd_is_proposed_nothing(monkeypatch):
    assert simulated(monkeypatch, right=0.98, step=flat, jobs=7, steps=500) > 2
    assert simulated(monkeypatch, right=0.98, step=flat, jobs=8, steps=500) == pytest.approx(
        1, 0.01
    )


def test_speculation_gets_what_there_is_to_get(monkeypatch):
    assert simulated(monkeypatch, right=0.98, step=flat) > 6
    assert simulated(monkeypatch, right=0.98, step=packed) > 2.3
    assert simulated(monkeypatch, right=0.8, step=flat, draft=0.1) > 1.9
