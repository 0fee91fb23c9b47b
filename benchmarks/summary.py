"""What was measured, turned into medians and ratios, JSON and Markdown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1


def summarize(
    facts: Mapping[str, Any],
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    readings: Mapping[str, Mapping[str, Any]],
    *,
    ours: str,
    bytes_tolerance: float,
) -> dict[str, Any]:
    """Join runs and readings: medians for every side, and ours divided by each peer.

    Args:
        facts: what is true of the whole measurement; copied.
        runs: for each side its runs in order, each with seconds and the fields of `measure.Memory`.
        readings: for the teacher and each side what the readers found in its first folder.
        ours: which side is divided by the others.
        bytes_tolerance: relative difference of the stored bytes still called equal.

    Raises:
        ValueError: a side says what the teacher says, to the bit.
    """
    for name in runs:
        if any(found["kl_mean"] == 0 for found in readings[name]["divergence"].values()):
            raise ValueError(
                f"{name}: a KL of 0: it left the teacher as it was. Do not compare it."
            )
    sides = {name: {**_medians(of_side), **readings[name]} for name, of_side in runs.items()}
    peers = [name for name in sides if name != ours]
    ratios = {name: _ratios(sides[ours], sides[name], bytes_tolerance) for name in peers}
    return {
        "schema_version": SCHEMA_VERSION,
        **facts,
        "same_windows": _same_windows(facts["calibration_fingerprint"], runs),
        "bytes_tolerance": bytes_tolerance,
        "teacher_read": readings["teacher"],
        "sides": sides,
        "ratios": ratios,
        "equal_bytes": any(ratio["equal_bytes"] for ratio in ratios.values()),
    }


def page(result: Mapping[str, Any]) -> str:
    """One measurement as a Markdown section: its facts, its table, its ratios."""
    settings = result["settings"]
    kind = f"{settings['method'].upper()} {settings['bits']}-bit, group {settings['group_size']}"
    hashes = ", ".join(f"{name} `{sha[:12]}`" for name, sha in result["texts_sha256"].items())
    versions = "; ".join(
        f"{name}: " + ", ".join(f"{package} {at}" for package, at in side["versions"].items())
        for name, side in result["sides"].items()
    )
    return "\n".join(
        [
            f"### {result['date']}, {result['commit']}: {kind}, {result['teacher']}",
            "",
            f"    {result['command']}",
            "",
            f"{result['hardware']}, on {settings['threads']} threads. Medians of "
            f"{settings['runs']} alternate runs. Calibration {settings['samples']} × "
            f"{settings['seq_len']} tokens. "
            f"Texts (sha256): {hashes}. {versions}.",
            "",
            *table(result["teacher_read"], result["sides"]),
            "",
            *_remarks(result),
            "",
        ]
    )


def keep(
    result: Mapping[str, Any], section: str, *, out: Path, results: Path | None, marker: str
) -> None:
    """Write a result as JSON, print its Markdown section, and put that into a page where asked.

    Args:
        result: plain values.
        section: the same in Markdown.
        out: JSON file.
        results: page that gets the section; None: no page does.
        marker: the line behind which it goes.
    """
    out.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(section)
    if results:
        insert(results, section, marker=marker)


def insert(path: Path, section: str, *, marker: str) -> None:
    """Put a section right below its marker line in a Markdown file, newest first.

    Raises:
        ValueError: the file does not hold the marker.
    """
    text = path.read_text("utf-8")
    if marker not in text:
        raise ValueError(f"{path}: no line {marker!r}, below which new measurements go")
    path.write_text(text.replace(marker, f"{marker}\n\n{section.rstrip()}", 1), "utf-8")


def _medians(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    weights = {tuple(run["weights_sha256"]) for run in runs}
    peaks = {
        name: max(run[name] for run in runs)
        for name in ("peak_memory_bytes", "sampled_bytes", "anonymous_bytes")
    }
    return {
        "seconds": statistics.median(run["seconds"] for run in runs),
        "seconds_of_runs": [run["seconds"] for run in runs],
        **peaks,
        "identical_runs": len(weights) == 1 if len(runs) > 1 else None,
        "versions": runs[0].get("versions", {}),
    }


def _ratios(ours: Mapping[str, Any], peer: Mapping[str, Any], tolerance: float) -> dict[str, Any]:
    size = ours["weights_bytes"] / peer["weights_bytes"]
    return {
        **{
            name: ours[name] / peer[name]
            for name in ("seconds", "peak_memory_bytes", "anonymous_bytes", "perplexity")
        },
        "weights_bytes": size,
        "equal_bytes": abs(size - 1) <= tolerance,
        "kl_mean": {
            text: ours["divergence"][text]["kl_mean"] / found["kl_mean"]
            for text, found in peer["divergence"].items()
        },
    }


def _same_windows(
    wanted: str, runs: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, bool | None]:
    """For each side: whether its tokens are those that were cut; None where it is silent."""
    said = {name: of_side[0].get("calibration_fingerprint") for name, of_side in runs.items()}
    return {name: found and found == wanted for name, found in said.items()}


def table(teacher: Mapping[str, Any], sides: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the readers found, a row for the teacher and one for each side.

    Perplexity is that of the first text, over its own windows; that of every other text is over
    the windows of its KL. Bits per weight are those of the linears in the blocks.
    """
    first, *others = next(iter(sides.values()))["divergence"]
    head = ["", "perplexity", *(f"perplexity, {text}" for text in others), "MB", "MB, weights"]
    head += ["bits per weight", "with head"]
    head += [f"{what}, {text}" for text in (first, *others) for what in ("KL mean", "p99", "top-1")]
    head += ["seconds", "peak MiB", "anonymous MiB"]
    rows = [_read("teacher", teacher, others)]
    rows[0] += [""] * (len(head) - len(rows[0]))
    for name, side in sides.items():
        row = _read(name, side, others)
        for found in side["divergence"].values():
            row += [f"{found['kl_mean']:.4f}", f"{found['kl_p99']:.3f}"]
            row.append(f"{found['top1_agreement']:.4f}")
        row.append(f"{side['seconds']:.1f}")
        row += [f"{side[key] / 2**20:,.0f}" for key in ("peak_memory_bytes", "anonymous_bytes")]
        rows.append(row)
    rule = ["---"] + ["--:"] * (len(head) - 1)
    return ["| " + " | ".join(cells) + " |" for cells in (head, rule, *rows)]


def _read(name: str, read: Mapping[str, Any], others: Sequence[str]) -> list[str]:
    """The first cells of a row: perplexities, megabytes, bits."""
    perplexities = [read["perplexity"], *(read["divergence"][t]["perplexity"] for t in others)]
    sizes = (f"{read[size] / 1e6:.2f}" for size in ("size_bytes", "weights_bytes"))
    bits = (f"{read[bits]:.3f}" for bits in ("bits_per_weight", "bits_per_weight_with_head"))
    return [name, *(f"{perplexity:.3f}" for perplexity in perplexities), *sizes, *bits]


def _remarks(result: Mapping[str, Any]) -> list[str]:
    lines = []
    for peer, ratio in result["ratios"].items():
        kl = ", ".join(f"{value:.3f}× ({text})" for text, value in ratio["kl_mean"].items())
        equal = "equal" if ratio["equal_bytes"] else f"NOT equal ({ratio['weights_bytes']:.3f}×)"
        lines.append(
            f"- Ours to {peer}: seconds {ratio['seconds']:.3f}×, peak memory "
            f"{ratio['peak_memory_bytes']:.3f}× (anonymous {ratio['anonymous_bytes']:.3f}×), "
            f"KL mean {kl}; stored bytes {equal} within {result['bytes_tolerance']:.1%}."
        )
    for name, same in result["same_windows"].items():
        if not same and (same is False or result["settings"]["method"] != "rtn"):
            did = "does not say whether it calibrated" if same is None else "did NOT calibrate"
            lines.append(f"- {name} {did} on the windows that were cut.")
    for name, side in result["sides"].items():
        if len(side["seconds_of_runs"]) > 1:
            runs = ", ".join(f"{seconds:.1f}" for seconds in side["seconds_of_runs"])
            same = "the same" if side["identical_runs"] else "NOT the same"
            lines.append(f"- {name}: {runs} seconds; weights {same} in all runs.")
    return lines
