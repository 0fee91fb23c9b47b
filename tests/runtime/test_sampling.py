from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import RequestError
from compress.runtime.sampling import (
    Sampling,
    choose,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
)

LOGITS = torch.tensor([1.0, 3.0, 2.0, -1.0])


def draws(logits, sampling, count=64):
    generator = sampling.generator()
    return [int(choose(logits, sampling, generator=generator)) for _ in range(count)]


def kept(logits):
    return logits.isfinite().nonzero().flatten().tolist()


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=20, unique=True))
@settings(deadline=None, max_examples=25)
def test_greedy_top_k_of_one_and_temperature_near_zero_agree(values):
    logits = torch.tensor(values, dtype=torch.float32)
    best = int(logits.argmax())
    assert int(choose(logits, Sampling())) == best
    for sampling in (
        Sampling(1.0, top_k=1),
        Sampling(1e-3),
        Sampling(1e-300),
        Sampling(1.0, top_p=1e-9),
        Sampling(1.0, min_p=1.0),
    ):
        assert draws(logits, sampling, 4) == [best] * 4


def test_a_seed_repeats_its_draws_and_another_does_not():
    logits = torch.zeros(1000)
    assert draws(logits, Sampling(1.0, seed=1)) == draws(logits, Sampling(1.0, seed=1))
    assert draws(logits, Sampling(1.0, seed=1)) != draws(logits, Sampling(1.0, seed=2))
    assert draws(logits, Sampling(1.0)) != draws(logits, Sampling(1.0))


def test_a_batch_is_its_rows():
    batch = torch.stack([LOGITS, LOGITS.flip(0)])
    assert choose(batch, Sampling()).tolist() == [1, 2]
    drawn = choose(batch, Sampling(0.7, top_k=2, top_p=0.9, min_p=0.01), generator=None)
    assert drawn.shape == (2,)
    for keep, limit in ((keep_top_k, 2), (keep_top_p, 0.8), (keep_min_p, 0.2)):
        expected = torch.stack([keep(row, limit) for row in batch])
        torch.testing.assert_close(keep(batch, limit), expected)


def test_filters_keep_what_they_say():
    probabilities = LOGITS.softmax(-1)  # 0.09, 0.65, 0.24, 0.01
    assert kept(keep_top_k(LOGITS, 2)) == [1, 2]
    assert kept(keep_top_k(LOGITS, 100)) == [0, 1, 2, 3]
    assert kept(keep_top_p(LOGITS, 0.6)) == [1]
    assert kept(keep_top_p(LOGITS, 0.7)) == [1, 2]
    assert kept(keep_top_p(LOGITS, 1.0)) == [0, 1, 2, 3]
    assert kept(keep_min_p(LOGITS, float(probabilities[2] / probabilities[1]) - 0.01)) == [1, 2]
    assert kept(keep_min_p(LOGITS, 0.0)) == [0, 1, 2, 3]


def test_filters_equal_those_of_transformers():
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
    from transformers.generation import RepetitionPenaltyLogitsProcessor

    torch.manual_seed(0)
    logits, seen = torch.randn(3, 50) * 3, torch.randint(0, 50, (3, 8))
    pairs = [
        (keep_top_k(logits, 7), TopKLogitsWarper(7)),
        (keep_top_p(logits, 0.8), TopPLogitsWarper(0.8)),
        (keep_min_p(logits, 0.1), MinPLogitsWarper(0.1)),
        (penalize_repetition(logits, seen, 1.3), RepetitionPenaltyLogitsProcessor(1.3)),
    ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs(seen, logits.clone()))


def test_draws_follow_the_probabilities():
    generator = torch.Generator().manual_seed(0)
    batch = LOGITS.expand(20_000, -1)
    drawn = choose(batch, Sampling(2.0), generator=generator)
    found = torch.bincount(drawn, minlength=4) / len(batch)
    torch.testing.assert_close(found, (LOGITS / 2).softmax(-1), rtol=0, atol=0.02)


def test_logits_are_not_written():
    logits = LOGITS.clone()
    choose(logits, Sampling(0.5, 2, 0.9, 0.1, 1.2, 0), seen=torch.tensor([1]))
    assert torch.equal(logits, LOGITS)


def test_every_value_out_of_range_is_named():
    with pytest.raises(RequestError) as caught:
        Sampling(temperature=-1, top_k=0, top_p=1.5, min_p=2, repetition_penalty=0)
    for name in ("temperature: -1", "top_k: 0", "top_p: 1.5", "min_p: 2", "repetition_penalty: 0"):
        assert name in str(caught.value)
