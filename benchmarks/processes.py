r"""Carry out one recipe in one process and in several, and print seconds side by side.

    python benchmarks/processes.py RECIPE --threads 2 --nproc 1 2 --set teacher.model=TEACHER \
        --out /tmp/processes

All sides have the same threads in all. What they made is compared by what was measured of it: sums
are taken in another order, so a code on the edge of two values may fall to either side. A side
whose folder is there already is read, not run again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import applied
from applied import Left


def main() -> None:
    """Run every side, then print them beside each other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("--nproc", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int, default=2, help="of each side, all processes")
    parser.add_argument("--set", dest="sets", action="append", default=[])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="kept between sides; the user's own by default")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    sides = [
        applied.run(
            asked.recipe, asked.out / f"{count}", sets=asked.sets, threads=asked.threads,
            nproc=count, cache=asked.cache,
        )
        for count in asked.nproc
    ]  # fmt: skip
    print(table(asked.nproc, sides))


def table(counts: Sequence[int], sides: Sequence[Left]) -> str:
    """Markdown: a column for each number of processes."""
    head = [f"{count} process{'' if count == 1 else 'es'}" for count in counts]
    rows = [["", *head], ["---", *["--:"] * len(counts)], *_rows(sides)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _rows(sides: Sequence[Left]) -> Iterator[list[str]]:
    seconds = [side.measured["seconds"] for side in sides]
    for step in seconds[0]:
        yield [f"{step}, seconds", *(f"{one.get(step, 0.0):,.1f}" for one in seconds)]
    peaks = [side.measured["peak_memory_bytes"] / 2**20 for side in sides]
    yield ["peak memory, MiB, all processes", *(f"{peak:,.0f}" for peak in peaks)]
    for name in ("kl_mean", "top1_agreement"):
        if all(side.results["divergence"] for side in sides):
            yield [name, *(f"{side.results['divergence'][name]:.4f}" for side in sides)]
    for index, stage in enumerate(sides[0].results["stages"]):
        if stage["distilled"]:
            found = [side.results["stages"][index]["distilled"]["checks"] for side in sides]
            yield ["last look, held-out KL", *(f"{looks[-1]['kl']:.6f}" for looks in found)]


if __name__ == "__main__":
    main()
