from __future__ import annotations

import pytest
import torch

from compress.calibrate import documents, sets, tokens
from compress.errors import CalibrationError

WORDS = "the quick brown fox jumps over the lazy dog\n" * 20


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(WORDS)
    return path


def test_a_text_file_gives_its_first_windows(calibration, text, tokenizer):
    found = sets.load(calibration(text, samples=3, seq_len=10), tokenizer)
    assert found.ids.shape == (3, 10)
    assert tokenizer.decode(found.ids.flatten()) == WORDS[:30]
    assert found.source == str(text)


def test_a_set_file_may_ask_for_shuffled_windows(calibration, text, tokenizer, tmp_path):
    path = tmp_path / "set.yaml"
    path.write_text("version: 1\nkind: text\ndescription: x\npath: text.txt\nshuffle: true\n")
    first, other = (sets.load(calibration(path, seed=seed), tokenizer) for seed in (1, 2))
    assert first.fingerprint != other.fingerprint
    assert first.fingerprint == sets.load(calibration(path, seed=1), tokenizer).fingerprint


def test_self_asks_the_teacher_with_what_the_set_says(calibration, tokenizer):
    asked = []

    def generate(*args, **options):
        asked.append((args, options))
        return torch.ones(2, 8, dtype=torch.long)

    found = sets.load(calibration("self", seed=3), tokenizer, generate=generate)
    assert (found.ids.shape, asked[0][0]) == ((2, 8), (2, 8, 3))
    assert asked[0][1]["temperature"] == 1.0
    with pytest.raises(CalibrationError, match="written by the teacher, and none is at hand"):
        sets.load(calibration("self"), tokenizer)


def test_hub_sets_take_the_recipes_overrides(calibration, tokenizer, tmp_path, monkeypatch):
    path = tmp_path / "set.yaml"
    path.write_text("kind: hub\ndataset: owner/set\nsplit: train\nfield: text\nseparator: ''\n")
    asked = []
    monkeypatch.setattr(
        documents, "from_hub", lambda *a: (asked.append(a), (iter([{"body": WORDS}]), "0123abc"))[1]
    )
    found = sets.load(calibration(path, revision="main", split="test", field="body"), tokenizer)
    assert asked == [("owner/set", None, "test", "main")]
    assert (found.revision, found.source) == ("0123abc", "owner/set (default, test)")
    assert tokenizer.decode(found.ids.flatten()) == WORDS[:16]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"split": "test"}, r"calibration\.split: a set of kind text does not use it"),
        ({"revision": "x"}, r"calibration\.revision: a set of kind text"),
        ({"field": "text"}, r"calibration\.field: .* is plain text and has no fields"),
        ({"samples": 1000}, r"text\.txt: found 880 tokens, enough for 110 windows of 8"),
    ],
)
def test_what_a_text_file_cannot_give_is_refused(fields, message, calibration, text, tokenizer):
    with pytest.raises(CalibrationError, match=message):
        sets.load(calibration(text, **fields), tokenizer)


def test_several_sets_share_the_samples_and_take_turns(calibration, text, tokenizer, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("0123456789" * 40)
    mixed = calibration("", set=[str(text), str(other), "self"], samples=8)

    def written(samples, seq_len, *_, **__):
        return torch.full((samples, seq_len), 7)

    found = sets.load(mixed, tokenizer, generate=written)
    assert found.ids.shape == (8, 8)
    for kind, (name, samples) in enumerate([(text, 3), (other, 3)]):
        alone = sets.load(calibration(name, samples=samples), tokenizer)
        assert torch.equal(found.ids[kind::3], alone.ids)
    assert torch.equal(found.ids[2::3], torch.full((2, 8), 7))
    assert found.source == f"{text} and {other} and the teacher's own text (seed 0)"
    assert found.fingerprint == tokens.fingerprint(found.ids)


def test_a_list_of_one_set_is_that_set(calibration, text, tokenizer):
    one = sets.load(calibration(text), tokenizer)
    listed = sets.load(calibration("", set=[str(text)]), tokenizer)
    assert listed.fingerprint == one.fingerprint


def test_each_of_several_sets_has_its_own_errors(calibration, text, tokenizer, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("too short")
    with pytest.raises(CalibrationError) as error:
        sets.load(calibration("", set=[str(text), str(short)], samples=9), tokenizer)
    assert str(error.value).startswith(
        f"calibration.set[1], its share is 4 of 9 samples: {short}: found 9 tokens, enough for 1"
    )
    with pytest.raises(CalibrationError, match=r"set\[0\], .*: self is written by the teacher"):
        sets.load(calibration("", set=["self", str(text)]), tokenizer)


def test_commits_of_several_hub_sets_are_kept_one_by_one(calibration, text, tokenizer, monkeypatch):
    monkeypatch.setattr(
        documents, "from_hub", lambda *asked: (iter([{"text": WORDS}]), asked[3] or "1234")
    )
    mixed = calibration("", set=[str(text), "wikitext2"])
    found = sets.load(mixed, tokenizer)
    assert found.revision is not None
    assert found.revision[0] is None
    again = mixed.model_copy(update={"revision": (None, "abcd")})
    assert sets.load(again, tokenizer).revision == (None, "abcd")
