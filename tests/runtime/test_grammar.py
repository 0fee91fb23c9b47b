from __future__ import annotations

import json
import sys
import time

import pytest
import torch

from compress.errors import RequestError, RunError
from compress.runtime import schemas
from compress.runtime.grammar import ANY_OBJECT, Grammars
from compress.runtime.request import Request, Sampling
from compress.runtime.sampling import Chooser
from compress.runtime.scheduler import Proposal
from compress.runtime.tokenizer import Tokenizer

pytest.importorskip("llguidance")
PERSON = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"enum": ["Ada", "Bob"]}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
)
END, VOCAB = 258, 320


@pytest.fixture(scope="module")
def tokenizer(tiny_llama):
    return Tokenizer.open(tiny_llama)


@pytest.fixture(scope="module")
def grammars(tokenizer):
    return Grammars(tokenizer.to_json(), VOCAB, [END])


def allowed(matcher):
    return matcher.allowed(torch.zeros(VOCAB)).isfinite().nonzero().flatten().tolist()


def test_only_what_the_schema_allows_may_come_next(grammars, tokenizer):
    matcher = grammars.matcher(PERSON)
    assert {tokenizer.decode([token]).strip() for token in allowed(matcher)} == {"{"}
    for token in tokenizer.encode('{"name":"', special=False):
        matcher.follow(token)
    assert {tokenizer.decode([token]) for token in allowed(matcher)} == {"A", "B"}


def test_what_there_is_no_choice_about_is_told(grammars, tokenizer):
    matcher = grammars.matcher('{"enum": ["abcde", "abcxy"]}')
    assert tokenizer.decode(matcher.forced()) == '"abc'
    for token in tokenizer.encode('"abc', special=False):
        matcher.follow(token)
    assert matcher.forced() == ()


def test_the_end_may_follow_what_is_complete_and_nothing_else(grammars, tokenizer):
    matcher = grammars.matcher(PERSON)
    for token in tokenizer.encode('{"name":"Ada","age":36', special=False):
        assert not matcher.complete
        assert END not in allowed(matcher)
        matcher.follow(token)
    matcher.follow(*tokenizer.encode("}", special=False))
    assert matcher.complete
    assert allowed(matcher) == [END]


def test_a_number_may_end_or_go_on(grammars, tokenizer):
    matcher = grammars.matcher('{"type": "integer"}')
    matcher.follow(*tokenizer.encode("7", special=False))
    assert END in allowed(matcher)
    assert not matcher.complete
    assert len(allowed(matcher)) > 1


def test_white_space_comes_to_an_end(grammars, tokenizer):
    matcher = grammars.matcher(ANY_OBJECT)
    matcher.follow(*tokenizer.encode("{", special=False))
    space = tokenizer.encode(" ", special=False)[0]
    count = 0
    while space in allowed(matcher):
        matcher.follow(space)
        count += 1
    assert count == 40


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_an_answer_of_noise_follows_its_schema(grammars, tokenizer, seed, temperature):
    """Logits that know nothing, with and without proposals: JSON of that schema comes out."""
    noise = torch.randn(400, VOCAB, generator=torch.Generator().manual_seed(seed))
    answers = []
    for width in (0, 3):
        chooser = Chooser(
            Request((1,), Sampling(temperature, seed=seed)), ends=frozenset({END}),
            matcher=grammars.matcher(PERSON),
        )  # fmt: skip
        tokens, finish = [], None
        while finish is None:
            proposal = Proposal((30, 31, 32)[:width])
            at = len(tokens)
            chosen = chooser.choose(noise[at : at + width + 1], proposal)
            tokens, finish = [*tokens, *chosen.tokens], chosen.finish_reason
        assert finish == "stop"
        answers.append(tokens)
    assert answers[0] == answers[1]
    text = tokenizer.decode(answers[0])
    found = json.loads(text)
    assert found["name"] in ("Ada", "Bob")
    assert isinstance(found["age"], int)


def test_proposals_that_the_schema_forbids_are_refused(grammars, tokenizer):
    wrong = tuple(tokenizer.encode("no!", special=False))
    right = tuple(tokenizer.encode('{"n', special=False))
    logits = torch.zeros(4, VOCAB)
    for row, token in enumerate(right):
        logits[row, token] = 1.0
    for proposed, tokens in ((wrong, 1), (right, 4)):
        chooser = Chooser(Request((1,), Sampling()), matcher=grammars.matcher(PERSON))
        assert len(chooser.choose(logits, Proposal(proposed)).tokens) == tokens


def test_a_token_that_may_not_come_is_an_error_of_the_run(grammars):
    matcher = grammars.matcher(PERSON)
    with pytest.raises(RunError, match="grammar: the answer cannot go on"):
        matcher.follow(0)


@pytest.mark.parametrize(
    "schema",
    [
        "{bad", "[1]", '{"type": "foo"}', '{"type": "string", "pattern": "("}',
        '{"$ref": "http://example.org/x"}', '{"not": {"type": "string"}}', '{"const": "\ud800"}',
        '{"type":"array","items":' * 2000 + "{}" + "}" * 2000,
    ],
)  # fmt: skip
def test_a_bad_schema_is_refused(grammars, schema):
    with pytest.raises(RequestError, match="grammar: not a JSON schema that can be followed"):
        grammars.matcher(schema)


def slow(patterns):
    """A schema of patterns that all have to hold: twice the work for each one more."""
    each = [{"pattern": "a" * count + ".*"} for count in range(1, patterns + 1)]
    return json.dumps({"type": "string", "allOf": each})


def test_a_schema_that_would_be_read_for_ever_is_refused_and_the_next_is_read(
    grammars, monkeypatch
):
    monkeypatch.setattr(schemas, "MAX_SECONDS", 1)
    assert len(slow(23)) < 1000
    begun = time.monotonic()
    with pytest.raises(RequestError, match="did not end within 1 seconds"):
        grammars.matcher(slow(23))
    assert time.monotonic() - begun < 3
    assert not grammars.knows(slow(23))
    grammars.matcher('{"type": "boolean"}')


def test_a_schema_that_is_too_long_is_refused_unread(grammars, monkeypatch):
    monkeypatch.setattr(schemas, "_reader", None)
    with pytest.raises(RequestError, match="characters; 65,536 are read"):
        grammars.matcher(json.dumps({"const": "a" * 65_536}))


def test_a_schema_is_read_once_and_each_answer_stands_where_it_stands(tokenizer, monkeypatch):
    grammars, read = Grammars(tokenizer.to_json(), VOCAB, [END]), []
    monkeypatch.setattr(schemas, "check", read.append)
    first, second = grammars.matcher(PERSON), grammars.matcher(PERSON)
    first.follow(*tokenizer.encode("{", special=False))
    assert allowed(first) != allowed(second) == allowed(grammars.matcher(PERSON))
    assert read == [PERSON]


def test_only_the_last_schemas_are_kept(tokenizer, monkeypatch):
    grammars = Grammars(tokenizer.to_json(), VOCAB, [END])
    monkeypatch.setattr(schemas, "check", lambda schema: None)
    many = [json.dumps({"const": number}) for number in range(17)]
    for schema in many[:16]:
        grammars.matcher(schema)
    grammars.matcher(many[0])
    grammars.matcher(many[16])
    assert [grammars.knows(schema) for schema in many] == [True, False, *[True] * 15]


def test_without_llguidance_a_schema_is_refused_with_its_remedy(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(RequestError, match="pip install llguidance"):
        Grammars(tokenizer.to_json(), VOCAB, [END]).matcher(PERSON)


def test_a_model_without_an_end_follows_no_schema(tokenizer):
    with pytest.raises(RequestError, match="names no token that ends an answer"):
        Grammars(tokenizer.to_json(), VOCAB, []).matcher(PERSON)


def test_a_tokenizer_that_llguidance_cannot_read_is_refused(tokenizer):
    with pytest.raises(RequestError, match="cannot read this model's tokenizer"):
        Grammars(tokenizer.to_json(), 5, [END]).matcher(PERSON)
