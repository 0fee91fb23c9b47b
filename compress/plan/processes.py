"""Several processes that share a run: which stages share their work, and what cannot be shared."""

from __future__ import annotations

from collections.abc import Iterator

from compress.plan.naming import Found
from compress.recipe.distill import ROUNDED
from compress.recipe.methods import INT8
from compress.recipe.schema import Recipe, Stage
from compress.recipe.source import Loc


def shares(stage: Stage) -> bool:
    """Whether processes share the work of a stage; else the first carries it out alone.

    What is walked once, each linear solved from what all windows have shown, is shared; and
    training. Searches, walks there and back, and what looks at weights alone are not.
    """
    if stage.quantize:
        return stage.quantize.needs_calibration and stage.quantize.method not in INT8
    return stage.distill is not None or (stage.prune is not None and stage.prune.by_inputs)


def mistakes(recipe: Recipe, processes: int, *, sharded: bool = False) -> Found:
    """Work that so many processes cannot share, or not the weights of."""
    if processes == 1:
        return
    if sharded:
        yield from _unsharded(recipe)
    samples = recipe.calibration.samples
    walks = any(shares(stage) and not stage.distill for stage in recipe.stages)
    if walks and samples < processes:
        yield (
            ("calibration", "samples"),
            f"{samples} windows cannot be shared among {processes} processes: each walks its own. "
            f"Ask for {processes} or more, or for fewer processes.",
        )
    for index, spec in recipe.distillations:
        seq_len = recipe.read_by(spec).seq_len
        windows = spec.windows_a_step(seq_len)
        if windows < processes:
            yield (
                ("stages", index, "distill", "batch_tokens"),
                f"{spec.batch_tokens} are {windows} window{'s' if windows > 1 else ''} of "
                f"{seq_len} tokens, which cannot be shared among {processes} processes. Ask for "
                f"{processes * seq_len} or more, or for fewer processes.",
            )
    for index, cut in recipe.restructurings:
        if cut.most_time is not None:
            yield (
                ("stages", index, "restructure", "decode_latency"),
                f"is measured, and each of {processes} processes would find another. Ask for keep, "
                "size or parameters, or run in 1 process.",
            )


def _unsharded(recipe: Recipe) -> Found:
    """Training whose weights cannot be held in shards."""
    for index, spec in recipe.distillations:
        loc: Loc = ("stages", index, "distill")
        if spec.train in ROUNDED:
            yield (
                (*loc, "train"),
                f"{spec.train} makes weights of their grids once a step, and shards put them "
                "together block by block. Leave out --shard, or choose train: all.",
            )
        if spec.on_policy:
            yield (
                (*loc, "on_policy"),
                "the student writes token by token, and shards would be put together for each. "
                "Leave out --shard, or on_policy.",
            )


def notes(recipe: Recipe, processes: int, threads: int | None) -> Iterator[str]:
    """Who does what, and with how many threads."""
    if processes == 1:
        return
    named = [(f"stages[{i}].{stage.name}", shares(stage)) for i, stage in enumerate(recipe.stages)]
    shared = [name for name, together in named if together]
    alone = [name for name, together in named if not together]
    each = f"{max(1, threads // processes)} of its {threads}" if threads else "its share of the"
    parts = [f"share {', '.join(shared)}, each with {each} threads"] if shared else []
    if alone:
        parts.append(f"the first alone, with all threads, carries out {', '.join(alone)}")
    told = "; ".join(parts)
    yield f"{processes} processes {told}" if shared else f"of {processes} processes {told}"
