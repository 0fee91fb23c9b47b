"""Tasks item by item: who is right more often than chance explains, and where answers differ."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from compress import library, storage
from compress.compare.measures import differing
from compress.compare.sides import Artifact
from compress.results import TaskScore, items_fingerprint
from compress.results.comparison import FlippedItem, Measure, Pair

ALL = "all tasks"


def pairs(artifacts: Sequence[Artifact], found: Sequence[Measure]) -> Iterator[Pair]:
    """Every two artifacts on every task whose items both kept, and on all of these together."""
    kept = _kept(artifacts, found)
    for first, second in combinations(artifacts, 2):
        counts = []
        for task, scores in kept.items():
            if first.name in scores and second.name in scores:
                a, b = scores[first.name].right, scores[second.name].right
                alone = [(x and not y, y and not x) for x, y in zip(a, b, strict=True)]
                counts.append((task, len(a), sum(x for x, _ in alone), sum(y for _, y in alone)))
        if len(counts) > 1:
            counts.append((ALL, *(sum(column) for column in list(zip(*counts, strict=True))[1:])))
        for task, items, mine, theirs in counts:
            yield Pair(task, first.name, second.name, items, mine, theirs, mcnemar(mine, theirs))


def flipped(artifacts: Sequence[Artifact], found: Sequence[Measure]) -> Iterator[FlippedItem]:
    """Every item that those who kept their answers do not answer alike."""
    for task, scores in _kept(artifacts, found).items():
        items = _shipped(task, next(iter(scores.values())))
        for place, answers in enumerate(zip(*(s.answered for s in scores.values()), strict=True)):
            if len(set(answers)) > 1:
                item = items[place] if items else {}
                given = dict(zip(scores, answers, strict=True))
                yield FlippedItem(
                    task, place, str(item.get("query", "")), _choice(item, item.get("gold")),
                    {who: _choice(item, answer) for who, answer in given.items()},
                    {who: scores[who].right[place] for who in scores},
                )  # fmt: skip


def mcnemar(first_alone: int, second_alone: int) -> float:
    """Chance of a split as uneven as this, or more, if both were right equally often.

    Args:
        first_alone: items that only the first answered right.
        second_alone: items that only the second did.
    """
    n, fewer = first_alone + second_alone, min(first_alone, second_alone)
    tail = sum(math.comb(n, k) for k in range(fewer + 1))
    return float(min(1.0, 2 * tail / 2**n))


def _kept(
    artifacts: Sequence[Artifact], found: Sequence[Measure]
) -> dict[str, dict[str, TaskScore]]:
    """Scores that hold their answers, by task and artifact; of one protocol, of two at least."""
    names = [one.name for one in found if one.name.startswith("tasks.")]
    kept = {}
    for name in names:
        measure = next(one for one in found if one.name == name)
        scores = {
            one.name: task
            for one in artifacts
            for task in (one.side.tasks if one.side else ())
            if f"tasks.{task.name}.{task.metric}" == name and task.right and task.answered
        }
        alike = not differing({who: measure.numbers[who] for who in scores})
        if len(scores) > 1 and alike and all(score.fingerprint for score in scores.values()):
            kept[name.split(".", 2)[1]] = scores
    return kept


def _shipped(task: str, score: TaskScore) -> list[dict[str, Any]]:
    """The items of a task that ships with compress; none of another, or of another version."""
    path = library.folder("eval").parent / "tasks" / f"{task}.jsonl"
    if not path.is_file():
        return []
    lines = storage.read_text(path).splitlines()[: score.items]
    items = [json.loads(line) for line in lines]
    return items if items_fingerprint(items) == score.fingerprint else []


def _choice(item: Mapping[str, Any], place: int | None) -> str:
    if place is None:
        return ""
    choices = item.get("choices", ())
    return str(choices[place]).strip() if place < len(choices) else f"choice {place + 1}"
