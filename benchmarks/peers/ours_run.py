"""Quantize one teacher with compress, timed as the peers are.

    python ours_run.py RECIPE OUT_DIR [--set key=value …] [--threads 2]

Runs only what the clock is about: no evaluation, no report. The library starts its clock when the
token windows are ready and stops it when the last shard is flushed. Prints one JSON line at the
end.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
from pathlib import Path

from compress import pipeline
from compress.recipe.load import load


def main() -> None:
    """Quantize, write, and print the clocked seconds and versions as one JSON line."""
    parser = argparse.ArgumentParser(description="Quantize one teacher with compress.")
    parser.add_argument("recipe")
    parser.add_argument("out", type=Path)
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    given = parser.parse_args()
    result = pipeline.compress_only(
        load(given.recipe, sets=given.sets),
        out=given.out,
        device=given.device,
        threads=given.threads,
    )
    versions = {"torch": importlib.metadata.version("torch")}
    print(json.dumps({**result, "versions": versions}))


if __name__ == "__main__":
    main()
