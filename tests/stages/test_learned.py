"""Learned rounding: how far codes go, what they learn, and that their records tell the truth."""

import pytest
import torch
from conftest import CONFIGS
from students import begin
from students import run as run_on

from compress.journal import Journal
from compress.plan import work
from compress.recipe.prune import Prune
from compress.recipe.schema import Quantize
from compress.results import Limits
from compress.stages import learned, prune, quantize
from compress.stages.context import Context
from compress.student import Student
from compress.surgery.inputs import module_of
from compress.surgery.walk import Walk
from compress.teacher.folder import open_folder

IDS = torch.randint(0, 256, (256, 32), generator=torch.Generator().manual_seed(0))
JUDGES = list(range(3, 256, 4))  # windows that are not learned from


def run(folder, scratch, ids=IDS, **fields):
    return run_on(folder, scratch, ids, batch_tokens=512, **fields)


@pytest.fixture
def both(tiny_llama, tmp_path):
    """A student as its solver leaves it, and one whose codes learned behind that."""
    solved, _ = run(tiny_llama, tmp_path / "solved", bits=2)
    moved, result = run(tiny_llama, tmp_path / "learned", bits=2, learned_rounding=60)
    return solved, moved, result


def outputs(weights, block, see=None):
    """What the first block of a model makes of the embedded windows that judge, float64."""
    walk = Walk(weights, device="cpu", dtype=torch.float64)
    entered = walk.embed(IDS[JUDGES])
    with walk.filled(block.index) as module:
        for linear in block.linears if see is not None else ():
            module_of(module, block, linear).register_forward_pre_hook(
                lambda _, args, name=linear.name: see.update({name: args[0].flatten(0, 1)})
            )
        return walk.call(block.index, module, entered)


def cost(weights, wanted, block):
    """Squared errors, each token's over its mean square, the first two counting 26 times."""
    error = (outputs(weights, block) - wanted).square().sum(-1) / wanted.square().mean(-1)
    error[:, :2] *= 26
    return float(error.sum())


def test_a_code_ends_at_most_one_step_away_on_the_scales_of_the_solver(both):
    solved, moved, _ = both
    first = solved.anatomy.blocks[0].linears  # later ones were solved for other inputs
    for linear in first:
        one, other = (student.rounded(linear.name) for student in (solved, moved))
        if linear.shares == "attention_input":
            far = (one.codes.int() - other.codes.int()).abs()
            assert far.max() == 1
            assert torch.equal(one.scale, other.scale)


def test_the_block_says_more_of_what_it_should_on_windows_that_nobody_learned_from(
    both, tiny_llama
):
    solved, moved, _ = both
    teacher = open_folder(tiny_llama)
    block = teacher.anatomy.blocks[0]
    wanted = outputs(teacher, block)
    assert cost(moved, wanted, block) < 0.99 * cost(solved, wanted, block)


def test_records_tell_of_what_was_learned(both, tiny_llama):
    solved, moved, result = both
    teacher = open_folder(tiny_llama)
    block, seen = teacher.anatomy.blocks[0], {}
    outputs(moved, block, seen)
    counts = torch.ones(len(JUDGES), IDS.shape[1], dtype=torch.float64)
    counts[:, :2] = 26
    records = {record.name: record for record in result.linears}
    for linear in block.linears:
        exact = teacher.block(0)[linear.name + ".weight"].double()
        made = moved.rounded(linear.name)
        error, energy = (
            (seen[linear.name] @ w.T).square().sum(1) @ counts.flatten()
            for w in (made.dequantize().double() - exact, exact)
        )
        assert records[linear.name].relative_error == pytest.approx(float(error / energy), 1e-3)
        if linear.shares == "attention_input":
            share = (made.codes != solved.rounded(linear.name).codes).float().mean()
            assert records[linear.name].learned_codes == pytest.approx(float(share))


def test_what_learning_does_not_help_stays_as_it_was_solved(tiny_llama, tmp_path, monkeypatch):
    solved, _ = run(tiny_llama, tmp_path / "solved", bits=4)
    errors = iter([1.0, 2.0, 0.0] * 9)  # before, after, and while errors are looked at
    monkeypatch.setattr(learned.Learner, "_error", lambda _: next(errors))
    kept, result = run(tiny_llama, tmp_path / "kept", bits=4, learned_rounding=3)
    assert {record.learned_codes for record in result.linears} == {0.0}
    for linear in solved.anatomy.linears:
        assert torch.equal(solved.rounded(linear.name).codes, kept.rounded(linear.name).codes)


@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_learns(tiny_model, tmp_path, family):
    asked = {"learned_rounding": 40}
    student, result = run(tiny_model(family), tmp_path, bits=2, **asked)
    assert {record.outcome for record in result.linears} == {"solved"}
    assert any(record.learned_codes for record in result.linears)
    assert len(result.linears) == len(student.anatomy.linears)


@pytest.mark.parametrize(
    "asked",
    [{"output_curvature": True}, {"error_correction": 0.5},
     {"output_curvature": True, "error_correction": 0.5}],
)  # fmt: skip
def test_every_block_learns_behind_every_solver(tiny_llama, tmp_path, monkeypatch, asked):
    monkeypatch.setattr(learned, "JUDGING", 1_000)  # so that all windows teach, and all judge
    _, result = run(tiny_llama, tmp_path, IDS[:32], bits=2, learned_rounding=30, **asked)
    for block in (0, 1):
        assert any(record.learned_codes for record in result.linears if record.block == block)


@pytest.mark.parametrize("true_sequential", [True, False])
def test_going_on_finds_the_same_codes(tiny_llama, tmp_path, true_sequential):
    asked = {"bits": 2, "learned_rounding": 8, "true_sequential": true_sequential}
    whole, _ = run(tiny_llama, tmp_path / "whole", **asked)
    begin(tmp_path / "whole", tmp_path / "begun")
    resumed, _ = run(tiny_llama, tmp_path / "begun", **asked)
    for linear in whole.anatomy.linears:
        assert torch.equal(whole.rounded(linear.name).codes, resumed.rounded(linear.name).codes)


def test_what_was_pruned_stays_zero(tiny_llama, tmp_path):
    student = Student(open_folder(tiny_llama), tmp_path, Journal(tmp_path / "j.jsonl", {}))
    context = Context(IDS, "cpu", torch.float32, tmp_path, limits=Limits(512, 1 << 30))
    prune.run(student, Prune(method="wanda", sparsity=0.5), context)
    zeros = {n: w == 0 for b in (0, 1) for n, w in student.block(b).items() if w.dim() == 2}
    student.enter(1)
    spec = Quantize(bits=2, group_size=32, learned_rounding=20)
    result = quantize.run(student, spec, context)
    assert any(record.learned_codes for record in result.linears)
    shares = {record.name + ".weight": record.sparsity for record in result.linears}
    for block in (0, 1):
        for name, weight in student.block(block).items():
            if name in zeros:
                assert not weight[zeros[name]].any()
                assert shares[name] == pytest.approx(float((weight == 0).float().mean()))


@pytest.mark.parametrize("windows", [1, 3])
def test_of_a_few_windows_all_judge(tiny_llama, tmp_path, windows):
    _, result = run(tiny_llama, tmp_path, IDS[:windows], bits=2, learned_rounding=20)
    assert any(record.learned_codes for record in result.linears)


def test_only_gptq_and_what_is_not_scaled_later_learn():
    with pytest.raises(ValueError, match="rtn does not use this field"):
        Quantize(method="rtn", learned_rounding=10)
    with pytest.raises(ValueError, match="smooth: awq scales columns when a block is finished"):
        Quantize(smooth="awq", learned_rounding=10)


def test_plans_count_the_windows_of_a_step():
    assert work.LEARNED_WINDOWS == learned.WINDOWS
