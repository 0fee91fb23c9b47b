import pytest
import torch

from compress.journal import Journal
from compress.plan import work
from compress.recipe.schema import Allocate, Quantize
from compress.stages import sensitivity
from compress.stages.context import Context
from compress.stages.rounding import Rounder
from compress.stages.sensitivity import groups, measure, rounding
from compress.student import HEAD, Student
from compress.surgery.walk import hidden_states, logits
from compress.teacher.folder import open_folder

IDS = torch.randint(0, 256, (24, 24), generator=torch.Generator().manual_seed(0))
SPEC = Allocate(budget="40 KB", samples=24, seq_len=24)
NEAREST = Quantize(method="rtn", group_size=32)  # looks at no activations


def context(scratch, **given):
    return Context(IDS, "cpu", torch.float32, scratch, **given)


def measured(student, found, here):
    return measure(student, found, rounding(SPEC, here), here)


def student_of(folder, scratch):
    scratch.mkdir(exist_ok=True)
    return Student(open_folder(folder), scratch, Journal(scratch / "student.jsonl", {}))


def log_probabilities(weights):
    hidden = hidden_states(weights, IDS, device="cpu", dtype=torch.float32)
    return logits(weights, hidden.flatten(0, 1)).double().log_softmax(-1)


def true_kl(folder, scratch, group, place):
    """The oracle: one group rounded, the whole model read."""
    student = student_of(folder, scratch)
    inside = group.block is not None
    stored = student.block(group.block) if inside else student.outside()
    names = {x.name: x.name for x in group.linears}
    if not inside and student.anatomy.tied:
        names = {group.linears[0].name: student.anatomy.embedding}
    weights = {name: stored[there + ".weight"] for name, there in names.items()}
    rounded, records = Rounder(group.schemes[place], "fail")(group.linears, weights, None)
    codes = {there: rounded[name] for name, there in names.items()}
    student.commit(group.block if inside else HEAD, codes, records)
    before, after = log_probabilities(open_folder(folder)), log_probabilities(student)
    return float((before.exp() * (before - after)).sum(-1).mean())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
def test_what_is_predicted_is_what_rounding_one_group_does(tiny_model, tmp_path, family, tied):
    folder = tiny_model(family, tied=tied)
    student = student_of(folder, tmp_path / "measured")
    found = groups(student.anatomy, SPEC, NEAREST)
    costs = measured(student, found, context(tmp_path))
    for number in (0, 1, len(found) - 2, len(found) - 1):
        for place in (2, 3):  # 4 and 8 bits: small enough for second order
            true = true_kl(folder, tmp_path / f"{number}-{place}", found[number], place)
            assert costs[number][place] == pytest.approx(true, rel=0.45), found[number].kind
    assert all(list(row) == sorted(row, reverse=True) for row in costs)


def test_fused_linears_are_one_group_and_overrides_leave_no_choice(tiny_llama):
    anatomy = open_folder(tiny_llama).anatomy
    spec = NEAREST.model_copy(
        update=Quantize(
            method="rtn", overrides={"*.0.*.k_proj": {"bits": 8}}, ignore=["*.1.*.o_proj"]
        ).model_dump(include={"ignore"})
        | {"overrides": Quantize(overrides={"*.0.*.k_proj": {"bits": 8}}).overrides}
    )
    found = groups(anatomy, SPEC, spec)
    told = [(g.block, g.kind, len(g.linears), [w[0] for w in g.widths]) for g in found]
    assert told[:3] == [
        (0, "qkv", 1, [2, 3, 4, 8]),
        (0, "qkv", 1, [8]),
        (0, "qkv", 1, [2, 3, 4, 8]),
    ]
    assert (1, "o") not in [row[:2] for row in told]
    assert told[-1] == (None, "head", 1, [2, 3, 4, 8])
    assert [g.kind for g in groups(anatomy, SPEC, Quantize())][:4] == [
        "qkv",
        "o",
        "gate_up",
        "down",
    ]


@pytest.mark.parametrize(("budget", "head", "widths"), [
    ("3.7 bits", None, None), ("3.7 bits", 8, [8]), ("40 KB", 8, [8]), ("40 KB", None, [2, 4]),
])  # fmt: skip
def test_the_head_has_a_choice_where_the_budget_counts_it(tiny_llama, budget, head, widths):
    anatomy = open_folder(tiny_llama).anatomy
    last = groups(anatomy, Allocate(budget=budget, bits=[2, 4]), Quantize(head=head))[-1]
    assert (None if last.block is not None else [w[0] for w in last.widths]) == widths


def test_a_run_that_goes_on_measures_no_block_twice_and_finds_the_same(
    tiny_tied, tmp_path, monkeypatch
):
    student = student_of(tiny_tied, tmp_path / "student")
    found = groups(student.anatomy, SPEC, Quantize(group_size=32))
    whole = measured(student, found, context(tmp_path))
    journal = Journal(tmp_path / "journal.jsonl", {})
    noted, real = [], Journal.add

    def add(self, unit, *rest):
        real(self, unit, *rest)
        noted.append(unit)
        raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "add", add)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            measured(student, found, context(tmp_path, ledger=journal))
        journal = Journal(tmp_path / "journal.jsonl", {})
    assert noted == ["allocate/block-00001", "allocate/block-00000", "allocate/head"]
    monkeypatch.setattr(sensitivity, "Backward", None)  # nothing is left to be walked
    assert measured(student, found, context(tmp_path, ledger=journal)) == whole


def test_batches_change_what_is_measured_by_rounding_alone(tiny_llama, tmp_path):
    from compress.results import Limits

    student = student_of(tiny_llama, tmp_path / "student")
    found = groups(student.anatomy, SPEC, Quantize(group_size=32))
    whole = measured(student, found, context(tmp_path))
    pieces = measured(student, found, context(tmp_path, limits=Limits(48, 0)))
    for row, other in zip(whole, pieces, strict=True):
        assert row == pytest.approx(other, rel=0.1)  # a few codes fall otherwise


def test_the_plan_counts_as_many_draws_as_are_made():
    assert work.DRAWS == sensitivity.DRAWS
