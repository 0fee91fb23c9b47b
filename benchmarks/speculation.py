r"""Speed with and without speculation, taken alternately in one process.

    python benchmarks/speculation.py --artifact DIR [--draft DIR] --out speculation.json

Two texts: one that repeats itself, continued greedily, where proposals are nearly always right; and
a story drawn at temperature 1, where few are and speculation has to switch itself off. Both sides
write the same requests in turn, `--rounds` times; medians of decode tokens a second over all
requests are shown, and their ratio. Prints a Markdown table and writes the JSON.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measure
import summary

from compress.runtime.engine import Engine
from compress.runtime.request import Request, Sampling

MARKER = "<!-- speculation.py: newest first -->"
REPETITIVE = "The quick brown fox jumps over the lazy dog, and the dog sleeps on.\n" * 12
ORDINARY = "Once upon a time, a dragon and a knight met on a bridge. "


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Speed with and without speculation.")
    add = parser.add_argument
    add("--artifact", type=Path, required=True, help="a folder our runtime opens")
    add("--draft", type=Path, help="an artifact that writes ahead; without it: prompt lookup")
    add("--requests", type=int, default=1, help="at once")
    add("--tokens", type=int, default=256, help="new tokens of each request")
    add("--rounds", type=int, default=5)
    add("--threads", type=int, default=os.cpu_count())
    add("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    add("--out", type=Path, required=True, help="JSON file")
    add("--results", type=Path, help="Markdown file that gets the section: docs/results.md")
    return parser.parse_args(argv)


def speed(engine: Engine, requests: Sequence[Request]) -> tuple[float, list[tuple[int, ...]]]:
    """Tokens a second behind the last request's first token, and what each request got."""
    tickets = [engine.submit(request) for request in requests]
    texts: dict[int, tuple[int, ...]] = dict.fromkeys(tickets, ())
    began, at_begin = 0.0, 0
    while not engine.idle:
        for ticket, piece in engine.step():
            texts[ticket] += piece.tokens
        if not began and all(texts.values()):
            began, at_begin = time.perf_counter(), sum(map(len, texts.values()))
    seconds = time.perf_counter() - began
    return (sum(map(len, texts.values())) - at_begin) / seconds, list(texts.values())


def requests(engine: Engine, text: str, given: argparse.Namespace, turn: int) -> list[Request]:
    """What both sides of one round answer."""
    prompt = tuple(engine.tokenizer.encode(REPETITIVE if text == "repetitive" else ORDINARY))
    drawn = [given.requests * turn + i for i in range(given.requests)]
    return [
        Request(
            prompt,
            Sampling() if text == "repetitive" else Sampling(1.0, seed=seed),
            max_new_tokens=given.tokens,
            ignore_eos=True,
            salt=f"{text} {seed}",  # no prompt is found in the cache
        )
        for seed in drawn
    ]


def alternate(given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Medians of both sides on each text, and what became of proposals."""
    common: dict[str, Any] = {"threads": given.threads, "dtype": given.dtype}
    found: dict[str, dict[str, Any]] = {}
    for text in ("repetitive", "ordinary"):  # anew: what a side has learnt of one is not the other
        sides = {
            "without": Engine.open(given.artifact, **common, speculate=False),
            "with": Engine.open(given.artifact, **common, draft=given.draft),
        }
        speeds: dict[str, list[float]] = {name: [] for name in sides}
        same, tokens = 0, 0
        for turn in range(given.rounds + 1):  # the first warms up
            asked = requests(sides["with"], text, given, turn)
            texts = {}
            for name, engine in sides.items():
                each, texts[name] = speed(engine, asked)
                speeds[name] += [each] if turn else []
            for one, other in zip(texts["without"], texts["with"], strict=True):
                same += sum(a == b for a, b in zip(one, other, strict=True))
                tokens += len(one)
        found[text] = told(speeds, sides["with"]) | {"same_tokens": same / tokens}
    return found


def told(speeds: dict[str, list[float]], engine: Engine) -> dict[str, Any]:
    """The medians, the ratio, and what became of proposals."""
    status = engine.status()
    without, with_it = (statistics.median(speeds[name]) for name in ("without", "with"))
    return {
        "without_tokens_per_second": without,
        "with_tokens_per_second": with_it,
        "ratio": with_it / without,
        "drafts": status.drafts,
        "kept_per_draft": status.kept_tokens / max(1, status.drafts),
        "kept_at": [count / max(1, status.drafts) for count in status.kept_at],
    }


def page(result: dict[str, Any]) -> str:
    """One measurement as a Markdown section."""
    lines = [
        f"### {result['date']}, {result['commit']}: speculation, {result['requests']} at once",
        "",
        f"    {result['command']}",
        "",
        f"{result['hardware']}, {result['threads']} threads. Medians of {result['rounds']} "
        f"alternate rounds, {result['tokens']} new tokens, {result['dtype']}.",
        "",
        "| text | without, tokens/s | with | ratio | proposals | kept of each | same tokens |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {text} | {one['without_tokens_per_second']:.1f} | {one['with_tokens_per_second']:.1f} "
        f"| {one['ratio']:.2f} | {one['drafts']} | {one['kept_per_draft']:.2f} "
        f"| {one['same_tokens']:.1%} |"
        for text, one in result["texts"].items()
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure both texts and print the table."""
    argv = sys.argv[1:] if argv is None else argv
    given = arguments(argv)
    facts = ("requests", "threads", "tokens", "rounds", "dtype")
    result = {
        "schema_version": summary.SCHEMA_VERSION,
        **measure.about("benchmarks/speculation.py", argv),
        **{name: getattr(given, name) for name in facts},
        "texts": alternate(given),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    summary.keep(result, page(result), out=given.out, results=given.results, marker=MARKER)
    return 0


if __name__ == "__main__":
    sys.exit(main())
