"""Zeros that are not the same everywhere: who gets them, and how many there are in all."""

import itertools
import shutil

import pytest
import torch
from students import IDS, damage

from compress import machine, pipeline
from compress.artifact import provenance
from compress.artifact.layout import open_artifact
from compress.evaluate.sizes import by_part, parts_before
from compress.journal import Journal
from compress.plan import budget
from compress.recipe.prune import Prune
from compress.recipe.pruning import pruning_for
from compress.recipe.schema import Recipe
from compress.results import Limits, Results, from_json
from compress.stages import prune, sensitivity, zeros
from compress.stages.context import Context
from compress.stages.zeros import by_outliers, counted, shared_out
from compress.storage import write_file
from compress.student import Student
from compress.surgery.walk import hidden_states, logits
from compress.teacher import headers
from compress.teacher.folder import open_folder

UP = "model.layers.{}.mlp.up_proj"
SHARED = ["owl", "sensitivity"]


def context_in(scratch, **fields):
    return Context(IDS, "cpu", torch.float32, scratch, limits=Limits(64, 1 << 30), **fields)


def begin(folder, scratch):
    scratch.mkdir(exist_ok=True)
    return Student(open_folder(folder), scratch, Journal(scratch / "student.jsonl", {}))


def run(folder, scratch, **fields):
    student = begin(folder, scratch)
    return student, prune.run(student, Prune(**{"sparsity": 0.5, **fields}), context_in(scratch))


def share(folder, scratch, **fields):
    student = begin(folder, scratch)
    return shared_out(student, Prune(**{"sparsity": 0.5, **fields}), context_in(scratch))


def altered(folder, scratch, changes):
    """A teacher with other weights: each change is given a tensor, by name."""
    copy = scratch / "altered"
    shutil.copytree(folder, copy)
    teacher = open_folder(folder)
    tensors = teacher.outside() | teacher.block(0) | teacher.block(1)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    for name, change in changes.items():
        change(tensors[name])
    write_file(copy / "model.safetensors", tensors)
    return copy


def zeros_of(student):
    found = {}
    for linear in student.anatomy.linears:
        stored = student.block(linear.block)[linear.name + ".weight"]
        found[linear.name] = int((stored == 0).sum())
    return found


def uniform_zeros(student, **fields):
    spec = Prune(**{"sparsity": 0.5, **fields})
    return {
        x.name: x.weights - scheme.kept(x.out_features, x.in_features)
        for x in student.anatomy.linears
        if (scheme := pruning_for(spec, x.name))
    }


@pytest.mark.parametrize("allocation", SHARED)
@pytest.mark.parametrize("method", ["sparsegpt", "magnitude"])
@pytest.mark.parametrize("sparsity", [0.5, 0.371])
def test_zeros_are_in_all_exactly_as_many(tiny_llama, tmp_path, allocation, method, sparsity):
    fields = {"method": method, "sparsity": sparsity}
    student, result = run(tiny_llama, tmp_path, allocation=allocation, **fields)
    found, uniform = zeros_of(student), uniform_zeros(student, **fields)
    assert sum(found.values()) == sum(uniform.values()) == result.zeros.zeros
    assert len({round(n / u, 2) for n, u in zip(found.values(), uniform.values(), strict=True)}) > 1
    by_name = {r.name: r for r in result.linears}
    for one in result.zeros.shares:
        weights = sum(x.weights for x in student.anatomy.linears if x.name in one.linears)
        assert one.sparsity == pytest.approx(sum(found[n] for n in one.linears) / weights)
        assert {by_name[n].block for n in one.linears} == {one.block}


@pytest.mark.parametrize("allocation", SHARED)
def test_where_rows_are_pruned_alike_less_than_a_column_is_more(tiny_llama, tmp_path, allocation):
    fields = {"method": "wanda", "sparsity": 0.43}
    student, _ = run(tiny_llama, tmp_path, allocation=allocation, **fields)
    more = sum(zeros_of(student).values()) - sum(uniform_zeros(student, **fields).values())
    assert 0 <= more < student.anatomy.linears[-1].out_features
    for linear in student.anatomy.linears:
        stored = student.block(linear.block)[linear.name + ".weight"]
        assert len(set((stored != 0).sum(1).tolist())) == 1


@pytest.mark.parametrize("family", ["gpt2", "opt"])
@pytest.mark.parametrize("allocation", SHARED)
def test_every_family_shares_zeros_out(tiny_model, tmp_path, family, allocation):
    student, _ = run(tiny_model(family), tmp_path, allocation=allocation)
    assert sum(zeros_of(student).values()) == sum(uniform_zeros(student).values())


@pytest.mark.parametrize("allocation", SHARED)
def test_codes_of_pruned_places_are_as_many_too(tiny_llama, tmp_path, allocation):
    grid = {"bits": 4, "group_size": 32}
    student, result = run(tiny_llama, tmp_path, allocation=allocation, quantize=grid)
    kept = sum(x.weights for x in student.anatomy.linears) - result.zeros.zeros
    assert sum(student.kept.values()) == kept
    for linear in student.anatomy.linears:
        found = student.rounded(linear.name)
        zero = found.zero.repeat_interleave(32, 1)
        assert int((found.codes != zero).sum()) <= student.kept[linear.name]


def test_a_block_with_planted_outliers_keeps_more(tiny_llama, tmp_path):
    before, _ = share(tiny_llama, tmp_path / "before", allocation="owl")
    planted = altered(tiny_llama, tmp_path, {
        "model.layers.1.input_layernorm.weight": lambda w: w[:2].mul_(40)  # two inputs of q, k, v
    })  # fmt: skip
    schemes, told = share(planted, tmp_path / "after", allocation="owl")
    first, second = told.shares
    assert second.outliers > first.outliers
    assert second.sparsity < 0.5 < first.sparsity
    assert schemes[UP.format(1)].zeros < before[UP.format(1)].zeros
    assert max(abs(one.sparsity - 0.5) for one in told.shares) == pytest.approx(0.08, abs=1e-3)


def test_blocks_that_are_alike_get_the_same():
    sizes = {0: 100, 1: 300, 2: 50}
    assert by_outliers(dict.fromkeys(sizes, 0.02), sizes, 0.7, 0.08) == dict.fromkeys(sizes, 0.7)


def test_sparsities_by_outliers_have_the_mean_asked_for_and_a_bound():
    sizes, found = {0: 100, 1: 300, 2: 50}, {0: 0.01, 1: 0.02, 2: 0.4}
    wanted = by_outliers(found, sizes, 0.7, 0.08)
    mean = sum(wanted[index] * n for index, n in sizes.items()) / sum(sizes.values())
    assert mean == pytest.approx(0.7)
    assert wanted[2] == pytest.approx(0.62)
    assert wanted[2] < wanted[1] < wanted[0] <= 0.78


def test_what_is_wanted_alike_is_what_one_sparsity_makes(tiny_llama):
    anatomy = open_folder(tiny_llama).anatomy
    for allocation, method in itertools.product(SHARED, ("sparsegpt", "wanda")):
        spec = Prune(method=method, sparsity=0.37, allocation=allocation)
        free = {linear: pruning_for(spec, linear.name) for linear in anatomy.linears}
        found = counted(free, {linear.name: 0.37 for linear in anatomy.linears})
        for linear, scheme in free.items():
            uniform = linear.weights - scheme.kept(linear.out_features, linear.in_features)
            slack = linear.out_features if scheme.by_rows else 1
            assert abs(found[linear.name] - uniform) <= slack


def test_too_much_that_is_wanted_comes_nearer_to_the_least(tiny_llama):
    anatomy = open_folder(tiny_llama).anatomy
    spec = Prune(sparsity=0.5, allocation="sensitivity")
    free = {linear: pruning_for(spec, linear.name) for linear in anatomy.linears}
    wanted = {x.name: 0.7 if x.role == "down" else 0.5 for x in anatomy.linears}
    found = counted(free, wanted)
    assert sum(found.values()) == sum(x.weights for x in anatomy.linears) // 2
    shares = {x.role: found[x.name] / x.weights for x in anatomy.linears}
    assert shares["q"] == pytest.approx(shares["gate"], abs=1e-3)
    assert 0.3 < shares["q"] < 0.5 < shares["down"] < 0.7


def test_no_choice_of_the_sparsities_tried_costs_less(tiny_llama, tmp_path):
    _, told = share(tiny_llama, tmp_path, allocation="sensitivity")
    assert told.kl_predicted <= told.kl_uniform
    sizes = {x.name: x.weights for x in open_folder(tiny_llama).anatomy.linears}
    weights = [sum(sizes[n] for n in one.linears) for one in told.shares]
    rows = [one.costs[::2] for one in told.shares]  # 4 of 7: every choice is looked at
    asked = told.sparsity * sum(weights)
    fitting = (
        sum(cost.kl for cost in choice)
        for choice in itertools.product(*rows)
        if sum(c.sparsity * n for c, n in zip(choice, weights, strict=True)) >= asked - 1e-6
    )
    assert told.kl_predicted <= min(fitting) * (1 + 1e-9)
    assert all([c.kl for c in one.costs] == sorted(c.kl for c in one.costs)
               for one in told.shares)  # fmt: skip


def test_what_is_predicted_is_what_pruning_one_group_does(tiny_llama, tmp_path):
    fields = {"method": "wanda", "sparsity": 0.25, "targets": ["*.0.mlp.down_proj"]}
    _, told = share(tiny_llama, tmp_path / "told", allocation="sensitivity", **fields)
    (one,) = told.shares
    student, _ = run(tiny_llama, tmp_path / "pruned", sink_weight=0.0, **fields)

    def said(weights):
        hidden = hidden_states(weights, IDS, device="cpu", dtype=torch.float32)
        return logits(weights, hidden.flatten(0, 1)).double().log_softmax(-1)

    before, after = said(open_folder(tiny_llama)), said(student)
    true = float((before.exp() * (before - after)).sum(-1).mean())
    cost = next(cost.kl for cost in one.costs if cost.sparsity == 0.25)
    assert cost == pytest.approx(true, rel=0.5)


def test_fused_linears_get_one_sparsity_and_overrides_stand(tiny_llama, tmp_path):
    override = {"*.0.mlp.up_proj": {"sparsity": 0.25}, "*.1.*.o_proj": {"pattern": "2:4"}}
    schemes, told = share(tiny_llama, tmp_path, allocation="sensitivity", overrides=override)
    assert schemes[UP.format(0)].zeros is None
    assert schemes[UP.format(0)].sparsity == 0.25
    assert schemes["model.layers.1.self_attn.o_proj"].pattern == "2:4"
    assert UP.format(0) not in {name for one in told.shares for name in one.linears}
    kinds = [(one.block, one.kind, len(one.linears)) for one in told.shares]
    assert kinds[:3] == [(0, "qkv", 3), (0, "o", 1), (0, "gate_up", 1)]
    assert (1, "o", 1) not in kinds
    free = {name: s.zeros for name, s in schemes.items() if s.zeros is not None}
    anatomy = open_folder(tiny_llama).anatomy
    assert sum(free.values()) == sum(x.weights for x in anatomy.linears if x.name in free) // 2


def test_one_kind_of_linear_is_shared_out_block_by_block(tiny_llama, tmp_path):
    _, told = share(tiny_llama, tmp_path, allocation="sensitivity", targets=["*.k_proj"])
    assert [(one.block, len(one.linears)) for one in told.shares] == [(0, 1), (1, 1)]


def test_uniform_looks_at_nothing(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr(zeros, "measure", None)
    schemes, told = share(tiny_llama, tmp_path)
    assert told is None
    assert {scheme.zeros for scheme in schemes.values()} == {None}


@pytest.mark.parametrize("allocation", SHARED)
def test_a_run_that_goes_on_measures_no_block_twice(tiny_llama, tmp_path, monkeypatch, allocation):
    spec = Prune(sparsity=0.5, allocation=allocation)
    whole = shared_out(begin(tiny_llama, tmp_path / "w"), spec, context_in(tmp_path / "w"))
    journal = Journal(tmp_path / "journal.jsonl", {})
    real = Journal.add

    def add(self, unit, *rest):
        real(self, unit, *rest)
        raise KeyboardInterrupt

    student = begin(tiny_llama, tmp_path / "s")
    monkeypatch.setattr(Journal, "add", add)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            shared_out(student, spec, context_in(tmp_path, ledger=journal))
        journal = Journal(tmp_path / "journal.jsonl", {})
    found = [f"stage-0/zeros/block-0000{index}" for index in (0, 1)]
    assert list(journal.finished) == (found if allocation == "owl" else found[::-1])
    monkeypatch.setattr(sensitivity, "Backward", None)  # nothing is left to be walked
    monkeypatch.setattr(zeros, "_energies", None)
    assert shared_out(student, spec, context_in(tmp_path, ledger=journal)) == whole


@pytest.fixture
def recipe_of(tmp_path, monkeypatch):
    """A recipe whose text is at hand, and which judges nothing."""
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(machine, "code_sha256", lambda: "code")  # may be edited meanwhile
    monkeypatch.setattr(provenance, "checkout_commit", lambda: None)
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)

    def make(folder, *stages, dtype="float32"):
        text = {"set": str(tmp_path / "text.txt"), "samples": 8, "seq_len": 32}
        return Recipe.model_validate(
            {
                "version": 1,
                "teacher": {"model": str(folder), "dtype": dtype},
                "calibration": text,
                "stages": list(stages),
                "evaluate": {"suite": "none"},
            }
        )

    return make


def prune_by(allocation, **fields):
    return {"prune": {"sparsity": 0.5, "allocation": allocation, **fields}}


@pytest.mark.parametrize("allocation", SHARED)
def test_a_run_cut_short_ends_in_the_same_bytes(tiny_llama, tmp_path, recipe_of, allocation):
    recipe = recipe_of(tiny_llama, prune_by(allocation))
    pipeline.apply(recipe, out=tmp_path / "whole")
    for step in ("share zeros", "prune"):

        def interrupt(progress, step=step):
            if (progress.step, progress.done) == (step, 1):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            pipeline.apply(recipe, out=tmp_path / "cut", watch=interrupt)
    pipeline.apply(recipe, out=tmp_path / "cut")
    manifests = [tmp_path / name / "manifest.json" for name in ("whole", "cut")]
    assert manifests[0].read_text() == manifests[1].read_text()
    results = from_json(Results, (tmp_path / "cut" / "results.json").read_text())
    assert results.stages[0].zeros.by == allocation


GRID = {"bits": 4, "group_size": 32}
RECIPES = {
    "floats": (prune_by("sensitivity"),),
    "codes": (prune_by("sensitivity", quantize=GRID),),
    "few": (prune_by("sensitivity", sparsity=0.2, quantize=GRID),),  # where masks pay or do not
    "rows": (prune_by("owl", method="wanda", sparsity=0.37),),
    "weights": (prune_by("owl", method="magnitude"),),
    "then": (prune_by("sensitivity"), {"quantize": GRID}),
    "widths": (
        prune_by("sensitivity"),
        {"quantize": {**GRID, "overrides": {"*.down_proj": {"bits": 8}}}},
    ),
    "budget": (
        prune_by("sensitivity"),
        {"allocate": {"budget": "3.4 bits", "samples": 8, "seq_len": 32}},
        {"quantize": {"group_size": 32}},
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_plan_says_at_most_and_near(tiny_llama, tmp_path, recipe_of, name):
    recipe = recipe_of(tiny_llama, *RECIPES[name])
    found = headers.read(str(tiny_llama))
    most = budget.at_most(recipe, found)
    assert most.at_most
    pipeline.compress_only(recipe, out=tmp_path / "out")
    artifact = open_artifact(tmp_path / "out")
    made = by_part(parts_before(open_folder(tiny_llama)), artifact)
    assert artifact.size_bytes == sum(part.after_bytes for part in made) <= most.size_bytes
    for part, bound in zip(made, most.parts, strict=True):
        assert part.after_bytes <= bound.after_bytes
    if len(recipe.stages) == 1 and name != "few":
        assert artifact.size_bytes > 0.99 * most.size_bytes
    if name == "budget":
        assert 3.3 < 8 * made[0].after_bytes / made[0].weights <= 3.4


def test_blocks_that_matter_less_get_more_zeros_and_less_is_lost(tiny_llama, tmp_path):
    folder = altered(tiny_llama, tmp_path, {
        f"model.layers.0.{name}.weight": lambda w: w.mul_(1e-4)
        for name in ("self_attn.o_proj", "mlp.down_proj")
    })  # fmt: skip
    uniform, _ = run(folder, tmp_path / "uniform", sink_weight=0.0)
    shared, result = run(folder, tmp_path / "shared", sink_weight=0.0, allocation="sensitivity")
    first, second = (
        [one.sparsity for one in result.zeros.shares if one.block == index] for index in (0, 1)
    )
    assert min(first) > 0.6 > 0.5 > min(second)
    assert damage(shared, folder) < damage(uniform, folder)
