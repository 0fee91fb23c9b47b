r"""Quantize one teacher with compress and with its peers, alternately, and compare.

    python benchmarks/quantize.py --teacher DIR --calibration TEXT --test TEXT \
        --second-text pydoc-topics --peer-python peer/bin/python --runs 3 --out OUT

Same bfloat16 teacher, same token windows, same grid, head and embeddings dense. Each run is timed
from "token windows ready" to "last shard flushed" and watched for its peak memory; then one reader,
which shares no code with compress, reads both folders. Prints the table, writes OUT/result.json,
and adds a section to docs/results.md when --results names it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import measure
import summary
import texts
from texts import Windows

HERE = Path(__file__).resolve().parent
OURS = "compress"
MARKER = "<!-- quantize.py: newest first -->"
PEER_SCHEMES = {"w8a8": "W8A8"}  # recipes of ours that are a preset of llm-compressor's

RECIPE = """\
version: 1
teacher: {{model: {teacher}, dtype: bfloat16}}
calibration: {{set: {text}, samples: {samples}, seq_len: {seq_len}}}
stages:
  - quantize: {{method: {method}, bits: {bits}, group_size: {group_size}{search}}}
evaluate: {{suite: none}}
artifact: {{format: {stored}}}
"""


@dataclass(frozen=True)
class Contestant:
    """One side of the comparison: its name, and the command that quantizes into a given folder."""

    name: str
    command: tuple[str, ...]
    env: dict[str, str]

    def folder(self, out: Path, run: int) -> Path:
        """Where this side's artifact of one run lies."""
        return out / f"{self.name.replace(' ', '-')}-{run}"


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Quantize one teacher with compress and a peer, alternately, and compare."
    )
    add = parser.add_argument
    add("--teacher", type=Path, required=True, help="dense bfloat16 Hugging Face folder")
    add("--calibration", type=Path, required=True, help="text whose first windows calibrate")
    add("--test", type=Path, required=True, help="text of the perplexity and of the first KL")
    add("--second-text", help=f"text of the second KL, or {texts.PYDOC_TOPICS}")
    add("--peer-python", type=Path, required=True, help="python of the peer's own environment")
    add("--peer-dtype", nargs="+", choices=["bfloat16", "float32"], default=["bfloat16"])
    add("--peer-observer", help="the peer's way to find scales; default: its own, min-max")
    add("--peer-scheme", help="a preset of llm-compressor's, as W8A8; default: as the recipe is")
    add("--autoround-python", type=Path, help="python of auto-round's environment: a third side")
    add("--autoround-iterations", type=int, default=200)
    add("--out", type=Path, required=True, help="new folder for artifacts, logs, result.json")
    add("--runs", type=int, default=1, help="runs of each side; medians are shown")
    add("--method", choices=["gptq", "rtn"], default="gptq")
    add("--bits", type=int, default=4)
    add("--group-size", type=int, default=64)
    add("--scale-search", choices=["none", "mse", "hessian"], help="ours; default: the recipe's")
    add("--recipe", help="a recipe of ours instead of the one made from these options")
    add(
        "--also",
        nargs="+",
        default=[],
        help="recipes of ours more, each a side, its samples its own",
    )
    add("--samples", type=int, default=128)
    add("--seq-len", type=int, default=512)
    add("--threads", type=int, default=os.cpu_count())
    add("--windows", type=int, nargs=2, default=[40, 20], metavar=("PERPLEXITY", "KL"))
    add("--window-tokens", type=int, default=1024, help="length of the windows that are read")
    add("--read-dtype", choices=["float32", "bfloat16"], default="float32")
    add("--bytes-tolerance", type=float, default=0.01, help="difference still called equal")
    add("--reread", action="store_true", help="keep the runs in --out, only read them again")
    add("--results", type=Path, help="Markdown file that gets the rows: docs/results.md")
    given = parser.parse_args(argv)
    if given.runs < 1:
        parser.error("--runs: at least 1")
    for option in ("peer_python", "autoround_python"):
        python = getattr(given, option)
        if python and not python.exists():
            flag = option.replace("_", "-")
            parser.error(f"--{flag}: {python} is missing; see benchmarks/README.md")
    if given.reread and not (given.out / "runs.json").is_file():
        parser.error(f"--reread: {given.out / 'runs.json'} is missing; run without it first")
    if not given.reread and given.out.exists() and any(given.out.iterdir()):
        parser.error(f"--out: {given.out} is not empty; give a new folder, or add --reread")
    return given


def contestants(given: argparse.Namespace, windows: Path) -> list[Contestant]:
    """Ours first, then the peer once for every dtype that was asked for."""
    threads = {"OMP_NUM_THREADS": str(given.threads), "HF_HUB_OFFLINE": "1"}
    runner = str(HERE / "peers" / "ours_run.py")
    recipes = {OURS: our_recipe(given, windows)}
    stored = stored_as(given)
    recipes |= {f"{OURS} {name}": moved(name, given, windows, stored) for name in given.also}
    sides = [
        Contestant(
            name,
            (sys.executable, runner, *recipe, "--threads", str(given.threads)),
            {**threads, "PYTHONPATH": str(measure.ROOT)},
        )
        for name, recipe in recipes.items()
    ]
    for dtype in given.peer_dtype:
        peer = [str(given.peer_python.absolute()), str(HERE / "peers" / "llmcompressor_run.py")]
        peer += [str(given.teacher.resolve()), str(windows), "{out}", "--dtype", dtype]
        for option in ("method", "bits", "group_size", "samples", "seq_len", "threads"):
            peer += [f"--{option.replace('_', '-')}", str(getattr(given, option))]
        if given.peer_observer:
            peer += ["--observer", given.peer_observer]
        if scheme := given.peer_scheme or PEER_SCHEMES.get(given.recipe or ""):
            peer += ["--scheme", scheme]
        sides.append(Contestant(f"llm-compressor {dtype}", tuple(peer), threads))
    if given.autoround_python:
        peer = [str(given.autoround_python.absolute()), str(HERE / "peers" / "autoround_run.py")]
        peer += [str(given.teacher.resolve()), str(windows), "{out}"]
        peer += ["--iterations", str(given.autoround_iterations)]
        for option in ("bits", "group_size", "samples", "seq_len", "threads"):
            peer += [f"--{option.replace('_', '-')}", str(getattr(given, option))]
        sides.append(Contestant("auto-round", tuple(peer), threads))
    return sides


def our_recipe(given: argparse.Namespace, windows: Path) -> list[str]:
    """Arguments that name our recipe: the given one moved to this teacher and text, or one made."""
    if given.recipe:
        moved_recipe = moved(given.recipe, given, windows, stored_as(given))
        return [*moved_recipe, f"--set=calibration.samples={given.samples}"]
    path = windows.with_name("recipe.yaml")
    text = RECIPE.format(
        teacher=json.dumps(str(given.teacher.resolve())),
        text=json.dumps(str(windows)),
        search=f", scale_search: {given.scale_search}" if given.scale_search else "",
        **{name: getattr(given, name) for name in ("samples", "seq_len", "method", "bits")},
        group_size=given.group_size,
        stored=stored_as(given),
    )
    path.write_text(text, "utf-8")
    return [str(path), "{out}"]


def stored_as(given: argparse.Namespace) -> str:
    """The format of ours: the peers' own where it holds the bits, else the one that holds all."""
    return "compressed-tensors" if given.bits in (4, 8) else "packed"


def moved(recipe: str, given: argparse.Namespace, windows: Path, stored: str) -> list[str]:
    """Arguments that name a recipe, moved to this teacher, text and format."""
    settings = {
        "teacher.model": given.teacher.resolve(),
        "calibration.set": windows,
        "calibration.seq_len": given.seq_len,
        "artifact.format": stored,
        "teacher.sha256": "null",  # the recipe's pins are of another teacher
        "teacher.revision": "null",
    }
    return [recipe, "{out}", *(f"--set={key}={value}" for key, value in settings.items())]


def alternate(sides: Sequence[Contestant], *, runs: int, out: Path) -> dict[str, list[Any]]:
    """Run every side in turn, `runs` times: what else the machine does then falls on all alike."""
    found: dict[str, list[Any]] = {side.name: [] for side in sides}
    for run in range(runs):
        for side in sides:
            folder = side.folder(out, run)
            command = [part.replace("{out}", str(folder)) for part in side.command]
            done = measure.run(command, env=side.env, cwd=out, log=out / "runs.log")
            weights = sorted([*folder.glob("*.safetensors"), *folder.glob("*.gguf")])
            found[side.name].append(
                {
                    **done.output,
                    **asdict(done.memory),
                    "wall_seconds": done.wall_seconds,
                    "weights_sha256": [texts.sha256_of_file(shard) for shard in weights],
                }
            )
            seconds, peak = done.output["seconds"], done.memory.peak_memory_bytes / 2**20
            where = f"run {run + 1}/{runs}  {side.name}"
            print(f"{where}: {seconds:.1f} s, {peak:,.0f} MiB", flush=True)
    return found


def read(given: argparse.Namespace, folders: dict[str, Path], kl_texts: Sequence[Path]) -> Any:
    """Read the teacher and the first artifact of every side with the readers, each a process.

    What transformers cannot open is multiplied out first; sizes are those of the artifact itself.
    """
    readers, window = HERE / "readers", ["--seq-len", str(given.window_tokens)]
    window += ["--dtype", given.read_dtype]
    env = {"OMP_NUM_THREADS": str(given.threads), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}

    def reader(name: str, *rest: str | Path) -> dict[str, Any]:
        print(f"reading: {name} {Path(rest[0]).name}", flush=True)
        command = [sys.executable, str(readers / f"{name}.py"), *map(str, rest)]
        return measure.run(command, env=env, cwd=given.out, log=given.out / "readers.log").output

    def opened(folder: Path) -> Path:
        if not needs_multiplying(folder):
            return folder
        dense = folder.with_name(f"{folder.name}-dense")
        if not (dense / "model.safetensors").is_file():
            reader("dense", folder, teacher, dense)
        return dense

    test, (ppl_windows, kl_windows) = given.test.resolve(), map(str, given.windows)
    teacher = given.teacher.resolve()
    known = {"teacher": teacher, **folders}
    readable = {name: opened(folder) for name, folder in known.items()}
    readings = {
        name: {
            **reader("stored", folder, teacher),
            **reader("perplexity", readable[name], test, "--windows", ppl_windows, *window),
            "divergence": {},
        }
        for name, folder in known.items()
    }
    protocol: list[str | Path] = ["--text", *kl_texts, "--windows", kl_windows, *window]
    kl = reader("divergence", *readable.values(), *protocol)
    for text, results in kl.items():
        for name, result in zip(known, results, strict=True):
            readings[name]["divergence"][Path(text).name] = result
    return readings


def needs_multiplying(folder: Path) -> bool:
    """Whether a folder is in a layout that transformers does not open: GGUF, or our `packed`."""
    if (folder / "model.gguf").is_file():
        return True
    config = json.loads((folder / "config.json").read_text("utf-8"))
    told = config.get("quantization_config") or {}
    return bool(told.get("quant_method") == OURS)


def facts(given: argparse.Namespace, argv: Sequence[str], windows: Windows) -> dict[str, Any]:
    """What is true of the whole measurement, so that another one can be compared to it."""
    names = ("method", "bits", "group_size", "samples", "seq_len", "threads", "runs", "recipe")
    return {
        **measure.about("benchmarks/quantize.py", argv),
        "teacher": given.teacher.resolve().name,
        "calibration_fingerprint": windows.fingerprint,
        "settings": {name: getattr(given, name) for name in names},
    }


def measured(
    given: argparse.Namespace, argv: Sequence[str], windows: Windows, kl_texts: Sequence[Path]
) -> int:
    """Run the sides, or take the runs that are kept, then read, print and write."""
    out = given.out
    sides = contestants(given, windows.path)
    kept = out / "runs.json"
    if not given.reread:
        about = facts(given, argv, windows)
        runs = alternate(sides, runs=given.runs, out=out)
        kept.write_text(json.dumps({"facts": about, "runs": runs}, indent=2) + "\n", "utf-8")
    about, runs = json.loads(kept.read_text("utf-8")).values()

    folders = {side.name: side.folder(out, 0) for side in sides if side.name in runs}
    readings = read(given, folders, kl_texts)
    hashed = [given.calibration.resolve(), *kl_texts]
    about["texts_sha256"] = {text.name: texts.sha256_of_file(text) for text in hashed}
    result = summary.summarize(
        about, runs, readings, ours=OURS, bytes_tolerance=given.bytes_tolerance
    )
    summary.keep(
        result, summary.page(result), out=out / "result.json", results=given.results, marker=MARKER
    )
    return 0 if result["equal_bytes"] else 1


def texts_to_read(given: argparse.Namespace) -> list[Path]:
    """The texts of the KL, the test text first.

    Raises:
        FileNotFoundError: a text is missing.
        ValueError: both have one name.
    """
    named = [str(given.test), *filter(None, [given.second_text])]
    found = [texts.resolve(name, given.out) for name in named]
    if len({text.name for text in found}) < len(found):
        raise ValueError(f"--second-text: also called {found[0].name}; give another name")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, compare, print; 1 when stored bytes differ, 2 when the request was wrong."""
    argv = sys.argv[1:] if argv is None else argv
    given = arguments(argv)
    out = given.out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    try:
        kl_texts = texts_to_read(given)
        cut = out / "calibration.txt"
        windows = texts.cut(
            given.teacher, given.calibration, cut, samples=given.samples, seq_len=given.seq_len
        )
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    try:
        return measured(given, argv, windows, kl_texts)
    except measure.ChildError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
