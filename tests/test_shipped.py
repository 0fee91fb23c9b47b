"""Every file that ships for users is opened as a user would open it."""

from __future__ import annotations

import json
import re

import pytest

from compress import catalogue, errors, library
from compress.recipe.load import load
from compress.recipe.schema import Recipe, Stage, json_schema
from compress.recipe.source import mapping
from compress.recipe.stages import Entry

RECIPES = library.names("recipes")


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_loads(name):
    recipe = load(name)
    assert isinstance(recipe, Recipe)
    assert recipe.resolved.recipe == name
    assert recipe.teacher.sha256 or recipe.teacher.revision, "a shipped recipe pins its teacher"


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_begins_with_what_it_is_how_to_run_it_and_what_to_expect(name):
    lines = library.find("recipes", name).read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith(f"# {name}: ")
    assert lines[1].startswith(f"# run:     compress apply {name}")
    assert lines[2].startswith("# cost:    ")
    assert lines[3].startswith("# expect:  ")
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("name", RECIPES)
def test_the_command_of_a_recipe_is_accepted(name):
    command = library.find("recipes", name).read_text(encoding="utf-8").splitlines()[1]
    load(name, re.findall(r"--set (\S+)", command))


def test_the_catalogue_lists_the_recipes():
    text = (library.folder("recipes") / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| \[(\S+)\]\(\1\.yaml\)", text, re.MULTILINE)) == RECIPES


def test_what_was_measured_is_of_shipped_recipes_and_tells_the_truth_of_their_change():
    assert (library.folder("recipes") / catalogue.NAME).is_file()
    found = catalogue.read()
    assert set(found.recipes) <= set(RECIPES)
    assert set(catalogue.changed(found)) <= set(found.recipes)


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in ("calib", "eval") for name in library.names(kind)]
)
def test_sets_and_suites_are_yaml_of_this_version(kind, name):
    found = mapping(library.find(kind, name))
    assert found["version"] == 1
    assert found["description"]


def test_the_shipped_json_schema_is_the_schema():
    path = library.folder("recipes") / "recipe.schema.json"
    assert json.loads(path.read_text(encoding="utf-8")) == json_schema()


def test_the_schema_knows_the_stages_that_run():
    from compress.stages.table import STAGES

    assert set(Stage.model_fields) == set(STAGES)
    assert set(Entry.model_fields) - set(STAGES) == {"repeat"}


def test_every_kind_of_error_has_its_section():
    text = (library.root() / "docs" / "errors.md").read_text(encoding="utf-8")
    sections = {
        section.partition("\n")[0].lower(): re.findall(
            r"^\*`(\w+)`, exit (\d)", section, re.MULTILINE
        )
        for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    }
    for kind in _kinds(errors.CompressError):
        assert (kind.__name__, str(kind.exit_code)) in sections[kind.section], kind
    for told in ("memory", "processes"):  # what messages of other kinds name
        assert sections[told]


def _kinds(kind):
    for inner in kind.__subclasses__():
        if inner.__module__ == "compress.errors":
            yield inner
            yield from _kinds(inner)


def test_sections_that_single_errors_name_are_there():
    text = (library.root() / "docs" / "errors.md").read_text(encoding="utf-8")
    named = {
        word
        for path in (library.root() / "compress").rglob("*.py")
        for word in re.findall(
            r'section="(\w+)"|docs/errors\.md#(\w+)', path.read_text(encoding="utf-8")
        )
    }
    there = {line.lower() for line in re.findall(r"^## (.+)$", text, re.MULTILINE)}
    assert {"".join(pair) for pair in named} <= there
