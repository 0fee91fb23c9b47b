"""Many requests at once say what each says alone, and what transformers says: float32, greedy."""

from __future__ import annotations

import random

import pytest
import torch

from compress.artifact.write import companions, write
from compress.errors import RequestError
from compress.runtime.engine import Engine, collect
from compress.runtime.request import Request, Sampling

FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": 12},
    "qwen2": {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    "qwen3": {"head_dim": 24},
    "gemma": {},
    "gemma2": {"sliding_window": 9},
    "gemma3_text": {"sliding_window": 9, "sliding_window_pattern": 2},
    "gpt2": {},
    "opt": {},
    "gpt_neox": {},
}
NEW = 16


def prompts():
    """Of many lengths; some share a beginning, one is a whole number of pages, one comes twice."""
    chance = random.Random(0)
    common = [chance.randrange(250) for _ in range(70)]
    longer = [[*common, *(chance.randrange(250) for _ in range(n))] for n in (1, 9, 50)]
    return [*longer, common[:64], common[:40], [5], common[3:33], common[:64]]


def theirs(folder, state=None):
    """What transformers says behind each prompt, alone."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if state is not None:
        model.load_state_dict(state, strict=False)
    found = []
    for ids in prompts():
        given = torch.tensor([ids])
        said = model.generate(given, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
        found.append(tuple(said[0, len(ids) :].tolist()))
    return found


def ask(engine, asked, **fields):
    settings = {"max_new_tokens": NEW, "ignore_eos": True, **fields}
    return [engine.submit(Request(tuple(ids), **settings)) for ids in asked]


def run(engine, tickets):
    said = dict.fromkeys(tickets, ())
    while not engine.idle:
        for ticket, piece in engine.step():
            said[ticket] += piece.tokens
    assert engine.status().used_pages == 0
    return [said[ticket] for ticket in tickets]


# Ample; a step of few tokens; few at once; a pool that holds one context and little more.
WAYS = {
    "together": {},
    "in chunks": {"step_tokens": 17, "max_running": 16},
    "few at once": {"max_running": 3},
    "short of pages": {"kv_tokens": 256, "step_tokens": 24, "max_running": 8},
}


@pytest.fixture(scope="module")
def exact(tiny_model):
    made = {}

    def find(family):
        if family not in made:
            folder = tiny_model(family, **FAMILIES[family])
            made[family] = folder, theirs(folder)
        return made[family]

    return find


@pytest.mark.parametrize(
    ("family", "way"),
    [*(("llama", way) for way in WAYS), *((family, "short of pages") for family in FAMILIES)],
)
def test_together_as_alone_in_transformers(exact, family, way):
    folder, expected = exact(family)
    engine = Engine.open(folder, dtype="float32", **WAYS[way])
    assert run(engine, ask(engine, prompts())) == expected
    assert (engine.status().preemptions > 0) == (way == "short of pages")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_that_was_found_says_what_it_would_say_computed(exact, family):
    folder, expected = exact(family)
    engine = Engine.open(folder, dtype="float32", step_tokens=64)
    hits = []
    for salt in ("", "", "other"):
        assert run(engine, ask(engine, prompts(), salt=salt)) == expected
        hits.append(engine.status().prefix_hit_tokens)
    assert hits[1] - hits[0] > hits[0] == hits[2] - hits[1]


@pytest.mark.parametrize("scheme", [{"bits": 4, "group_size": 32}, {"bits": 8, "group_size": -1}])
def test_a_compressed_artifact_too(tiny_tied, memory, tmp_path, scheme):
    stored = memory(tiny_tied, head=8, **scheme)
    plain = {n: t for n, t in stored.tensors.items() if n[: -len(".weight")] not in stored.codes}
    write(
        tmp_path / "out", [*plain.items(), *stored.codes.items()], anatomy=stored.anatomy,
        config=stored.config, tokenizer_files=companions(tiny_tied), format="packed",
    )  # fmt: skip
    state = stored.dense()
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    expected = theirs(tiny_tied, state)
    for way in WAYS.values():
        engine = Engine.open(tmp_path / "out", dtype="float32", **way)
        assert run(engine, ask(engine, prompts())) == expected


@pytest.mark.parametrize("way", WAYS)
def test_keys_and_values_of_a_byte_say_the_same_together_as_alone(tiny_llama, way):
    engine = Engine.open(tiny_llama, dtype="float32", kv_cache="int8")
    expected = [run(engine, ask(engine, [ids], salt=str(i)))[0] for i, ids in enumerate(prompts())]
    engine = Engine.open(tiny_llama, dtype="float32", kv_cache="int8", **WAYS[way])
    assert run(engine, ask(engine, prompts())) == expected


def test_a_seed_says_the_same_in_any_company(tiny_llama):
    drawn = {"sampling": Sampling(temperature=1.5, seed=3)}
    engine = Engine.open(tiny_llama, dtype="float32")
    (alone,) = run(engine, ask(engine, [prompts()[0]], **drawn))
    crowd = ask(engine, prompts()[1:], sampling=Sampling(temperature=2.0))
    last = ask(engine, [prompts()[0]], salt="else", **drawn)
    assert run(engine, crowd + last)[-1] == alone


@pytest.mark.parametrize("steps", range(12))
def test_a_request_is_cancelled_wherever_it_is(tiny_llama, steps):
    engine = Engine.open(tiny_llama, dtype="float32", kv_tokens=288, step_tokens=24, max_running=4)
    tickets = ask(engine, prompts())
    for _ in range(steps):
        engine.step()
    for ticket in tickets[::2]:
        engine.cancel(ticket)
        engine.cancel(ticket)  # twice is once
    kept = set(tickets[1::2])
    while not engine.idle:
        assert {ticket for ticket, _ in engine.step()} <= kept
    status = engine.status()
    assert (status.running, status.waiting, status.used_pages) == (0, 0, 0)


def test_whoever_drops_an_answer_ends_its_work(tiny_llama):
    engine = Engine.open(tiny_llama, dtype="float32")
    pieces = engine.generate([1, 2, 3], max_new_tokens=50)
    next(pieces)
    assert engine.status().used_pages == 1
    pieces.close()
    assert engine.idle
    assert engine.status().used_pages == 0


def test_answers_taken_in_turns_and_submitted_ones_do_not_lose_pieces(tiny_llama):
    engine = Engine.open(tiny_llama, dtype="float32")
    asked = prompts()[:3]
    expected = [collect(engine.generate(ids, max_new_tokens=9)) for ids in asked]
    (ticket,) = ask(engine, asked[2:], max_new_tokens=9)
    turns = [engine.generate(ids, max_new_tokens=9) for ids in asked[:2]]
    pairs = list(zip(*turns, strict=False))
    for taken, one in zip(zip(*pairs, strict=True), expected, strict=False):
        assert collect(taken).tokens == one.tokens
    rest = [piece for one, piece in engine.step() if one == ticket]
    assert len(rest) == 9
    assert collect(rest).tokens[: len(expected[2].tokens)] == expected[2].tokens
    assert rest[-1].finish_reason == "length"
    assert engine.idle


def test_timings_tell_of_the_queue_and_the_cache(tiny_llama):
    engine = Engine.open(tiny_llama, dtype="float32", max_running=1)
    ask(engine, [prompts()[0]] * 2, max_new_tokens=3)
    last = []
    while not engine.idle:
        last += [piece.timings for _, piece in engine.step() if piece.timings]
    assert [one.cached_tokens for one in last] == [0, 64]  # the third page was never full
    assert last[1].queue_seconds > last[0].ttft_seconds + last[0].decode_seconds
    assert all(one.new_tokens == 3 for one in last)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kv_tokens": 0}, "kv_tokens: 0 hold no request of 1 tokens"),
        ({"kv_tokens": 99, "context_tokens": 100}, "kv_tokens: 99 hold no request of 100 tokens"),
        ({"context_tokens": 257}, "context_tokens: 257 must be 1 to 256"),
        ({"context_tokens": 0}, "context_tokens: 0 must be 1 to 256"),
        ({"step_tokens": 4}, r"max_running: 32 must be 1 to 4 \(step_tokens\)"),
        ({"max_running": 0}, "max_running: 0 must be 1 to 512"),
        ({"beside_tokens": 0}, "beside_tokens: 0 must be 1 or more"),
        ({"kv_cache": "int4"}, "kv_cache: 'int4' is not one of auto, int8"),
    ],
)
def test_an_engine_of_no_use_is_refused(tiny_llama, settings, message):
    with pytest.raises(RequestError, match=message):
        Engine.open(tiny_llama, **settings)


def test_a_context_ends_an_answer_wherever_the_pool_or_the_user_ends_it(tiny_llama):
    for settings in ({"context_tokens": 40}, {"kv_tokens": 40}):
        engine = Engine.open(tiny_llama, dtype="float32", **settings)
        assert engine.describe().max_tokens == 40
        (said,) = run(engine, ask(engine, [[1] * 30], max_new_tokens=100))
        assert len(said) == 11
        with pytest.raises(RequestError, match="41 tokens, at most 40 are read here"):
            engine.encode([1] * 41)


def test_the_pool_is_as_large_as_told_or_holds_a_context(tiny_llama, tiny_model):
    assert Engine.open(tiny_llama).describe().pool_tokens == 32_768
    assert Engine.open(tiny_llama, kv_tokens=300).describe().pool_tokens == 320
    longest = tiny_model("llama", max_position_embeddings=50_000)
    assert Engine.open(longest).describe().pool_tokens == 50_016
