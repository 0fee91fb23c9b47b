"""Finished runs as they could be, around copies of one tiny model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from compress import library
from compress.results import (
    Divergence,
    Measured,
    Perplexity,
    Provenance,
    Results,
    Sample,
    Side,
    TaskScore,
    items_fingerprint,
    to_json,
)

LOCK = """\
version: 1
teacher: {{model: m, dtype: bfloat16}}
stages:
  - quantize: {{method: gptq, bits: {bits}, group_size: 64}}
{more}evaluate: {{suite: quick}}
resolved: {{recipe: r, threads: {threads}, versions: {{torch: 2.13.0}}}}
"""
DISTILL = "  - distill: {steps: 48}\n"
ITEMS = 12
EDGES = tuple(10 ** (power / 4) for power in range(-24, 9))


def items() -> list[dict]:
    """The first items of a task that ships."""
    path = library.folder("eval").parent / "tasks" / "cloze.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()[:ITEMS]
    return [json.loads(line) for line in lines]


def score(wrong=(), flips=0) -> TaskScore:
    """A score of someone who answers some items by the choice behind the right one."""
    asked = items()
    answered = tuple((x["gold"] + (i in wrong)) % 4 for i, x in enumerate(asked))
    right = tuple(place not in wrong for place in range(ITEMS))
    share = sum(right) / ITEMS
    return TaskScore(
        "cloze", "acc", ITEMS, share, 0.1, flips, items_fingerprint(asked), answered, right
    )


def found(
    perplexity=10.0, kl=0.1, *, seq_len=512, text="t" * 64, teacher="f", wrong=(), before=9.0,
    threads=2, said="It rains.",
) -> Results:  # fmt: skip
    ppl = Perplexity(perplexity, "heldout.txt", seq_len, seq_len, 4, 4 * (seq_len - 1), text)
    counts = tuple(round(1000 * 0.6 ** abs(place - 16)) for place in range(32))
    divergence = Divergence("heldout.txt", 2048, kl, kl / 2, 7 * kl, 0.9, 204, EDGES, counts, text)
    made = Provenance("r", "version: 1\n", "m", teacher, "self", "c", 1024, 0, threads, "cpu")
    first = Side(2000, 16.0, replace(ppl, perplexity=before), (score(),))
    after = Side(1000, 4.5, ppl, (score(wrong),))
    samples = (Sample("What is rain?", "It rains down.", said),)
    return Results(made, first, after, divergence, (), (), samples)


def put(folder: Path, results: Results, *, bits=4, more="", threads=2, speed=100.0) -> Path:
    """Lay the records of a run into a model folder."""
    lock = LOCK.format(bits=bits, more=more, threads=threads)
    (folder / "recipe.lock.yaml").write_text(lock)
    (folder / "results.json").write_text(to_json(results))
    measured = Measured(
        {"total": 1.0}, 10**9, f"a processor, {threads} threads", "2026-01-01", speed, 10 * speed,
        0.02,
    )  # fmt: skip
    (folder / "measured.json").write_text(to_json(measured))
    return folder


def copies(model: Path, parent: Path, names: str) -> list[Path]:
    """Copies of a model under several names."""
    return [shutil.copytree(model, parent / name) for name in names.split()]


def three(model: Path, parent: Path) -> list[Path]:
    """Three runs that one protocol has judged; the last is timed with other threads."""
    a, b, c = copies(model, parent, "small good other")
    put(a, found(10.0, 0.2, wrong=(1, 2, 3, 4, 5, 6)), bits=3, speed=120.0)
    put(b, found(9.5, 0.05, wrong=(1,), said="It rains down."), more=DISTILL)
    put(c, found(9.9, 0.1, wrong=(), threads=1, said="<b>Rain</b> & more"), threads=1)
    return [a, b, c]
