"""Kill -9 a run at random moments of each of its phases, resume it, and compare what it leaves.

    python benchmarks/kills.py RECIPE --kills 25 --threads 2 --out /tmp/kills [--phase quantize]

One run goes through uninterrupted and tells how long each phase takes. Then, for each kill, a fresh
run is killed at a random moment of the phase and the same command goes on, maybe to be killed
again: `--again` tells how often. Counted as survived: all files of the manifest (weights, config,
tokenizer, lock, results) have the hashes of the uninterrupted run. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PHASES = ("prepare", "quantize", "write", "evaluate")  # named after the records that begin them
CONTEXT = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Request:
    """One run: what a child needs to know."""

    recipe: str
    sets: tuple[str, ...]
    out: Path
    threads: int


def child(request: Request, told: Connection) -> None:
    """Carry out a recipe, telling each phase as it begins."""
    from compress import pipeline
    from compress.recipe.load import load

    recipe = load(request.recipe, list(request.sets))
    told.send("prepare")

    def watch(progress: Any) -> None:
        if progress.step in PHASES:
            told.send(progress.step)

    pipeline.apply(recipe, out=request.out, threads=request.threads, watch=watch)


def run(request: Request, kill_in: str | None = None, after: float = 0.0) -> dict[str, float]:
    """Run a child to its end, or kill it some seconds after a phase began.

    Returns:
        When each phase began and, as "end", the end: seconds from the start.
    """
    here, there = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=child, args=(request, there))
    begun, phases = time.perf_counter(), {}
    process.start()
    there.close()
    deadline: float | None = None
    while process.is_alive():
        left = None if deadline is None else max(0.0, deadline - time.perf_counter())
        try:
            ready = here.poll(0.05 if left is None else min(left, 0.05))
            name = here.recv() if ready else None
        except EOFError:
            break
        if name:
            phases.setdefault(name, time.perf_counter() - begun)
        if kill_in in phases and deadline is None:
            deadline = begun + phases[kill_in] + after
        if deadline is not None and time.perf_counter() >= deadline:
            process.kill()
            break
    process.join()
    return {**phases, "end": time.perf_counter() - begun}


def hashes(folder: Path) -> Any:
    """The manifest, which the run wrote, checked against the files that are there."""
    from compress.artifact.manifest import check_manifest

    if flaws := check_manifest(folder):
        raise SystemExit(f"{folder}: {flaws}")
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def lengths(times: dict[str, float]) -> dict[str, float]:
    """Seconds of each phase, up to the beginning of the next."""
    names = [name for name in PHASES if name in times]
    ends = [times[name] for name in names[1:]] + [times["end"]]
    return {name: end - times[name] for name, end in zip(names, ends, strict=True)}


def survive(request: Request, phase: str, length: float, again: int, wanted: Any) -> bool:
    """Kill one run in a phase, resume it to its end, compare."""
    shutil.rmtree(request.out, ignore_errors=True)
    for _ in range(1 + again):
        if not request.out.exists():
            run(request, phase, random.uniform(0, length))
    if not request.out.exists():
        run(request)
    return request.out.exists() and hashes(request.out) == wanted


def main() -> None:
    """Kill, resume, count."""
    parser = argparse.ArgumentParser(description="Kill runs and resume them.")
    parser.add_argument("recipe")
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=25, help="in each phase")
    parser.add_argument("--again", type=int, default=0, help="kills of the resumed run")
    parser.add_argument("--phase", action="append", choices=PHASES, help="default: all")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    random.seed(given.seed)
    CONTEXT.set_forkserver_preload(["compress.pipeline"])
    given.out.mkdir(parents=True, exist_ok=True)
    whole, killed = given.out / "whole", given.out / "killed"
    shutil.rmtree(whole, ignore_errors=True)
    sets = tuple(given.sets)
    run(Request(given.recipe, sets, whole, given.threads))
    wanted = hashes(whole)
    # the cache is warm now: that is the run whose phases are timed
    request = Request(given.recipe, sets, killed, given.threads)
    shutil.rmtree(killed, ignore_errors=True)
    seconds = lengths(run(request))
    survived = {
        phase: sum(survive(request, phase, length, given.again, wanted) for _ in range(given.kills))
        for phase, length in seconds.items()
        if not given.phase or phase in given.phase
    }
    print(json.dumps({"kills": given.kills, "survived": survived, "phase_seconds": seconds}))


if __name__ == "__main__":
    main()
