"""Whether a JSON schema can be followed at all, found out where it can be ended.

A few hundred bytes can keep `llguidance` busy for ever (patterns that all have to hold are one
product of automata), in a call that no thread can interrupt, and its own limits do not stop it.
"""

from __future__ import annotations

from typing import Any

from compress.apart import Apart, serve

MAX_BYTES = 64 * 1024
MAX_SECONDS = 5
_SPACE = r"[\x20\x0A\x0D\x09]{1,40}"  # bounded: a small model may write nothing else for ever


def check(schema: str) -> None:
    """Read a schema once, in a process of its own.

    Raises:
        ValueError: it is none, holds what cannot be followed, or goes beyond a bound.
    """
    if len(schema) > MAX_BYTES:
        raise ValueError(f"{len(schema):,} characters; {MAX_BYTES:,} are read")
    _reader.ask({"schema": schema}, seconds=MAX_SECONDS)


def grammar(schema: str) -> str:
    """The grammar of a schema, unread as yet; ValueError where there is none."""
    from llguidance import LLMatcher

    found: str = LLMatcher.grammar_from_json_schema(
        schema, overrides={"whitespace_pattern": _SPACE}
    )
    return found


def _answer(request: dict[str, Any]) -> dict[str, str]:
    from llguidance import LLMatcher

    try:
        wrong = LLMatcher.validate_grammar(grammar(request["schema"]))
    except ValueError as error:
        wrong = str(error)
    return {"error": wrong} if wrong else {}


_reader = Apart("compress.runtime.schemas")

if __name__ == "__main__":
    grammar("{}")  # llguidance is imported before anything is timed
    serve(_answer)
