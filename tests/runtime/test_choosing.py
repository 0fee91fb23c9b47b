from __future__ import annotations

import random

import pytest
import torch

from compress.runtime.request import Request, Sampling
from compress.runtime.sampling import Chooser, Seen, choose_all, distribution, draw
from compress.runtime.scheduler import NOTHING, Proposal

VOCAB = 12
SAMPLINGS = [
    Sampling(),
    Sampling(1.0, seed=3),
    Sampling(0.8, top_k=5, top_p=0.9, min_p=0.02, seed=4),
    Sampling(1.5, repetition_penalty=1.3, seed=5, presence_penalty=0.5, frequency_penalty=0.3),
    Sampling(repetition_penalty=1.5, logit_bias={2: 1.0}),
]


def chooser(sampling=SAMPLINGS[0], **how):
    return Chooser(Request((1, 2), sampling), **how)


def after(tokens):
    """What a small model says after these tokens: noise that only they decide."""
    seed = hash(tuple(tokens)) % 2**31
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * 2


def answer(sampling, proposals, count=24):
    """Let a chooser write `count` tokens; `proposals` says what is proposed after some tokens."""
    writer, tokens = chooser(sampling), [1, 2]
    while len(tokens) < count + 2:
        proposal = proposals(tokens)
        rows = [after([*tokens, *proposal.tokens[:i]]) for i in range(len(proposal.tokens) + 1)]
        tokens += choose_all(torch.stack(rows), [(writer, proposal)])[0].tokens
    return tokens[2 : count + 2]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_proposed_for_certain_or_not_the_text_is_the_same(sampling):
    plain = answer(sampling, lambda tokens: NOTHING)
    assert plain == answer(sampling, lambda tokens: Proposal((3, 4, 5)))

    def oracle(tokens):  # right, wrong and half right
        at = len(tokens) - 2
        wrong = [*plain[at : at + 3], *([0] * 8)]
        wrong[at % 4] = 0
        return Proposal(tuple(wrong[:7]))

    assert plain == answer(sampling, oracle)


def test_one_token_is_what_its_distribution_and_chance_say():
    for sampling in SAMPLINGS:
        logits = after([7])
        chance = random.Random(sampling.seed)
        expected = draw(distribution(logits, sampling, Seen([1])), chance)
        assert Chooser(Request((1,), sampling)).choose(logits[None]).tokens == (expected,)


def test_a_batch_chooses_what_each_would_alone():
    turns = [(chooser(s), Proposal((3, 4)[: i % 3])) for i, s in enumerate(SAMPLINGS)]
    alone = [(chooser(s), proposal) for s, (_, proposal) in zip(SAMPLINGS, turns, strict=True)]
    logits = torch.randn(sum(len(p.tokens) + 1 for _, p in turns), VOCAB)
    together = choose_all(logits, turns)
    start = 0
    for (writer, proposal), found in zip(alone, together, strict=True):
        rows = logits[start : start + len(proposal.tokens) + 1]
        assert writer.choose(rows, proposal) == found
        start += len(rows)


def test_an_end_stops_even_where_what_follows_was_proposed():
    logits = torch.zeros(4, VOCAB)
    for row, token in enumerate((3, 9, 4, 5)):
        logits[row, token] = 1.0
    chosen = chooser(ends=frozenset({9})).choose(logits, Proposal((3, 9, 4)))
    assert (chosen.tokens, chosen.finish_reason) == ((3, 9), "stop")
    chosen = chooser().choose(logits, Proposal((3, 9, 4)))
    assert (chosen.tokens, chosen.finish_reason) == ((3, 9, 4, 5), None)


def test_a_request_whose_logits_are_no_numbers_fails_alone():
    logits = torch.stack([torch.full((VOCAB,), torch.nan), after([1])])
    first, second = (Chooser(Request((1,), Sampling(1.0, seed=0))) for _ in range(2))
    broken, fine = choose_all(logits, [(first, NOTHING), (second, NOTHING)])
    assert (broken.tokens, broken.finish_reason) == ((), "error")
    assert "not numbers" in broken.error
    assert len(fine.tokens) == 1
    assert fine.finish_reason is None
