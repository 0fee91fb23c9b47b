"""A recipe and what its run found out → ``recipe.lock.yaml``, which runs again as it stands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

import compress
from compress.recipe.methods import USED_BY
from compress.recipe.quantize import Quantize
from compress.recipe.schema import Recipe, Stage
from compress.recipe.source import scalar

_PINS = {  # fact → the field that holds it from then on
    "teacher_revision": ("teacher", "revision"),
    "teacher_sha256": ("teacher", "sha256"),
    "student_revision": ("student", "revision"),
    "student_sha256": ("student", "sha256"),
    "calibration_revision": ("calibration", "revision"),
}


def pin(recipe: Recipe, facts: Mapping[str, Any]) -> Recipe:
    """The recipe with what a run found out written into it.

    Args:
        recipe: as loaded.
        facts: any field of `Resolved`; and ``teacher_revision``, ``teacher_sha256``, the same of
            ``student`` where there is one, and ``calibration_revision``, which pin the fields of
            those names where they are not None; ``text_revisions``, those of the texts of stages
            `distill`, by the stage's place.
    """
    document = {**explicit(recipe), "resolved": recipe.resolved.model_dump()}
    for fact, (section, name) in _PINS.items():
        if facts.get(fact) is not None:
            document[section][name] = facts[fact]
    for index, revision in facts.get("text_revisions", {}).items():
        if revision is not None and document["stages"][index]["distill"]["text"]:
            document["stages"][index]["distill"]["text"]["revision"] = revision
    others = facts.keys() - _PINS.keys() - {"text_revisions"}
    document["resolved"].update({name: facts[name] for name in facts if name in others})
    return Recipe.model_validate(document)


def lock(recipe: Recipe, facts: Mapping[str, Any]) -> str:
    """The recipe pinned by `facts`, as YAML with every default; ``load`` gives it back."""
    pinned = pin(recipe, facts)
    found = {
        name: value
        for name, value in pinned.resolved.model_dump(mode="json").items()
        if value not in (None, [])
    }
    head = (
        f"# {pinned.resolved.recipe or 'recipe'}, locked by compress {compress.__version__}: "
        "every default written out, everything found out pinned.\n"
        "# run:     compress apply ./recipe.lock.yaml\n"
    )
    document = {**explicit(pinned), **({"resolved": found} if found else {})}
    return head + as_yaml(document)


def as_yaml(document: Mapping[str, Any]) -> str:
    """Plain data as YAML that recipes are read from: words that look like numbers are quoted."""
    return yaml.dump(dict(document), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def version_differences(recipe: Recipe, installed: Mapping[str, str]) -> list[str]:
    """What a lock was made with and this run would not be, one line each; none for a plain recipe.

    Args:
        recipe: as loaded; its `resolved.versions` are the lock's.
        installed: versions here, by the names that locks use.
    """
    return [
        f"{name}: {installed.get(name, 'none')} here, {locked} in the lock"
        for name, locked in recipe.resolved.versions.items()
        if installed.get(name) != locked
    ]


def explicit(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data, with all defaults that its methods use and without `resolved`."""
    left_out = {"resolved"} if recipe.student else {"resolved", "student"}
    document = recipe.model_dump(mode="json", exclude=left_out)
    document["stages"] = [{stage.name: _fields(stage)} for stage in recipe.stages]
    if (gates := recipe.evaluate.gates) and not gates.escalates:
        del document["evaluate"]["gates"]["rounds_max"]
    return document


def canonical_json(recipe: Recipe) -> str:
    """One text for all spellings of a recipe, to be hashed; `resolved` is no part of it."""
    # Keys keep the schema's order: in `overrides` the order decides which pattern wins.
    return json.dumps(explicit(recipe), separators=(",", ":"), ensure_ascii=False)


def _fields(stage: Stage) -> dict[str, Any]:
    data = stage.spec.model_dump(mode="json")
    if spec := stage.prune or stage.restructure:
        unused = spec.unused()
        return {name: value for name, value in data.items() if name not in unused}
    return _used(stage.quantize, data) if stage.quantize else data


def _used(quantize: Quantize, data: dict[str, Any]) -> dict[str, Any]:
    unused = [name for name, users in USED_BY.items() if quantize.method not in users]
    overrides = {pattern: override.changes() for pattern, override in quantize.overrides.items()}
    return {
        name: overrides if name == "overrides" else data[name]
        for name in data
        if name not in unused
    }


class _Dumper(yaml.SafeDumper):
    """Quotes the words that `compress.recipe.source` would take for numbers."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = None if scalar(value) == value else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)
