"""Stages that are repeated are plain stages once a recipe is loaded; mistakes keep their lines."""

from pathlib import Path

import pytest

from compress import plan
from compress.errors import RecipeError
from compress.recipe.load import load, locate
from compress.recipe.resolve import lock
from compress.teacher import headers

RECIPE = """\
version: 1
teacher: {model: somewhere/model}
stages:
  - restructure: {ffn: 0.5}
  - repeat:
      times: 3
      stages:
        - prune: {sparsity: 0.7, overrides: {"*.down_proj": {sparsity: 0.5}}}
        - distill: {steps: 9, seed: 4}
  - quantize: {method: rtn}
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def put(text):
        Path("mine.yaml").write_text(text)
        return "mine.yaml"

    return put


def mistakes(argument, *sets):
    with pytest.raises(RecipeError) as caught:
        load(argument, sets)
    return caught.value.mistakes


def repeating(schedule, prune="{sparsity: 0.7}"):
    text = RECIPE.replace("times: 3", f"times: 3\n      schedule: {schedule}")
    return text.replace('{sparsity: 0.7, overrides: {"*.down_proj": {sparsity: 0.5}}}', prune)


def sparsities(recipe):
    return [prune.sparsity for _, prune in recipe.prunings]


def test_repeated_stages_are_spelled_out_with_zeros_that_rise(write):
    recipe = load(write(RECIPE))
    names = ["restructure", *["prune", "distill"] * 3, "quantize"]
    assert [stage.name for stage in recipe.stages] == names
    assert sparsities(recipe) == [0.4926, 0.6741, 0.7]
    inside = [prune.overrides["*.down_proj"].sparsity for _, prune in recipe.prunings]
    assert inside == [0.3519, 0.4815, 0.5]
    assert [spec.seed for _, spec in recipe.distillations] == [4, 5, 6]


@pytest.mark.parametrize(
    ("schedule", "found"),
    [("linear", [0.2333, 0.4667, 0.7]), ("[0.5, 0.65, 0.7]", [0.5, 0.65, 0.7])],
)
def test_other_schedules(write, schedule, found):
    assert sparsities(load(write(repeating(schedule)))) == found


def test_a_pattern_is_the_same_in_every_round(write):
    prune = '{pattern: "2:4"}'
    recipe = load(write(repeating("cubic", prune).replace("      schedule: cubic\n", "")))
    assert [prune.pattern for _, prune in recipe.prunings] == ["2:4"] * 3


def test_a_lock_holds_plain_stages_and_loads_as_what_it_was(write):
    recipe = load(write(RECIPE))
    text = lock(recipe, {})
    assert "repeat" not in text
    assert load(write(text)).stages == recipe.stages


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            RECIPE.replace("times: 3", "times: 1"),
            "6  stages[1].repeat.times: 1 is out of range: must be at least 2",
        ),
        (
            RECIPE.replace("sparsity: 0.7", "sparsty: 0.7"),
            "8  stages[1].repeat.stages[0].prune.sparsty: unknown field. Did you mean sparsity?",
        ),
        (
            RECIPE.replace("- distill: {steps: 9, seed: 4}", "- quantize: {method: rtn}"),
            "7  stages[1].repeat.stages: quantize is done once. Put it in front of repeat",
        ),
        (
            RECIPE.replace("        - distill: {steps: 9, seed: 4}\n", ""),
            "7  stages[1].repeat.stages: prune. A round prunes once and heals what it pruned",
        ),
        (repeating("[0.5, 0.7]"), "7  stages[1].repeat.schedule: 2 sparsities for 3 rounds."),
        (repeating("[0.6, 0.5, 0.7]"), "7  stages[1].repeat.schedule: does not rise."),
        (
            repeating("[0.4, 0.5, 0.6]"),
            "7  stages[1].repeat.schedule: ends at 0.6, and prune asks for 0.7. Let both",
        ),
        (repeating("cubik"), '7  stages[1].repeat.schedule: "cubik" is not one of cubic, linear.'),
        (
            repeating("linear", '{pattern: "2:4"}'),
            "7  stages[1].repeat.schedule: a pattern is the same in every round.",
        ),
        (
            RECIPE.replace("steps: 9", "steps: 9, text: {set: slf}"),
            "9  stages[1].repeat.stages[1].distill.text.set: 'slf': no shipped calibration set",
        ),
        (
            RECIPE.replace("- distill: {steps: 9", "- repeat: {times: 9"),
            "9  stages[1].repeat.stages[1].repeat: unknown field.",
        ),
    ],
)
def test_a_mistake_in_what_is_repeated_is_told_once_with_its_line(write, text, said):
    (mistake,) = mistakes(write(text))
    assert mistake.startswith(f"mine.yaml:{said}")


@pytest.mark.parametrize("first", ["w8a8", "fp8"])
def test_codes_do_not_learn_behind_linears_that_round_their_inputs(write, first):
    stages = (
        f"stages=[{{quantize: {{method: {first}, targets: ['*.down_proj']}}}}, "
        "{quantize: {learned_rounding: 9, ignore: ['*.down_proj']}}]"
    )
    (found,) = mistakes(write(RECIPE), stages)
    assert "stages[1].quantize.learned_rounding: gradients do not pass linears" in found
    assert "as stages[0] makes them" in found


def test_what_is_repeated_can_be_set(write):
    write(RECIPE)
    assert len(load("mine.yaml", ["repeat.times=2"]).stages) == 6
    for key in ("prune", "stages.1.repeat.stages.0.prune", "repeat.stages.0.prune"):
        changed = load("mine.yaml", [f"{key}.sparsity=0.9"])
        assert sparsities(changed)[-1] == 0.9
    assert mistakes("mine.yaml", "prune.sparsity=2")[0].startswith(
        "--set prune.sparsity=2  stages[1].repeat.stages[0].prune.sparsity: 2 is out of range"
    )


def test_what_a_model_cannot_do_is_told_with_the_line_that_says_it(write, tiny_tied):
    text = RECIPE.replace("somewhere/model", str(tiny_tied)).replace("down_proj", "dwn_proj")
    located = locate(write(text))
    found = headers.read(str(tiny_tied))
    with pytest.raises(RecipeError) as caught:
        plan.check(located.recipe, found.anatomy, located.places, config=found.config)
    first = next(each for each in caught.value.mistakes if "dwn_proj" in each)
    assert first.startswith("mine.yaml:8  stages[1].prune.overrides.*.dwn_proj")
    assert located.places.label(("stages", 7, "quantize")) == "mine.yaml:10"


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ("[{prune: {sparsity: 0.5}}, {prune: {sparsity: 0.6}}]", "already pruned by stages[0]."),
        (
            "[{prune: {sparsity: 0.5}}, {distill: {}}, {prune: {sparsity: 0.4}}]",
            "had more zeros already. Ask for as many, or more.",
        ),
        ("[{prune: {sparsity: 0.5}}, {distill: {}}, {prune: {sparsity: 0.6}}]", None),
    ],
)
def test_what_was_pruned_is_pruned_again_once_it_was_healed(write, tiny_tied, stages, said):
    text = f"version: 1\nteacher: {{model: {tiny_tied}}}\nstages: {stages}\n"
    recipe = load(write(text), ["calibration={seq_len: 32, samples: 64}"])
    found = headers.read(str(tiny_tied))
    if said is None:
        plan.check(recipe, found.anatomy, config=found.config)
        return
    with pytest.raises(RecipeError) as caught:
        plan.check(recipe, found.anatomy, config=found.config)
    assert said in str(caught.value)
