from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from compress.calibrate import selfgen
from compress.errors import CalibrationError
from compress.surgery import load
from compress.teacher.folder import open_folder


@pytest.fixture
def author(tiny_tied, tokenizer, tmp_path):
    teacher = open_folder(tiny_tied)
    return selfgen.Author(teacher, tokenizer, teacher.fingerprint, tmp_path / "cache")


@pytest.fixture
def built(monkeypatch):
    """How often the whole teacher was built."""
    calls, build = [], load.materialize
    monkeypatch.setattr(load, "materialize", lambda *a: calls.append(1) or build(*a))
    return calls


def test_shapes_and_seed(author, monkeypatch, built):
    monkeypatch.setattr(selfgen, "writing_rows", lambda anatomy, seq_len: 2)
    ids = author(3, 24, 0)
    assert (ids.shape, ids.dtype) == ((3, 24), torch.int64)
    assert torch.equal(ids, author(3, 24, 0))
    assert len(built) == 1, "the second time it was read back"
    assert not torch.equal(ids, author(3, 24, 1))


def test_the_same_seed_writes_the_same_text(author, tmp_path):
    first = author(2, 16, 0)
    for path in author.cache.glob("*.safetensors"):
        path.unlink()
    assert torch.equal(author(2, 16, 0), first)


def test_a_broken_text_is_written_again(author, caplog):
    first = author(2, 16, 0)
    [path] = author.cache.glob("*.safetensors")
    path.write_bytes(b"broken")
    assert torch.equal(author(2, 16, 0), first)
    assert "written again" in caplog.text


def test_every_document_begins_with_an_opener(author, tokenizer):
    begin = tokenizer.bos_token_id
    ids = author(4, 64, 0, seeding="bos")
    assert (ids[:, 0] == begin).all()
    ends = ids[:, :-1] == tokenizer.eos_token_id
    assert (ids[:, 1:][ends] == begin).all()
    texts = tokenizer.batch_decode(author(4, 64, 0))
    openers = (*selfgen.OPENERS, "<|user|>")
    assert all(text.startswith(openers) for text in texts)


def test_documents_may_begin_with_any_token_that_is_text(author, tokenizer):
    words = selfgen._openers(tokenizer, "vocabulary")
    firsts = [word[-1] for word in words]
    assert len(set(firsts)) == len(firsts)
    assert {tokenizer(letter)["input_ids"][-1] for letter in "azAZ09"} <= set(firsts)
    assert not set(firsts) & set(tokenizer.all_special_ids)
    assert all(tokenizer.decode([first]).strip() for first in firsts)
    front = len(tokenizer("")["input_ids"])
    ids = author(16, 8, 0, seeding="vocabulary")
    assert set(ids[:, front].tolist()) <= set(firsts)
    assert len(set(ids[:, front].tolist())) > 8


def test_without_a_template_there_are_no_questions(author, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    assert len(selfgen._openers(tokenizer, "openers")) == len(selfgen.OPENERS)


def test_a_seeding_that_cannot_be_is_refused(author, tiny_tied):
    with pytest.raises(CalibrationError, match="none of openers, vocabulary, bos"):
        author(1, 8, 0, seeding="x")
    without = load.tokenizer(tiny_tied)
    without.bos_token = None
    with pytest.raises(CalibrationError, match="Use seeding: openers"):
        replace(author, tokenizer=without)(1, 8, 0, seeding="bos")


def test_progress_is_told_in_tokens(author):
    told = []
    replace(author, watch=told.append)(2, 16, 5)
    assert (told[-1].done, told[-1].total, told[-1].unit) == (32, 32, "token")
