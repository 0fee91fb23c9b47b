"""What is written down of a student, and how far an artifact may be from it."""

from __future__ import annotations

import copy
import hashlib
import json

import pytest
import torch
from verify.conftest import Student, linears

from compress.surgery.load import materialize, tokenizer
from compress.verify import reference


@pytest.fixture
def student(tiny_tied):
    return Student(tiny_tied, linears(4, 32, False), "bfloat16")


def test_it_says_what_transformers_says_of_the_student(student, tiny_tied):
    known = json.loads(json.dumps(reference.record(student, tokenizer(tiny_tied))))
    assert len(known["ids"]) == 32
    model = materialize(student, torch.float32)
    with torch.inference_mode():
        expected = model(torch.tensor([known["ids"]])).logits[0, -4:]
    for told, row in zip(known["logits"], expected, strict=True):
        torch.testing.assert_close(torch.tensor(told["values"]), row.topk(16).values)
        assert told["logsumexp"] == pytest.approx(float(row.logsumexp(-1)), abs=1e-4)


def test_it_hashes_every_dense_tensor_as_float32(student, tiny_tied):
    known = reference.record(student, tokenizer(tiny_tied))
    dense = student.dense()
    assert list(known["weights"]) == sorted(dense)
    for name, tensor in dense.items():
        raw = tensor.float().contiguous().numpy().tobytes()
        assert known["weights"][name] == hashlib.sha256(raw).hexdigest(), name


def test_dense_folders_hold_weights_rounded_once_more(student):
    known = reference.record(student, None, stored_as="bfloat16")
    name = "model.layers.0.mlp.up_proj.weight"
    narrowed = student.dense()[name].bfloat16()
    assert known["weights"][name] == reference.weight_hash(narrowed)
    assert known["weights"][name] != reference.record(student, None)["weights"][name]


def test_without_a_tokenizer_ids_come_by_rule(student):
    known = reference.record(student, None)
    assert known["text"] is None
    assert known["ids"] == reference.probe(None, 320)
    assert len(set(known["ids"])) == 32
    assert 0 <= min(known["ids"]) <= max(known["ids"]) < 320


def test_weights_are_bit_equal_and_logits_within_a_thousandth(student):
    known = reference.record(student, None)
    hashes, logits = reference.observe(student, known["ids"])
    assert reference.disagreements(known, hashes, logits) == ([], [], 0.0)
    _, far, worst = reference.disagreements(known, hashes, logits + 9e-4)
    assert (far, worst) == ([], pytest.approx(9e-4, rel=0.1))
    _, far, _ = reference.disagreements(
        known, hashes, logits + torch.tensor([[0], [2e-3], [0], [0]])
    )
    assert far == ["position 2 of 4: off by 0.002, allowed are 0.001"]
    assert len(reference.disagreements(known, hashes, logits * torch.nan)[1]) == 4


def test_tensors_are_compared_by_name(student):
    known = reference.record(student, None)
    hashes, logits = reference.observe(student, known["ids"])
    other = copy.copy(hashes)
    other["odd"] = other.pop("model.norm.weight")
    wrong, _, _ = reference.disagreements(known, other, logits)
    assert wrong == ["model.norm.weight: missing", "odd: not in the reference"]
