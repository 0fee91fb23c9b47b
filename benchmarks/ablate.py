r"""What a switch is worth: one recipe run once for each of its settings, read on held-out text.

    python benchmarks/ablate.py sinks --teacher TEACHER --calibration valid.txt \
        --held-out train.txt --out OUT

These are the experiments by which defaults were chosen (docs/decisions). Every row is a recipe
changed by `--set`; `--row "quantize.bits=3 quantize.sweeps=0"` adds one. Our own judge reads them:
rows are compared with each other, not with another tool. Prints a table, writes OUT/result.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import applied
import measure

Sets = tuple[str, ...]  # arguments of --set: one row
DEFAULTS: Sets = ()
_W4 = "{method: gptq, bits: 4, group_size: 64, scale_search: hessian}"
EXPERIMENTS: dict[str, list[Sets]] = {
    # docs/decisions/0004-attention-sinks-count-for-more.md
    "sinks": [
        DEFAULTS,
        ("quantize.sink_weight=0",),
        *(
            (f"quantize.sink_tokens={tokens}", f"quantize.sink_weight={weight}")
            for tokens, weight in ((1, 64), (2, 64), (4, 64), (2, 255), (1, 1023))
        ),
    ],
    # docs/decisions/0006-scales-by-curvature-with-sign.md
    "scales": [
        DEFAULTS,
        *((f"quantize.scale_search={search}",) for search in ("none", "mse")),
        *((f"quantize.sweeps={sweeps}",) for sweeps in (0, 2)),
    ],
    # docs/results.md: every switch of the solver, one at a time
    "switches": [
        DEFAULTS,
        *((f"quantize.scale_search={search}",) for search in ("none", "mse")),
        ("quantize.sweeps=0",),
        ("quantize.sink_weight=0",),
        ("quantize.desc_act=false",),
        ("quantize.true_sequential=false",),
        ("quantize.smooth=awq",),
        (f"stages=[{{rotate: {{residual: none}}}}, {{quantize: {_W4}}}]",),
        (f"stages=[{{rotate: {{values: none}}}}, {{quantize: {_W4}}}]",),
        ("quantize.error_correction=0.25",),
        ("quantize.error_correction=0.25", "quantize.output_curvature=true"),
        ("quantize.learned_rounding=20",),
    ],
}
RECIPE = """\
version: 1
teacher: {{model: {teacher}, dtype: bfloat16}}
calibration: {{set: {calibration}, samples: {samples}, seq_len: {seq_len}}}
stages:
  - quantize: {w4}
evaluate: {{suite: {suite}}}
artifact: {{format: packed}}
"""
SUITE = """\
version: 1
perplexity: {{set: {held_out}, seq_len: {window_tokens}, windows: {windows}}}
divergence: {{set: {held_out}, seq_len: {window_tokens}, windows: {windows}}}
"""


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="What a switch of a recipe is worth.")
    add = parser.add_argument
    add("experiment", nargs="?", choices=list(EXPERIMENTS), help="rows that a decision rests on")
    add("--row", action="append", default=[], metavar="SETS", help="a row more: KEY=VALUE …")
    add("--teacher", required=True, help="a folder, or a teacher as a recipe names it")
    add("--calibration", type=Path, required=True, help="text whose first windows calibrate")
    add("--held-out", type=Path, required=True, help="text whose first windows are read")
    add("--samples", type=int, default=64)
    add("--seq-len", type=int, default=512)
    add("--windows", type=int, default=16, help="windows of the held-out text")
    add("--window-tokens", type=int, default=1024)
    add("--threads", type=int, default=os.cpu_count())
    add("--out", type=Path, required=True, help="folder; rows that it holds are not run again")
    given = parser.parse_args(argv)
    if not (given.experiment or given.row):
        parser.error(f"nothing to run: name {' or '.join(EXPERIMENTS)}, or give --row")
    if given.calibration.resolve() == given.held_out.resolve():
        parser.error("--held-out: the text that calibrates; a switch is judged on another")
    return given


def rows(given: argparse.Namespace) -> list[Sets]:
    """The settings to run, each once."""
    wanted = EXPERIMENTS[given.experiment] if given.experiment else [DEFAULTS]
    return list(dict.fromkeys([*wanted, *(tuple(shlex.split(row)) for row in given.row)]))


def write_recipe(given: argparse.Namespace) -> Path:
    """Write recipe and suite into OUT.

    Raises:
        ValueError: OUT holds the rows of another recipe.
    """
    paths = {name: given.out / f"{name}.yaml" for name in ("suite", "recipe")}
    filled = {
        **vars(given),
        "w4": _W4,
        "teacher": json.dumps(_absolute(given.teacher)),
        **{
            name: json.dumps(str(path.resolve()))  # a JSON string is a quoted YAML one
            for name, path in (
                ("calibration", given.calibration),
                ("held_out", given.held_out),
                ("suite", paths["suite"]),
            )
        },
    }
    for name, template in (("suite", SUITE), ("recipe", RECIPE)):
        text = template.format(**filled)
        if paths[name].is_file() and paths[name].read_text("utf-8") != text:
            raise ValueError(f"{paths[name]}: of another request; give another --out")
        paths[name].write_text(text, "utf-8")
    return paths["recipe"]


def read(sets: Sets, left: applied.Left) -> dict[str, Any]:
    """What one row says."""
    after, found = left.results["after"], left.results["divergence"]
    return {
        "sets": list(sets),
        "perplexity": after["perplexity"]["perplexity"],
        "kl_mean": found["kl_mean"],
        "kl_p99": found["kl_p99"],
        "top1_agreement": found["top1_agreement"],
        "teacher_perplexity": left.results["before"]["perplexity"]["perplexity"],
    }


def page(result: dict[str, Any]) -> str:
    """The rows as a Markdown section, the smallest divergence first."""
    lines = [
        f"### {result['date']}, {result['commit']}: {result['experiment'] or 'rows of its own'}",
        "",
        f"    {result['command']}",
        "",
        f"{result['hardware']}. Dense perplexity {result['rows'][0]['teacher_perplexity']:.3f}.",
        "",
        "| setting | perplexity | KL mean | KL p99 | top-1 |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in sorted(result["rows"], key=lambda row: row["kl_mean"]):
        setting = ", ".join(row["sets"]) or "defaults"
        lines.append(
            f"| {setting} | {row['perplexity']:.3f} | {row['kl_mean']:.4f} | {row['kl_p99']:.3f} "
            f"| {row['top1_agreement']:.4f} |"
        )
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run every row and print the table; 1 when a run failed, 2 when the request was wrong."""
    argv = sys.argv[1:] if argv is None else argv
    given = arguments(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    try:
        recipe = str(write_recipe(given).resolve())
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    found = []
    for sets in rows(given):
        out = given.out / (re.sub(r"[^\w=.,-]+", "-", ",".join(sets)) or "defaults")
        try:
            left = applied.run(recipe, out, sets=sets, threads=given.threads)
        except measure.ChildError as error:
            print(error, file=sys.stderr)
            return 1
        found.append(read(sets, left))
    about = measure.about("benchmarks/ablate.py", argv)
    result = {**about, "experiment": given.experiment, "rows": found}
    (given.out / "result.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(page(result))
    return 0


def _absolute(teacher: str) -> str:
    """A folder by its whole path, since the run starts elsewhere; any other name as it is."""
    return str(Path(teacher).resolve()) if Path(teacher).is_dir() else teacher


if __name__ == "__main__":
    sys.exit(main())
