r"""What rounding keys and values costs: perplexity at long context, and a number found again.

    python benchmarks/kv_cache.py --teacher TEACHER --calibration valid.txt --test test.txt \
        --out OUT

The dense teacher, its weights untouched, once for each way of caching. Every student is an
artifact, made by a recipe with the one stage `kv_cache`, calibrated on its own text and read back.
Perplexity and KL: our own judge, in float32, windows side by side. Retrieval: our own runtime, in
bfloat16, reads each prompt into its cache and answers greedily (`passkey.py`). Rows are added to
OUT/result.json as they come; those that are there are not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measure
import passkey
import summary

MARKER = "<!-- kv_cache.py: newest first -->"
FLOAT = "float"
ROWS = (FLOAT, "int8 token", "int8 head", "int8 channel", "int8 tensor", "fp8_e4m3 head")


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Keys and values, rounded in several ways.")
    add = parser.add_argument
    add("--teacher", required=True, help="as a recipe names it: a folder, a hub id, pypi:…")
    add("--calibration", type=Path, required=True, help="text that scales are calibrated on")
    add("--test", type=Path, required=True, help="text whose perplexity is measured")
    add("--rows", nargs="+", default=list(ROWS), help="`float`, or numbers and granularity")
    add("--samples", type=int, default=32, help="calibration windows of 512 tokens")
    add("--windows", type=int, default=20)
    add("--seq-len", type=int, default=2048)
    add("--items", type=int, default=40, help="of the retrieval task; 0 leaves it out")
    add("--item-tokens", type=int, default=2048)
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=1)
    add("--out", type=Path, required=True)
    add("--results", type=Path, help="Markdown file that gets the section: docs/results.md")
    return parser.parse_args(argv)


def made(given: argparse.Namespace, row: str) -> Path:
    """The folder of one row: an artifact, made if it is not there."""
    from compress import pipeline
    from compress.recipe.schema import Recipe
    from compress.teacher import sources

    if row == FLOAT:
        return sources.fetch(given.teacher).folder
    folder = given.out / row.replace(" ", "-")
    if not folder.exists():
        numbers, granularity = row.split()
        recipe = Recipe.model_validate(
            {
                "version": 1,
                "teacher": {"model": given.teacher},
                "calibration": {
                    "set": str(given.calibration),
                    "samples": given.samples,
                    "seq_len": min(512, given.seq_len),
                },
                "stages": [{"kv_cache": {"numbers": numbers, "granularity": granularity}}],
                "evaluate": {"suite": "none"},
            }
        )
        pipeline.compress_only(recipe, out=folder, threads=given.threads)
    return folder


def read(given: argparse.Namespace, folder: Path, plain: Any) -> tuple[Any, dict[str, float]]:
    """One model's reading of the test text, and what it shows; `plain` is the teacher's."""
    import torch

    from compress.artifact.layout import open_artifact
    from compress.calibrate import sets
    from compress.evaluate import text
    from compress.recipe.schema import Calibration
    from compress.surgery.load import tokenizer
    from compress.surgery.walk import hidden_states

    wanted = Calibration(set=str(given.test), samples=given.windows, seq_len=given.seq_len)
    ids = sets.load(wanted, tokenizer(folder)).ids
    artifact = open_artifact(folder)
    hidden = hidden_states(
        artifact, ids, device="cpu", dtype=torch.float32, batch_tokens=given.seq_len
    )
    reading = text.Reading(artifact, hidden, ids, given.test.name)
    told = {
        "kv_bytes_per_token": artifact.kv_bytes_per_token,
        "perplexity": text.perplexity(reading).perplexity,
    }
    if plain is not None:
        divergence = text.divergence(plain, reading)
        told |= {"kl_mean": divergence.kl_mean, "top1_agreement": divergence.top1_agreement}
    return reading, told


def ask(given: argparse.Namespace, folder: Path) -> list[bool]:
    """Whether each hidden number is told, by our runtime from its cache."""
    from compress import library
    from compress.runtime.engine import Engine, collect

    if not given.items:
        return []
    engine = Engine.open(folder, threads=given.threads)
    hay = (library.root() / "eval/texts/heldout.txt").read_text(encoding="utf-8")
    asked = passkey.items(
        hay, count=given.items, tokens=given.item_tokens, seed=given.seed,
        encode=lambda text: engine.tokenizer.encode(text, special=False),
    )  # fmt: skip
    answers = (collect(engine.generate(list(one.ids), max_new_tokens=8)).text for one in asked)
    return [passkey.found(answer, one.key) for answer, one in zip(answers, asked, strict=True)]


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Measure every row; what earlier runs of this command measured is kept."""
    import torch

    from compress.kernels.precision import prefer_onednn

    torch.set_num_threads(given.threads)
    prefer_onednn()
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "rows.json"
    rows: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def keep(row: str, **told: Any) -> None:
        rows[row] = {**rows.get(row, {}), **told}
        path.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
        print(row, told, flush=True)

    plain = None
    for row in given.rows:
        if row in rows:
            continue
        if plain is None:
            plain, told = read(given, made(given, FLOAT), None)
        if row != FLOAT:
            _, told = read(given, made(given, row), plain)
        keep(row, **told)
    for row in given.rows:
        if "found" not in rows[row]:
            keep(row, found=ask(given, made(given, row)))
    return {row: rows[row] for row in given.rows}


def page(result: dict[str, Any]) -> str:
    """One measurement as a Markdown section."""
    rows = result["rows"]
    plain = rows.get(FLOAT)
    lines = [
        f"### {result['date']}, {result['commit']}: {result['seq_len']:,} tokens of context",
        "",
        f"    {result['command']}",
        "",
        f"{result['hardware']}. Perplexity and KL over {result['windows']} windows of "
        f"{result['seq_len']:,} tokens of {result['test']}, float32; scales from "
        f"{result['samples']} × 512 tokens of {result['calibration']}. Retrieval: "
        f"{result['items']} prompts of {result['item_tokens']:,} tokens, our runtime in bfloat16.",
        "",
        "| keys and values | bytes a token | perplexity | change | KL mean | top-1 | found | "
        "as the teacher |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, row in rows.items():
        change = kl = top = same = ""
        if name != FLOAT and plain:
            change = f"{100 * (row['perplexity'] / plain['perplexity'] - 1):+.3f} %"
            same = str(sum(a == b for a, b in zip(row["found"], plain["found"], strict=True)))
        if "kl_mean" in row:
            kl, top = f"{row['kl_mean']:.5f}", f"{row['top1_agreement']:.4f}"
        told = f"{sum(row['found'])} of {len(row['found'])}" if row["found"] else ""
        size = f"{row['kv_bytes_per_token']:,}"
        lines.append(
            f"| {name} | {size} | {row['perplexity']:.3f} | {change} | {kl} | {top} | {told} | "
            f"{same} |"
        )
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and write it."""
    argv = sys.argv[1:] if argv is None else argv
    given = arguments(argv)
    rows = run(given)
    asked = ("samples", "windows", "seq_len", "items", "item_tokens", "seed", "threads")
    result = {
        "schema_version": summary.SCHEMA_VERSION,
        **measure.about("benchmarks/kv_cache.py", argv),
        **{name: getattr(given, name) for name in asked},
        "calibration": given.calibration.name,
        "test": given.test.name,
        "rows": rows,
    }
    (given.out / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(page(result))
    if given.results:
        summary.insert(given.results, page(result), marker=MARKER)
    return 0


if __name__ == "__main__":
    sys.exit(main())
