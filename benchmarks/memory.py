r"""Memory that a run holds: foretold and real, and against the number of blocks.

    python benchmarks/memory.py plan quickstart smoke w4g64-gptq --out OUT
    python benchmarks/memory.py blocks --out OUT                       # 8, 16, 32 blocks
    python benchmarks/memory.py draw BLOCKS/result.json --out FILE.svg # what blocks measured
    python benchmarks/memory.py large --out OUT                        # Llama-7B's shape, in 6 GiB

`plan` runs recipes whole and holds size and peak memory against `compress plan`. `blocks` and
`large` make their checkpoints with synthetic.py and run W4 GPTQ and W4 RTN over them; `draw` makes
a figure of what `blocks` has kept. Memory is anonymous resident memory of all processes of the run:
pages that no file backs, sampled ten times a second, and a hundred times in the run's own process.
Prints a table.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import measure
import synthetic

HERE = Path(__file__).resolve().parent
NARROW = ("--hidden", "1024", "--intermediate", "2816", "--heads", "16", "--vocab", "4096")
TEXT = HERE.parent / "eval" / "texts" / "heldout.txt"
GIB = 2**30
RECIPE = """\
version: 1
teacher: {{model: {teacher}}}
calibration: {{set: {text}, samples: {samples}, seq_len: 512}}
stages:
  - quantize: {{{quantize}}}
evaluate: {{suite: none}}
artifact: {{format: packed}}
"""
GPTQ = "method: gptq, bits: 4, group_size: 64"
RTN = "method: rtn, bits: 4, group_size: 64, scale_search: none"  # a search takes time alone
DRAWN = {"gptq": ("W4 GPTQ", "#1f5fa8"), "rtn": ("W4 RTN", "#b4530a")}  # case: label, colour


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Memory that a run holds, foretold and real.")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    kinds = parser.add_subparsers(dest="kind", required=True)
    plan = kinds.add_parser("plan", help="recipes whole: size and memory against the plan")
    plan.add_argument("recipes", nargs="+")
    plan.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE")
    blocks = kinds.add_parser("blocks", help="peak against the number of blocks")
    blocks.add_argument("--counts", type=int, nargs="+", default=[8, 16, 32])
    large = kinds.add_parser("large", help="the shape of Llama-7B within a budget")
    large.add_argument("--blocks", type=int, default=32)
    large.add_argument("--teacher", type=Path, help="a checkpoint made before; made when missing")
    large.add_argument("--solved", type=int, default=2, help="blocks that GPTQ solves")
    large.add_argument("--max-memory", default="6GiB")
    draw = kinds.add_parser("draw", help="a figure of what blocks measured")
    draw.add_argument("result", type=Path, help="result.json of blocks")
    draw.add_argument("--out", type=Path, required=True, help="the .svg file to write")
    for kind in (plan, blocks, large):
        kind.add_argument("--out", type=Path, required=True, help="new folder; it is kept")
    for kind in (blocks, large):
        kind.add_argument("--samples", type=int, default=16, help="windows of 512 tokens")
    return parser.parse_args(argv)


def planned(recipe: str, sets: Sequence[str], budget: str | None = None) -> dict[str, Any]:
    """What `compress plan` says, in a process of its own."""
    command = [sys.executable, "-m", "compress", "plan", recipe, "--json"]
    command += [word for one in sets for word in ("--set", one)]
    command += ["--max-memory", budget] if budget else []
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=HERE.parent)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def ran(
    recipe: str, out: Path, sets: Sequence[str], *, whole: bool, threads: int, budget: str | None
) -> dict[str, Any]:
    """What a run really made and held."""
    runner = HERE / "peers" / "ours_memory.py"
    command = [sys.executable, str(runner), recipe, str(out), "--threads", str(threads)]
    command += [word for one in sets for word in ("--set", one)]
    command += ["--whole"] if whole else []
    command += ["--max-memory", budget] if budget else []
    paths = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    env = {"PYTHONPATH": paths, "GOMP_SPINCOUNT": "100000"}
    log = out.with_name("runs.log")
    finished = measure.run(command, env=env, cwd=out.parent, log=log)
    peak = max(finished.memory.anonymous_bytes, *finished.output["by_step"].values())
    return {**finished.output, "anonymous_bytes": peak}


def held_against_plans(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each recipe's plan and its run."""
    for recipe in given.recipes:
        foretold = planned(recipe, given.sets)
        real = ran(recipe, given.out / recipe, given.sets, whole=True, threads=given.threads,
                   budget=None)  # fmt: skip
        yield {"name": recipe, **_compared(foretold, real)}


def against_blocks(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """GPTQ and RTN of narrow checkpoints of several depths."""
    for count in given.counts:
        teacher = given.out / f"teacher-{count}"
        synthetic.write(
            teacher, synthetic.arguments([str(teacher), "--blocks", str(count), *NARROW])
        )
        for name, quantize in (("gptq", GPTQ), ("rtn", RTN)):
            yield {"blocks": count, **_case(given, teacher, f"{name}-{count}", quantize, None)}
        shutil.rmtree(teacher)


def large(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """GPTQ of the first blocks, and RTN of all, of a checkpoint of Llama-7B's shape."""
    teacher = given.teacher or given.out / "teacher"
    if not teacher.is_dir():
        synthetic.write(teacher, synthetic.arguments([str(teacher), "--blocks", str(given.blocks)]))
    cases = (("gptq of the first", some_blocks(given.solved)), ("rtn of all", RTN))
    for name, quantize in cases:
        folder = name.replace(" ", "-")
        yield _case(given, teacher, folder, quantize, given.max_memory)


def some_blocks(count: int) -> str:
    """GPTQ of the first blocks alone."""
    first = "|".join(map(str, range(count)))
    return f"{GPTQ}, targets: ['re:model\\.layers\\.({first})\\.']"


def _case(
    given: argparse.Namespace, teacher: Path, name: str, quantize: str, budget: str | None
) -> dict[str, Any]:
    recipe = given.out / f"{name}.yaml"
    text = RECIPE.format(teacher=teacher, text=TEXT, samples=given.samples, quantize=quantize)
    recipe.write_text(text, "utf-8")
    foretold = planned(str(recipe), (), budget)
    out = given.out / name
    real = ran(str(recipe), out, (), whole=False, threads=given.threads, budget=budget)
    shutil.rmtree(out)
    return {"name": name, **_compared(foretold, real)}


def _compared(foretold: dict[str, Any], real: dict[str, Any]) -> dict[str, Any]:
    return {
        "planned_size_bytes": foretold["size"]["size_bytes"],
        "size_bytes": real["size_bytes"],
        "planned_memory_bytes": foretold["peak_memory_bytes"],
        "planned_by_step": foretold["memory_bytes"],
        "limits": foretold["limits"],
        "anonymous_bytes": real["anonymous_bytes"],
        "by_step": real["by_step"],
        "seconds": real["seconds"],
    }


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The rows as Markdown."""
    head = ["", "size, planned", "real", "memory, planned MiB", "real MiB", "ratio", "seconds"]
    lines = [head, ["---"] + ["--:"] * (len(head) - 1)]
    for row in rows:
        planned_mib, real_mib = (
            row[name] / 2**20 for name in ("planned_memory_bytes", "anonymous_bytes")
        )
        lines.append([
            row["name"], f"{row['planned_size_bytes']:,}", f"{row['size_bytes']:,}",
            f"{planned_mib:,.0f}", f"{real_mib:,.0f}", f"{planned_mib / real_mib:.2f}",
            f"{row['seconds']:,.0f}",
        ])  # fmt: skip
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a figure of real peak memory against the number of blocks."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "memory"}):
        figure = Figure(figsize=(6.4, 3.2), layout="constrained", facecolor="white")
        axes = figure.subplots()
        for case, (label, colour) in DRAWN.items():
            mine = [row for row in rows if row["name"] == f"{case}-{row['blocks']}"]
            peaks = [row["anonymous_bytes"] / 2**20 for row in mine]
            axes.plot([row["blocks"] for row in mine], peaks, color=colour, marker="o")
            axes.annotate(label, (mine[-1]["blocks"], peaks[-1]), xytext=(8, -4),
                          textcoords="offset points", color=colour)  # fmt: skip
        ticks = sorted({row["blocks"] for row in rows})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_ylim(bottom=0)
        axes.set(xlabel="decoder blocks", ylabel="peak anonymous memory, MiB")
        axes.spines[["top", "right"]].set_visible(False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})


def main() -> None:
    """Run what was asked for; print the table, and keep result.json."""
    given = arguments()
    if given.kind == "draw":
        draw(json.loads(given.result.read_text("utf-8"))["rows"], given.out)
        return
    given.out.mkdir(parents=True)
    kinds = {"plan": held_against_plans, "blocks": against_blocks, "large": large}
    rows = []
    for row in kinds[given.kind](given):
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        about = measure.about("benchmarks/memory.py", sys.argv[1:])
        (given.out / "result.json").write_text(json.dumps({**about, "rows": rows}, indent=2))
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
