import itertools
import random
from fractions import Fraction

import pytest
import torch

from compress import machine, pipeline
from compress.artifact import provenance
from compress.artifact.layout import open_artifact
from compress.errors import RecipeError
from compress.journal import Journal
from compress.plan.budget import at_most, check, free
from compress.plan.sizes import Counter, size
from compress.recipe.schema import Recipe
from compress.results import Results, from_json
from compress.stages import allocate, quantize
from compress.stages.allocate import Market
from compress.stages.context import Context
from compress.stages.sensitivity import groups
from compress.student import Student
from compress.teacher import headers
from compress.teacher.folder import open_folder

IDS = torch.randint(0, 256, (8, 32), generator=torch.Generator().manual_seed(0))


def recipe_of(folder, budget, *, bits=(2, 3, 4, 8), **fields):
    stages = [
        {"allocate": {"budget": budget, "bits": list(bits), "samples": 8, "seq_len": 32}},
        {"quantize": {"group_size": 32, **fields}},
    ]
    teacher = {"model": str(folder), "dtype": "float32"}
    return Recipe(version=1, teacher=teacher, stages=stages)


@pytest.fixture
def market(tiny_tied):
    """Costs made up: each group's is a power of its place, halved with every bit."""

    def make(budget, **fields):
        recipe = recipe_of(tiny_tied, budget, **fields)
        found = headers.read(str(tiny_tied))
        ahead = recipe.stages[1].quantize
        members = groups(found.anatomy, recipe.allocate, ahead)
        costs = [
            [1.3**number * 2.0 ** -scheme[0] for scheme in group.widths]
            for number, group in enumerate(members)
        ]
        counter = Counter(recipe, found)
        return recipe.allocate, Market(members, costs, counter, found.anatomy.weights)

    return make


def every(market):
    return itertools.product(*(range(len(row)) for row in market.costs))


def cost(market, choice):
    return sum(row[place] for row, place in zip(market.costs, choice, strict=True))


@pytest.mark.parametrize("budget", ["2.6 bits", "3.7 bits", "4.5 bits", "99 bits"])
def test_bits_per_weight_stay_within_the_budget_and_none_are_better(market, budget):
    spec, shop = market(budget, bits=(2, 3, 4), head=8)
    found = shop.allocation(spec, shop.choose(spec))
    assert found.bits_per_weight <= spec.parsed.bits
    exact = [sum(r[p] for r, p in zip(shop.nbytes[:-1], c, strict=False)) for c in every(shop)]
    fitting = [
        cost(shop, choice)
        for choice, nbytes in zip(every(shop), exact, strict=True)
        if Fraction(8 * nbytes, shop.weights) <= spec.parsed.bits
    ]
    assert found.kl_predicted == pytest.approx(min(fitting), rel=1e-9)


@pytest.mark.parametrize("kilobytes", ["65.2 KB", "70 KB", "80 KB", "200 KB"])
def test_the_whole_artifact_stays_within_the_budget_to_the_byte(market, kilobytes):
    spec, shop = market(kilobytes, bits=(2, 4))
    found = shop.allocation(spec, shop.choose(spec))
    assert found.size_bytes <= spec.parsed.nbytes
    fitting = [
        cost(shop, choice)
        for choice in every(shop)
        if shop.sizes.artifact(shop.bits(choice)).size_bytes <= spec.parsed.nbytes
    ]
    assert found.kl_predicted == pytest.approx(min(fitting), rel=1e-2)  # headers vary a little


def test_a_limit_on_kl_takes_the_fewest_bytes(market):
    spec, shop = market({"kl_mean_max": 3.5}, bits=(2, 3, 4))
    choice = shop.choose(spec)
    assert cost(shop, choice) <= 3.5
    taken = sum(row[place] for row, place in zip(shop.nbytes, choice, strict=True))
    sizes = [
        sum(row[place] for row, place in zip(shop.nbytes, c, strict=True))
        for c in every(shop)
        if cost(shop, c) <= 3.5
    ]
    assert taken == min(sizes)


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ("2 bits", "2 bits cannot be kept: the narrowest grids take 2.500 bits"),
        ("20 KB", "20 KB cannot be kept: the narrowest grids take 0.0"),
        ({"kl_mean_max": 1e-9}, "kl_mean_max 1e-09 cannot be kept: with the widest grids the"),
    ],
)
def test_a_budget_that_no_choice_keeps_is_refused(market, budget, said):
    spec, shop = market(budget, head=8)
    with pytest.raises(RecipeError, match=r"allocate\.budget") as caught:
        shop.choose(spec)
    assert said in str(caught.value)


def test_quantize_rounds_as_was_allocated_and_overrides_win(tiny_llama, tmp_path):
    recipe = recipe_of(
        tiny_llama,
        "5.5 bits",
        overrides={"*.1.mlp.down_proj": {"bits": 8}},
        ignore=["*.0.*.o_proj"],
    )
    ahead = recipe.stages[1].quantize
    journal = Journal(tmp_path / "journal.jsonl", {})
    student = Student(open_folder(tiny_llama), tmp_path, journal)
    counter = Counter(recipe, headers.read(str(tiny_llama)))
    given = {"device": "cpu", "dtype": torch.float32, "scratch": tmp_path}
    context = Context(IDS, **given, ahead=ahead, sizes=counter, ledger=journal)
    result = allocate.run(student, recipe.allocate, context)
    assert result.linears == ()
    assert dict(student.parts()).keys() == set(student.anatomy.tensors)  # nothing was changed
    bits = result.allocation.bits
    assert bits["model.layers.1.mlp.down_proj"] == 8
    assert "model.layers.0.self_attn.o_proj" not in bits
    assert len({bits[f"model.layers.0.self_attn.{x}_proj"] for x in "qkv"}) == 1
    solved = quantize.run(student, ahead, Context(IDS, **given, allocated=bits))
    assert {r.name: r.bits for r in solved.linears} == bits


@pytest.fixture
def whole_recipe(tiny_tied, tmp_path, monkeypatch):
    """A recipe whose text is at hand, and which judges nothing."""
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    recipe = recipe_of(tiny_tied, "70 KB")
    text = {"set": str(tmp_path / "text.txt"), "samples": 8, "seq_len": 32}
    changes = {
        "calibration": recipe.calibration.model_copy(update=text),
        "evaluate": recipe.evaluate.model_copy(update={"suite": "none"}),
    }
    return recipe.model_copy(update=changes)


def test_an_allocated_artifact_is_foretold_to_the_byte(tiny_tied, whole_recipe, tmp_path):
    pipeline.compress_only(whole_recipe, out=tmp_path / "out")
    artifact = open_artifact(tmp_path / "out")
    anatomy = artifact.anatomy
    stored = {x.name: artifact.rounded(x.name).bits for x in anatomy.linears}
    stored[anatomy.head.name] = artifact.rounded(anatomy.embedding).bits
    found = headers.read(str(tiny_tied))
    assert size(whole_recipe, found, stored).size_bytes == artifact.size_bytes <= 70_000
    assert len(set(stored.values())) > 1


def test_a_run_cut_short_while_measuring_ends_in_the_same_bytes(
    whole_recipe, tmp_path, monkeypatch
):
    monkeypatch.setattr(machine, "code_sha256", lambda: "code")  # may be edited meanwhile
    monkeypatch.setattr(provenance, "checkout_commit", lambda: None)
    pipeline.apply(whole_recipe, out=tmp_path / "whole")

    def interrupt(progress):
        if (progress.step, progress.done) == ("allocate", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.apply(whole_recipe, out=tmp_path / "cut", watch=interrupt)
    seen = []
    pipeline.apply(whole_recipe, out=tmp_path / "cut", watch=seen.append)
    (resumed,) = (p for p in seen if p.step == "resume")
    assert resumed.detail == "behind allocate/block-00001"
    manifests = [tmp_path / name / "manifest.json" for name in ("whole", "cut")]
    assert manifests[0].read_text() == manifests[1].read_text()
    results = from_json(Results, (tmp_path / "cut" / "results.json").read_text())
    assert results.allocation.bits == {r.name: r.bits for r in results.linears}
    assert results.allocation.size_bytes == results.after.size_bytes


@pytest.mark.parametrize(
    "budget", ["3.7 bits", "70 KB", {"kl_mean_max": 0.5}], ids=["bits", "files", "kl"]
)
@pytest.mark.parametrize("tied", [False, True])
def test_a_plan_says_at_most_and_no_choice_exceeds_it(tiny_model, budget, tied):
    folder = tiny_model("llama", tied=tied)
    recipe = recipe_of(folder, budget)
    found = headers.read(str(folder))
    most = at_most(recipe, found)
    assert most.at_most
    limit = recipe.allocate.parsed
    names = free(recipe, found.anatomy)
    for seed in range(40):
        chance = random.Random(seed)
        bits = {name: chance.choice((2, 3, 4, 8)) for name in names}
        made = size(recipe, found, bits)
        too_much = limit.nbytes and made.size_bytes > limit.nbytes
        if too_much or (limit.bits and made.bits_per_weight > limit.bits):
            continue
        assert made.size_bytes <= most.size_bytes
        assert made.bits_per_weight <= most.bits_per_weight
        assert made.bits_per_weight_with_head <= most.bits_per_weight_with_head
        for part, bound in zip(made.parts, most.parts, strict=True):
            assert part.after_bytes <= bound.after_bytes


def test_a_budget_too_tight_is_refused_before_anything_runs(tiny_llama):
    recipe = recipe_of(tiny_llama, "2.1 bits")
    with pytest.raises(RecipeError, match=r"allocate\.budget: 2\.1 bits cannot be kept") as caught:
        check(recipe, headers.read(str(tiny_llama)))
    assert "the narrowest grids take 2.500 bits" in str(caught.value)
