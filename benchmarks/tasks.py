r"""Multiple-choice tasks of lm-eval, all items, students paired with their teacher item by item.

    python benchmarks/tasks.py --teacher TEACHER --students W8 W4 --tasks data/lm_eval_tasks \
        --data . --out OUT

`--tasks` is a folder of lm-eval YAMLs whose `data_files` are relative to `--data`. Prompts, choices
and scoring are lm-eval's; log-likelihoods come from `shared_prefix.py`. Every item is added to
OUT/MODEL/TASK.jsonl as it is answered, and what lies there is not asked again. A flip is an item of
which the student chooses otherwise than the teacher, right or wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import measure
import paired
import summary
from multiple_choice import asked, configs
from paired import Pairing

MARKER = "<!-- tasks.py: newest first -->"


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Tasks of lm-eval, paired with the teacher's.")
    add = parser.add_argument
    add("--teacher", type=Path, required=True, help="dense Hugging Face folder")
    add("--students", type=Path, nargs="*", default=[], help="folders, in any format of ours")
    add("--tasks", type=Path, required=True, help="folder of lm-eval's YAML files")
    add("--only", nargs="+", help="tasks by name; default: all of the folder")
    add("--data", type=Path, default=Path(), help="what `data_files` are relative to")
    add("--limit", type=int, help="items of each task, from the first on; default: all")
    add("--dtype", choices=["float32", "bfloat16"], default="float32")
    add("--batch-tokens", type=int, default=1024)
    add("--threads", type=int, default=os.cpu_count())
    add("--hold", type=int, default=0, metavar="N", help="first N items against lm-eval's reader")
    add("--out", type=Path, required=True, help="folder for answers and result.json")
    add("--results", type=Path, help="Markdown file that gets the rows: docs/results.md")
    given = parser.parse_args(argv)
    folders = [given.teacher, *given.students]
    if len({folder.resolve().name for folder in folders}) < len(folders):
        parser.error("--students: two folders of one name; rows are called by it")
    for folder in folders:
        if not (folder / "config.json").is_file():
            parser.error(f"{folder}: no model folder; config.json is missing")
    return given


def pairings(
    teacher: Mapping[str, Mapping[str, Any]], student: Mapping[str, Mapping[str, Any]]
) -> dict[str, Pairing]:
    """A student beside its teacher on every task, then on all items."""
    found = {name: paired.pair(teacher[name]["items"], student[name]["items"]) for name in teacher}
    return {**found, "all": paired.together(list(found.values()))}


def table(found: Mapping[str, Mapping[str, Pairing]], norms: Mapping[str, Any]) -> list[str]:
    """A row for each student and task."""
    lines = [
        "| student | task | items | teacher acc | acc | acc_norm, teacher → student | flipped, % | "
        "95 % | lost | gained | p |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for student, of_task in found.items():
        for task, one in of_task.items():
            low, high = (100 * bound for bound in one.interval)
            before, after = one.teacher_right / one.items, one.student_right / one.items
            lines.append(
                f"| {student} | {task} | {one.items:,} | {before:.4f} | {after:.4f} | "
                f"{norms.get(student, {}).get(task, '')} | {100 * one.flipped / one.items:.2f} | "
                f"{low:.2f} to {high:.2f} | {one.lost} | {one.gained} | {one.p_value:.3f} |"
            )
    return lines


def page(result: Mapping[str, Any], lines: Sequence[str]) -> str:
    """The measurement as a Markdown section."""
    return "\n".join(
        [
            f"### {result['date']}, {result['commit']}: tasks, {result['teacher']}",
            "",
            f"    {result['command']}",
            "",
            f"{result['hardware']}, on {result['threads']} threads, {result['dtype']}. Flipped: "
            "another choice than the teacher's; lost and gained: right only in the teacher, only "
            "in the student; p: McNemar, exact.",
            "",
            *lines,
            "",
        ]
    )


def measured(given: argparse.Namespace, argv: Sequence[str]) -> None:
    """Ask teacher and students, pair, print and write."""
    import torch

    from compress.kernels.precision import prefer_onednn

    torch.set_num_threads(given.threads)
    prefer_onednn()
    tasks = configs(given)
    teacher, *students = (asked(given, f, tasks) for f in (given.teacher, *given.students))
    names = [folder.resolve().name for folder in given.students]
    by_name = dict(zip(names, students, strict=True))
    found = {name: pairings(teacher, student) for name, student in by_name.items()}
    norms = {name: _norms(teacher, student) for name, student in by_name.items()}
    result = {
        "schema_version": summary.SCHEMA_VERSION,
        **measure.about("benchmarks/tasks.py", argv),
        "teacher": given.teacher.resolve().name,
        "threads": given.threads,
        "dtype": given.dtype,
        "teacher_scores": {name: told["scores"] for name, told in teacher.items()},
        "students": {
            name: {task: {**vars(one), "interval": one.interval, "p_value": one.p_value}
                   for task, one in of_task.items()}
            for name, of_task in found.items()
        },
    }  # fmt: skip
    (given.out / "result.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    section = page(result, table(found, norms))
    print(section)
    if given.results:
        summary.insert(given.results, section, marker=MARKER)


def _norms(teacher: Mapping[str, Any], student: Mapping[str, Any]) -> dict[str, str]:
    """Accuracies of scores divided by length, where a task has them."""
    pairs = {
        task: (told["scores"].get("acc_norm"), student[task]["scores"].get("acc_norm"))
        for task, told in teacher.items()
    }
    return {
        task: f"{before:.4f} → {after:.4f}"
        for task, (before, after) in pairs.items()
        if before is not None and after is not None
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Ask and compare; 2 when the request was wrong."""
    argv = sys.argv[1:] if argv is None else argv
    given = arguments(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    try:
        measured(given, argv)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
