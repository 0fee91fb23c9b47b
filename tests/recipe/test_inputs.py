"""Which files a recipe names."""

import pytest

from compress import library
from compress.recipe.inputs import inputs
from compress.recipe.load import load


@pytest.fixture
def named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("Why is the sea salty?\n")
    return lambda name, *sets: inputs(load(name, list(sets)))


@pytest.mark.parametrize(
    ("recipe", "section"),
    [("quickstart", "calibration"), ("prune-heal-w4", "distill.text")],
)
def test_a_file_of_prompts_is_one_of_them(named, tmp_path, recipe, section):
    sets = (f"{section}.set=self", f"{section}.prompts=./prompts.txt")
    before = named(recipe, *sets)
    assert "prompts.txt" in before
    (tmp_path / "prompts.txt").write_text("Why is the sky blue?\n")
    assert {key for key, one in named(recipe, *sets).items() if one != before[key]} == {
        "prompts.txt"
    }


def test_prompts_that_are_listed_are_no_files(named):
    found = named("quickstart", "calibration.set=self", 'calibration.prompts=["Why is it so?"]')
    assert all(key.startswith("shipped:") for key in found)


def test_shipped_sets_suites_and_tasks_are_hashed_with_what_they_name(named):
    found = named("quickstart", "calibration.set=smoke", "evaluate.suite=quick")
    assert {
        "shipped:calib/smoke.yaml", "shipped:calib/smoke.txt", "shipped:eval/suites/quick.yaml",
        "shipped:eval/texts/heldout.txt", "shipped:eval/tasks/cloze.yaml",
        "shipped:eval/tasks/cloze.jsonl",
    } <= set(found)  # fmt: skip
    assert "missing" not in found.values()


def test_another_version_of_a_shipped_file_is_another_input(named, tmp_path, monkeypatch):
    import shutil

    sets = ("calibration.set=smoke", "evaluate.suite=short")
    before = named("quickstart", *sets)
    for folder in ("recipes", "calib", "eval"):
        shutil.copytree(library.root() / folder, tmp_path / "elsewhere" / folder)
    monkeypatch.setattr(library, "root", lambda: tmp_path / "elsewhere")
    assert named("quickstart", *sets) == before, "wherever it lies"
    (tmp_path / "elsewhere" / "calib" / "smoke.txt").write_text("Other words.")
    now = named("quickstart", *sets)
    assert {key for key, one in now.items() if one != before[key]} == {"shipped:calib/smoke.txt"}
