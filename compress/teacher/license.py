"""What a model's makers say of its license: in its card, or in the fields of a GGUF file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.errors import RecipeError
from compress.recipe import source

_CARD = "README.md"
_MOST_BYTES = 1024**2  # of a card that are looked into
_HEAD = re.compile(r"---[ \t]*\r?\n(.*?)\r?\n---", re.DOTALL)
_FIELDS = {
    "license": "general.license", "license_name": "general.license.name",
    "license_link": "general.license.link",
}  # fmt: skip


def stated(folder: Path) -> str:
    """The license that the card of a model folder names, "" where it names none.

    One that the hub has no word for is told as "other", with its name: ``other (NAME)``.
    """
    found = _front_matter(folder / _CARD)
    license, name = (_line(found.get(key)) for key in ("license", "license_name"))
    return f"{license} ({name})" if license == "other" and name else license


def cards(folder: Path) -> tuple[Path, ...]:
    """The card of a model folder, by which a copy keeps its license; none where there is none."""
    card = folder / _CARD
    return (card,) if card.is_file() else ()


def _front_matter(card: Path) -> Mapping[str, Any]:
    """What stands in YAML at the head of a card; nothing where that cannot be read."""
    try:
        with card.open("rb") as file:
            text = str(file.read(_MOST_BYTES), "utf-8", "replace")
        head = _HEAD.match(text)
        found = source.read(head[1], str(card)).data if head else None
    except (OSError, RecipeError):  # a card that is none is no reason to stop
        return {}
    return found if isinstance(found, Mapping) else {}


def note(folder: Path, fields: Mapping[str, Any]) -> None:
    """Write the license that a GGUF file states into the card of the folder made of it.

    Raises:
        OSError: the disk refuses.
    """
    from huggingface_hub import metadata_save

    told = {key: _line(fields.get(field)) for key, field in _FIELDS.items()}
    if told["license"]:
        metadata_save(folder / _CARD, {key: text for key, text in told.items() if text})


def _line(value: Any) -> str:
    """A short text on one line; "" where it is anything else."""
    text = value.strip() if isinstance(value, str) else ""
    return text if text.isprintable() and len(text) <= 200 else ""
