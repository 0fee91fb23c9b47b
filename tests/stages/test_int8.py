"""W8A8 and LLM.int8() as stages: whole students of tiny models."""

import pytest
import torch
from conftest import CONFIGS

from compress.journal import Journal
from compress.kernels.int8 import Int8Matrix
from compress.recipe.schema import Quantize
from compress.results import Limits
from compress.stages import quantize
from compress.stages.context import Context
from compress.stages.inputs import watch_block
from compress.stages.smooth import folds, smooth
from compress.student import Student
from compress.surgery.load import materialize
from compress.surgery.walk import Walk, hidden_states, logits
from compress.teacher.folder import open_folder

IDS = torch.randint(0, 256, (8, 32), generator=torch.Generator().manual_seed(0))


def run(folder, scratch, **fields):
    scratch.mkdir(exist_ok=True)
    student = Student(open_folder(folder), scratch, Journal(scratch / "journal.jsonl", {}))
    context = Context(IDS, "cpu", torch.float32, scratch, limits=Limits(64))
    return student, quantize.run(student, Quantize(**fields), context)


def states(weights):
    return hidden_states(weights, IDS, device="cpu", dtype=torch.float32)


def damage(student, folder):
    return float((states(student) - states(open_folder(folder))).square().mean())


@pytest.mark.parametrize(
    ("family", "fields"),
    [(family, {"method": "w8a8", "smooth": 0.5}) for family in sorted(CONFIGS)]
    + [("gpt2", {"method": "w8a8"}), ("llama", {"method": "llm_int8"})]
    + [("qwen2", {"method": "llm_int8", "smooth": "search"})]
    + [("llama", {"method": "llm_int8", "smooth": "search", "solver": "gptq"})]
    + [("gpt2", {"method": "w8a8", "solver": "gptq"})],
)
def test_every_family_is_rounded_and_computes_as_its_integers_say(
    tiny_model, tmp_path, family, fields
):
    folder = tiny_model(family)
    student, result = run(folder, tmp_path, **fields)
    assert {r.name for r in result.linears} == {x.name for x in student.anatomy.linears}
    assert all(r.outcome == "solved" and 0 < r.relative_error < 1e-3 for r in result.linears)
    for block in student.anatomy.blocks:
        rounding = student.inputs(block.index)
        assert set(rounding) == {linear.name for linear in block.linears}
        assert all(isinstance(rounds, Int8Matrix) for rounds in rounding.values())
    with torch.no_grad():
        whole = materialize(student, torch.float32)(IDS).logits.flatten(0, 1)
    assert torch.allclose(logits(student, states(student).flatten(0, 1)), whole, atol=1e-3)
    assert damage(student, folder) > 0


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_smoothing_changes_no_bit_of_what_a_block_computes(tiny_model, family):
    dtype = torch.bfloat16
    teacher = open_folder(tiny_model(family)).cast("bfloat16")
    block = teacher.anatomy.blocks[0]
    walk, stored = Walk(teacher, device="cpu", dtype=dtype), teacher.block(0)
    x = walk.embed(IDS)
    with walk.filled(0, stored) as module:
        before = walk.call(0, module, x)
        seen = watch_block(walk, block, module, [x], 0.0)
    names = {linear.name for linear in block.linears}
    found = smooth(list(folds(block, teacher.config, names)), stored, seen, 0.5)
    with walk.filled(0, {**stored, **found.tensors}) as module:
        after = walk.call(0, module, x)
        again = watch_block(walk, block, module, [x], 0.0)
    assert torch.equal(after, before)
    for shared, log in again.items():
        assert torch.equal(log.largest, found.seen[shared].largest)
        assert torch.equal(log.rows, found.seen[shared].rows)


def with_an_outlier(folder, tmp_path):
    """A teacher whose first block is fed one channel that is a hundred times the others."""
    import shutil

    from safetensors.torch import load_file, save_file

    made = tmp_path / "outlier"
    shutil.copytree(folder, made)
    tensors = load_file(made / "model.safetensors")
    tensors["model.layers.0.input_layernorm.weight"][3] *= 100
    save_file(tensors, made / "model.safetensors", {"format": "pt"})
    return made


def test_outliers_are_found_reported_and_cost_less_damage(tiny_llama, tmp_path):
    folder = with_an_outlier(tiny_llama, tmp_path)
    plain, _ = run(folder, tmp_path / "plain", method="w8a8")
    smooth, _ = run(folder, tmp_path / "smooth", method="w8a8", smooth=0.5)
    student, result = run(folder, tmp_path / "int8", method="llm_int8", threshold=20.0)
    q = next(r for r in result.linears if r.role == "q" and r.block == 0)
    assert q.largest_columns[0] == 3
    assert q.outlier_columns >= 1
    assert 0 < q.outlier_share <= q.outlier_columns / 64
    assert damage(student, folder) < damage(plain, folder)
    assert damage(smooth, folder) < damage(plain, folder)


def test_gptq_does_less_damage_than_rounding_to_nearest(tiny_llama, tmp_path):
    def errors(solver):
        found = run(tiny_llama, tmp_path / solver, method="w8a8", smooth=0.5, solver=solver)[1]
        return sum(linear.relative_error for linear in found.linears)

    assert errors("gptq") < errors("nearest")


def test_a_static_set_holds_the_columns_that_calibration_found(tiny_llama, tmp_path):
    folder = with_an_outlier(tiny_llama, tmp_path)
    student, result = run(
        folder, tmp_path / "int8", method="llm_int8", threshold=20.0, outliers="static"
    )
    for record in result.linears:
        inputs = student.rounded(record.name).inputs
        assert inputs.threshold == 0.0
        assert len(inputs.columns) == record.outlier_columns
        assert set(record.largest_columns) <= set(inputs.columns.tolist())


def test_a_threshold_of_zero_is_plain_w8a8(tiny_llama, tmp_path):
    zero, result = run(tiny_llama, tmp_path / "zero", method="llm_int8", threshold=0.0)
    assert all(r.outlier_columns == 0 and r.outlier_share == 0 for r in result.linears)
    plain, _ = run(tiny_llama, tmp_path / "plain", method="w8a8", scale_search="none")
    difference = damage(zero, tiny_llama) / damage(plain, tiny_llama)
    assert 0.5 < difference < 2


def test_a_batch_decides_dynamic_outliers_and_never_static_ones(tiny_llama, tmp_path):
    folder = with_an_outlier(tiny_llama, tmp_path)

    def depends(student):
        whole, alone = (
            states(student),
            [hidden_states(student, row[None], device="cpu", dtype=torch.float32) for row in IDS],
        )
        return float((torch.cat(alone) - whole).abs().max())

    settings = {"method": "llm_int8", "threshold": 6.0}
    dynamic, _ = run(folder, tmp_path / "dynamic", **settings)
    static, _ = run(folder, tmp_path / "static", **settings, outliers="static")
    assert depends(static) < 1e-4 < depends(dynamic)


def test_a_run_that_was_cut_short_goes_on_to_the_same_student(tiny_llama, tmp_path):
    fields = {"method": "w8a8", "smooth": 0.5}
    whole, expected = run(tiny_llama, tmp_path / "whole", **fields)
    folder = tmp_path / "cut"
    run(tiny_llama, folder, **fields)
    journal = folder / "journal.jsonl"
    journal.write_text("\n".join(journal.read_text().splitlines()[:-1]) + "\n")
    again, result = run(tiny_llama, folder, **fields)
    assert result == expected
    for name in again.anatomy.inside(1):
        assert torch.equal(again.block(1)[name], whole.block(1)[name])


def test_linears_that_are_left_alone_stay_dense_and_smoothed(tiny_llama, tmp_path):
    student, result = run(
        tiny_llama, tmp_path / "part", method="w8a8", smooth=0.5, targets=["*.down_proj"]
    )
    assert {r.role for r in result.linears} == {"down"}
    parts, before = dict(student.parts()), open_folder(tiny_llama).block(0)
    up, norm = "model.layers.0.mlp.up_proj.weight", "model.layers.0.input_layernorm.weight"
    assert not torch.equal(parts[up], before[up])
    assert torch.equal(parts[norm], before[norm])


@pytest.mark.parametrize(
    "fields",
    [{"method": "w8a8"}, {"method": "w8a8", "solver": "gptq"},
     {"method": "llm_int8", "outliers": "static"}],
)  # fmt: skip
def test_a_head_is_rounded_by_its_weights_alone(tiny_llama, tmp_path, fields):
    student, result = run(tiny_llama, tmp_path / "head", head=8, **fields)
    head = student.anatomy.embedding if student.anatomy.tied else student.anatomy.head.name
    assert result.linears[-1].name == student.anatomy.head.name
    assert student.rounded(head).bits == 8
    assert student.rounded(head).inputs is None
