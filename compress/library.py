"""Names and paths of what ships with compress, and of what it keeps: recipes, sweeps, sets, caches.

An argument that ends in a file's suffix or holds a separator is a path; anything else is a shipped
name; never a fallback from one to the other.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import compress

Kind = Literal["recipes", "sweeps", "calib", "eval"]

_FOLDERS: dict[Kind, str] = {
    "recipes": "recipes",
    "sweeps": "recipes/sweeps",
    "calib": "calib",
    "eval": "eval/suites",
}
_NOUNS: dict[Kind, str] = {
    "recipes": "recipe",
    "sweeps": "sweep",
    "calib": "calibration set",
    "eval": "evaluation suite",
}
_YAML, _TEXTS = (".yaml", ".yml"), (".txt", ".jsonl")
_SUFFIXES = (*_YAML, *_TEXTS, ".json")


def root() -> Path:
    """The folder that holds ``recipes/``, ``calib/`` and ``eval/``: in a wheel, or the checkout."""
    # From the package's own file: an editable install may leave stale copies in site-packages.
    package = Path(compress.__file__).resolve().parent
    shipped = package / "shipped"
    return shipped if shipped.is_dir() else package.parent


def cache_folder() -> Path:
    """Where what can be made again is kept: COMPRESS_CACHE, or the user's cache folder."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("COMPRESS_CACHE") or user_cache_dir("compress")).expanduser()


def folder(kind: Kind) -> Path:
    """The folder of one kind; its ``.yaml`` files are the shipped names."""
    return root() / _FOLDERS[kind]


def names(kind: Kind) -> list[str]:
    """All shipped names of one kind, sorted."""
    return sorted(path.stem for path in folder(kind).glob("*.yaml"))


def misnamed(file: Path) -> str:
    """What is wrong with the name of a recipe's file, and how to name it; "" where nothing is."""
    if file.suffix.lower() in _YAML:
        return ""
    return f"{file}: recipes end in .yaml. Name it {file.stem}.yaml."


def is_path(argument: str) -> bool:
    """Whether `argument` is a path rather than a shipped name. The disk is not asked."""
    separators = [separator for separator in (os.sep, os.altsep, "/") if separator]
    return argument.lower().endswith(_SUFFIXES) or any(
        separator in argument for separator in separators
    )


def find(kind: Kind, argument: str) -> Path:
    """The file that a path or a shipped name means. Relative paths start at the working directory.

    Raises:
        LookupError: no such file or shipped name; its text is a whole message for the user.
    """
    return _existing(kind, argument) if is_path(argument) else _shipped(kind, argument)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like `word`, ignoring case, or None where none is like it."""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[close[0]] if close else None


def _existing(kind: Kind, argument: str) -> Path:
    try:
        path = Path(argument).expanduser()
        if path.is_file():
            return path
        found = "a folder, not a file" if path.is_dir() else "no such file"
    except (OSError, RuntimeError) as error:  # too long a name; no such user behind a ~
        reason = getattr(error, "strerror", None) or "no such user"
        raise LookupError(f"{_told(argument)}: no such file ({reason}).") from error
    stem = path.stem if path.stem in names(kind) else None
    remedy = f"For the shipped {_NOUNS[kind]} write {stem}." if stem else "Check the path."
    raise LookupError(
        f"{_told(argument)}: {found} (relative paths start at {Path.cwd()}). {remedy}"
    )


def _shipped(kind: Kind, argument: str) -> Path:
    known = names(kind)
    if argument in known:
        return folder(kind) / f"{argument}.yaml"
    guess = nearest(argument, known)
    hint = f" Did you mean {guess}?" if guess else ""
    ends = (*_YAML, *_TEXTS) if kind == "calib" else _YAML
    raise LookupError(
        f"{_told(argument)!r}: no shipped {_NOUNS[kind]} of this name.{hint} "
        f"Shipped: {', '.join(known) or 'none'}. "
        f"A path ends in {', '.join(ends)} or holds a separator, as in "
        f"./{_told(argument)}."
    )


def _told(argument: str) -> str:
    """An argument as a message shows it: a recipe may hold anything."""
    short = argument[:100]
    return short if short.isprintable() else repr(short)
