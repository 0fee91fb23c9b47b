import pytest
import torch
from students import IDS, damage, states

from compress.errors import GateMissed, SolveError
from compress.journal import Journal
from compress.kernels.grid import Rounded
from compress.recipe.gates import LinearGate
from compress.recipe.prune import Prune
from compress.recipe.pruning import pruning_for
from compress.recipe.quantize import Quantize
from compress.results import Limits
from compress.stages import prune, pruning, quantize
from compress.stages.context import Context
from compress.student import Student
from compress.teacher.folder import open_folder

FAMILIES = ["llama", "gpt2", "opt", "qwen2"]
UP = "model.layers.1.mlp.up_proj"


def context_in(scratch, **fields):
    return Context(IDS, "cpu", torch.float32, scratch, limits=Limits(64, 1 << 30), **fields)


def begin(folder, scratch):
    scratch.mkdir(exist_ok=True)
    return Student(open_folder(folder), scratch, Journal(scratch / "journal.jsonl", {}))


def run(folder, scratch, *, gate=None, **fields):
    student = begin(folder, scratch)
    spec = Prune(**{"sparsity": 0.5, **fields} if "pattern" not in fields else fields)
    return student, prune.run(student, spec, context_in(scratch, gate=gate))


def weights(student):
    """Every block linear's weight as it now is, [O, I]."""
    for linear in student.anatomy.linears:
        stored = student.block(linear.block)[linear.name + ".weight"]
        yield linear, stored.T if linear.transposed else stored


@pytest.mark.parametrize("method", ["admm", "sparsegpt", "wanda", "magnitude"])
def test_every_linear_keeps_exactly_what_was_asked_for(tiny_llama, tmp_path, method):
    student, result = run(tiny_llama, tmp_path, method=method, sparsity=0.3)
    by_name = {record.name: record for record in result.linears}
    for linear, weight in weights(student):
        wanted = linear.weights - round(0.3 * linear.weights)
        if method == "wanda":
            row = linear.in_features - round(0.3 * linear.in_features)
            assert (weight != 0).sum(1).tolist() == [row] * linear.out_features
            wanted = row * linear.out_features
        assert int((weight != 0).sum()) == student.kept[linear.name] == wanted
        assert by_name[linear.name].sparsity == pytest.approx(1 - wanted / linear.weights)
    assert {record.method for record in result.linears} == {method}
    assert all(0 < record.relative_error < 1 for record in result.linears)


def test_of_linears_that_share_an_input_the_one_without_numbers_is_named(tiny_llama):
    block = open_folder(tiny_llama).anatomy.blocks[0]
    q, v = (next(x for x in block.linears if x.role == role) for role in ("q", "v"))
    given = {x.name: torch.ones(x.out_features, x.in_features) for x in (q, v)}
    given[v.name][0, 0] = torch.nan
    scheme = pruning_for(Prune(method="magnitude", sparsity=0.5), q.name)
    schemes = dict.fromkeys(given, scheme)
    with pytest.raises(SolveError, match=rf"{v.name}: its weights hold NaN"):
        pruning.Pruner(schemes, "fail")([q, v], given, None)
    parts, results = pruning.Pruner(schemes, "keep_dense")([q, v], given, None)
    assert set(parts) == {q.name}
    assert {one.name: one.outcome for one in results} == {q.name: "solved", v.name: "kept_dense"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pattern_holds_in_every_family(tiny_model, tmp_path, family):
    student, _ = run(tiny_model(family), tmp_path, pattern="2:4")
    for _, weight in weights(student):
        assert ((weight.reshape(len(weight), -1, 4) != 0).sum(2) == 2).all()


def test_admm_does_the_least_damage_and_wanda_the_most(tiny_llama, tmp_path):
    found = [
        damage(run(tiny_llama, tmp_path / name, **fields)[0], tiny_llama)
        for name, fields in {
            "admm": {"method": "admm", "sink_weight": 0.0},
            "refined": {"sink_weight": 0.0},
            "sparsegpt": {"sink_weight": 0.0, "refine": 0},
            "wanda": {"method": "wanda", "sink_weight": 0.0},
        }.items()
    ]
    assert found == sorted(found)


def test_wanda_moves_no_weight(tiny_llama, tmp_path):
    student, _ = run(tiny_llama, tmp_path, method="wanda")
    before = open_folder(tiny_llama)
    for linear, weight in weights(student):
        dense = before.block(linear.block)[linear.name + ".weight"]
        assert torch.equal(weight[weight != 0], dense[weight != 0])


@pytest.mark.parametrize("sequential", [True, False])
def test_wanda_prunes_by_all_windows_though_only_some_judge_it(
    tiny_llama, tmp_path, monkeypatch, sequential
):
    fields = {"method": "wanda", "true_sequential": sequential}
    some, judged = run(tiny_llama, tmp_path / "some", **fields)
    monkeypatch.setattr(prune, "_CORRELATED", 1)
    every, exact = run(tiny_llama, tmp_path / "every", **fields)
    for (_, one), (_, other) in zip(weights(some), weights(every), strict=True):
        assert torch.equal(one, other)
    found = {r.name: r.relative_error for r in judged.linears}
    assert found == pytest.approx({r.name: r.relative_error for r in exact.linears}, rel=0.2)
    assert found != {r.name: r.relative_error for r in exact.linears}


def test_magnitude_runs_without_calibration(tiny_llama, tmp_path):
    student = begin(tiny_llama, tmp_path)
    context = Context(torch.empty(0, 1, dtype=torch.long), "cpu", torch.float32, tmp_path)
    prune.run(student, Prune(method="magnitude", sparsity=0.5), context)
    _, weight = next(weights(student))
    dense = open_folder(tiny_llama).block(0)["model.layers.0.self_attn.q_proj.weight"]
    assert float(weight[weight != 0].abs().min()) >= float(dense[weight == 0].abs().min()) * 0.1
    assert torch.equal(weight[weight != 0], dense[weight != 0])


def test_correcting_errors_helps_what_is_pruned(tiny_llama, tmp_path):
    plain, _ = run(tiny_llama, tmp_path / "plain", sink_weight=0.0)
    corrected, _ = run(tiny_llama, tmp_path / "more", sink_weight=0.0, error_correction=0.5)
    assert damage(corrected, tiny_llama) < damage(plain, tiny_llama)


@pytest.mark.parametrize("sym", [True, False])
def test_joint_codes_are_zero_points_where_weights_are_pruned(tiny_llama, tmp_path, sym):
    student, result = run(tiny_llama, tmp_path, quantize={"bits": 4, "group_size": 32, "sym": sym})
    for linear in student.anatomy.linears:
        found = student.rounded(linear.name)
        assert isinstance(found, Rounded)
        zeros = found.zero.repeat_interleave(32, 1) == found.codes
        assert int(zeros.sum()) >= linear.weights // 2 == student.kept[linear.name]
    assert {(r.bits, r.group_size) for r in result.linears} == {(4, 32)}
    assert all(r.sparsity >= 0.5 for r in result.linears)


def test_rounding_in_the_loop_does_less_damage_than_rounding_to_nearest_behind_it(
    tiny_llama, tmp_path
):
    grid = {"bits": 3, "group_size": 32}
    joint, _ = run(tiny_llama, tmp_path / "joint", sink_weight=0.0, quantize=grid)
    student, _ = run(tiny_llama, tmp_path / "apart", sink_weight=0.0)
    student.enter(1)
    quantize.run(student, Quantize(method="rtn", **grid), context_in(tmp_path / "apart"))
    assert damage(joint, tiny_llama) < damage(student, tiny_llama)


@pytest.mark.parametrize("method", ["gptq", "rtn", "w8a8", "nvfp4"])
def test_quantizing_what_was_pruned_keeps_its_zeros(tiny_llama, tmp_path, method):
    student, _ = run(tiny_llama, tmp_path)
    before = {linear.name: weight != 0 for linear, weight in weights(student)}
    student.enter(1)
    fields = {"group_size": 32} if method in ("gptq", "rtn") else {}
    spec = Quantize(method=method, **fields)
    result = quantize.run(student, spec, context_in(tmp_path))
    for linear, weight in weights(student):
        assert not weight[~before[linear.name]].any()
    if method in ("gptq", "rtn"):
        assert all(record.sparsity >= 0.5 for record in result.linears)
        assert student.kept[UP] == 128 * 32


def test_overrides_and_ignore_decide_linear_by_linear(tiny_llama, tmp_path):
    student, result = run(
        tiny_llama,
        tmp_path,
        ignore=["*.k_proj"],
        overrides={"*.down_proj": {"pattern": "4:8"}, "*.up_proj": {"sparsity": 0.25}},
    )
    found = {linear.name: weight for linear, weight in weights(student)}
    assert (found["model.layers.0.self_attn.k_proj"] != 0).all()
    down = found["model.layers.0.mlp.down_proj"]
    assert ((down.view(len(down), -1, 8) != 0).sum(2) == 4).all()
    assert int((found[UP] != 0).sum()) == 128 * 48
    assert "model.layers.0.self_attn.k_proj" not in {record.name for record in result.linears}


def test_a_killed_run_takes_up_what_it_has_pruned(tiny_llama, tmp_path):
    student, result = run(tiny_llama, tmp_path)
    again = begin(tiny_llama, tmp_path)
    found = prune.run(again, Prune(sparsity=0.5), context_in(tmp_path))
    assert found == result
    assert again.kept == student.kept
    assert torch.equal(states(again), states(student))


def test_slices_of_rows_keep_as_much_and_change_no_pattern(tiny_llama, tmp_path):
    whole, result = run(tiny_llama, tmp_path / "whole", pattern="2:4")
    student = begin(tiny_llama, tmp_path / "cut")
    context = Context(
        IDS, "cpu", torch.float32, tmp_path / "cut", limits=Limits(64, 1 << 30, solve_rows=24)
    )
    cut = prune.run(student, Prune(pattern="2:4"), context)
    pairs = list(zip(weights(whole), weights(student), strict=True))
    # Rows are solved each for itself: from one Hessian, a tie that rounding breaks moves one row.
    for (_, one), (_, other) in pairs[:3]:
        assert int(((one - other).abs().amax(1) > 1e-5).sum()) <= 1
    for _, (_, other) in pairs:
        assert ((other.view(len(other), -1, 4) != 0).sum(2) == 2).all()
    # All after it have other inputs, and keep as much of their outputs all the same.
    for one, other in zip(result.linears, cut.linears, strict=True):
        assert other.relative_error == pytest.approx(one.relative_error, rel=0.05)
    student.enter(1)
    prune.run(student, Prune(sparsity=0.75), context)
    assert all(int((w != 0).sum()) == x.weights // 4 for x, w in weights(student))


def test_a_gate_on_linears_fails_or_keeps_them_dense(tiny_llama, tmp_path):
    with pytest.raises(GateMissed, match=r"% zeros, and .*linear_error_max.*Prune less of it"):
        run(tiny_llama, tmp_path / "fail", gate=LinearGate(1e-6, "fail", (4,)))
    student, result = run(tiny_llama, tmp_path / "dense", gate=LinearGate(1e-6, "keep_dense", (4,)))
    assert {record.outcome for record in result.linears} == {"kept_dense"}
    assert student.kept == {}
    assert damage(student, tiny_llama) == 0


def test_what_cannot_be_solved_fails_by_name_or_is_kept_dense(tiny_llama, tmp_path, monkeypatch):
    def fails(*_):
        raise SolveError("no")

    monkeypatch.setattr(pruning, "invert", fails)
    with pytest.raises(SolveError, match=r"q_proj: no\. Use more or other calibration text"):
        run(tiny_llama, tmp_path / "fail")
    _, result = run(tiny_llama, tmp_path / "dense", on_unsolvable="keep_dense")
    assert {record.note for record in result.linears} == {"no"}
