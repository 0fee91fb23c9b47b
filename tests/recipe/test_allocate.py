from fractions import Fraction

import pytest

from compress.errors import RecipeError
from compress.recipe.allocate import Allocate, Budget, free, head_is_free, parse, too_tight
from compress.recipe.load import load
from compress.recipe.resolve import explicit, lock
from compress.recipe.schema import Quantize, Recipe
from compress.recipe.scheme import head_scheme, scheme_for


@pytest.fixture
def mistakes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def found(*stages, rest=""):
        lines = "".join(f"  - {stage}\n" for stage in stages)
        (tmp_path / "mine.yaml").write_text(
            f"version: 1\nteacher: {{model: a/b}}\nstages:\n{lines}{rest}"
        )
        with pytest.raises(RecipeError) as caught:
            load("./mine.yaml")
        return caught.value.mistakes

    return found


@pytest.mark.parametrize(
    ("written", "budget"),
    [
        ("3.7 bits", Budget(bits=Fraction(37, 10))),
        ("4 bits", Budget(bits=Fraction(4))),
        ("70 MB", Budget(nbytes=70_000_000)),
        ("70.5MB", Budget(nbytes=70_500_000)),
        ("1 GB", Budget(nbytes=10**9)),
        ({"kl_mean_max": 0.05}, Budget(kl_mean=0.05)),
        ({"kl_mean_max": 1}, Budget(kl_mean=1.0)),
    ],
)
def test_a_budget_is_read_with_its_unit(written, budget):
    assert parse(written) == budget
    assert Allocate(budget=written).parsed == budget


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("3.7", "3.7 has no unit"),
        ("3.7 bit", "'3.7 bit' is no budget with its unit"),
        ("70 MiB", "'70 MiB' is no budget with its unit"),
        ("-3 bits", "'-3 bits' is no budget"),
        ("'0 bits'", "'0 bits' leaves room for nothing"),
        ("0.0 MB", "'0.0 MB' leaves room for nothing"),
        ("{kl_max: 0.05}", "{'kl_max': 0.05} is not {kl_mean_max: a number above 0}"),
        ("{kl_mean_max: 0}", "is not {kl_mean_max: a number above 0}"),
        ("{kl_mean_max: true}", "is not {kl_mean_max: a number above 0}"),
        ("{kl_mean_max: .nan}", "is not {kl_mean_max: a number above 0}"),
        ("[3, 4]", "[3, 4] has no unit"),
    ],
)
def test_any_other_budget_is_refused_with_what_to_write(mistakes, written, said):
    (mistake,) = mistakes(f"allocate: {{budget: {written}}}", "quantize: {}")
    assert mistake.startswith("mine.yaml:4  stages[0].allocate.budget: ")
    assert said in mistake
    assert 'Write "3.7 bits", "70 MB" or {kl_mean_max: 0.05}.' in mistake


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        (
            ["allocate: {}", "quantize: {}"],
            "stages[0].allocate.budget: missing. For example budget",
        ),
        (
            ["allocate: {budget: 3 bits, bits: [4]}", "quantize: {}"],
            "stages[0].allocate.bits: [4] leaves no choice. Give at least two widths of 2, 3, 4",
        ),
        (
            ["allocate: {budget: 3 bits, bits: [4, 5]}", "quantize: {}"],
            "stages[0].allocate.bits[1]: 5 is not one of 2, 3, 4, 8.",
        ),
        (
            ["allocate: {budget: 3 bits}"],
            "stages: stages[0].allocate: decides the bits of the stage behind it, which must be",
        ),
        (
            ["quantize: {}", "allocate: {budget: 3 bits}"],
            "stages: stages[1].allocate: decides the bits of the stage behind it",
        ),
        (
            ["allocate: {budget: 3 bits}", "quantize: {bits: 8}"],
            "stages: stages[1].quantize: asks for 8 bits, but stages[0].allocate decides them. "
            "Leave out bits (or the scheme that sets them); overrides may give some.",
        ),
        (
            ["allocate: {budget: 3 bits}", "quantize: {scheme: W3A16}"],
            "stages[1].quantize: asks for 3 bits, but stages[0].allocate decides them.",
        ),
        (
            ["allocate: {budget: 3 bits}", "quantize: {}", "allocate: {budget: 3 bits}"],
            "stages: stages[0].allocate: a recipe has one budget. Leave one allocate.",
        ),
        (["{allocate: {budget: 3 bits}, quantize: {}}"], "stages[0]: holds allocate, quantize. A"),
        (["quantize:"], "stages[0]: holds quantize"),
    ],
)
def test_stages_that_do_not_fit_together_say_so(mistakes, stages, said):
    (mistake,) = mistakes(*stages)
    assert said in mistake


def test_a_format_that_cannot_hold_the_widths_is_refused(mistakes):
    (mistake,) = mistakes(
        "allocate: {budget: 5 bits}",
        "quantize: {}",
        rest="artifact: {format: compressed-tensors}\n",
    )
    assert "artifact: compressed-tensors holds 4 and 8 bits, and stages[0].allocate asks" in mistake


def recipe(allocate, quantize):
    stages = [{"allocate": allocate}, {"quantize": quantize}]
    return Recipe(version=1, teacher={"model": "a/b"}, stages=stages)


def test_a_lock_says_all_of_it_and_runs_again(tmp_path):
    found = recipe({"budget": {"kl_mean_max": 0.05}, "bits": [8, 4]}, {"head": 8})
    (tmp_path / "lock.yaml").write_text(lock(found, {}))
    again = load(str(tmp_path / "lock.yaml"))
    assert again.stages == found.stages
    assert explicit(found)["stages"][0] == {
        "allocate": {
            "budget": {"kl_mean_max": 0.05}, "bits": [4, 8], "samples": 64, "seq_len": 128
        }
    }  # fmt: skip
    assert found.needs_calibration
    assert found.fed(1) is found.allocate
    assert found.fed(0) is None


def test_overrides_win_over_what_was_allocated():
    spec = Quantize(overrides={"*.k": {"bits": 8}, "*.v": {"sym": False}}, ignore=["*.o"])
    bits = {"a.q": 2, "a.k": 2, "a.v": 3, "a.o": 2, "head": 3}
    assert [scheme_for(spec, f"a.{x}", bits).bits for x in "qkv"] == [2, 8, 3]
    assert scheme_for(spec, "a.o", bits) is None
    assert [free(spec, f"a.{x}") for x in "qkvo"] == [True, False, True, False]
    assert head_scheme(spec, "head", bits).bits == 3
    assert head_scheme(Quantize(head=8), "head", bits).bits == 8
    assert head_scheme(spec, "head", {}) is None


def test_the_head_is_free_where_the_budget_counts_it_and_nobody_gave_it_bits():
    files, blocks = Allocate(budget="70 MB"), Allocate(budget="3.7 bits")
    assert head_is_free(files, Quantize())
    assert not head_is_free(files, Quantize(head=8))
    assert not head_is_free(blocks, Quantize())


def test_a_budget_below_the_narrowest_grids_says_what_they_take():
    bits, files = Allocate(budget="2 bits"), Allocate(budget="1.5 MB")
    assert "2 bits cannot be kept: the narrowest grids take 2.250 bits." in too_tight(bits, 2.25, 1)
    assert "1.5 MB cannot be kept: the narrowest grids take 2.000 MB" in too_tight(
        files, 1, 2_000_000
    )
    assert too_tight(bits, 2.0, 1) is None
    assert too_tight(Allocate(budget={"kl_mean_max": 1}), 99, 99) is None
