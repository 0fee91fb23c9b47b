"""The stage `prune`: what it means, and what of it is a mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.errors import RecipeError
from compress.recipe.load import load
from compress.recipe.prune import PRUNE_USED_BY, Prune
from compress.recipe.pruning import pruning_for
from compress.recipe.resolve import explicit, lock

GOOD = """\
version: 1
teacher: {model: somewhere/model}
stages:
  - prune: {method: sparsegpt, sparsity: 0.5}
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def put(fields: str, more: str = "") -> str:
        text = GOOD.replace("{method: sparsegpt, sparsity: 0.5}", f"{{{fields}}}") + more
        Path("mine.yaml").write_text(text)
        return "mine.yaml"

    return put


def mistake(argument: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(argument)
    return "\n".join(caught.value.mistakes)


MISTAKES = {
    "method: sparsegpt": "stages[0].prune: does not say how much. Give sparsity: 0.5, or a pattern",
    'sparsity: 0.5, pattern: "2:4"': "prune.pattern: 2:4, but sparsity is given too. Leave out one",
    'pattern: "4:2"': "prune.pattern: 4:2 prunes nothing: the first number is how many",
    'pattern: "half"': 'prune.pattern: "half" does not have the right form.',
    "sparsity: 1.0": "prune.sparsity: 1.0 is out of range",
    "sparsity: 0": "prune.sparsity: 0 is out of range",
    "sparsity: 0.5, sparcity: 0.5": "prune.sparcity: unknown field. Did you mean sparsity?",
    "method: magnitude, sparsity: 0.5, damp_percent: 0.1": "magnitude does not use this field. "
    "Leave it out, or choose method: admm or sparsegpt or wanda.",
    "method: magnitude, sparsity: 0.5, refine: 3": "prune.refine: magnitude does not",
    "method: wanda, sparsity: 0.5, quantize: {bits: 4}": "wanda does not use this field. Leave it "
    "out, or choose method: admm or sparsegpt.",
    "method: wanda, sparsity: 0.5, error_correction: 0.25": "wanda moves no weight, so it does not "
    "use this field. Leave it out, or give refine some rounds.",
    "sparsity: 0.5, error_correction: 0.2, true_sequential: false": "prune.error_correction: 0.2, "
    "but true_sequential is false.",
    "sparsity: 0.5, quantize: {bits: 5}": "prune.quantize.bits: 5 is not one of 2, 3, 4, 8",
    'pattern: "2:4", allocation: owl': "prune.allocation: owl, but a pattern leaves nothing to "
    "share out: 2:4 is the same everywhere. Leave out one of them, or give sparsity.",
    "sparsity: 0.5, allocation: layerwise": 'prune.allocation: "layerwise" is not one of uniform, '
    "owl, sensitivity",
    "sparsity: 0.5, overrides: {'*': {sparsity: 0.1, pattern: '1:2'}}": "1:2, but sparsity",
}


@pytest.mark.parametrize("fields", MISTAKES)
def test_a_mistake_says_what_is_wrong_and_what_to_do(write, fields):
    assert MISTAKES[fields] in mistake(write(fields))


def test_escalating_needs_something_that_has_bits(write):
    gates = "evaluate: {gates: {linear_error_max: 0.1, on_violation: escalate}}\n"
    assert "escalate gives linears of a stage quantize more bits" in mistake(
        write("sparsity: 0.5", gates)
    )


def test_a_format_must_hold_the_bits_of_a_grid(write):
    text = write("sparsity: 0.5, quantize: {bits: 3}", "artifact: {format: compressed-tensors}\n")
    assert "holds 4 and 8 bits, and stages[0].prune.quantize asks for 3" in mistake(text)


@pytest.mark.parametrize(
    "fields",
    [
        "sparsity: 0.5, error_correction: 0.25",
        "method: magnitude, pattern: '2:4'",
        "method: wanda, sparsity: 0.5",
        "method: wanda, sparsity: 0.5, refine: 5",
        "method: magnitude, sparsity: 0.5, allocation: owl",
        "sparsity: 0.5, quantize: {bits: 4}, overrides: {'*.up_proj': {pattern: '1:4'}}",
    ],
)
def test_a_lock_says_every_default_that_is_used_and_runs_again(write, tmp_path, fields):
    recipe = load(write(fields))
    path = tmp_path / "recipe.lock.yaml"
    path.write_text(lock(recipe, {}))
    again = load(str(path))
    assert explicit(again) == explicit(recipe)
    (told,) = (stage["prune"] for stage in explicit(recipe)["stages"])
    assert not told.keys() & recipe.stages[0].prune.unused()
    assert set(Prune.model_fields) - set(told) == recipe.stages[0].prune.unused()


def test_what_needs_calibration():
    for method, needed in (("sparsegpt", True), ("admm", True), ("magnitude", False)):
        found = Prune(method=method, sparsity=0.5)
        assert found.needs_calibration is found.by_inputs is needed
    for allocation in ("owl", "sensitivity"):
        found = Prune(method="magnitude", sparsity=0.5, allocation=allocation)
        assert found.needs_calibration
        assert not found.by_inputs


@pytest.mark.parametrize(
    ("allocation", "sparsity", "choices"),
    [
        ("uniform", 0.5, (0.5,)),
        ("owl", 0.5, (0.42, 0.5, 0.58)),
        ("owl", 0.9, (0.85, 0.9, 0.95)),
        ("sensitivity", 0.5, (0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7)),
        ("sensitivity", 0.9, (0.7, 0.8, 0.85, 0.9, 0.95)),
        ("sensitivity", 0.999, (0.799, 0.899, 0.949, 0.999)),
        ("sensitivity", 1 / 3, (0.133333333, 0.233333333, 0.283333333, 1 / 3, 0.383333333,
                                0.433333333, 0.533333333)),
    ],
)  # fmt: skip
def test_which_sparsities_a_linear_may_get(allocation, sparsity, choices):
    spec = Prune(sparsity=sparsity, allocation=allocation)
    found = pruning_for(spec, "model.layers.0.mlp.up_proj").choices
    assert found == pytest.approx(choices, abs=1e-12)
    assert sparsity in found


def test_an_override_leaves_nothing_to_share_out():
    spec = Prune(sparsity=0.5, allocation="owl", overrides={"*.up_proj": {"sparsity": 0.2}})
    assert pruning_for(spec, "model.layers.0.mlp.up_proj").allocation == "uniform"
    assert pruning_for(spec, "model.layers.0.mlp.down_proj").allocation == "owl"


def test_fields_that_some_methods_use_exist():
    assert set(PRUNE_USED_BY) <= set(Prune.model_fields)


@pytest.mark.parametrize(
    ("fields", "columns", "kept"),
    [
        ({"sparsity": 0.5}, 576, 1728),
        ({"sparsity": 0.37}, 64, 242),
        ({"sparsity": 0.37, "method": "wanda"}, 64, 240),
        ({"sparsity": 0.999}, 64, 1),
        ({"pattern": "2:4"}, 64, 192),
        ({"pattern": "1:4"}, 64, 96),
        ({"pattern": "4:8"}, 64, 192),
    ],
)
def test_how_many_weights_stay(fields, columns, kept):
    pruning = pruning_for(Prune(**fields), "model.layers.0.mlp.up_proj")
    assert pruning.kept(6, columns) == kept


def test_methods_have_defaults_of_their_own():
    assert [Prune(method=m, sparsity=0.5).refine for m in ("sparsegpt", "admm", "wanda")] == [
        10,
        3,
        0,
    ]
