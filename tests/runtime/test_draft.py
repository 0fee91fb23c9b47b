from __future__ import annotations

import random

import pytest
import torch

from compress.artifact.layout import open_artifact
from compress.runtime.batch import alone
from compress.runtime.draft import Draft
from compress.runtime.model import Model
from compress.runtime.request import Sampling
from compress.runtime.sampling import distribution
from compress.runtime.scheduler import NOTHING, Job

VOCAB, DRAWN = 320, Sampling(0.5, top_k=20)


@pytest.fixture(scope="module")
def model(tiny_llama):
    return Model(open_artifact(tiny_llama), torch.float32)


def drafted(model, **room):
    return Draft(model, **{"vocab_size": VOCAB, "kv_tokens": 512, "step_tokens": 64, **room})


def rows(model, tokens, count):
    """Logits behind the last `count` of these tokens, read anew."""
    batch = alone(tokens, wanted=count)
    return model.logits(model.forward(batch, model.pages(len(tokens))))


def job(ticket, tokens):
    return Job(ticket, list(tokens), 10**9)


def test_each_token_was_drawn_from_the_distribution_that_is_told(model):
    """Through refusals, steps without it, chunks of a prompt and pages that two requests share."""
    draft, chance = drafted(model, step_tokens=40), random.Random(0)
    jobs = [job(1, range(70)), job(2, range(70)), job(3, [5, 6, 7])]
    told = 0
    for turn in range(24):
        if turn % 3 == 2:
            for one in jobs:
                one.tokens.append(chance.randrange(VOCAB))
            continue
        for one, proposal in zip(
            jobs, draft.propose([(one, DRAWN, 3) for one in jobs]), strict=True
        ):
            if proposal is NOTHING:
                continue  # its prompt is still being read
            told += 1
            logits = rows(model, [*one.tokens, *proposal.tokens], 4)
            for place, token in enumerate(proposal.tokens):
                expected = distribution(logits[place], DRAWN)
                torch.testing.assert_close(proposal.probabilities[place], expected)
                assert expected[token] > 0
            kept = chance.randrange(4)
            one.tokens += [*proposal.tokens[:kept], chance.randrange(VOCAB)]
    assert told > 24


def test_the_likeliest_are_proposed_where_the_text_must_be_one(model):
    for sampling in (Sampling(), Sampling(0.5, seed=1)):
        proposal = drafted(model).propose([(job(1, [1, 2, 3]), sampling, 7)])[0]
        assert proposal.probabilities is None
        likeliest = rows(model, [1, 2, 3, *proposal.tokens], 8).argmax(-1)[:-1]
        assert proposal.tokens == tuple(likeliest.tolist())


def test_each_gets_as_many_as_it_asked_for(model):
    asks = [(job(ticket, [ticket, 1]), DRAWN, count) for ticket, count in ((1, 3), (2, 7), (3, 1))]
    assert [len(one.tokens) for one in drafted(model).propose(asks)] == [3, 7, 1]


def test_a_head_of_another_height_is_cut_or_filled(model):
    for vocab_size in (300, 330):
        draft = drafted(model, vocab_size=vocab_size)
        proposal = draft.propose([(job(1, [1, 2]), DRAWN, 3)])[0]
        assert proposal.probabilities.shape == (3, vocab_size)
        assert max(proposal.tokens) < min(vocab_size, VOCAB)


def test_without_room_nothing_is_proposed_and_nothing_kept(model):
    draft = drafted(model, kv_tokens=64)
    small, large = job(1, range(30)), job(2, range(60))
    assert draft.propose([(large, DRAWN, 7)]) == [NOTHING]  # 66 tokens, 64 fit
    first, second = draft.propose([(small, DRAWN, 3), (large, DRAWN, 3)])
    assert (len(first.tokens), second) == (3, NOTHING)
    draft.forget(1)
    assert draft._ledger.available == 2
    assert not draft._seats


def test_a_text_longer_than_it_can_read_gets_nothing(model):
    longest = model.settings.max_tokens
    draft = drafted(model, step_tokens=longest)
    assert draft.propose([(job(1, [1] * (longest - 1)), DRAWN, 3)]) == [NOTHING]
    assert len(draft.propose([(job(2, [1] * (longest - 2)), DRAWN, 3)])[0].tokens) == 3


def test_it_knows_when_it_is_behind(model):
    draft, one = drafted(model), job(1, range(10))
    behind = []
    for more in ([], [3], [1, 2, 3], [4, 5]):
        one.tokens += more
        draft.propose([(one, DRAWN, 3)])
        behind.append(draft.behind)
    assert behind == [True, False, True, False]
