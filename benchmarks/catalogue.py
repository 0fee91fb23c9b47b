r"""Run every shipped recipe whose teacher needs no hub, and write down what it took and gave.

    python benchmarks/catalogue.py --out OUT --threads 2
    python benchmarks/catalogue.py --out OUT --threads 2 --only w4-best w4-fast dense
    python benchmarks/catalogue.py --out OUT --threads 2 --check

Numbers go to recipes/catalogue.json, one entry a recipe, each as soon as it is there; from it the
table of recipes/README.md is filled in, between its two markers, and the lines `cost` and `expect`
at the head of each recipe. `dense` is the teacher as it is. Recipes run one after the other, each
as a user would run it; what an earlier one left in the cache (the teacher's own text, its answers)
is removed before, the download is not, and its seconds are not counted. What OUT holds of the same
recipe is read, not run again.

`--check` writes nothing: it holds what is measured now against what the catalogue promises, and
ends with 1 when a number has drifted further than TOLERANCES. Seconds are told, never judged.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import applied
import measure

from compress.catalogue import DENSE, NAME, Catalogue, Measurement, changed, fingerprint, read
from compress.results import from_json, to_json

RECIPES = measure.ROOT / "recipes"
BEGIN, END = "<!-- catalogue.py: begin -->", "<!-- catalogue.py: end -->"
OFFLINE = re.compile(r"model: (pypi:\S+)")  # a teacher that every machine with an index can have
SUITE = re.compile(r"suite: (\w+)")
BASELINE = "quickstart"  # whose teacher and suite are those of `dense`
MEASURED_COLUMNS = 8
KEPT_BY_RUNS = ("written", "judged", "said")  # folders of the cache that spare later runs work
TOLERANCES = {  # largest difference, as a share of what was promised
    "size_bytes": 0.0,
    "bits_per_weight": 0.0,
    "perplexity": 0.01,
    "kl_mean": 0.05,
    "kl_p99": 0.10,
    "top1_agreement": 0.01,
}
TOLD = ("seconds", "cpu_seconds", "decode_tokens_per_second", "peak_memory_bytes")
About = dict[str, str]


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Measure the recipes that ship.")
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the artifacts, the logs and a cache")
    add("--threads", type=int, default=os.cpu_count())
    add("--only", nargs="+", metavar="NAME", help="recipes by name, or dense; default: all of them")
    add("--recipes", type=Path, default=RECIPES, help="folder whose catalogue is rewritten")
    add("--check", action="store_true", help="write nothing; end with 1 where a promise drifted")
    given = parser.parse_args(argv)
    known = measurable(given.recipes)
    if unknown := sorted({*(given.only or ())} - {*known}):
        parser.error(f"--only: no {', '.join(unknown)}; known: {', '.join(known)}")
    return given


def measurable(recipes: Path) -> list[str]:
    """The teacher, then the names of the recipes whose teacher needs no hub."""
    paths = sorted(recipes.glob("*.yaml"))
    return [DENSE, *(path.stem for path in paths if OFFLINE.search(path.read_text("utf-8")))]


def measured(name: str, given: argparse.Namespace, about: About) -> Measurement:
    """One entry: kept by OUT, or measured now and kept there.

    Raises:
        measure.ChildError: the run failed.
    """
    out, recipes = given.out.resolve(), given.recipes.resolve()
    text = (recipes / f"{BASELINE if name == DENSE else name}.yaml").read_text("utf-8")
    sha256 = fingerprint(text)
    folder = out / f"{name}-{sha256[:8]}"  # a changed recipe is another run
    kept = folder.with_name(folder.name + ".json")
    if not kept.is_file():
        found = (
            _dense(text, out, given.threads, about)
            if name == DENSE
            else _entry(text, _run(recipes / f"{name}.yaml", folder, given.threads), about)
        )
        _write(kept, to_json(found))
    return from_json(Measurement, kept.read_text("utf-8"))


def keep(name: str, entry: Measurement, recipes: Path) -> None:
    """Write one entry into the catalogue, and what is made from it: a table and a head."""
    found = read(recipes)
    if name == DENSE:
        found = dataclasses.replace(found, dense=entry)
    else:
        entries = {**found.recipes, name: entry}
        found = dataclasses.replace(found, recipes={one: entries[one] for one in sorted(entries)})
        path = recipes / f"{name}.yaml"
        _write(path, head(path.read_text("utf-8"), entry, found.dense))
    _write(recipes / NAME, to_json(found))
    readme = recipes / "README.md"
    _write(readme, table(readme.read_text("utf-8"), found, changed(found, recipes)))


def table(text: str, found: Catalogue, outdated: Sequence[str]) -> str:
    """The README with its numbers filled in; rows of what was never measured stay as they are.

    Raises:
        ValueError: the README lacks a marker.
    """
    before, begin, rest = text.partition(BEGIN)
    old, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"recipes/README.md: lacks {BEGIN} or {END}, between which the table is")
    rows = [line for line in old.splitlines() if line.startswith("|")]
    entries = {**found.recipes, **({DENSE: found.dense} if found.dense else {})}
    said = (
        f"Command, date, commit, hardware and threads of every row: [{NAME}]({NAME}), or "
        "`compress recipes show NAME`."
    )
    if outdated:
        said += f" Measured before it was changed: {', '.join(outdated)}."
    lines = [begin, "", *(_filled(row, entries) for row in rows), "", said, "", end]
    return before + "\n".join(lines) + after


def cells(entry: Measurement) -> list[str]:
    """The measured columns of one row."""
    return [
        f"{entry.size_bytes / 1e6:.1f}",
        _number(entry.perplexity, ".2f"),
        _number(entry.kl_mean, ".4f"),
        "–" if entry.top1_agreement is None else f"{100 * entry.top1_agreement:.1f} %",
        _number(entry.decode_tokens_per_second, ".0f"),
        f"{entry.seconds / 60:.1f}",
        f"{entry.cpu_seconds / 60:.1f}",
        f"{entry.peak_memory_bytes / 2**30:.2f}",
    ]


def head(text: str, entry: Measurement, dense: Measurement | None) -> str:
    """A recipe with its lines `cost` and `expect` filled in."""
    size, perplexity = f"{entry.size_bytes / 1e6:.0f} MB", _number(entry.perplexity, ".2f")
    if dense and dense.suite == entry.suite:
        size = f"{dense.size_bytes / 1e6:.0f} → {size}"
        perplexity = f"{_number(dense.perplexity, '.2f')} → {perplexity}"
    minutes, spent = entry.seconds / 60, entry.cpu_seconds / 60
    lines = {
        "cost": f"{minutes:.1f} minutes on {entry.threads} threads after the download "
        f"({spent:.1f} of processors), {entry.peak_memory_bytes / 2**30:.2f} GiB",
        "expect": f"{size}, perplexity {perplexity}   ({entry.date}, {entry.commit})",
    }
    for word, said in lines.items():
        line = f"# {word + ':':<8} {said}"
        text = re.sub(rf"^# {word}:.*$", line, text, count=1, flags=re.MULTILINE)
    return text


def drifted(promised: Measurement, now: Measurement) -> Iterator[str]:
    """Every number that is not what was promised, in words."""
    if promised.recipe_sha256 != now.recipe_sha256:
        yield "was measured before it was changed"
    if (promised.suite, promised.texts) != (now.suite, now.texts):
        yield "was judged by another suite, or on another text"
    for name, share in TOLERANCES.items():
        was, found = getattr(promised, name), getattr(now, name)
        if was == found:
            continue
        if was is None or found is None or abs(found - was) > share * abs(was):
            limit = f"may move by {share:.0%}" if share else "may not move"
            yield f"{name}: promised {_told(was)}, found {_told(found)}; {limit}"


def check(name: str, now: Measurement, promises: Catalogue) -> list[str]:
    """What of one promise has drifted; its times are printed beside."""
    promised = promises.dense if name == DENSE else promises.recipes.get(name)
    if promised is None:
        return [f"{name}: {NAME} has no entry"]
    for told in TOLD:
        was, found = (_told(getattr(one, told)) for one in (promised, now))
        print(f"{name}: {told} was {was}, is {found}", flush=True)
    return [f"{name}: {one}" for one in drifted(promised, now)]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and rewrite or check; 1 when a recipe failed or a promise has drifted."""
    argv = sys.argv[1:] if argv is None else argv
    given = arguments(argv)
    given.out.resolve().mkdir(parents=True, exist_ok=True)
    about = measure.about("benchmarks/catalogue.py", argv, written="recipes")
    promises, wrong = read(given.recipes), []
    for name in given.only or measurable(given.recipes):
        try:
            entry = measured(name, given, about)
        except measure.ChildError as error:
            wrong.append(f"{name}: {error}")
            print(wrong[-1], file=sys.stderr, flush=True)
            continue
        print(" | ".join([name, *cells(entry)]), flush=True)
        if given.check:
            wrong += check(name, entry, promises)
        else:
            keep(name, entry, given.recipes)
    for one in wrong:
        print(one, file=sys.stderr)
    return int(bool(wrong))


def _run(recipe: Path, out: Path, threads: int) -> applied.Left:
    """Run one recipe with a cache that holds the teacher and nothing of other runs."""
    cache = out.parent / "cache"
    if not out.is_dir():
        cut_short = out.with_name(f"{out.name}.partial")  # would hide the seconds that it took
        for folder in (cut_short, *(cache / name for name in KEPT_BY_RUNS)):
            shutil.rmtree(folder, ignore_errors=True)
    return applied.run(str(recipe), out, threads=threads, cache=cache)


def _entry(text: str, left: applied.Left, about: About) -> Measurement:
    made, after, times = left.results["provenance"], left.results["after"], left.measured
    read_, found = after["perplexity"] or {}, left.results["divergence"] or {}
    return Measurement(
        recipe_sha256=fingerprint(text),
        teacher=made["teacher"],
        suite=SUITE.findall(text)[0],
        texts=tuple(dict.fromkeys(one["fingerprint"] for one in (read_, found) if one)),
        size_bytes=after["size_bytes"],
        bits_per_weight=after["bits_per_weight"],
        perplexity=read_.get("perplexity"),
        kl_mean=found.get("kl_mean"),
        kl_p99=found.get("kl_p99"),
        top1_agreement=found.get("top1_agreement"),
        decode_tokens_per_second=times["decode_tokens_per_second"],
        seconds=_after_the_download(times["seconds"]),
        cpu_seconds=_after_the_download(times["cpu_seconds"]),
        peak_memory_bytes=times["peak_memory_bytes"],
        threads=made["threads"],
        **about,
    )


def _dense(text: str, out: Path, threads: int, about: About) -> Measurement:
    teacher, suite = OFFLINE.findall(text)[0], SUITE.findall(text)[0]
    script = Path(__file__).resolve().parent / "baseline.py"
    command = [sys.executable, str(script), teacher, "--suite", suite, "--threads", str(threads)]
    env = {"PYTHONPATH": str(measure.ROOT), "OMP_NUM_THREADS": str(threads)}
    env |= {"COMPRESS_CACHE": str(out / "cache")}
    found: dict[str, Any] = measure.run(command, env=env, cwd=out, log=out / "dense.log").output
    same = {"kl_mean": 0.0, "kl_p99": 0.0, "top1_agreement": 1.0}  # as it is to itself
    texts = tuple(found.pop("texts"))
    return Measurement(
        recipe_sha256="", teacher=teacher, suite=suite, texts=texts, **found, **same,
        threads=threads, **about,
    )  # fmt: skip


def _filled(row: str, entries: dict[str, Measurement]) -> str:
    name = re.match(r"\| \[?([\w.-]+)\]?", row)
    if name is None or name[1] not in entries:
        return row
    words = row.strip("|\n ").split(" | ")[:-MEASURED_COLUMNS]
    return "| " + " | ".join([*words, *cells(entries[name[1]])]) + " |"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _told(value: float | None) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _after_the_download(seconds: dict[str, float]) -> float:
    return round(seconds["total"] - seconds.get("teacher", 0.0), 1)


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, "utf-8")
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
