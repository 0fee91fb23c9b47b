"""What a shell offers behind TAB: names of what ships, fields of a recipe and what they take.

A shell runs `compress` itself to ask for it, so nothing heavy is imported here.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

from compress import library

ASKED = "_COMPRESS_COMPLETE"  # by a shell, when it wants to know what may follow
_NAMED: dict[str, library.Kind] = {
    "calibration.set": "calib",
    "evaluate.text": "calib",
    "distill.text.set": "calib",
    "evaluate.suite": "eval",
}


def recipes(incomplete: str) -> list[tuple[str, str]]:
    """Shipped recipes with what their first line says."""
    return _shipped("recipes", incomplete, _first_line)


def sweeps(incomplete: str) -> list[tuple[str, str]]:
    """Shipped sweeps with what their first line says."""
    return _shipped("sweeps", incomplete, _first_line)


def suites(incomplete: str) -> list[tuple[str, str]]:
    """Shipped suites with their descriptions."""
    return _shipped("eval", incomplete, _description)


def settings(incomplete: str) -> list[str]:
    """Fields of a recipe as `--set` takes them, or behind = what a field takes."""
    key = incomplete.partition("=")[0]
    fields = {name: words for name, words in _fields() if name.startswith(key)}
    if len(fields) == 1 or "=" in incomplete:
        return [f"{name}={word}" for name, words in fields.items() for word in words or ("",)]
    return [f"{name}=" for name in fields]


def answer(run: Callable[[], object]) -> None:
    """Let the parser answer a shell that asks, and mind that bash cuts words at each =.

    bash hands `--set a=b` over as three words, and puts in what it is told for the last alone.
    """
    cut = os.environ.get(ASKED) == "complete_bash" and _joined(os.environ)
    heard = io.StringIO()
    with contextlib.redirect_stdout(heard), contextlib.suppress(SystemExit):
        run()
    for line in heard.getvalue().splitlines():
        sys.stdout.write((line.partition("=")[2] if cut else line) + "\n")


def _joined(environment: MutableMapping[str, str]) -> bool:
    """Join words around each =; whether the word that is being completed was one of them."""
    place = int(environment["COMP_CWORD"])
    whole: list[str] = []
    for word in environment["COMP_WORDS"].split("\n")[: place + 1]:
        if whole and (word == "=" or whole[-1].endswith("=")):
            whole[-1] += word
        else:
            whole.append(word)
    environment["COMP_WORDS"], environment["COMP_CWORD"] = "\n".join(whole), str(len(whole) - 1)
    return "=" in whole[-1]


def _shipped(
    kind: library.Kind, incomplete: str, tell: Callable[[str], str]
) -> list[tuple[str, str]]:
    return [
        (name, tell(library.find(kind, name).read_text(encoding="utf-8")))
        for name in library.names(kind)
        if name.startswith(incomplete)
    ]


def _first_line(text: str) -> str:
    return text.partition("\n")[0].partition(": ")[2]


def _description(text: str) -> str:
    found = re.search(r"^description:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else ""


def _fields() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every field that `--set` can name, with the words that it takes, where they are few."""
    path = library.folder("recipes") / "recipe.schema.json"
    schema = json.loads(path.read_text(encoding="utf-8"))
    kinds, top = schema["$defs"], schema["properties"]
    for name in ("teacher", "student", "calibration", "evaluate", "artifact"):
        yield from _below(name, top[name], kinds)
    for name, stage in kinds["Entry"]["properties"].items():
        yield from _below(name, stage, kinds)


def _below(
    name: str, written: dict[str, Any], kinds: dict[str, Any]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    variants = [written, *written.get("anyOf", ())]
    sections = [kinds[one["$ref"].rpartition("/")[2]] for one in variants if "$ref" in one]
    if not sections:
        yield name, _words(name, variants)
    for section in sections:
        for inner, field in section.get("properties", {}).items():
            yield from _below(f"{name}.{inner}", field, kinds)


def _words(name: str, variants: list[dict[str, Any]]) -> tuple[str, ...]:
    if name in _NAMED:
        return (*library.names(_NAMED[name]), *(("none",) if name == "evaluate.suite" else ()))
    found: list[object] = [word for one in variants for word in one.get("enum", ())]
    if any(one.get("type") == "boolean" for one in variants):
        found += ["true", "false"]
    return tuple(str(word) for word in found)
