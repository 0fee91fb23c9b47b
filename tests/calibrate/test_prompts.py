"""Text that the teacher writes to prompts: shapes, twins, reasons and their weights."""

from types import SimpleNamespace

import pytest
import torch

from compress.calibrate import prompts, selfgen, sets
from compress.calibrate.pages import ANSWER, GIVEN, REASON
from compress.errors import CalibrationError
from compress.recipe.text import Text
from compress.teacher.folder import open_folder


@pytest.fixture
def author(tiny_tied, tokenizer, tmp_path):
    teacher = open_folder(tiny_tied)
    return selfgen.Author(teacher, tokenizer, teacher.fingerprint, tmp_path / "cache")


def test_every_document_begins_with_a_prompt_in_its_template(author, tokenizer):
    ids = author(3, 40, 0, prompts=("sky", "sea"), templates=("Q: {prompt}\nA:",))
    for text in tokenizer.batch_decode(ids):
        assert text.startswith(("Q: sky\nA:", "Q: sea\nA:"))
    turns = author(2, 40, 0, prompts=("sky",))
    assert all(
        t.startswith("<|user|>sky<|eos|><|assistant|>") for t in tokenizer.batch_decode(turns)
    )


def test_prompts_of_a_file_are_those_of_a_list_and_cached_by_what_they_say(author, tmp_path):
    lines, records = tmp_path / "p.txt", tmp_path / "p.jsonl"
    lines.write_text("sky\n\nsea\n")
    records.write_text('{"prompt": "sky"}\n{"prompt": "sea"}\n')
    found = [author(2, 24, 0, prompts=one) for one in (("sky", "sea"), str(lines), str(records))]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert len(list(author.cache.glob("*.safetensors"))) == 1


def test_no_document_is_written_twice(author, monkeypatch):
    told = []
    real = selfgen._without_twins

    def spy(pages, samples, seq_len):
        told.append((samples, seq_len))
        return real(pages, samples, seq_len)

    monkeypatch.setattr(selfgen, "_without_twins", spy)
    ids = author(4, 24, 0, prompts=("sky",), deduplicate=True)
    assert (ids.shape, told) == ((4, 24), [(4, 24)])
    again = author(4, 24, 0, prompts=("sky",), deduplicate=True)
    assert torch.equal(ids, again)


def test_twins_are_dropped_and_a_teacher_that_repeats_itself_is_told():
    def page(*documents):
        rows = [SimpleNamespace(documents=lambda d=d: [(d, [ANSWER] * len(d))]) for d in documents]
        return SimpleNamespace(rows=rows)

    ids, _ = selfgen._without_twins(iter([page([1, 2], [1, 2], [3, 4]), page([5, 6])]), 2, 3)
    assert ids.tolist() == [[1, 2, 3], [4, 5, 6]]
    alike = (page(*[[1, 2]] * 32) for _ in range(100))
    with pytest.raises(CalibrationError, match=r"of \d+ documents .* 1 differ.*Raise temperature"):
        selfgen._without_twins(alike, 2, 3)


def test_reasons_and_answers_have_weights_of_their_own(author, tokenizer):
    asked = Text(
        set="teacher", samples=3, seq_len=64, prompts=["sky", "sea"], templates=["{prompt}?"],
        rationale={"cue": "So:", "reason_tokens": 8, "answer_tokens": 4, "reason_weight": 0.25},
    )  # fmt: skip
    found = sets.load(asked, tokenizer, generate=author)
    assert found.weights.shape == found.ids.shape == (3, 64)
    assert tokenizer.decode(found.ids[0]).startswith(("sky?", "sea?"))
    tokens, asking = found.ids[0].tolist(), tokenizer("So:")["input_ids"]
    cue = next(i for i in range(64) if tokens[i : i + 3] == asking)
    first = found.weights[0].tolist()
    assert first[:4] == [0.0] * 4
    assert first[4] == 0.25
    assert first[cue : cue + 3] == [0.0] * 3
    assert first[cue + 3] == 1.0
    assert (GIVEN, REASON, ANSWER) == (0, 1, 2)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompts": ["x" * 90]}, "one takes 9[0-9] tokens, and a window holds 32"),
        ({"prompts": ["a"], "set": "smoke"}, "a set of kind text does not use"),
        ({"prompts": "nowhere.txt"}, "cannot be read"),
        ({"top_p": 0.5, "set": "smoke"}, "distill.text.top_p: a set of kind text"),
    ],
)
def test_what_cannot_be_written_is_told(author, tokenizer, fields, words):
    asked = Text(**{"set": "teacher", "samples": 2, "seq_len": 32, **fields})
    with pytest.raises(CalibrationError, match=words):
        sets.load(asked, tokenizer, generate=author)


def test_windows_without_anything_that_counts_are_refused(tokenizer):
    asked = Text(set="self", samples=2, seq_len=8, prompts=["a"], rationale={})
    parts = torch.zeros(2, 2, 8, dtype=torch.long)
    with pytest.raises(CalibrationError, match="in 2 of 2 windows of 8 tokens nothing counts"):
        sets.load(asked, tokenizer, generate=lambda *a, **k: parts)


def test_a_file_of_prompts_without_any_is_refused(tmp_path):
    empty, odd = tmp_path / "p.txt", tmp_path / "p.jsonl"
    empty.write_text("\n \n")
    odd.write_text('{"prompt": "a"}\n{"text": "b"}\n')
    with pytest.raises(CalibrationError, match="holds no text"):
        prompts.read(str(empty))
    with pytest.raises(CalibrationError, match=r'p.jsonl:2: holds no "prompt" that is text'):
        prompts.read(str(odd))
