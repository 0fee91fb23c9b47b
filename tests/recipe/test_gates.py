"""Gates in a recipe: what is read, what is refused, and with which words."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from compress.errors import RecipeError
from compress.recipe import resolve
from compress.recipe.gates import WIDTHS, Gates, in_bytes, wider
from compress.recipe.load import load
from compress.recipe.quantize import Quantize
from compress.recipe.schema import Artifact, Recipe

GOOD = """\
version: 1
teacher: {model: somewhere/model}
stages:
  - quantize: {method: gptq, bits: 4}
evaluate:
  suite: quick
  gates:
    kl_mean_max: 0.1
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write `mine.yaml` in the working directory; hands back the argument that names it."""
    monkeypatch.chdir(tmp_path)

    def put(text: str, name: str = "mine.yaml") -> str:
        Path(name).write_text(text, encoding="utf-8")
        return name

    return put


def gates(fields: str) -> str:
    return GOOD.replace("kl_mean_max: 0.1", fields.replace("; ", "\n    "))


def mistakes(argument: str, *sets: str) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        load(argument, sets)
    return caught.value.mistakes


def test_a_recipe_without_gates_judges_nothing(write):
    recipe = load(write(GOOD.partition("  gates")[0]))
    assert recipe.evaluate.gates is None
    assert recipe.linear_gate is None


def test_only_limits_that_are_written_are_limits(write):
    text = gates("linear_error_max: 0.05; kl_mean_max: 1; size_max: 80 MB; generation: sane")
    limits = load(write(text)).evaluate.gates.limits
    assert limits == {
        "kl_mean_max": 1,
        "generation": "sane",
        "linear_error_max": 0.05,
        "size_max": "80 MB",
    }


@pytest.mark.parametrize(
    ("size", "expected"),
    [("80 MB", 80_000_000), ("80MB", 80_000_000), ("1 GB", 10**9), ("512 B", 512), ("1234B", 1234)],
)
def test_a_size_is_in_decimal_units(size, expected):
    assert Gates(size_max=size).size_max_bytes == expected
    assert in_bytes(Gates(size_max=size).size_max) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("kl_mean: 0.1", "evaluate.gates.kl_mean: unknown field. Did you mean kl_mean_max?"),
        ("kl_mean_max: -0.1", "kl_mean_max: -0.1 is out of range: must be at least 0."),
        ("kl_p99_max: some", 'kl_p99_max: "some" is not a number. For example kl_p99_max: 1.0'),
        ("perplexity_increase_max: 1e999", "perplexity_increase_max: Infinity"),
        ("top1_agreement_min: 90", "top1_agreement_min: 90 is out of range: must be at most 1."),
        ("accuracy_drop_max: 2", "accuracy_drop_max: 2 is out of range: must be at most 1."),
        ("linear_error_max: 0", "linear_error_max: 0 is out of range: must be above 0."),
        ("generation: fluent", 'generation: "fluent", must be "sane".'),
        ("size_max: 80 MiB", 'size_max: "80 MiB" is no size with its unit. Write it as "80 MB"'),
        ("size_max: 80", 'size_max: 80 has no unit. Write it as "80 MB": a whole number of B, KB'),
        ("size_max: 0.5", "size_max: 0.5 has no unit."),
        ("size_max: -5", "size_max: -5 has no unit."),
        ("size_max: 0 MB", 'size_max: "0 MB" leaves room for nothing. Write it as "80 MB"'),
        ("kl_mean_max: 0.1; on_violation: stop", 'on_violation: "stop" is not one of fail, esc'),
        ("on_violation: fail", "evaluate.gates: set no limit. Give one of perplexity_increase_max"),
        ("{}", "evaluate.gates: set no limit."),
        ("kl_mean_max: 0.1; on_violation: keep_dense", "keep_dense acts on linears, and no linear"),
        ("size_max: 80 MB; on_violation: escalate", "escalate gives more bits, which no size_max"),
        ("kl_mean_max: 0.1; rounds_max: 2", "rounds_max: 2, but only on_violation: escalate makes"),
        (
            "linear_error_max: 0.1; on_violation: escalate; rounds_max: 2",
            "rounds_max: 2, but no gate here makes rounds",
        ),
    ],
)
def test_each_mistake_is_named_at_its_line_with_what_to_do(write, fields, expected):
    found = mistakes(write(gates(fields)))
    assert any(expected in mistake for mistake in found), found
    assert all(mistake.startswith(("mine.yaml:7  ", "mine.yaml:8  ", "mine.yaml:9  ",
                                   "mine.yaml:10  ")) for mistake in found)  # fmt: skip


def test_a_limit_on_linears_does_not_go_with_codes_that_learn_behind_the_solver(write):
    text = gates("linear_error_max: 0.1")
    found = mistakes(write(text), "quantize.learned_rounding=10")
    assert any("learned_rounding moves them behind it" in mistake for mistake in found), found


def test_a_gate_at_the_wrong_place_is_sent_to_its_own(write):
    text = GOOD.replace("suite: quick", "kl_mean_max: 0.1")
    assert "evaluate.kl_mean_max: unknown field. It belongs in gates." in mistakes(write(text))[0]


def test_gates_that_a_suite_must_measure_are_refused_without_one(write):
    found = mistakes(write(gates("kl_mean_max: 0.1; size_max: 1 GB")), "evaluate.suite=none")
    assert found == (
        "mine.yaml:7  evaluate.gates: kl_mean_max, but suite: none measures nothing. Choose a "
        "suite or leave out the gates.",
    )
    text = gates("linear_error_max: 0.1; size_max: 1 GB")
    assert load(write(text), ["evaluate.suite=none"]).evaluate.gates  # these need no suite


def test_gates_that_a_suite_does_not_measure_are_refused(write):
    suite = (
        "version: 1\n"
        "perplexity: {set: smoke, seq_len: 32, windows: 1}\n"
        "divergence: {set: smoke, seq_len: 32, windows: 1}\n"
    )
    write(suite, "bare.yaml")
    text = gates("generation: sane; accuracy_drop_max: 0.1; kl_mean_max: 0.1")
    assert mistakes(write(text), "evaluate.suite=./bare.yaml") == (
        "mine.yaml:8  evaluate.gates.generation: the suite has no samples. Give it prompts, or "
        "leave this out.",
        "mine.yaml:9  evaluate.gates.accuracy_drop_max: the suite has no tasks. Choose one that "
        "has, or leave this out.",
    )


def test_escalating_from_the_widest_grid_is_refused(write):
    text = gates("kl_mean_max: 0.1; on_violation: escalate")
    assert (
        "escalate has nothing to give: every linear has 8 bits"
        in mistakes(write(text.replace("bits: 4", "bits: 8")))[0]
    )
    assert load(write(text.replace("bits: 4", "bits: 8, overrides: {'*.q_proj': {bits: 4}}")))


def test_a_lock_writes_its_gates_and_loads_again(write):
    for fields in ("kl_mean_max: 0.1", "kl_mean_max: 0.1; size_max: 5 B; on_violation: escalate"):
        recipe = load(write(gates(fields)))
        text = resolve.lock(recipe, {})
        assert ("rounds_max" in yaml.safe_load(text)["evaluate"]["gates"]) == ("esc" in fields)
        assert load(write(text, "lock.yaml")).evaluate == recipe.evaluate


def test_every_format_says_which_widths_a_linear_can_be_given():
    assert WIDTHS.keys() == set(Artifact.model_fields["format"].annotation.__args__)
    for widths in WIDTHS.values():
        assert set(widths) <= set(Quantize.model_fields["bits"].annotation.__args__)
        assert wider(max(widths, default=8), widths) is None
        assert all(bits < wider(bits, widths) for bits in widths[:-1])


@pytest.mark.parametrize(("kind", "after_four"), [("packed", 8), ("compressed-tensors", 8)])
def test_the_gate_of_linears_knows_what_the_artifact_holds(kind, after_four):
    recipe = Recipe(
        version=1,
        teacher={"model": "a/b"},
        stages=[{"quantize": {"bits": 4}}],
        evaluate={"gates": {"linear_error_max": 0.1, "on_violation": "escalate"}},
        artifact={"format": kind},
    )
    gate = recipe.linear_gate
    assert (gate.error_max, gate.on_violation) == (0.1, "escalate")
    assert wider(4, gate.widths) == after_four
    assert wider(2, gate.widths) == (3 if kind == "packed" else 4)
