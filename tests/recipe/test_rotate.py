import pytest

from compress.errors import RecipeError
from compress.recipe.load import load
from compress.recipe.resolve import explicit, lock

BODY = "version: 1\nteacher: {{model: a/b}}\nstages:\n{stages}"


@pytest.fixture
def read(tmp_path):
    def make(*stages, sets=()):
        path = tmp_path / "mine.yaml"
        path.write_text(BODY.format(stages="".join(f"  - {stage}\n" for stage in stages)))
        return load(str(path), sets)

    return make


def test_it_says_what_it_means_and_needs_no_calibration(read):
    recipe = read("rotate: {}", "quantize: {method: rtn}")
    assert not recipe.needs_calibration
    assert explicit(recipe)["stages"][0] == {
        "rotate": {"residual": "hadamard", "values": "hadamard", "seed": 0}
    }
    assert recipe.rotate.residual == "hadamard"
    assert read("quantize: {}").rotate is None


def test_its_lock_reads_back(read, tmp_path):
    recipe = read("rotate: {residual: none, values: random, seed: 7}", "quantize: {smooth: awq}")
    (tmp_path / "recipe.lock.yaml").write_text(lock(recipe, {}))
    assert load(str(tmp_path / "recipe.lock.yaml")).stages == recipe.stages


@pytest.mark.parametrize(
    ("stages", "line", "message"),
    [
        (["rotate: {residual: hadamar}"], 4, "Did you mean hadamard?"),
        (["rotate: {r1: hadamard}"], 4, "unknown field"),
        (["rotate: {seed: -1}"], 4, "-1"),
        (
            ["rotate: {residual: none, values: none}"], 4,
            "none, and residual is none: nothing is turned. Leave out the stage.",
        ),
        (
            ["quantize: {}", "rotate: {}"], 3,
            "stages[1].rotate: turns weights as the teacher has them, and stages[0].quantize comes "
            "before it. Move it to the front, and have one.",
        ),
        (["rotate: {}", "rotate: {}"], 3, "Move it to the front, and have one."),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_their_line(read, stages, line, message):
    with pytest.raises(RecipeError) as caught:
        read(*stages)
    (mistake,) = caught.value.mistakes
    assert f"mine.yaml:{line} " in mistake
    assert message in mistake


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("smooth: 0.5", "0.5, but gptq rounds no inputs: there is nothing to move out of them."),
        ("method: rtn, smooth: search", "search, but rtn rounds no inputs"),
        (
            "method: w8a8, smooth: awq",
            "awq is for weights alone, and w8a8 rounds inputs too. Use search, or a number from 0 "
            "to 1.",
        ),
        ("method: fp8, smooth: awq", "fp8 does not use this field. Leave it out, or choose method"),
    ],
)
def test_each_method_smooths_what_it_rounds(read, fields, message):
    with pytest.raises(RecipeError) as caught:
        read(f"quantize: {{{fields}}}")
    (mistake,) = caught.value.mistakes
    assert message in mistake


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_enlarging_columns_needs_calibration(read, method):
    assert read(f"quantize: {{method: {method}, smooth: awq}}").needs_calibration


def test_float16_is_refused_where_weights_are_divided(read):
    with pytest.raises(RecipeError) as caught:
        read("quantize: {smooth: awq}", sets=["teacher.dtype=float16"])
    (mistake,) = caught.value.mistakes
    assert "small ones lose bits in float16. Use teacher.dtype: bfloat16 or float32." in mistake
