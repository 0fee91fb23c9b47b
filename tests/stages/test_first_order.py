"""What hangs on a head or a channel, by gradients: held against leaving it out."""

import pytest
import torch
from students import IDS, states

from compress.journal import Journal
from compress.kernels.divergence import kl
from compress.plan import reshaping
from compress.results import Limits
from compress.stages import first_order
from compress.stages.context import Context
from compress.student import Student
from compress.surgery.walk import logits
from compress.teacher.folder import open_folder


@pytest.fixture
def asked(tiny_llama, tmp_path):
    journal = Journal(tmp_path / "journal.jsonl", {})
    limits = Limits(64, 1 << 30)
    context = Context(IDS, "cpu", torch.float32, tmp_path, limits=limits, ledger=journal)
    return Student(open_folder(tiny_llama), tmp_path, journal), context


def test_a_channel_costs_what_leaving_it_out_does(asked, tmp_path):
    student, context = asked
    name = "model.layers.1.mlp.down_proj"
    scores = torch.tensor(first_order.scores(student, context)[name])
    said = logits(student, states(student).flatten(0, 1))
    weight, costs = student.block(1)[f"{name}.weight"], []
    faint = scores.argsort()[len(scores) // 2 - 4 : len(scores) // 2 + 4]  # second order holds
    for channel in faint.tolist():
        without = weight.clone()
        without[:, channel] = 0
        student.commit(1, {}, [], {f"{name}.weight": without})
        costs.append(kl(said, logits(student, states(student).flatten(0, 1))).mean())
    assert float(scores[faint].mean()) == pytest.approx(float(torch.stack(costs).mean()), rel=0.3)


def test_scores_are_found_once_for_every_group_and_channel(asked):
    student, context = asked
    found = first_order.scores(student, context)
    assert [len(scores) for scores in found.values()] == [2, 128, 2, 128]
    assert first_order.scores(student, context) is context.noted("stage-0/first_order")


def test_plans_know_how_much_is_walked():
    known = reshaping.SCORED_WINDOWS, reshaping.SCORED_TOKENS, reshaping.SCORED_DRAWS
    assert known == (first_order.WINDOWS, first_order.TOKENS, first_order.DRAWS)
