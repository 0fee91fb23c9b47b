r"""Decode and prefill speed of our runtime, transformers and llama.cpp, taken alternately.

    python benchmarks/decode.py --artifact DIR --transformers DIR \
        --gguf FILE --llamacpp-python llama/bin/python --out decode.json

Every side that is named runs, each in a process of its own, one after the other, `--rounds` times;
medians are shown. Batch 1, greedy. Decode: one token at a time from a short prompt. Prefill: from
a prompt of about 500 tokens to its first answer. Prints a Markdown table and writes the JSON.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measure
import summary

PEERS = Path(__file__).resolve().parent / "peers"
MARKER = "<!-- decode.py: newest first -->"
PROMPT = "Write a long story about a dragon and a knight."
LONG_PROMPT = "The quick brown fox jumps over the lazy dog. " * 50
SPEEDS = ("decode_tokens_per_second", "prefill_tokens_per_second")


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Decode and prefill speed, side by side.")
    add = parser.add_argument
    add("--artifact", type=Path, nargs="*", default=[], help="folders our runtime opens")
    add("--transformers", type=Path, nargs="*", default=[], help="folders transformers opens")
    add("--gguf", type=Path, nargs="*", default=[], help="files llama.cpp opens")
    add("--llamacpp-python", type=Path, help="python that has xllamacpp")
    add("--native-python", type=Path, help="python that has llama-cpp-python, built for this CPU")
    add("--threads", type=int, default=os.cpu_count())
    add("--tokens", type=int, default=128, help="new tokens of the decode measurement")
    add("--rounds", type=int, default=3)
    add("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    add("--out", type=Path, required=True, help="JSON file")
    add("--results", type=Path, help="Markdown file that gets the section: docs/results.md")
    given = parser.parse_args(argv)
    if not (given.artifact or given.transformers or given.gguf):
        parser.error("nothing to measure: give --artifact, --transformers or --gguf")
    if given.gguf and not given.llamacpp_python:
        parser.error("--gguf needs --llamacpp-python, a python that has xllamacpp")
    return given


def commands(given: argparse.Namespace) -> dict[str, list[str]]:
    """One command for every side, by its name."""
    common = ["--prompt", PROMPT, "--long-prompt", LONG_PROMPT]
    common += ["--tokens", str(given.tokens), "--threads", str(given.threads)]
    dtype = ["--dtype", given.dtype]
    sides: list[tuple[str, str | Path, Path, list[str]]] = [
        *(("ours", sys.executable, path, dtype) for path in given.artifact),
        *(("transformers", sys.executable, path, dtype) for path in given.transformers),
        *(("llamacpp", given.llamacpp_python, path, []) for path in given.gguf),
        *(
            ("llamacpp_native", given.native_python, path, [])
            for path in (given.gguf if given.native_python else [])
        ),
    ]
    return {
        f"{name}, {path.resolve().name}": [
            str(Path(python).absolute()),
            str(PEERS / f"{name}_speed.py"),
            str(path.resolve()),
            *common,
            *extra,
        ]
        for name, python, path, extra in sides
    }


def alternate(sides: dict[str, list[str]], *, rounds: int, threads: int, log: Path) -> Any:
    """Run every side in turn, `rounds` times."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    env = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    for _ in range(rounds):
        for name, command in sides.items():
            ours = {"PYTHONPATH": str(measure.ROOT)} if name.startswith("ours") else {}
            done = measure.run(command, env={**env, **ours}, cwd=log.parent, log=log)
            peak = done.memory.peak_memory_bytes
            found[name].append({**done.output, "peak_memory_bytes": peak})
    return found


def summarize(runs: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Medians of both speeds and the highest peak of memory, for every side."""
    return {
        name: {
            **{speed: statistics.median(run[speed] for run in of_side) for speed in SPEEDS},
            "peak_memory_bytes": max(run["peak_memory_bytes"] for run in of_side),
            "prompt_tokens": of_side[0]["prompt_tokens"],
            "versions": of_side[0]["versions"],
        }
        for name, of_side in runs.items()
    }


def page(result: dict[str, Any]) -> str:
    """One measurement as a Markdown section."""
    lines = [
        f"### {result['date']}, {result['commit']}: batch 1, {result['threads']} threads",
        "",
        f"    {result['command']}",
        "",
        f"{result['hardware']}. Medians of {result['rounds']} alternate rounds, "
        f"{result['tokens']} new tokens, {result['dtype']}.",
        "",
        "| | decode, tokens/s | prefill, tokens/s | peak MiB | with |",
        "|---|--:|--:|--:|---|",
    ]
    for name, side in result["sides"].items():
        versions = ", ".join(f"{package} {at}" for package, at in side["versions"].items())
        decode, prefill = (side[speed] for speed in SPEEDS)
        peak = side["peak_memory_bytes"] / 2**20
        lines.append(f"| {name} | {decode:.1f} | {prefill:.1f} | {peak:,.0f} | {versions} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every named side and print the table."""
    argv = sys.argv[1:] if argv is None else argv
    given = arguments(argv)
    out = given.out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    log = out.with_suffix(".log")
    try:
        runs = alternate(commands(given), rounds=given.rounds, threads=given.threads, log=log)
    except measure.ChildError as error:
        print(error, file=sys.stderr)
        return 1
    result = {
        "schema_version": summary.SCHEMA_VERSION,
        **measure.about("benchmarks/decode.py", argv),
        **{name: getattr(given, name) for name in ("threads", "tokens", "rounds", "dtype")},
        "sides": summarize(runs),
    }
    summary.keep(result, page(result), out=out, results=given.results, marker=MARKER)
    return 0


if __name__ == "__main__":
    sys.exit(main())
