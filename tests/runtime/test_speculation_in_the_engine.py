"""Speculation, sampling and grammars as an engine runs them."""

from __future__ import annotations

import json
import random
import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from compress.artifact.write import companions, write
from compress.errors import RequestError
from compress.runtime.engine import Engine
from compress.runtime.request import Request, Sampling
from compress.runtime.settings import WAYS

PROMPTS = [
    tuple(b"abcabcabcabcabc"),
    tuple(range(1, 40)),
    (7, 7, 7, 7),
    tuple(b"the cat and the dog and the cat and the"),
]


@pytest.fixture(scope="module")
def plain(tiny_llama):
    return Engine.open(tiny_llama, dtype="float32", speculate=False)


@pytest.fixture
def eager(monkeypatch):
    """Propose as much as there is, whether it pays or not: times of tiny models are noise."""
    monkeypatch.setattr("compress.runtime.speculative.width", lambda *_: 7)


def answers(engine, requests):
    tickets = [engine.submit(request) for request in requests]
    found = defaultdict(list)
    while not engine.idle:
        for ticket, piece in engine.step():
            found[ticket] += piece.tokens
    return [found[ticket] for ticket in tickets]


def requests(sampling, tokens=40):
    return [Request(p, sampling, max_new_tokens=tokens, ignore_eos=True) for p in PROMPTS]


FAMILIES = {family: {} for family in WAYS} | {
    "mistral": {"sliding_window": 12},
    "gemma2": {"sliding_window": 9, "attn_logit_softcapping": 0.5},
}
KINDS = ["greedy", "drawn", "seeded"]
SAMPLINGS = [
    Sampling(),
    Sampling(0.05, seed=1),
    Sampling(0.7, top_k=20, top_p=0.9, min_p=0.01, seed=2),
    Sampling(repetition_penalty=1.2, frequency_penalty=0.2, logit_bias={5: 1.5}),
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "drawn", "filtered", "penalized"])
@pytest.mark.parametrize("draft", [False, True])
def test_a_text_is_the_same_with_and_without_speculation(plain, tiny_llama, eager, sampling, draft):
    engine = Engine.open(tiny_llama, dtype="float32", draft=tiny_llama if draft else None)
    expected = [answers(plain, [one])[0] for one in requests(sampling)]
    assert answers(engine, requests(sampling)) == expected
    status = engine.status()
    assert status.drafts > 0
    assert status.used_pages == 0
    assert sum(status.kept_at) == status.kept_tokens


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("draft", [False, True])
def test_every_family_says_the_same(tiny_model, eager, family, draft):
    folder = tiny_model(family, **FAMILIES[family])
    plain = Engine.open(folder, dtype="float32", speculate=False)
    engine = Engine.open(folder, dtype="float32", draft=folder if draft else None)
    asked = requests(Sampling(), 24)
    assert answers(engine, asked) == answers(plain, asked)
    assert engine.status().drafts > 0
    assert engine.status().kept_tokens > 0 or not draft


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.1), Sampling(0.1, seed=1)], ids=KINDS)
def test_a_draft_that_is_the_model_is_right_as_often_as_it_can_be(tiny_llama, eager, sampling):
    engine = Engine.open(tiny_llama, dtype="float32", draft=tiny_llama)
    answers(engine, requests(sampling))
    status = engine.status()
    if sampling.seed is None:
        assert status.kept_tokens == status.draft_tokens
    assert status.kept_tokens > 40
    assert status.drafts + status.kept_tokens <= 4 * 40


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.05, seed=1)], ids=["greedy", "seeded"])
def test_a_draft_of_another_mind_changes_nothing(plain, tiny_llama, tiny_model, eager, sampling):
    other = tiny_model("llama", num_hidden_layers=1, vocab_size=328)
    engine = Engine.open(tiny_llama, dtype="float32", draft=other)
    expected = [answers(plain, [one])[0] for one in requests(sampling, 12)]
    assert answers(engine, requests(sampling, 12)) == expected
    assert engine.status().kept_tokens < engine.status().draft_tokens
    answers(engine, requests(Sampling(1.0), 12))  # drawn from a distribution with more tokens


@pytest.mark.parametrize("draft", [False, True])
def test_texts_stay_the_same_when_pages_are_short(plain, tiny_llama, eager, draft):
    expected = [answers(plain, [one])[0] for one in requests(Sampling(1.0, seed=1))]
    engine = Engine.open(
        tiny_llama, dtype="float32", kv_tokens=160, context_tokens=100, step_tokens=24,
        max_running=4, draft=tiny_llama if draft else None,
    )  # fmt: skip
    assert answers(engine, requests(Sampling(1.0, seed=1))) == expected
    assert engine.status().preemptions > 0
    assert engine.status().used_pages == 0


@pytest.mark.parametrize("draft", [False, True])
def test_whatever_comes_and_goes_each_text_is_its_own(plain, tiny_llama, monkeypatch, draft):
    """Random arrivals, cancellations and widths, few pages: no wrong token, nothing kept."""
    chance = random.Random(5)
    monkeypatch.setattr("compress.runtime.speculative.width", lambda *_: chance.choice((0, 3, 7)))
    engine = Engine.open(
        tiny_llama, dtype="float32", kv_tokens=224, context_tokens=120, step_tokens=40,
        max_running=5, draft=tiny_llama if draft else None,
    )  # fmt: skip
    asked: dict[int, Request] = {}
    said = defaultdict(list)
    waiting = 30
    while waiting or not engine.idle:
        if waiting and chance.random() < 0.4:
            waiting -= 1
            prompt = (*PROMPTS[chance.randrange(4)], *range(chance.randrange(30)))
            sampling = replace(chance.choice(SAMPLINGS), seed=chance.randrange(99))
            one = Request(prompt, sampling, chance.randrange(1, 50), ignore_eos=True)
            asked[engine.submit(one)] = one
        if asked and chance.random() < 0.03:
            gone = chance.choice(list(asked))
            engine.cancel(gone)
            del asked[gone]
        for ticket, piece in engine.step():
            said[ticket] += piece.tokens
    assert len(asked) > 20
    for ticket, one in asked.items():
        assert said[ticket] == answers(plain, [one])[0]
    assert engine.status().preemptions > 0
    assert engine.status().used_pages == 0
    if draft:
        assert engine._speculation._source._ledger.available == engine.status().pages


def test_a_cancelled_request_leaves_nothing_behind(tiny_llama, eager):
    engine = Engine.open(tiny_llama, dtype="float32", draft=tiny_llama)
    tickets = [engine.submit(one) for one in requests(Sampling())]
    for _ in range(5):
        engine.step()
    for ticket in tickets:
        engine.cancel(ticket)
    assert engine.idle
    assert engine.status().used_pages == 0
    assert engine._speculation._source._ledger.available == engine.status().pages
    assert not engine._speculation._luck


def test_a_draft_without_speculation_is_refused(tiny_llama):
    with pytest.raises(RequestError, match="draft: given, but speculate is off"):
        Engine.open(tiny_llama, speculate=False, draft=tiny_llama)


def test_a_draft_with_other_tokens_is_refused(tiny_llama, tmp_path):
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "other"))
    path = folder / "tokenizer.json"
    text = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = text["model"]["vocab"]
    vocabulary["!"], vocabulary['"'] = vocabulary['"'], vocabulary["!"]
    path.write_text(json.dumps(text), encoding="utf-8")
    with pytest.raises(RequestError, match=r"draft: .*other: token '.*' is 1 there and 0 here"):
        Engine.open(tiny_llama, dtype="float32", draft=folder)


def test_an_answer_follows_a_schema_and_ends_with_it(plain, tiny_llama, eager):
    pytest.importorskip("llguidance")
    schema = '{"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], '
    schema += '"additionalProperties": false}'
    request = Request(PROMPTS[0], Sampling(1.0, seed=3), max_new_tokens=200, grammar=schema)
    engine = Engine.open(tiny_llama, dtype="float32")
    found = answers(plain, [request])[0]
    assert answers(engine, [request])[0] == found
    assert json.loads(plain.tokenizer.decode(found))["a"] in ("x", "y")
    assert engine.status().kept_tokens > 0  # of what there was no choice about


def test_a_schema_that_ends_nowhere_fails_alone(tiny_llama):
    pytest.importorskip("llguidance")
    engine = Engine.open(tiny_llama, dtype="float32")
    bad = engine.submit(Request((1, 2), grammar='{"$ref": "#"}'))
    good = engine.submit(Request((1, 2), max_new_tokens=3, ignore_eos=True))
    pieces = []
    while not engine.idle:
        pieces += engine.step()
    ends = {ticket: piece for ticket, piece in pieces if piece.finish_reason}
    assert ends[bad].finish_reason == "error"
    assert "grammar: the answer cannot go on" in ends[bad].error
    assert ends[good].finish_reason == "length"
    assert engine.status().used_pages == 0


def test_a_schema_or_a_bias_that_cannot_be_is_refused_before_it_waits(plain):
    pytest.importorskip("llguidance")
    for more in ({"grammar": "{"}, {"sampling": Sampling(logit_bias={9999: 1})}):
        with pytest.raises(RequestError):
            plain.submit(Request((1, 2), **more))
    assert plain.idle
    with pytest.raises(RequestError, match="Leave ignore_eos out"):
        Request((1, 2), grammar="{}", ignore_eos=True)


def test_each_token_has_its_logprob_with_speculation_too(plain, tiny_llama, eager):
    request = Request(PROMPTS[0], max_new_tokens=20, logprobs=2, ignore_eos=True)
    found = []
    for engine in (plain, Engine.open(tiny_llama, dtype="float32")):
        engine.submit(request)
        told = [one for _ in range(30) for _, piece in engine.step() for one in piece.logprobs]
        found.append(told)
    assert len(found[0]) == 20
    assert [one.token for one in found[0]] == [one.token for one in found[1]]
    assert [one.logprob for one in found[0]] == pytest.approx(
        [one.logprob for one in found[1]], abs=1e-4
    )
    assert all(one.likeliest[0] == (one.token, one.logprob) for one in found[0])


@pytest.mark.parametrize("draft", [False, True])
def test_compiled_steps_part_at_near_ties_only(tiny_tied, memory, tmp_path, eager, draft):
    """In bfloat16 four rows are not rounded as one row is."""
    stored = memory(tiny_tied, head=8, bits=4, group_size=32)
    plain = {n: t for n, t in stored.tensors.items() if n[: -len(".weight")] not in stored.codes}
    folder = tmp_path / "out"
    write(
        folder, [*plain.items(), *stored.codes.items()], anatomy=stored.anatomy,
        config=stored.config, tokenizer_files=companions(tiny_tied), format="packed",
    )  # fmt: skip
    without = Engine.open(folder, speculate=False)
    engine = Engine.open(folder, draft=folder if draft else None)
    for one in requests(Sampling()):
        without.submit(replace(one, logprobs=20))
        told = [t for _ in range(50) for _, piece in without.step() for t in piece.logprobs]
        for here, there in zip(answers(engine, [one])[0], told, strict=True):
            assert there.logprob - dict(there.likeliest)[here] < 0.02
            if here != there.token:
                break
    assert engine.status().kept_tokens > 0
