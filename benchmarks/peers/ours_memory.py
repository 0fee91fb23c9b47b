"""Run a recipe and print what it made and what memory it held, one JSON line.

    python ours_memory.py RECIPE OUT [--set key=value …] [--whole] [--max-memory 4GiB]

Memory is anonymous resident memory, sampled every 10 ms by a thread of the run itself, so that each
peak is told with the step it fell into. Without --whole nothing is judged.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

SAMPLE_SECONDS = 0.01
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Sampler:
    """The peak of anonymous memory in each step; `watch` tells it which step is at work."""

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self._step = "prepare"
        self._over = threading.Event()

    def __call__(self, progress: object) -> None:
        """Take note of a progress record."""
        self._step = str(progress.step)  # type: ignore[attr-defined]

    @contextlib.contextmanager
    def sampling(self) -> Iterator[None]:
        """Sample for as long as the context lasts."""
        thread = threading.Thread(target=self._sample, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _sample(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            held = anonymous_bytes()
            self.peaks[self._step] = max(held, self.peaks.get(self._step, 0))


def anonymous_bytes() -> int:
    """Resident memory of this process that no file backs."""
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return (int(fields[1]) - int(fields[2])) * PAGE_BYTES


def main() -> None:
    """Run, and print size, peaks and seconds as one JSON line."""
    parser = argparse.ArgumentParser(description="Run a recipe; print the memory it held.")
    parser.add_argument("recipe")
    parser.add_argument("out", type=Path)
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--whole", action="store_true", help="judge the student too")
    parser.add_argument("--max-memory", metavar="SIZE")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    given = parser.parse_args()

    from compress import pipeline
    from compress.artifact.layout import open_artifact
    from compress.plan.memory import parse_bytes
    from compress.recipe.load import load

    recipe, sampler = load(given.recipe, given.sets), Sampler()
    options = {"out": given.out, "threads": given.threads}
    if given.whole:
        options["watch"] = sampler
    if given.max_memory:
        options["max_memory_bytes"] = parse_bytes(given.max_memory)
    run = pipeline.apply if given.whole else pipeline.compress_only
    begun = time.perf_counter()
    with sampler.sampling():
        run(recipe, **options)
    print(
        json.dumps(
            {
                "size_bytes": open_artifact(given.out).size_bytes,
                "anonymous_bytes": max(sampler.peaks.values()),
                "by_step": sampler.peaks,
                "seconds": round(time.perf_counter() - begun, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
