r"""Distil one student with compress and with TRL's GKD trainer, and compare at the same KL.

    python benchmarks/distill.py --teacher DIR --text TEXT.txt \
        --peer-python peer/bin/python --out OUT

Same bfloat16 teacher, same student (every second block of it), same windows in the same order, same
AdamW, schedule and loss (forward KL over the whole vocabulary at temperature 1). Both look at the
same held-out windows every few steps, clocks stopped. Compared are the seconds of training to the
lowest KL that both reach, and the peak memory of the whole run. Prints one table and writes
OUT/result.json. The peer's environment: see peers/trl_distill.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import measure

PEERS = Path(__file__).resolve().parent / "peers"


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Distil with compress and with TRL, and compare.")
    parser.add_argument("--teacher", type=Path, required=True, help="a dense bfloat16 folder")
    parser.add_argument("--text", type=Path, required=True, help="a .txt or .jsonl to train on")
    parser.add_argument("--peer-python", type=Path, required=True)
    parser.add_argument("--peer-dtype", nargs="+", default=["amp"], help="amp bfloat16 float32")
    parser.add_argument("--peer-rows", type=int, default=4, help="windows of its forwards")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--held-out", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--a-step", type=int, default=4, help="windows of one optimizer step")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--look-every", type=int, default=5)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Prepare, run every side, print and keep the table."""
    given = arguments(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    out = given.out.resolve()
    log, student, data = out / "runs.log", out / "student", out / "data.safetensors"
    paths = [str(given.teacher.resolve()), str(student), str(data)]
    ours = [sys.executable, str(PEERS / "ours_distill.py"), *paths]
    train = ["--rate", str(given.rate), "--look-every", str(given.look_every)]
    if not data.is_file():
        sizes = ("samples", "held_out", "seq_len", "a_step", "steps")
        asked = [w for n in sizes for w in (f"--{n.replace('_', '-')}", str(getattr(given, n)))]
        prepare = [*ours, "--prepare", str(given.text.resolve()), *asked]
        _run([*prepare, "--scratch", str(out / "prepared")], out, log, owes=False)
    sides = {"compress": ours}
    for dtype in given.peer_dtype:
        peer = [str(given.peer_python.absolute()), str(PEERS / "trl_distill.py"), *paths]
        sides[f"TRL, {dtype}"] = [*peer, "--dtype", dtype, "--rows", str(given.peer_rows)]
    found = {}
    for number, (name, command) in enumerate(sides.items()):
        scratch = ["--scratch", str(out / f"scratch-{number}")]
        found[name] = _run([*command, *train, *scratch], out, log)
        print(f"{name}: {found[name]['output']['seconds']:.1f} s of training", file=sys.stderr)
    result = {"about": measure.about("benchmarks/distill.py", argv or sys.argv[1:]), "sides": found}
    (out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    print("\n".join(table(found)))


def _run(command: list[str], out: Path, log: Path, *, owes: bool = True) -> dict[str, Any]:
    """What a side printed, how long it took in all, and what it held at most."""
    if not owes:  # it makes what others read, and prints nothing
        command = ["sh", "-c", '"$@" && echo "{}"', "sh", *command]
    done = measure.run(command, env={}, cwd=out, log=log)
    return {
        "output": done.output, "wall_seconds": done.wall_seconds,
        "peak_memory_bytes": done.memory.peak_memory_bytes,
        "anonymous_bytes": done.memory.anonymous_bytes,
    }  # fmt: skip


def reached(curve: Sequence[Sequence[float]], kl: float) -> float:
    """Seconds until a KL was reached: between looks on the straight line that joins them."""
    for (_, early, was), (_, late, now) in pairwise(curve):
        if now <= kl:
            return early if was <= kl else early + (late - early) * (was - kl) / (was - now)
    raise ValueError(f"the KL of {kl} was never reached")


def table(found: dict[str, Any]) -> list[str]:
    """A row for each side; ours over the others'."""
    curves = {name: side["output"]["curve"] for name, side in found.items()}
    same = max(min(kl for _, _, kl in curve) for curve in curves.values())
    rows = [
        f"to a held-out KL of {same:.4f} nats, from {next(iter(curves.values()))[0][2]:.4f}", "",
        "| side | seconds to it | of its training | lowest KL | peak, MB | anonymous, MB |",
        "|---|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    for name, side in found.items():
        lowest = min(kl for _, _, kl in curves[name])
        memory = [side[key] / 1e6 for key in ("peak_memory_bytes", "anonymous_bytes")]
        rows.append(
            f"| {name} | {reached(curves[name], same):.1f} | {side['output']['seconds']:.1f} | "
            f"{lowest:.4f} | {memory[0]:,.0f} | {memory[1]:,.0f} |"
        )
    ours, *others = found
    for name in others:
        times = [reached(curves[side], same) for side in (ours, name)]
        held = [found[side]["peak_memory_bytes"] for side in (ours, name)]
        rows += ["", f"{ours} over {name}: seconds {times[0] / times[1]:.2f}, "
                     f"peak memory {held[0] / held[1]:.2f}"]  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
