from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import RequestError, RunError
from compress.runtime.request import Sampling
from compress.runtime.sampling import (
    Seen,
    adjusted,
    distribution,
    draw,
    keep_min_p,
    keep_top_p,
    penalize_repetition,
)

LOGITS = torch.tensor([1.0, 3.0, 2.0, -1.0])
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_k=st.sampled_from([None, 1, 3, 100]),
    top_p=st.sampled_from([None, 0.3, 0.8, 1.0]),
    min_p=st.sampled_from([None, 0.0, 0.1, 1.0]),
    repetition_penalty=st.sampled_from([0.8, 1.0, 1.5]),
    presence_penalty=st.sampled_from([-1.0, 0.0, 1.5]),
    frequency_penalty=st.sampled_from([0.0, 0.4]),
    logit_bias=st.dictionaries(st.integers(0, 4), st.sampled_from([-100, 2.5, 100])),
)


def straightforward(logits, sampling, prompt, generated):
    """The definitions, a token at a time, in Python's float64."""
    x = [float(v) + sampling.logit_bias.get(i, 0) for i, v in enumerate(logits)]
    for token in {*prompt, *generated}:
        penalty = sampling.repetition_penalty
        x[token] = x[token] / penalty if x[token] > 0 else x[token] * penalty
    for token in set(generated):
        x[token] -= sampling.frequency_penalty * generated.count(token)
        x[token] -= sampling.presence_penalty
    if sampling.temperature == 0:
        return [float(i == x.index(max(x))) for i in range(len(x))]
    x = [(v - max(x)) / sampling.temperature for v in x]
    if sampling.top_k is not None:
        least = sorted(x)[::-1][: sampling.top_k][-1]
        x = [v if v >= least else -math.inf for v in x]
    if sampling.top_p is not None:
        probabilities, reached = softmax(x), 0.0
        for i in sorted(range(len(x)), key=lambda i: -x[i]):
            if reached >= sampling.top_p:
                x[i] = -math.inf
            reached += probabilities[i]
    if sampling.min_p is not None:
        probabilities = softmax(x)
        least = sampling.min_p * max(probabilities)
        held = zip(x, probabilities, strict=True)
        x = [v if p >= least * (1 - 1e-9) else -math.inf for v, p in held]
    return softmax(x)


def softmax(x):
    weights = [math.exp(v - max(x)) for v in x]
    return [w / sum(weights) for w in weights]


def draws(logits, sampling, count=64):
    source = random.Random(sampling.seed)
    return [draw(distribution(logits, sampling), source) for _ in range(count)]


def kept(logits):
    return logits.isfinite().nonzero().flatten().tolist()


@given(
    st.lists(st.integers(-40, 40), min_size=5, max_size=12, unique=True),
    SAMPLINGS,
    st.lists(st.integers(0, 4), max_size=6),
    st.lists(st.integers(0, 4), max_size=6),
)
@settings(deadline=None, max_examples=200)
def test_a_distribution_is_what_its_definitions_say(values, sampling, prompt, generated):
    # Sevenths: two sums of different tokens never meet, so there are no ties to break.
    logits = [v / 7 + i * 1e-3 for i, v in enumerate(values)]
    found = distribution(torch.tensor(logits), sampling, Seen(prompt, generated))
    expected = straightforward(torch.tensor(logits).double().tolist(), sampling, prompt, generated)
    assert found.tolist() == pytest.approx(expected, abs=2e-5)
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=20, unique=True))
@settings(deadline=None, max_examples=25)
def test_greedy_top_k_of_one_and_temperature_near_zero_agree(values):
    logits = torch.tensor(values, dtype=torch.float32)
    best = int(logits.argmax())
    for sampling in (
        Sampling(),
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


def test_a_batch_of_filters_is_its_rows():
    batch = torch.stack([LOGITS, LOGITS.flip(0)])
    for keep, limit in ((keep_top_p, 0.8), (keep_min_p, 0.2)):
        expected = torch.stack([keep(row, limit) for row in batch])
        torch.testing.assert_close(keep(batch, limit), expected)


def test_filters_keep_what_they_say():
    probabilities = LOGITS.softmax(-1)  # 0.09, 0.65, 0.24, 0.01
    for k, left in ((1, [1]), (2, [1, 2]), (100, [0, 1, 2, 3])):
        assert distribution(LOGITS, Sampling(1.0, top_k=k)).nonzero().flatten().tolist() == left
    assert kept(keep_top_p(LOGITS, 0.6)) == [1]
    assert kept(keep_top_p(LOGITS, 0.7)) == [1, 2]
    assert kept(keep_top_p(LOGITS, 1.0)) == [0, 1, 2, 3]
    assert kept(keep_min_p(LOGITS, float(probabilities[2] / probabilities[1]) - 0.01)) == [1, 2]
    assert kept(keep_min_p(LOGITS, 0.0)) == [0, 1, 2, 3]
    assert kept(keep_top_p(LOGITS.masked_fill(LOGITS > 2, -torch.inf), 0.9999)) == [0, 2, 3]


def test_filters_equal_those_of_transformers():
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
    from transformers.generation import RepetitionPenaltyLogitsProcessor

    torch.manual_seed(0)
    logits, seen = torch.randn(3, 50) * 3, torch.randint(0, 50, (3, 8))
    pairs = [
        (keep_top_p(logits, 0.8), TopPLogitsWarper(0.8)),
        (keep_min_p(logits, 0.1), MinPLogitsWarper(0.1)),
        (penalize_repetition(logits, seen, 1.3), RepetitionPenaltyLogitsProcessor(1.3)),
    ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs(seen, logits.clone()))
    ours = [distribution(row, Sampling(1.0, top_k=7)) for row in logits]
    theirs = TopKLogitsWarper(7)(seen, logits.clone()).softmax(-1)
    torch.testing.assert_close(torch.stack(ours), theirs)


@pytest.mark.parametrize(
    "sampling",
    [Sampling(2.0, seed=0), Sampling(0.7, top_k=3, seed=1), Sampling(1.0, top_p=0.95, seed=2)],
)
def test_draws_follow_the_probabilities(sampling):
    from scipy.stats import chisquare  # a second of imports

    expected = distribution(LOGITS, sampling)
    found = torch.bincount(torch.tensor(draws(LOGITS, sampling, 20_000)), minlength=4)
    assert not found[expected == 0].any()
    possible = expected > 0
    if possible.sum() > 1:
        told = expected[possible].double()
        assert chisquare(found[possible], told / told.sum() * 20_000).pvalue > 0.01


def test_a_draw_never_takes_what_has_no_probability():
    chance = random.Random(0)
    for unlikely in (0.25, 1e-4):  # alone, and as one with all others
        probabilities = torch.tensor([0.0, unlikely, 0.0, 1 - unlikely, 0.0])
        found = [draw(probabilities, chance) for _ in range(50_000 if unlikely < 0.1 else 100)]
        assert set(found) == {1, 3}


@pytest.mark.parametrize("flat", [False, True])
def test_draws_follow_a_whole_vocabulary_likely_and_unlikely(flat):
    from scipy.stats import chisquare  # a second of imports

    logits = torch.zeros(4096) if flat else torch.linspace(4, -4, 4096)
    told, source = logits.softmax(-1), random.Random(0)
    found = torch.tensor([draw(told, source) for _ in range(20_000)])
    counts = torch.bincount(found, minlength=4096).view(-1, 64).sum(1)
    expected = told.double().view(-1, 64).sum(1)
    assert chisquare(counts, expected / expected.sum() * 20_000).pvalue > 0.01


def test_last_bits_of_logits_change_next_to_no_draw():
    noise = torch.Generator().manual_seed(0)
    logits = torch.linspace(6, -6, 4096)[torch.randperm(4096, generator=noise)]
    drift = torch.linspace(-1, 1, 4096) * 1e-4  # as one: sums of probabilities would all move
    changed = 0
    for seed in range(4_000):
        one, other = (
            draw(distribution(x, Sampling(1.0, top_p=0.95)), random.Random(seed))
            for x in (logits, logits + drift)
        )
        changed += one != other
    assert changed <= 2


def test_a_model_that_makes_no_numbers_is_told():
    with pytest.raises(RunError, match="not numbers"):
        draw(distribution(torch.full((4,), torch.nan), Sampling(1.0)), random.Random(0))


def test_penalties_count_prompt_and_answer_as_openai_and_vllm_do():
    seen = Seen([0], [1])
    seen.times[1] += 1
    presence = adjusted(LOGITS, Sampling(presence_penalty=0.5), seen)
    assert presence.tolist() == [1.0, 2.5, 2.0, -1.0]
    frequency = adjusted(LOGITS, Sampling(frequency_penalty=0.5), seen)
    assert frequency.tolist() == [1.0, 2.0, 2.0, -1.0]
    repetition = adjusted(LOGITS, Sampling(repetition_penalty=2.0), seen)
    assert repetition.tolist() == [0.5, 1.5, 2.0, -1.0]


def test_logits_are_not_written():
    logits = LOGITS.clone()
    every = Sampling(0.5, 2, 0.9, 0.1, 1.2, 0, 0.5, 0.5, {2: 1.0})
    distribution(logits, every, Seen([1], [2]))
    assert torch.equal(logits, LOGITS)


def test_every_value_out_of_range_is_named():
    with pytest.raises(RequestError) as caught:
        Sampling(-1, 0, 1.5, 2, 0, None, math.nan, -3, {7: 101})
    for name in (
        "temperature: -1", "top_k: 0", "top_p: 1.5", "min_p: 2", "repetition_penalty: 0",
        "presence_penalty: nan", "frequency_penalty: -3", "logit_bias: 101 of token 7",
    ):  # fmt: skip
        assert name in str(caught.value)


def test_a_biased_token_is_one_of_the_vocabulary():
    Sampling(logit_bias={3: 1}).check(4)
    for token in (-1, 4):
        with pytest.raises(RequestError, match=f"token {token} is not in the vocabulary"):
            Sampling(logit_bias={token: 1}).check(4)
