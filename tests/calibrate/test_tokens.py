from __future__ import annotations

import hashlib

import pytest
import torch

from compress.calibrate import tokens
from compress.calibrate.tokens import Document
from compress.errors import CalibrationError


def test_windows_are_the_first_and_consecutive():
    found = tokens.windows(torch.arange(100), 3, 8, source="x")
    assert torch.equal(found.ids, torch.arange(24).view(3, 8))
    assert found.source == "x"


def test_shuffled_windows_are_whole_distinct_and_follow_the_seed():
    ids = torch.arange(1000)
    first = tokens.windows(ids, 5, 8, seed=1, shuffle=True).ids
    assert torch.equal(first, tokens.windows(ids, 5, 8, seed=1, shuffle=True).ids)
    assert not torch.equal(first, tokens.windows(ids, 5, 8, seed=2, shuffle=True).ids)
    starts = first[:, 0]
    assert torch.equal(first, starts[:, None] + torch.arange(8))
    assert len(set(starts.tolist())) == 5
    assert (starts % 8 == 0).all()


def test_fingerprint_is_of_ids_and_shape():
    ids = torch.arange(6)
    expected = hashlib.sha256(b"".join(i.to_bytes(8, "little") for i in range(6)) + b"2x3")
    assert tokens.fingerprint(ids.view(2, 3)) == expected.hexdigest()
    assert tokens.fingerprint(ids.view(3, 2)) != expected.hexdigest()
    strided = ids.view(3, 2).t().contiguous().t()
    assert tokens.fingerprint(strided) == tokens.fingerprint(ids.view(3, 2))


def test_a_text_too_short_says_what_it_holds_and_what_would_do():
    with pytest.raises(CalibrationError) as error:
        tokens.windows(torch.arange(100), 20, 8, source="mine.txt")
    assert str(error.value) == (
        "mine.txt: found 100 tokens, enough for 12 windows of 8; samples: 20 x seq_len: 8 needs "
        "160. Use samples: 12, a shorter seq_len or a longer text."
    )
    with pytest.raises(CalibrationError, match=r"Use a shorter seq_len or a longer text"):
        tokens.windows(torch.arange(5), 1, 8)


def test_documents_are_read_as_far_as_needed_with_an_end_between(tokenizer):
    read = []

    def documents():
        for text in ("ab", "cd", "ef"):
            read.append(text)
            yield Document(text)

    end = tokenizer.eos_token_id
    ids = tokens.encode(documents(), tokenizer, wanted=4).tolist()
    assert [tokenizer.decode(ids[:2]), ids[2], tokenizer.decode(ids[3:])] == ["ab", end, "cd"]
    assert read == ["ab", "cd"]
    assert tokens.encode(documents(), tokenizer, wanted=None).tolist().count(end) == 2


def test_a_conversation_that_ends_by_itself_gets_no_second_end(tokenizer):
    documents = [Document("a<|eos|>", rendered=True), Document("b")]
    ids = tokens.encode(documents, tokenizer, wanted=None).tolist()
    assert ids.count(tokenizer.eos_token_id) == 1


def test_with_a_separator_documents_are_one_text(tokenizer):
    documents = [Document("a"), Document("b")]
    ids = tokens.encode(documents, tokenizer, wanted=None, separator="\n\n")
    assert tokenizer.decode(ids) == "a\n\nb"


def test_a_beginning_of_text_token_comes_once(tokenizer):
    class Beginning:
        eos_token_id = 9

        def __call__(self, text, *, add_special_tokens, **_):
            return {"input_ids": [1] * add_special_tokens + [5]}

    ids = tokens.encode([Document("x"), Document("y", rendered=True)], Beginning(), wanted=None)
    assert ids.tolist() == [1, 5, 9, 5]


def test_a_long_text_is_cut_before_it_is_tokenized(tokenizer, monkeypatch):
    monkeypatch.setattr(tokens, "MIN_CUT_CHARACTERS", 10)
    assert tokens.encode([Document("x" * 500)], tokenizer, wanted=2).numel() == 32
    assert tokens.encode([Document("x" * 500)], tokenizer, wanted=None).numel() == 500
