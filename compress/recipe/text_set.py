"""A set of text by its name or path → what it is: its kind, and where its words come from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compress import library
from compress.errors import CalibrationError, RecipeError
from compress.recipe import source
from compress.recipe.mistakes import describe as describe_mistakes
from compress.recipe.sections import WRITING, Calibration
from compress.recipe.source import Places, Source
from compress.recipe.text import Text

_COMMON = {"version", "kind", "description"}
KEYS: dict[str, set[str]] = {
    "self": {"seeding", "top_k", *WRITING},
    "text": {"path", "field", "separator", "shuffle"},
    "hub": {"dataset", "config", "split", "field", "revision", "separator", "shuffle"},
}
_NEEDED = {"self": set(), "text": {"path"}, "hub": {"dataset", "split"}}
_OVERRIDES = {"self": set(WRITING), "text": {"field"}, "hub": {"revision", "split", "field"}}


def describe(calibration: Calibration) -> dict[str, Any]:
    """What a set is: its kind and that kind's keys, paths made absolute, the recipe's overrides in.

    Args:
        calibration: of one set.

    Raises:
        CalibrationError: no such set, a key that its kind does not have or lacks, or an override
            that it cannot use.
    """
    try:
        path = library.find("calib", calibration.told)
    except LookupError as error:
        raise CalibrationError(f"{section(calibration)}.set: {error}") from error
    if path.suffix.lower() in (".yaml", ".yml"):
        described = _checked(path)
    else:
        described = {"kind": "text", "path": str(path)}
    overrides = {
        key: value
        for key in ("revision", "split", "field", *WRITING)
        if (value := getattr(calibration, key)) is not None
    }
    unused = sorted(overrides.keys() - _OVERRIDES[described["kind"]])
    if unused:
        raise CalibrationError(
            f"{section(calibration)}.{unused[0]}: a set of kind {described['kind']} does not use "
            f"it (set: {calibration.told}). Leave it out."
        )
    return {**described, **overrides}


def section(calibration: Calibration) -> str:
    """What messages call a text: that of the calibration, or of a stage that trains."""
    return "distill.text" if isinstance(calibration, Text) else "calibration"


def _checked(path: Path) -> dict[str, Any]:
    found = _read_yaml(path)
    data: dict[str, Any] = found.data
    kind = data.get("kind")
    if kind not in KEYS:
        raise CalibrationError(f"{path}: kind: {kind!r} is none of {', '.join(KEYS)}.")
    unknown = sorted(data.keys() - KEYS[kind] - _COMMON)
    if unknown:
        guess = library.nearest(unknown[0], KEYS[kind])
        hint = f" Did you mean {guess}?" if guess else f" Known: {', '.join(sorted(KEYS[kind]))}."
        raise CalibrationError(f"{path}: {unknown[0]}: a set of kind {kind} has no such key.{hint}")
    if missing := sorted(_NEEDED[kind] - data.keys()):
        raise CalibrationError(f"{path}: {missing[0]}: missing; a set of kind {kind} needs it.")
    if kind == "self":
        _check_writing(data, found.places)
    beside = {"text": "path", "self": "prompts"}.get(kind, "")  # a file beside this one
    if isinstance(data.get(beside), str):
        data = {**data, beside: str(path.parent / data[beside])}
    return data


def _check_writing(data: Mapping[str, Any], places: Places) -> None:
    """Check what is said of how a text is written, as if a recipe said it."""
    said = {key: data[key] for key in WRITING if key in data}
    try:
        Calibration.model_validate({"set": "self", **said})
    except ValidationError as error:
        wrong = sorted(describe_mistakes(error, places, Calibration), key=lambda found: found[0])
        raise CalibrationError("\n".join(text for _, text in wrong)) from error


def _read_yaml(path: Path) -> Source:
    try:
        found = source.read(source.text_of(path), str(path))
    except RecipeError as error:
        raise CalibrationError("\n".join(error.mistakes)) from error
    if found.mistakes:
        raise CalibrationError("\n".join(text for _, text in found.mistakes))
    if not isinstance(found.data, dict):
        raise CalibrationError(f"{path}: holds no mapping. A set begins with version: 1 and kind.")
    return found
