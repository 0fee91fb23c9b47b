from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.recipe.load import load
from compress.recipe.resolve import (
    _Dumper,
    canonical_json,
    explicit,
    lock,
    pin,
    version_differences,
)
from compress.recipe.source import read

FACTS = {
    "teacher_revision": "0" * 40,
    "teacher_sha256": None,
    "teacher_fingerprint": "12e4567",  # YAML would take it for a number
    "calibration_fingerprint": "ab" * 32,
    "threads": 2,
    "device": "cpu",
    "versions": {"torch": "2.13"},
}
RTN = (
    "quantize={method: rtn, scheme: W4A16, group_size: 64, overrides: {'*.q_proj': {bits: 8}}, "
    "targets: ['re:.*proj'], head: 8}"
)


@pytest.fixture(params=[(), ("quantize.bits=3", "artifact.max_shard_size=5 MB"), (RTN,)])
def recipe(request):
    return load("quickstart", request.param)


def test_a_lock_loads_as_the_recipe_with_what_was_found(recipe, tmp_path):
    path = tmp_path / "recipe.lock.yaml"
    path.write_text(lock(recipe, FACTS), encoding="utf-8")
    again = load(str(path))
    assert again == pin(recipe, FACTS)
    assert again.resolved.recipe == "quickstart"
    assert again.resolved.sets == recipe.resolved.sets
    assert again.resolved.teacher_fingerprint == "12e4567"
    assert again.teacher.revision == "0" * 40
    assert again.teacher.sha256 == recipe.teacher.sha256  # a fact of None pins nothing
    assert lock(again, {}) == lock(recipe, FACTS)


def test_a_lock_pins_each_of_several_sets(tmp_path):
    recipe = load("quickstart", ["calibration.set=[wikitext2, self]"])
    path = tmp_path / "recipe.lock.yaml"
    path.write_text(lock(recipe, {**FACTS, "calibration_revision": ("abc", None)}))
    again = load(str(path))
    assert again.calibration.set == ("wikitext2", "self")
    assert [part.revision for part in again.calibration.parts] == ["abc", None]


def test_versions_other_than_the_locks_are_named(recipe):
    made_with = {"torch": "2.13.0", "transformers": "5.23.0", "gone": "1.0"}
    locked = pin(recipe, {"versions": made_with})
    assert version_differences(locked, {**made_with, "new": "1.0"}) == []
    assert version_differences(locked, {"torch": "2.14.0", "transformers": "5.23.0"}) == [
        "torch: 2.14.0 here, 2.13.0 in the lock",
        "gone: none here, 1.0 in the lock",
    ]
    assert version_differences(recipe, made_with) == []


def test_a_lock_writes_every_default_its_methods_use(recipe):
    document = yaml.safe_load(lock(recipe, {}))
    assert document["calibration"]["seq_len"] == 512
    (stage,) = document["stages"]
    assert ("damp_percent" in stage["quantize"]) == (recipe.stages[0].quantize.method == "gptq")
    assert stage["quantize"]["on_unsolvable"] == "fail"


def test_a_lock_changed_by_set_keeps_its_pins_and_drops_its_fingerprints(recipe, tmp_path):
    path = tmp_path / "recipe.lock.yaml"
    path.write_text(lock(recipe, FACTS), encoding="utf-8")
    changed = load(str(path), ["calibration.samples=3"])
    assert changed.resolved.teacher_fingerprint is None
    assert changed.resolved.sets == (*recipe.resolved.sets, "calibration.samples=3")
    assert changed.teacher.revision == "0" * 40


def test_one_text_stands_for_all_spellings_of_a_recipe(tmp_path):
    short, long = Path(tmp_path / "short.yaml"), Path(tmp_path / "long.yaml")
    short.write_text("version: 1\nteacher: {model: a/b}\nstages: [{quantize: {}}]\n")
    long.write_text(
        "stages:\n- quantize: {bits: 4, method: gptq}\nversion: 1\nteacher:\n  model: 'a/b'\n"
    )
    assert canonical_json(load(str(short))) == canonical_json(load(str(long)))
    other = load(str(short), ["quantize.bits=8"])
    assert canonical_json(other) != canonical_json(load(str(short)))


def test_the_order_of_overrides_is_part_of_a_recipe():
    a = load("quickstart", ["quantize.overrides={'*.q_proj': {bits: 8}, '*proj': {bits: 3}}"])
    b = load("quickstart", ["quantize.overrides={'*proj': {bits: 3}, '*.q_proj': {bits: 8}}"])
    assert canonical_json(a) != canonical_json(b)


def test_what_a_run_found_out_is_no_part_of_the_recipe_itself(recipe):
    assert "resolved" not in explicit(recipe)
    facts = {**FACTS, "teacher_revision": None}
    assert canonical_json(pin(recipe, facts)) == canonical_json(recipe)


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Cn"]), max_size=20)
TRICKY = st.sampled_from([
    "1e5", "12e4567", "no", "null", "~", "", "0x1f", "1:30", "2024-01-01", "*", "-1", ".5", "1_000",
    "TRUE", "é", "- a", "a: b", "#", "1.", " x ", "a #b", "=", "<<", "0o7", "+.inf", ".NaN",
])  # fmt: skip
VALUES = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | WORDS | TRICKY
VALUES |= st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(WORDS | TRICKY, VALUES | st.lists(VALUES, max_size=3), max_size=4))
def test_what_a_lock_writes_is_read_back_as_it_was(data):
    text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    assert read(text, "x").data == data
