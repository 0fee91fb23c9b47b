"""Who keeps a budget, and who is best."""

from dataclasses import replace

import pytest

from compress.recipe.sweep import Budget
from compress.results import from_json, to_json
from compress.results.swept import Trial
from compress.sweep.budget import best, judged, score

BUDGET = Budget(size="100 B", kl_mean=0.1, decode=50)


def trial(name="a", size=90, kl=0.05, speed=60.0, state="made"):
    found = Trial(
        name, "r", {"x": "1"}, state, size_bytes=size, kl_mean=kl, decode_tokens_per_second=speed
    )
    return judged(found, BUDGET)


def test_a_trial_says_what_it_does_not_keep():
    assert trial().over == ()
    assert trial(size=101, kl=0.2, speed=49.0).over == ("size", "kl_mean", "decode")
    assert trial(kl=None, speed=None).over == ("kl_mean", "decode")


def test_the_best_is_within_the_budget():
    trials = [trial("a", size=90), trial("b", size=80), trial("c", size=70, kl=0.2)]
    assert best(trials, "size").name == "b"
    assert best([trials[2]], "size") is None
    assert best([replace(trials[1], state="rejected")], "size") is None


def test_of_equals_the_nearer_to_the_teacher_is_best():
    assert best([trial("a"), trial("b", kl=0.01)], "size").name == "b"


def test_fast_is_good():
    assert best([trial("a"), trial("b", speed=70.0)], "decode").name == "b"


@pytest.mark.parametrize("objective", ["size", "kl_mean", "decode"])
def test_a_sampler_is_told_within_before_over_before_failed(objective):
    told = [
        trial(), trial(kl=0.2), trial(kl=0.9), trial(kl=None), trial(state="failed"),
    ]  # fmt: skip
    scores = [score(one, objective, BUDGET) for one in told]
    assert scores == sorted(scores)
    assert len(set(scores)) == 5


def test_a_trial_is_read_back_as_it_was_written():
    one = trial(kl=None)
    assert from_json(Trial, to_json(one)) == one
