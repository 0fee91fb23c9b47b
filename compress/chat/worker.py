"""The process that renders: one JSON request a line in, one answer a line out.

A template can multiply strings, raise numbers to powers and loop without end, inside calls that no
Python code can interrupt. So the system bounds it: an alarm whose default action ends the process,
and a limit on its address space. Nothing but requests is held here.
"""

from __future__ import annotations

import functools
import json
import resource
import signal
import sys
from typing import Any

import jinja2

from compress.chat.environment import environment

MAX_MEMORY_BYTES = 1024**3
MAX_CHARACTERS = 4_000_000
_MAX_REASON = 300  # characters of what a template says when it refuses


def main() -> None:
    """Answer until the other side has gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    for line in sys.stdin:
        request = json.loads(line)
        signal.alarm(request["seconds"])
        answer = json.dumps(_answer(request))
        signal.alarm(0)
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


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
    main()
