r"""Prune one teacher with compress and with llm-compressor, alternately, and compare.

    python benchmarks/prune.py --teacher DIR --calibration TEXT --test TEXT \
        --second-text pydoc-topics --peer-python peer/bin/python --out OUT

For each kind both sides, on the same bfloat16 teacher and the same token windows: 50 % and 2:4 (our
recipes against llm-compressor's SparseGPT), Wanda at 50 %. Then ours alone: magnitude and SparseGPT
at 50 %, and 50 % with 4 bits, in one loop and one after the other. Clock, memory and readers are
those of quantize.py. Both sides store plain weights with zeros, as wide as before. Prints one
table, writes OUT/result.json, and adds a section to docs/results.md when --results names it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import quantize
import summary
import texts
from quantize import HERE, Contestant

MARKER = "<!-- prune.py: newest first -->"
_W4 = "{bits: 4, group_size: 64, error_correction: 0.25}"
_HALF = "sparsity: 0.5, error_correction: 0.25"


@dataclass(frozen=True)
class Kind:
    """One way to prune: our recipe, what is set in it, and what a peer is told, if one can."""

    recipe: str
    sets: tuple[str, ...] = ()
    peer: tuple[str, ...] = ()  # llm-compressor
    cutter: tuple[str, ...] = ()  # Torch-Pruning


KINDS = {
    "50 %": Kind("sparse-50", peer=("--method", "sparsegpt")),
    "2:4": Kind("sparse-2-4", peer=("--method", "sparsegpt", "--pattern", "2:4")),
    "Wanda 50 %": Kind(
        "sparse-50", ("stages=[{prune: {method: wanda, sparsity: 0.5}}]",), ("--method", "wanda")
    ),
    "magnitude 50 %": Kind("sparse-50", ("stages=[{prune: {method: magnitude, sparsity: 0.5}}]",)),
    "SparseGPT 50 %": Kind("sparse-50", (f"stages=[{{prune: {{method: sparsegpt, {_HALF}}}}}]",)),
    "50 % and 4 bits, joint": Kind("sparse-50-w4"),
    "50 %, then 4 bits": Kind(
        "sparse-50-w4",
        (f"stages=[{{prune: {{method: admm, {_HALF}}}}}, {{quantize: {_W4}}}]",),
    ),
}


def _cut(fields: str, cutter: tuple[str, ...] = ()) -> Kind:
    return Kind("ffn-75", (f"stages=[{{restructure: {{{fields}}}}}]",), cutter=cutter)


_DELETED = "repair: false, importance: activation"
CUTS = {  # smaller shapes; named with --kinds
    "MLP 75 %": _cut("ffn: 0.75", ("--keep", "0.75")),
    "MLP 75 %, shared out": _cut("ffn: 0.75, uniform: false"),
    "MLP 75 %, deleted": _cut(f"ffn: 0.75, {_DELETED}"),
    "depth 75 %": _cut("depth: 0.75"),
    "depth 75 %, deleted": _cut("depth: 0.75, repair: false"),
    "depth 75 %, deleted by block influence": _cut(f"depth: 0.75, {_DELETED}"),
    "one head of keys and values": _cut("kv_heads: 1"),
    "one head of keys and values, the mean": _cut("kv_heads: 1, repair: false"),
    "width 75 %": _cut("hidden: 0.75"),
    "width 75 %, deleted": _cut(f"hidden: 0.75, {_DELETED}"),
    "keep 75 %": _cut("keep: 0.75"),
}


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Prune one teacher with compress and a peer, alternately, and compare."
    )
    add = parser.add_argument
    add("--teacher", type=Path, required=True, help="dense bfloat16 Hugging Face folder")
    add("--calibration", type=Path, required=True, help="text whose first windows calibrate")
    add("--test", type=Path, required=True, help="text of the perplexity and of the first KL")
    add("--second-text", help=f"text of the second KL, or {texts.PYDOC_TOPICS}")
    add("--peer-python", type=Path, help="python of the peer's own environment; none: ours alone")
    add("--torch-pruning-python", type=Path, help="python of Torch-Pruning's own environment")
    add("--kinds", nargs="+", choices=[*KINDS, *CUTS], default=list(KINDS))
    add("--out", type=Path, required=True, help="new folder for artifacts, logs, result.json")
    add("--runs", type=int, default=1, help="runs of each side; medians are shown")
    add("--samples", type=int, default=128)
    add("--our-samples", type=int, help="fewer of the same windows for ours; default: as many")
    add("--seq-len", type=int, default=512)
    add("--threads", type=int, default=os.cpu_count())
    add("--windows", type=int, nargs=2, default=[40, 20], metavar=("PERPLEXITY", "KL"))
    add("--window-tokens", type=int, default=1024, help="length of the windows that are read")
    add("--read-dtype", choices=["float32", "bfloat16"], default="float32")
    add("--results", type=Path, help="Markdown file that gets the rows: docs/results.md")
    given = parser.parse_args(argv)
    for option in ("peer_python", "torch_pruning_python"):
        if (python := getattr(given, option)) and not python.exists():
            words = option.replace("_", "-")
            parser.error(f"--{words}: {python} is missing; see benchmarks/README.md")
    if given.out.exists() and any(given.out.iterdir()):
        parser.error(f"--out: {given.out} is not empty; give a new folder")
    return given


def sides(given: argparse.Namespace, windows: Path) -> list[Contestant]:
    """For each kind ours, then the peer where it has one."""
    found = []
    for name in given.kinds:
        kind = (KINDS | CUTS)[name]
        found.append(ours(f"compress, {name}", kind, given, windows))
        if kind.peer and given.peer_python:
            found.append(theirs(f"llm-compressor, {name}", kind, given, windows))
        if kind.cutter and given.torch_pruning_python:
            found.append(cutters(f"Torch-Pruning, {name}", kind, given, windows))
    return found


def ours(name: str, kind: Kind, given: argparse.Namespace, windows: Path) -> Contestant:
    """Our side of one kind."""
    samples = given.our_samples or given.samples
    command = quantize.moved(kind.recipe, given, windows, "compressed-tensors")
    command += [f"--set={one}" for one in (f"calibration.samples={samples}", *kind.sets)]
    runner = (sys.executable, str(HERE / "peers" / "ours_run.py"))
    env = {**environment(given), "PYTHONPATH": str(measure.ROOT)}
    return Contestant(name, (*runner, *command, "--threads", str(given.threads)), env)


def theirs(name: str, kind: Kind, given: argparse.Namespace, windows: Path) -> Contestant:
    """llm-compressor's side of one kind."""
    runner = given.peer_python, HERE / "peers" / "llmcompressor_prune.py"
    return _peer(name, *runner, kind.peer, given, windows)


def cutters(name: str, kind: Kind, given: argparse.Namespace, windows: Path) -> Contestant:
    """Torch-Pruning's side of one kind."""
    runner = given.torch_pruning_python, HERE / "peers" / "torchpruning_run.py"
    return _peer(name, *runner, kind.cutter, given, windows)


def _peer(
    name: str, python: Path, script: Path, told: Sequence[str], given: argparse.Namespace,
    windows: Path,
) -> Contestant:  # fmt: skip
    command = [str(python.absolute()), str(script), str(given.teacher.resolve()), str(windows)]
    command += ["{out}", *told]
    for option in ("samples", "seq_len", "threads"):
        command += [f"--{option.replace('_', '-')}", str(getattr(given, option))]
    return Contestant(name, tuple(command), environment(given))


def environment(given: argparse.Namespace) -> dict[str, str]:
    """What every side runs in."""
    return {"OMP_NUM_THREADS": str(given.threads), "HF_HUB_OFFLINE": "1"}


def page(result: Mapping[str, Any]) -> str:
    """One measurement as a Markdown section: its facts, its table, ours beside the peer."""
    settings = result["settings"]
    hashes = ", ".join(f"{name} `{sha[:12]}`" for name, sha in result["texts_sha256"].items())
    return "\n".join(
        [
            f"### {result['date']}, {result['commit']}: pruning {result['teacher']}",
            "",
            f"    {result['command']}",
            "",
            f"{result['hardware']}, on {settings['threads']} threads. Medians of "
            f"{settings['runs']} alternate runs. Calibration {settings['samples']} × "
            f"{settings['seq_len']} tokens, of ours {settings['our_samples'] or 'as many'}. Texts "
            f"(sha256): {hashes}.",
            "",
            *summary.table(result["teacher_read"], result["sides"]),
            "",
            *compared(result["sides"]),
            "",
        ]
    )


def compared(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each kind that both sides pruned."""
    lines = []
    for name in KINDS:
        one, other = (found.get(f"{side}, {name}") for side in ("compress", "llm-compressor"))
        if one and other:
            lines.append(
                f"- {name}: perplexity {one['perplexity']:.2f} to {other['perplexity']:.2f}, "
                f"seconds {one['seconds'] / other['seconds']:.3f}×, peak memory "
                f"{one['peak_memory_bytes'] / other['peak_memory_bytes']:.3f}×."
            )
    return lines


def measured(
    given: argparse.Namespace, argv: Sequence[str], windows: texts.Windows, kl: Sequence[Path]
) -> None:
    """Run all sides, read what they made, print and write."""
    contestants = sides(given, windows.path)
    runs = quantize.alternate(contestants, runs=given.runs, out=given.out)
    folders = {side.name: side.folder(given.out, 0) for side in contestants}
    readings = quantize.read(given, folders, kl)
    names = ("samples", "our_samples", "seq_len", "threads", "runs", "kinds")
    hashed = [given.calibration.resolve(), *kl]
    facts = {
        **measure.about("benchmarks/prune.py", argv),
        "teacher": given.teacher.resolve().name,
        "calibration_fingerprint": windows.fingerprint,
        "settings": {name: getattr(given, name) for name in names},
        "texts_sha256": {text.name: texts.sha256_of_file(text) for text in hashed},
    }
    first = contestants[0].name
    result = summary.summarize(facts, runs, readings, ours=first, bytes_tolerance=0.01)
    summary.keep(
        result, page(result), out=given.out / "result.json", results=given.results, marker=MARKER
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, compare, print; 1 when a side failed, 2 when the request was wrong."""
    argv = sys.argv[1:] if argv is None else argv
    given = arguments(argv)
    out = given.out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    try:
        kl_texts = quantize.texts_to_read(given)
        cut = out / "calibration.txt"
        windows = texts.cut(
            given.teacher, given.calibration, cut, samples=given.samples, seq_len=given.seq_len
        )
        measured(given, argv, windows, kl_texts)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    except measure.ChildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
