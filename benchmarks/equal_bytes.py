r"""A whole artifact within a number of bytes, ours and llama.cpp's, and ours at exactly theirs.

    python benchmarks/equal_bytes.py --teacher TEACHER --calibration valid.txt --test test.txt \
        --second-text pydoc-topics --llama llama --out OUT

llama.cpp's own quantizer makes each of `--kinds` from the teacher as a GGUF file; then the recipe
runs with its own budget, and once more for each of them with the bytes of that file as its budget,
tokenizer and head counted on both sides. One reader reads all, multiplied out in float32. What
OUT/runs.json holds is not made again. Prints the table, writes OUT/result.json; 1 when ours is
above a peer of its size in perplexity or mean KL on any text.
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
import quantize
import summary
import texts
from quantize import HERE, OURS, Contestant

MARKER = "<!-- equal_bytes.py: newest first -->"
PEER = "llama.cpp"


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Whole artifacts of equal size, side by side.")
    add = parser.add_argument
    add("--teacher", type=Path, required=True, help="dense Hugging Face folder")
    add("--calibration", type=Path, required=True, help="text whose first windows calibrate ours")
    add("--test", type=Path, required=True, help="text of the perplexity and of the first KL")
    add("--second-text", help=f"text of the second KL, or {texts.PYDOC_TOPICS}")
    add("--llama", type=Path, required=True, help="folder that holds llama.cpp's library")
    add("--kinds", nargs="+", default=["Q4_0", "Q4_K_M"], help="llama.cpp's own names of them")
    add("--recipe", default="w-80mb", help="a recipe of ours that has the stage `allocate`")
    add("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE", help="of ours")
    add("--out", type=Path, required=True, help="folder for artifacts, logs, result.json")
    add("--samples", type=int, default=128)
    add("--seq-len", type=int, default=512)
    add("--threads", type=int, default=os.cpu_count())
    add("--windows", type=int, nargs=2, default=[40, 20], metavar=("PERPLEXITY", "KL"))
    add("--window-tokens", type=int, default=1024, help="length of the windows that are read")
    add("--read-dtype", choices=["float32", "bfloat16"], default="float32")
    add("--results", type=Path, help="Markdown file that gets the rows: docs/results.md")
    given = parser.parse_args(argv)
    if not given.llama.is_dir():
        parser.error(f"--llama: {given.llama} is missing; see benchmarks/README.md")
    return given


def peers(given: argparse.Namespace) -> list[Contestant]:
    """llama.cpp's quantizer, once for each kind."""
    runner = [sys.executable, str(HERE / "peers" / "llamacpp_run.py")]
    source = given.out / "teacher-gguf" / "model.gguf"
    options = ["--threads", str(given.threads), "--llama", str(given.llama.resolve())]
    return [
        Contestant(
            f"{PEER} {kind}",
            (*runner, str(source), "{out}", "--kind", kind, *options),
            {"OMP_NUM_THREADS": str(given.threads)},
        )
        for kind in given.kinds
    ]


def ours(given: argparse.Namespace, windows: Path, sizes: Mapping[str, int]) -> list[Contestant]:
    """Our recipe with its own budget, then with the bytes of each peer."""
    runner = str(HERE / "peers" / "ours_run.py")
    recipe = quantize.moved(given.recipe, given, windows, "packed")
    recipe += [f"--set={each}" for each in (f"calibration.samples={given.samples}", *given.sets)]
    budgets = {f"{OURS} {Path(given.recipe).stem}": []}
    for peer, nbytes in sizes.items():
        budgets[at_bytes_of(peer)] = [f"--set=allocate.budget={nbytes / 1e6:.6f} MB"]
    env = {"OMP_NUM_THREADS": str(given.threads), "PYTHONPATH": str(measure.ROOT)}
    threads = ["--threads", str(given.threads)]
    return [
        Contestant(name, (sys.executable, runner, *recipe, *budget, *threads), env)
        for name, budget in budgets.items()
    ]


def at_bytes_of(peer: str) -> str:
    """The name of our side that gets as many bytes as a peer took."""
    return f"{OURS} at the bytes of {peer.removeprefix(PEER).strip()}"


def made(given: argparse.Namespace, sides: Sequence[Contestant]) -> dict[str, list[Any]]:
    """Run the sides that no earlier call has run, and say what is known of all of them."""
    kept = given.out / "runs.json"
    runs = json.loads(kept.read_text("utf-8")) if kept.is_file() else {}
    for side in sides:
        if side.name not in runs:
            runs |= quantize.alternate([side], runs=1, out=given.out)
            kept.write_text(json.dumps(runs, indent=2) + "\n", "utf-8")
    return {side.name: runs[side.name] for side in sides}


def whole_files(given: argparse.Namespace, sides: Sequence[Contestant]) -> dict[str, int]:
    """Bytes of each peer's file, vocabulary and all."""
    return {side.name: (side.folder(given.out, 0) / "model.gguf").stat().st_size for side in sides}


def verdicts(sides: Mapping[str, Mapping[str, Any]]) -> dict[str, bool]:
    """For each peer: whether ours of its size is below it, everywhere."""
    found = {}
    for peer in [name for name in sides if name.startswith(PEER)]:
        mine, theirs = sides[at_bytes_of(peer)], sides[peer]
        pairs = [(mine["perplexity"], theirs["perplexity"])]
        for text, read in mine["divergence"].items():
            other = theirs["divergence"][text]
            pairs += [(read[key], other[key]) for key in ("perplexity", "kl_mean")]
        found[peer] = mine["size_bytes"] <= theirs["size_bytes"] and all(a < b for a, b in pairs)
    return found


def page(result: Mapping[str, Any]) -> str:
    """The measurement as a Markdown section."""
    hashes = ", ".join(f"{name} `{sha[:12]}`" for name, sha in result["texts_sha256"].items())
    versions = {f"{package} {at}" for side in result["sides"].values()
                for package, at in side["versions"].items()}  # fmt: skip
    said = {True: "below it on every text", False: "NOT below it on every text"}
    return "\n".join(
        [
            f"### {result['date']}, {result['commit']}: whole artifacts, {result['teacher']}",
            "",
            f"    {result['command']}",
            "",
            f"{result['hardware']}, on {result['threads']} threads. Texts (sha256): {hashes}. "
            f"{', '.join(sorted(versions))}.",
            "",
            *summary.table(result["teacher_read"], result["sides"]),
            "",
            *(
                f"- Ours at the bytes of {peer}: {said[passed]} in perplexity and mean KL."
                for peer, passed in result["passed"].items()
            ),
            "",
        ]
    )  # fmt: skip


def measured(given: argparse.Namespace, argv: Sequence[str], kl_texts: Sequence[Path]) -> int:
    """Make what is missing, read everything, print and write."""
    out = given.out
    source = out / "teacher-gguf"
    if not (source / "config.json").is_file():
        command = [sys.executable, str(HERE / "peers" / "teacher_gguf.py")]
        command += [str(given.teacher.resolve()), str(source)]
        measure.run(command, env={"PYTHONPATH": str(measure.ROOT)}, cwd=out, log=out / "runs.log")
    theirs = peers(given)
    runs = made(given, theirs)
    mine = ours(given, out / "calibration.txt", whole_files(given, theirs))
    runs |= made(given, mine)
    folders = {side.name: side.folder(out, 0) for side in (*theirs, *mine)}
    readings = quantize.read(given, folders, kl_texts)
    sides = {name: {**runs[name][0], **readings[name]} for name in folders}
    result = {
        "schema_version": summary.SCHEMA_VERSION,
        **measure.about("benchmarks/equal_bytes.py", argv),
        "teacher": given.teacher.resolve().name,
        "threads": given.threads,
        "texts_sha256": {
            text.name: texts.sha256_of_file(text) for text in (given.calibration, *kl_texts)
        },
        "teacher_read": readings["teacher"],
        "sides": sides,
        "passed": verdicts(sides),
    }
    summary.keep(
        result, page(result), out=out / "result.json", results=given.results, marker=MARKER
    )
    return 0 if all(result["passed"].values()) else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Make, read, compare; 1 when ours is not below, 2 when the request was wrong."""
    argv = sys.argv[1:] if argv is None else argv
    given = arguments(argv)
    given.out = given.out.resolve()
    given.out.mkdir(parents=True, exist_ok=True)
    try:
        kl_texts = quantize.texts_to_read(given)
        texts.cut(
            given.teacher, given.calibration, given.out / "calibration.txt",
            samples=given.samples, seq_len=given.seq_len,
        )  # fmt: skip
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    try:
        return measured(given, argv, kl_texts)
    except measure.ChildError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
