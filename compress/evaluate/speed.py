"""How fast our runtime answers from an artifact."""

from __future__ import annotations

from pathlib import Path

from compress.errors import RequestError
from compress.runtime.engine import Engine, collect
from compress.runtime.request import Timings

_PROMPT_TOKENS, _NEW_TOKENS = 128, 64


def timings(folder: Path, threads: int | None = None) -> Timings | None:
    """Time one greedy answer, one prompt at a time; None where the runtime cannot run the model.

    Args:
        folder: an artifact. An answer to another prompt comes first and is not counted; nothing is
            proposed, as the prompt repeats itself.
        threads: that compute; torch's own setting by default.
    """
    other, prompt = ([1 + (skip + i) % 100 for i in range(_PROMPT_TOKENS)] for skip in (50, 0))
    try:
        engine = Engine.open(folder, threads=threads, speculate=False)
        collect(engine.generate(other, max_new_tokens=4))
        engine.stop_ids = frozenset()  # an early end would be no measurement
        return collect(engine.generate(prompt, max_new_tokens=_NEW_TOKENS)).timings
    except RequestError:
        return None
