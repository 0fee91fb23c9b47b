"""The process that renders.

A template can multiply strings, raise numbers to powers and loop without end, inside calls that no
Python code can interrupt.
"""

from __future__ import annotations

import functools
from typing import Any

import jinja2

from compress.apart import serve
from compress.chat.environment import environment

MAX_CHARACTERS = 4_000_000
_MAX_REASON = 300  # characters of what a template says when it refuses


def _answer(request: dict[str, Any]) -> dict[str, str]:
    try:
        text = _template(request["template"]).render(request["values"])
    except jinja2.TemplateError as error:
        return {"error": str(error)[:_MAX_REASON]}
    except Exception as error:  # noqa: BLE001 - a template may raise anything; it is told as it is
        return {"error": f"{type(error).__name__}: {error}"[:_MAX_REASON]}
    if len(text) > MAX_CHARACTERS:
        return {"error": f"it wrote {len(text):,} characters; {MAX_CHARACTERS:,} are allowed"}
    return {"text": text}


@functools.lru_cache(maxsize=2)
def _template(source: str) -> jinja2.Template:
    return environment().from_string(source)


if __name__ == "__main__":
    serve(_answer)
