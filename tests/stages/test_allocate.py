import itertools
from fractions import Fraction

import pytest
import torch

from compress.artifact.layout import open_artifact
from compress.errors import RecipeError
from compress.plan.sizes import Counter, size
from compress.recipe.schema import Recipe
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
    from compress.journal import Journal

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


def test_an_allocated_artifact_is_foretold_to_the_byte(tiny_tied, tmp_path, monkeypatch):
    from compress import pipeline

    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    recipe = recipe_of(tiny_tied, "70 KB")
    text = recipe.calibration.model_copy(
        update={"set": str(tmp_path / "text.txt"), "samples": 8, "seq_len": 32}
    )
    recipe = recipe.model_copy(update={"calibration": text})
    pipeline.compress_only(recipe, out=tmp_path / "out")
    artifact = open_artifact(tmp_path / "out")
    anatomy = artifact.anatomy
    stored = {x.name: artifact.rounded(x.name).bits for x in anatomy.linears}
    stored[anatomy.head.name] = artifact.rounded(anatomy.embedding).bits
    assert size(recipe, headers.read(str(tiny_tied)), stored).size_bytes == artifact.size_bytes
    assert artifact.size_bytes <= 70_000
    assert len(set(stored.values())) > 1
