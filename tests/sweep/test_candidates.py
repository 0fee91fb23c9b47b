"""Planning: no Ray, no weights but a tiny teacher's."""

import random

import pytest

from compress import library
from compress.errors import RecipeError
from compress.recipe.inputs import inputs
from compress.recipe.sweep import load
from compress.sweep import candidates
from compress.sweep.candidates import Planner, name_of, named

GRID = (
    "recipes: ./mine.yaml\ngrid:\n  quantize.bits: [3, 4]\n  quantize.head: [null, 8]\n"
    "objective: size"
)


@pytest.fixture
def planned(swept, tmp_path):
    def plan(text, **fields):
        located = swept(text, **fields)
        points = candidates.corners if located.sweep.search else candidates.grid
        return candidates.check(Planner(located, tmp_path / "cache"), points(located))

    return plan


def plain(planned):
    return named(planned, lambda one: one.fingerprints)


def test_a_grid_is_every_combination_once(planned):
    found = plain(planned(GRID.replace("./mine.yaml", "[./mine.yaml, mine.yaml]")))
    values = [one.planned.point[1] for one in found]
    assert sorted((v["quantize.bits"], v["quantize.head"] or 0) for v in values) == [
        (3, 0), (3, 8), (4, 0), (4, 8),
    ]  # fmt: skip
    assert all(one.shared_stages == 1 for one in found)


def test_names_say_what_is_varied_and_hash_what_decides_the_bytes(planned, tmp_path):
    first = planned(GRID)[0]
    name = name_of(first, {"threads": 1})
    assert name.startswith("mine-bits-3-head-null-")
    assert name == name_of(first, {"threads": 1})
    assert name != name_of(first, {"threads": 2})
    before = inputs(first.recipe)
    assert set(before) == {str(tmp_path / "text.txt"), str(tmp_path / "suite.yaml")}
    (tmp_path / "text.txt").write_text("Something else. " * 100)
    assert inputs(first.recipe) != before


def test_one_trial_of_each_beginning_comes_first(planned):
    text = (
        "recipes: ./mine.yaml\ngrid: {prune.sparsity: [0.25, 0.5], quantize.bits: [3, 4, 8]}\n"
        "objective: size"
    )
    trials = plain(planned(text))
    sparsities = [one.planned.point[1]["prune.sparsity"] for one in trials]
    assert sparsities[:2] == [0.25, 0.5]
    assert {one.shared_stages for one in trials} == {1}


def test_trials_that_share_nothing_are_not_kept_for_others(planned):
    trials = plain(
        planned("recipes: ./mine.yaml\ngrid: {prune.sparsity: [0.25, 0.5]}\nobjective: size")
    )
    assert [one.shared_stages for one in trials] == [0, 0]


def test_stages_that_a_range_changes_are_not_shared(swept, recipe):
    located = swept(
        "recipes: ./mine.yaml\nsearch: {quantize.damp_percent: {low: 0.01, high: 0.1}}\ntrials: 3\n"
        "objective: size"
    )
    one = recipe("[{prune: {method: sparsegpt, sparsity: 0.5}}, {quantize: {}}]")
    assert candidates.stages_fixed(located, one) == 1


def test_all_mistakes_come_at_once_with_their_lines(planned):
    text = (
        "recipes: [./mine.yaml, ./nowhere.yaml]\ngrid:\n  quantize.bits: [4, 5]\n"
        "  quantize.grup_size: [32]\nobjective: size"
    )
    with pytest.raises(RecipeError) as caught:
        planned(text)
    assert "sweep.yaml:4  stages[1].quantize.bits: 5 is not one of" in str(caught.value)
    assert "sweep.yaml:5  stages[1].quantize.grup_size: unknown field." in str(caught.value)
    assert "(2 of 4 trials)" in str(caught.value)
    assert "./nowhere.yaml: no such file" in str(caught.value)


def test_what_only_the_teacher_tells_is_found_before_anything_runs(planned):
    with pytest.raises(RecipeError, match=r"sweep\.yaml:4  .*128 does not divide in_features 64"):
        planned("recipes: ./mine.yaml\ngrid:\n  quantize.group_size: [32, 128]\nobjective: size")


def test_the_corners_of_a_search_are_planned(planned):
    text = (
        "recipes: ./mine.yaml\nsearch:\n  quantize.bits: [3, 4]\n"
        "  quantize.damp_percent: {low: 0.01, high: 0.1}\ntrials: 3\nobjective: size"
    )
    assert len(planned(text)) == 4
    with pytest.raises(RecipeError, match=r"sweep\.yaml:5  .*damp_percent: -1"):
        planned(text.replace("0.01", "-1"))


def test_of_many_corners_every_end_of_every_recipe_is_planned(swept):
    ranges = "".join(f"  quantize.x{n}: {{low: 1, high: 2}}\n" for n in range(12))
    recipes = "recipes: [./mine.yaml, quickstart]\n"
    located = swept(f"{recipes}search:\n{ranges}trials: 3\nobjective: size")
    found = candidates.corners(located)
    assert len(found) == 2 * (1 + 12 + 1)
    for recipe in ("./mine.yaml", "quickstart"):
        for field in located.sweep.search:
            assert {values[field] for name, values in found if name == recipe} == {1, 2}


def test_a_value_with_any_character_is_one_that_yaml_reads():
    (assignment,) = candidates._sets({"calibration.set": "./\U0001f600.txt"})
    assert assignment == 'calibration.set="./\U0001f600.txt"'


def test_what_nothing_measures_cannot_be_asked_for(planned):
    with pytest.raises(RecipeError, match=r"sweep\.yaml:4  objective: evaluate.suite is none"):
        planned("recipes: ./mine.yaml\nset: {evaluate.suite: none}\nobjective: kl_mean")


@pytest.mark.parametrize("asked", ["objective: kl_mean", "objective: perplexity"])
def test_numbers_of_two_suites_are_not_ranked(planned, tmp_path, asked):
    suite = (tmp_path / "suite.yaml").read_text()
    (tmp_path / "other.yaml").write_text(suite.replace("windows: ", "windows: 1"))
    text = "recipes: ./mine.yaml\ngrid: {evaluate.suite: [./suite.yaml, ./other.yaml]}\n"
    with pytest.raises(RecipeError, match=r"\.yaml:4  objective: trials differ in evaluate\.suite"):
        planned(text + asked)
    with pytest.raises(RecipeError, match=r"budget\.kl_mean: .* set: \{evaluate\.suite: "):
        planned(text + "objective: size", budget="{kl_mean: 0.1}")
    assert len(planned(text + "objective: size")) == 2, "bytes are bytes, whoever judges"


def test_numbers_beside_two_teachers_or_on_two_texts_are_not_ranked(planned, tiny_llama, tmp_path):
    alone = "recipes: ./mine.yaml\nobjective: kl_mean"
    first = planned(alone)[0].recipe.teacher.model
    with pytest.raises(RecipeError, match=r"trials differ in teacher\.model"):
        planned(f"{alone}\ngrid: {{teacher.model: [{first}, {tiny_llama}]}}")
    with pytest.raises(RecipeError, match=r"trials differ in evaluate\.text"):
        planned(f"{alone}\ngrid: {{evaluate.text: [null, ./text.txt]}}")


@pytest.mark.parametrize("name", library.names("sweeps"))
def test_a_shipped_sweep_ranks_numbers_of_one_suite_text_and_teacher(name, tmp_path):
    located = load(name)
    planner = Planner(located, tmp_path)
    recipes = [planner.load(point).recipe for point in candidates.grid(located)]
    assert len({(one.evaluate.suite, one.evaluate.text, one.teacher) for one in recipes}) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("recipes: a\nobjective: smallness", 'objective: "smallness" is not one of size, kl_mean'),
        ("recipes: a\nobjective: size\ngrid: {a.b: 4}", "grid.a.b: 4 is not a list"),
        ("recipes: a\nobjective: size\ntrials: 3", "only a search has a number of them"),
        ("recipes: a\nobjective: size\nsearch: {a.b: [1]}", "trials: missing"),
        ("recipes: a\nobjective: size\nset: {a.b: 1}\ngrid: {a.b: [1]}", "is fixed under set too"),
        ("recipes: a\nobjective: size\ngrid: {a: [1]}\nsearch: {b: [1]}", "a grid is given"),
        ("recipes: a\nobjective: size\nbudget: {wall_clock: soon}", "does not have the right form"),
        ("recipes: a\nobjective: size\nsearch: {a.b: {low: 2, high: 1}}\ntrials: 1", "Swap them"),
        ("recipes: a\nobjektive: size", "Did you mean objective?"),
        ("recipes: a\nobjective: size\nbudget: {wall_clock: 0 s}", '"0 s" leaves time for nothing'),
        ("recipes: [a, b, a]\nobjective: size", 'recipes: "a" is named twice. Name it once.'),
        ("recipes: a\nobjective: size\ngrid: {a.b: [4, 8, 4]}", "grid.a.b: 4 is named twice."),
        ("recipes: a\nobjective: size\nsearch: {a.b: [4, 4]}\ntrials: 1", "4 is named twice."),
        (
            "recipes: a\nobjective: size\ngrid: {a.b: []}",
            "[] is empty. Give at least one value, as in grid: {quantize.bits: [4, 8]}",
        ),
        ("recipes: a\nobjective: size\nbudget: {size: 80}", "size: 80 has no unit. Write it as"),
        ("- a", "holds no mapping"),
    ],
)  # fmt: skip
def test_what_a_sweep_cannot_say(swept, text, words):
    if text.startswith("-"):
        with pytest.raises(RecipeError):
            swept(text)
        return
    with pytest.raises(RecipeError, match=r"sweep\.yaml:\d+  ") as caught:
        swept(text)
    assert words in str(caught.value)


def test_a_budget_in_plain_numbers(swept):
    budget = swept(GRID, budget="{size: 80 MB, wall_clock: 1.5 h}").sweep.budget
    assert (budget.size_bytes, budget.seconds) == (80_000_000, 5400.0)


def test_a_shipped_sweep_is_found_by_its_name():
    assert load("small").name == "small"
    with pytest.raises(RecipeError, match=r"no shipped sweep of this name\. Did you mean small"):
        load("smal")


def test_order_keeps_every_trial(planned):
    trials = plain(planned(GRID))
    random.Random(0).shuffle(trials)
    assert {one.name for one in candidates.ordered(trials)} == {one.name for one in trials}
