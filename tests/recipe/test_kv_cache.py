import pytest

from compress.errors import RecipeError
from compress.recipe.load import load
from compress.recipe.resolve import explicit, lock
from compress.recipe.schema import Recipe

BODY = "version: 1\nteacher: {{model: a/b}}\nstages:\n{stages}artifact: {{format: {format}}}\n"


@pytest.fixture
def read(tmp_path):
    def make(*stages, format="packed"):
        path = tmp_path / "mine.yaml"
        lines = "".join(f"  - {stage}\n" for stage in stages)
        path.write_text(BODY.format(stages=lines, format=format))
        return load(str(path))

    return make


def test_alone_it_needs_calibration_and_says_what_it_means(read):
    recipe = read("kv_cache: {}")
    assert recipe.needs_calibration
    (stage,) = explicit(recipe)["stages"]
    told = {"numbers": "int8", "granularity": "head", "scale_search": "mse"}
    assert stage == {"kv_cache": told}


@pytest.mark.parametrize("granularity", ["channel", "token"])
def test_fine_scales_are_not_searched_unless_asked(read, granularity, tmp_path):
    recipe = read(f"kv_cache: {{granularity: {granularity}}}")
    assert recipe.kv_cache.scale_search == "none"
    (tmp_path / "recipe.lock.yaml").write_text(lock(recipe, {}))
    assert load(str(tmp_path / "recipe.lock.yaml")).stages == recipe.stages


@pytest.mark.parametrize(
    ("stages", "format", "line", "message"),
    [
        (["kv_cache: {numbers: int4}"], "packed", 4, "not one of int8, fp8_e4m3"),
        (["kv_cache: {bits: 8}"], "packed", 4, "unknown field"),
        (["kv_cache: {granularity: heads}"], "packed", 4, "Did you mean head?"),
        (
            ["kv_cache: {granularity: token, scale_search: mse}"], "packed", 4,
            "mse, but scales of granularity token are not searched. Leave it out.",
        ),
        (
            ["kv_cache: {}", "quantize: {}"], "packed", 3,
            "its scales are those of finished weights, and stages[1].quantize comes behind it. "
            "Move it to the end, and have one.",
        ),
        (["kv_cache: {}", "kv_cache: {}"], "packed", 3, "Move it to the end, and have one."),
        (
            ["kv_cache: {granularity: channel}"], "compressed-tensors", 5,
            "format compressed-tensors has no place for the scales of stage kv_cache, one a "
            "channel. Use packed, or change the stage.",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_their_line(read, stages, format, line, message):
    with pytest.raises(RecipeError) as caught:
        read(*stages, format=format)
    (mistake,) = caught.value.mistakes
    assert f"mine.yaml:{line} " in mistake
    assert message in mistake


def test_it_follows_every_other_stage():
    stages = [{"allocate": {"budget": "3.7 bits"}}, {"quantize": {}}, {"kv_cache": {}}]
    recipe = Recipe.model_validate({"version": 1, "teacher": {"model": "a/b"}, "stages": stages})
    assert [stage.name for stage in recipe.stages] == ["allocate", "quantize", "kv_cache"]
    assert recipe.fed(2) is None
