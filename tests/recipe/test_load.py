"""Mistakes in recipes: each is found, named with its place, and told with its remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import imported_by

from compress.errors import RecipeError
from compress.recipe import sweep
from compress.recipe.load import load, locate

GOOD = """\
version: 1
teacher: {model: somewhere/model}
calibration: {samples: 64}
stages:
  - quantize: {method: gptq, bits: 4}
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write `mine.yaml` in the working directory; hands back the argument that names it."""
    monkeypatch.chdir(tmp_path)

    def put(text: str | bytes) -> str:
        Path("mine.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return "mine.yaml"

    return put


def mistakes(argument: str, *sets: str) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        load(argument, sets)
    return caught.value.mistakes


def stage(fields: str) -> str:
    return GOOD.replace("{method: gptq, bits: 4}", f"{{{fields}}}")


def test_a_recipe_is_read_with_its_name_and_defaults(write):
    recipe = load(write(GOOD))
    assert (recipe.calibration.samples, recipe.calibration.seq_len) == (64, 512)
    assert recipe.stages[0].quantize.scale_search == "hessian"
    assert recipe.resolved.recipe == "mine"


def test_all_mistakes_come_at_once_each_with_its_line_in_order(write):
    text = """\
version: 2
teacher: {model: 3, dtyp: float32}
calibration:
  samples: many
  seq_len: 0
bits: 4
stages:
  - quantize: {method: gptq, bits: 5, scale_search: hesian}
  - quantise: {}
  - 3
evaluate: {suite: quik}
"""
    assert mistakes(write(text)) == (
        "mine.yaml:1  version: 2, must be 1.",
        'mine.yaml:2  teacher.model: 3 is not text. Quote it: "3".',
        "mine.yaml:2  teacher.dtyp: unknown field. Did you mean dtype?",
        'mine.yaml:4  calibration.samples: "many" is not a whole number. For example samples: 128',
        "mine.yaml:5  calibration.seq_len: 0 is out of range: must be at least 8. For example "
        "seq_len: 512",
        "mine.yaml:6  bits: unknown field. It belongs in quantize.",
        "mine.yaml:8  stages[0].quantize.bits: 5 is not one of 2, 3, 4, 8.",
        'mine.yaml:8  stages[0].quantize.scale_search: "hesian" is not one of none, mse, hessian. '
        "Did you mean hessian?",
        "mine.yaml:9  stages[1].quantise: unknown field. Did you mean quantize?",
        "mine.yaml:10  stages[2]: 3 is not a mapping. Fields: rotate, restructure, prune, "
        "distill, quantize, allocate, kv_cache, repeat.",
        "mine.yaml:11  evaluate.suite: 'quik': no shipped evaluation suite of this name. Did you "
        "mean quick? Shipped: full, quick, short, smoke. A path ends in .yaml, .yml or holds a "
        "separator, as in ./quik.",
    )


def test_the_message_ends_with_the_count_and_where_to_read_more(write):
    with pytest.raises(RecipeError, match=r"1 mistake; nothing was run\.   docs/errors.md#recipe$"):
        load(write(GOOD.replace("samples", "sample")))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("teacher: {model: a/b}\n", "version: missing. For example version: 1"),
        ("version: 1\n", "teacher: missing. Fields: model, revision, dtype, sha256."),
        (GOOD + "artifact:\n", "artifact: nothing is not a mapping. Fields: format,"),
        (GOOD + "zzz: 1\n", "zzz: unknown field. Known here: version, teacher, student, "),
        (GOOD.replace("64", "1.5"), "samples: 1.5 is not a whole number."),
        (GOOD.replace("64", "true"), "samples: true is not a whole number."),
        (GOOD + "evaluate: {suite: ''}\n", 'suite: "" is empty. For example suite: quick'),
        (GOOD + "artifact: {max_shard_size: 2GiB}\n", '"2GiB" does not have the right form. Larg'),
        (stage("sym: no"), 'sym: "no" is not true or false. For example sym: true'),
        (stage("targets: []"), 'targets: [] is empty. For example targets: ["*"]'),
        (stage("targets: '*'"), 'targets: "*" is not a list. Put it in brackets: [ … ].'),
        (stage("targets: ['re:(']"), "targets[0]: not a regular expression"),
        (stage("overrides: {'re:(': {bits: 8}}"), "overrides.re:(: not a regular expression"),
        (stage("overrides: {'*.q': {}}"), "overrides.*.q: changes nothing. Give one of bits,"),
        (stage("overrides: {'*.q': {bitz: 8}}"), "overrides.*.q.bitz: unknown field. Did you mean"),
        (stage("static_groups: false"), "static_groups: false, must be true."),
        (stage("damp_percent: 1e0"), "damp_percent: 1.0 is out of range: must be below 1."),
        (stage("scheme: W4A15"), "scheme: \"W4A15\" is not one of W2A16, W3A16, W4A16,"),
        (stage("head: 3"), "head: 3 is not one of 4, 8."),
    ],
)  # fmt: skip
def test_each_mistake_says_what_was_found_and_what_to_do(write, text, expected):
    assert any(expected in mistake for mistake in mistakes(write(text)))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("method: rtn, damp_percent: 0.01", "damp_percent: rtn does not use this field. Leave it"),
        ("method: rtn, desc_act: true", "desc_act: rtn does not use this field."),
        ("scheme: W4A16, bits: 8", "bits: 8 contradicts scheme W4A16, which means 4. Leave out"),
        ("scheme: W4A16_ASYM, sym: true", "sym: true contradicts scheme W4A16_ASYM, which means f"),
        ("ignore: [lm_head], head: 8", "head: 8 bits, but ignore names lm_head. Leave out one"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(write, fields, expected):
    (mistake,) = mistakes(write(stage(fields)))
    assert f"mine.yaml:5  stages[0].quantize.{expected}" in mistake


@pytest.mark.parametrize("fields", ["bits: 3", "bits: 4, overrides: {'*.q_proj': {bits: 3}}"])
def test_what_compressed_tensors_cannot_pack_is_refused_at_once(write, fields):
    (mistake,) = mistakes(write(stage(fields) + "artifact: {format: compressed-tensors}\n"))
    assert mistake == (
        "mine.yaml:6  artifact: compressed-tensors holds 4 and 8 bits, and stages[0].quantize asks "
        "for 3. Choose 4 or 8 bits, or format: packed."
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("version: [1\nb: 2", "mine.yaml:2  not YAML: did not find expected"),
        ("version: 1\n\tteacher: x", "mine.yaml:2  not YAML:"),
        ("version: 1\n---\nversion: 1\n", "mine.yaml:2  a second document."),
        ("version: 1\nx: \x00", "mine.yaml:2  holds a character that YAML does not allow."),
        ("", "mine.yaml  holds no mapping. A recipe begins with version: 1."),
        ("- version: 1", "mine.yaml  holds no mapping."),
        (b"version: 1\nx: \xff", "mine.yaml:2  byte 0xff is not UTF-8. Save it as UTF-8."),
        (b"#" * 1_000_001, "mine.yaml: larger than 1,000,000 bytes, so it is no recipe."),
        ("[" * 30 + "]" * 30, "mine.yaml:1  nested more than 20 deep."),
    ],
)
def test_what_is_no_yaml_is_one_mistake_with_its_line(write, text, expected):
    (mistake,) = mistakes(write(text))
    assert mistake.startswith(expected)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("  samples: 3", "samples: given twice; first in line 4. Keep one of them."),
        ("  seed: &here 3", "&here is an anchor; a recipe is read as it stands."),
        ("  seed: *here", "*here is an alias; a recipe is read as it stands."),
        ("  set: !!python/name:os.system x", "python/name:os.system is a tag; values are text,"),
        ("  seed: !!int 3", "tag:yaml.org,2002:int is a tag;"),
        ("  [a, b]: 3", "a list or mapping as a key. Keys are plain words."),
    ],
)
def test_references_tags_and_repeated_keys_are_refused(write, line, expected):
    text = GOOD.replace("calibration: {samples: 64}", f"calibration:\n  samples: 64\n{line}")
    found = mistakes(write(text))
    assert any(expected in mistake for mistake in found)


def test_a_pattern_that_needs_quotes_is_told_so(write):
    (mistake,) = mistakes(write(stage("targets: [*.down_proj]")))
    assert "mine.yaml:5  not YAML" in mistake
    assert 'A pattern that begins with * needs quotes, as in "*.down_proj".' in mistake


def test_overrides_are_laid_over_the_recipe_and_recorded(write):
    sets = ("stages.0.quantize.bits=8", "quantize.group_size=-1", "evaluate.suite=none")
    recipe = load(write(GOOD), sets)
    assert (recipe.stages[0].quantize.bits, recipe.stages[0].quantize.group_size) == (8, -1)
    assert recipe.evaluate.suite == "none"
    assert recipe.resolved.sets == sets


def test_another_teacher_drops_the_pins_of_the_first(write):
    pinned = GOOD.replace("model}", f"model, revision: main, sha256: {'0' * 64}}}")
    kept, dropped = load(write(pinned)), load(write(pinned), ["teacher.model=a/b"])
    assert kept.teacher.sha256
    assert kept.teacher.revision == "main"
    assert dropped.teacher.sha256 is dropped.teacher.revision is None


def test_sections_and_patterns_can_be_set_whole(write):
    recipe = load(write(GOOD), ['quantize.overrides={"*.down_proj": {bits: 8}}'])
    assert recipe.stages[0].quantize.overrides["*.down_proj"].bits == 8


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("quantize.bitz=8", "stages[0].quantize.bitz: unknown field. Did you mean bits?"),
        ("quantize.bits=5", "stages[0].quantize.bits: 5 is not one of 2, 3, 4, 8."),
        ("quantise.bits=8", "quantise: unknown field. Did you mean quantize?"),
        ("resolved.recipe=x", "resolved: unknown field. Known: version, teacher,"),
        ("quantize.bits", "not of the form KEY=VALUE. For example --set quantize.bits=8."),
        ("=8", "not of the form KEY=VALUE."),
        ("stages.3.quantize.bits=8", "stages: holds no 3. docs/recipes.md lists all fields."),
        ("stages.x.bits=8", "stages: holds no x."),
        ("teacher.model.x=8", "teacher.model: holds no x."),
        ("quantize.bits=[", "value:"),
        ("quantize.bits=&a 3", "value:1  &a is an anchor;"),
        ("teacher={modl: a/b}", "teacher.modl: unknown field. Did you mean model?"),
        ("calibration.set=selv", "calibration.set: 'selv': no shipped calibration set of this"),
    ],
)  # fmt: skip
def test_mistakes_in_overrides_name_the_override(write, assignment, expected):
    assert mistakes(write(GOOD), assignment)[0].startswith(f"--set {assignment}  {expected}")


def test_all_overrides_are_judged_together_with_the_file(write):
    found = mistakes(write(GOOD.replace("samples", "sample")), "foo", "quantize.bitz=8")
    assert [mistake.split("  ")[0] for mistake in found] == [
        "mine.yaml:3",
        "--set foo",
        "--set quantize.bitz=8",
    ]


def test_a_stage_named_without_its_index_must_be_the_only_one(write):
    two = GOOD + "  - quantize: {bits: 8}\n"
    (mistake,) = mistakes(write(two), "quantize.bits=8")
    assert "quantize: the recipe has 2 such stages. Choose one: stages.0.quantize.…" in mistake
    assert load("mine.yaml", ["stages[1].quantize.bits=4"]).stages[1].quantize.bits == 4


SWEEP = "version: 1\nrecipes: w4g64-rtn\ngrid: {quantize.bits: [4, 8]}\nobjective: size\n"


def test_a_sweep_is_no_recipe_and_a_recipe_no_sweep_which_one_line_says(write):
    assert mistakes(write(SWEEP), "quantize.bits=4") == (
        "mine.yaml  is a sweep, by its recipes, objective. `compress sweep` takes it.",
    )
    with pytest.raises(RecipeError) as caught:
        sweep.load(write(GOOD))
    (told,) = caught.value.mistakes
    assert told.startswith("mine.yaml  is a recipe, by its teacher, stages. `compress apply` takes")


def test_a_recipe_with_a_field_of_a_sweep_is_told_of_that_field(write):
    assert "objective: unknown field" in mistakes(write(GOOD + "objective: size\n"))[0]
    with pytest.raises(RecipeError, match="stages: unknown field"):
        sweep.load(write(SWEEP + "stages: []\n"))


def test_an_unknown_name_lists_the_names_and_the_nearest():
    (mistake,) = mistakes("quikstart")
    assert mistake.startswith("'quikstart': no shipped recipe of this name. Did you mean quickstar")
    assert "w4g64-gptq" in mistake


def test_a_missing_file_is_never_a_shipped_name_instead(write, tmp_path):
    write(GOOD)
    (mistake,) = mistakes("quickstart.yaml")
    assert mistake == (
        f"quickstart.yaml: no such file (relative paths start at {tmp_path}). For the shipped "
        "recipe write quickstart."
    )
    assert "a folder, not a file" in mistakes("./")[0]
    assert "no shipped recipe" in mistakes("mine")[0]  # nor the other way round


def test_a_missing_text_is_found_before_anything_runs(write):
    (mistake,) = mistakes(write(GOOD.replace("samples: 64", "set: notes.txt")))
    assert mistake.startswith("mine.yaml:3  calibration.set: notes.txt: no such file")


def test_places_name_the_line_or_the_override_of_any_part(write):
    places = locate(write(GOOD), ["quantize.bits=8"]).places
    assert places.label(("calibration", "samples")) == "mine.yaml:3"
    assert places.label(("stages", 0, "quantize", "bits")) == "--set quantize.bits=8"
    assert (
        places.label(("stages", 0, "quantize", "head")) == "mine.yaml:5"
    )  # not written: its stage


def test_reading_recipes_imports_no_torch():
    program = (
        "from compress.recipe.load import load; from compress.recipe import resolve\n"
        "from compress import plan; load('quickstart')"
    )
    assert not {"torch", "transformers"} & imported_by(program)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("5", "5 is out of range: must be at most 1"),
        ("serch", '"serch" is not one of search, awq. Did you mean search?'),
        ("true", "true is not a number"),
    ],
)
def test_a_field_of_several_types_has_one_mistake(value, said):
    with pytest.raises(RecipeError) as error:
        load("w8a8", [f"quantize.smooth={value}"])
    assert str(error.value).count("quantize.smooth:") == 1
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ("set: []", "calibration.set: [] is empty. For example set: self"),
        ("set: [smoke, smoke]", "calibration.set: smoke is named twice."),
        ("set: [smoke, self], samples: 1", "calibration.samples: 1, and 2 sets have a share in"),
        ("set: [smoke, selv]", "calibration.set[1]: 'selv': no shipped calibration set of this"),
        ("set: [smoke, 3]", 'calibration.set[1]: 3 is not text. Quote it: "3".'),
        ("set: 3", 'calibration.set: 3 is not text. Quote it: "3".'),
        ("set: [smoke, self], split: test", "calibration.split: belongs to one set, and set lists"),
        (
            "set: [smoke, self], revision: abc",
            "calibration.revision: does not fit set. Give a list of 2, null where a set keeps its",
        ),
        ("set: smoke, revision: [abc]", "calibration.revision: does not fit set. Give one, or"),
    ],
)
def test_a_bad_list_of_sets_is_one_mistake(write, fields, said):
    (mistake,) = mistakes(write(GOOD.replace("samples: 64", fields)))
    assert mistake.startswith(f"mine.yaml:3  {said}")


def test_several_sets_share_the_samples_the_first_ones_have_the_rest(write):
    recipe = load(write(GOOD.replace("samples: 64", "set: [smoke, self, c4], samples: 8")))
    parts = recipe.calibration.parts
    assert [(part.set, part.samples) for part in parts] == [("smoke", 3), ("self", 3), ("c4", 2)]
    assert recipe.calibration.told == "smoke and self and c4"
    text = "{train: scales_and_norms, text: {set: [smoke, slf], samples: 9}}"
    (mistake,) = mistakes(write(GOOD + f"  - distill: {text}\n"))
    assert mistake.startswith("mine.yaml:6  stages[1].distill.text.set[1]: 'slf': no shipped")


@pytest.mark.parametrize(
    ("stage", "told"),
    [
        (
            "{temperature: 2.0}",
            "temperature: unknown field. It belongs in loss or text or on_policy.",
        ),
        (
            "{loss: {hidden: {blocks: {3: 7}}}}",
            'loss.hidden.blocks: {"3": 7}, must be "uniform", or like [[3, 7], [7, 15]].',
        ),
    ],
)
def test_a_field_is_looked_for_inside_and_another_form_is_shown(stage, told):
    (found,) = mistakes("half-depth-distill", f"stages=[{{distill: {stage}}}]")
    assert found.endswith(f"stages[0].distill.{told}")
