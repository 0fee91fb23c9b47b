from __future__ import annotations

import json

import pytest

from compress.calibrate import documents
from compress.errors import CalibrationError

TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


def lines(path, *records):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records))
    return path


def test_text_and_messages_are_read_and_rendered(tmp_path, tokenizer):
    path = lines(tmp_path / "a.jsonl", {"text": "plain"}, "", {"messages": TURNS, "text": "no"})
    first, second = documents.from_jsonl(path, None, tokenizer)
    assert (first.text, first.rendered) == ("plain", False)
    assert second.text == "<|user|>hi<|eos|><|assistant|>ho<|eos|>"
    assert second.rendered


def test_a_field_may_be_named(tmp_path, tokenizer):
    path = lines(tmp_path / "a.jsonl", {"body": "one"}, {"body": TURNS})
    assert [d.rendered for d in documents.from_jsonl(path, "body", tokenizer)] == [False, True]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "cut', r"a\.jsonl:2: not JSON .* Each line is one record, as in"),
        ({"body": "x"}, r'a\.jsonl:2: holds no "text" or "messages" .* \(found keys \'body\'\)'),
        ("[1]", r"a\.jsonl:2: holds no .*\(found a list\)"),
        ({"messages": []}, r"a\.jsonl:2: holds no"),
        ({"messages": [{"role": "user"}]}, r"a\.jsonl:2: holds no"),
        (
            {"messages": [{"role": "user", "content": 3}]},
            r'Each message has a "role" and a "content"',
        ),
        ({"messages": ["hi"]}, r"a\.jsonl:2: holds no"),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path, tokenizer, line, message):
    path = lines(tmp_path / "a.jsonl", {"text": "fine"}, line)
    with pytest.raises(CalibrationError, match=message):
        list(documents.from_jsonl(path, None, tokenizer))


def test_messages_without_a_template_are_refused_by_line(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    path = lines(tmp_path / "a.jsonl", {"messages": TURNS})
    with pytest.raises(CalibrationError, match=r"a\.jsonl:1: .*no chat template"):
        list(documents.from_jsonl(path, None, tokenizer))


def test_a_text_that_is_missing_or_not_utf8_is_refused(tmp_path, tokenizer):
    with pytest.raises(CalibrationError, match=r"none\.txt: cannot be read \(No such file"):
        list(documents.from_text(tmp_path / "none.txt"))
    path = tmp_path / "a.txt"
    path.write_bytes(b"ab\xff")
    with pytest.raises(CalibrationError, match="byte 0xff at 2 is not UTF-8"):
        list(documents.from_text(path))
    with pytest.raises(CalibrationError, match="not UTF-8"):
        list(documents.from_jsonl(path, None, tokenizer))
    path.write_bytes(b" \n\n")
    with pytest.raises(CalibrationError, match=r"a\.txt: holds no text"):
        list(documents.from_text(path))
    path.write_bytes("\ufeffab".encode())
    assert [d.text for d in documents.from_text(path)] == ["ab"]


def test_a_hub_set_without_its_package_or_network_says_what_to_do(monkeypatch):
    with pytest.raises(
        CalibrationError, match=r"owner/none \(default, train\): .*or use set: self"
    ):
        documents.from_hub("owner/none", None, "train", None)
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(CalibrationError, match="pip install datasets"):
        documents.from_hub("owner/none", None, "train", None)


def test_a_hub_set_streams_its_records_at_a_commit(monkeypatch):
    class Builder:
        base_path = "hf://datasets/owner/set@0123abc"

        def as_streaming_dataset(self, split):
            return [{"text": split}]

    asked = []
    monkeypatch.setattr(
        "datasets.load_dataset_builder", lambda *a, **k: asked.append((a, k)) or Builder()
    )
    records, commit = documents.from_hub("owner/set", "en", "train", "main")
    assert (list(records), commit) == ([{"text": "train"}], "0123abc")
    assert asked == [(("owner/set", "en"), {"revision": "main"})]
