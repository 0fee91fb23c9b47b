r"""Run every shipped recipe whose teacher needs no hub, and write down what it took and gave.

    python benchmarks/catalogue.py --out OUT --threads 2

Fills the columns of numbers in recipes/README.md, between its two markers, and the lines `cost` and
`expect` at the head of each recipe. Recipes run one after the other, each as a user would run it;
what an earlier one left in the cache (the teacher's own text, its answers) is removed before, the
download is not, and its seconds are not counted. A recipe that OUT holds already is read, not run.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import applied
import measure

RECIPES = measure.ROOT / "recipes"
BEGIN, END = "<!-- catalogue.py: begin -->", "<!-- catalogue.py: end -->"
OFFLINE = "model: pypi:"  # how a teacher is spelled that every machine with an index can have
MEASURED_COLUMNS = 6
KEPT_BY_RUNS = ("written", "judged")  # folders of the cache that spare a later run its work


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Measure the recipes that ship.")
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the artifacts, the logs and a cache")
    add("--threads", type=int, default=os.cpu_count())
    add("--only", nargs="+", metavar="NAME", help="recipes by name; default: all of them")
    add("--recipes", type=Path, default=RECIPES, help="folder whose README.md is rewritten")
    given = parser.parse_args(argv)
    known = measurable(given.recipes)
    if unknown := sorted({*(given.only or ())} - {*known}):
        parser.error(f"--only: no {', '.join(unknown)}; known: {', '.join(known)}")
    return given


def measurable(recipes: Path) -> list[str]:
    """Names of the recipes whose teacher needs no hub."""
    return sorted(p.stem for p in recipes.glob("*.yaml") if OFFLINE in p.read_text("utf-8"))


def run(name: str, *, out: Path, recipes: Path, threads: int) -> applied.Left:
    """Run one recipe with a cache that holds the teacher and nothing of other runs."""
    cache = out / "cache"
    if not (out / name).is_dir():
        for folder in KEPT_BY_RUNS:
            shutil.rmtree(cache / folder, ignore_errors=True)
    return applied.run(str(recipes / f"{name}.yaml"), out / name, threads=threads, cache=cache)


def cells(left: applied.Left) -> list[str]:
    """The measured columns of one row."""
    after, found = left.results["after"], left.results["divergence"]
    return [
        f"{after['size_bytes'] / 1e6:.1f}",
        f"{after['perplexity']['perplexity']:.2f}",
        f"{found['kl_mean']:.4f}",
        f"{100 * found['top1_agreement']:.1f} %",
        f"{_minutes(left):.1f}",
        f"{left.measured['peak_memory_bytes'] / 2**30:.2f}",
    ]


def table(text: str, measured: Mapping[str, applied.Left], about: Mapping[str, str]) -> str:
    """The README with its numbers filled in; rows of recipes that were not run stay as they are.

    Raises:
        ValueError: the README lacks a marker.
    """
    before, begin, rest = text.partition(BEGIN)
    old, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"recipes/README.md: lacks {BEGIN} or {END}, between which the table is")
    rows = [line for line in old.splitlines() if line.startswith("|")]
    said = (
        f"`{about['command']}`, {about['date']}, commit {about['commit']}, on {about['hardware']}. "
        "A row that was filled by another run has its date and commit at the head of its recipe."
    )
    lines = [begin, "", *(_filled(row, measured) for row in rows), "", said, "", end]
    return before + "\n".join(lines) + after


def head(text: str, left: applied.Left, about: Mapping[str, str]) -> str:
    """A recipe with its lines `cost` and `expect` filled in."""
    before, after = left.results["before"], left.results["after"]
    size = f"{before['size_bytes'] / 1e6:.0f} → {after['size_bytes'] / 1e6:.0f} MB"
    scores = [side["perplexity"]["perplexity"] for side in (before, after)]
    perplexity = f"perplexity {scores[0]:.2f} → {scores[1]:.2f}"
    threads, (minutes, peak) = left.results["provenance"]["threads"], cells(left)[-2:]
    lines = {
        "cost": f"{minutes} minutes on {threads} threads after the download, {peak} GiB",
        "expect": f"{size}, {perplexity}   ({about['date']}, {about['commit']})",
    }
    for word, said in lines.items():
        line = f"# {word + ':':<8} {said}"
        text = re.sub(rf"^# {word}:.*$", line, text, count=1, flags=re.MULTILINE)
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, then rewrite; 1 when a recipe failed, and then nothing is rewritten."""
    argv = sys.argv[1:] if argv is None else argv
    given = arguments(argv)
    out, recipes = given.out.resolve(), given.recipes.resolve()
    out.mkdir(parents=True, exist_ok=True)
    about = measure.about("benchmarks/catalogue.py", argv)
    try:
        measured = {
            name: run(name, out=out, recipes=recipes, threads=given.threads)
            for name in given.only or measurable(recipes)
        }
    except measure.ChildError as error:
        print(error, file=sys.stderr)
        return 1
    readme = recipes / "README.md"
    readme.write_text(table(readme.read_text("utf-8"), measured, about), "utf-8")
    for name, left in measured.items():
        path = recipes / f"{name}.yaml"
        path.write_text(head(path.read_text("utf-8"), left, about), "utf-8")
    return 0


def _filled(row: str, measured: Mapping[str, applied.Left]) -> str:
    name = re.match(r"\| \[([^\]]+)\]", row)
    if name is None or name[1] not in measured:
        return row
    words = row.strip("|\n ").split(" | ")[:-MEASURED_COLUMNS]
    return "| " + " | ".join([*words, *cells(measured[name[1]])]) + " |"


def _minutes(left: applied.Left) -> float:
    seconds = left.measured["seconds"]
    return float(seconds["total"] - seconds.get("teacher", 0.0)) / 60


if __name__ == "__main__":
    sys.exit(main())
