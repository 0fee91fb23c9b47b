"""A recipe held against a model, from headers alone: what cannot work.

The recipe's own checks (`compress.recipe`) know no model; here widths, names and ties are known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from compress.anatomy import Anatomy, Linear, longest_window
from compress.artifact.formats import FORMATS
from compress.artifact.gguf_header import flaws
from compress.errors import RecipeError
from compress.plan import beginning, caching, pruning, reshaping, rotation, sizes, teaching
from compress.plan import processes as sharing
from compress.plan.beginning import Model
from compress.plan.naming import Found, by_inputs, deciding_nothing, matching_nothing, named
from compress.plan.sizes import stage_schemes
from compress.recipe.methods import FLOATS, INT8
from compress.recipe.mistakes import dotted
from compress.recipe.patterns import HEAD
from compress.recipe.schema import Quantize, Recipe
from compress.recipe.scheme import Scheme, override_for, scheme_for
from compress.recipe.source import Loc, Places
from compress.recipe.suite import Suite

GROUP_SIZES = (32, 64, 128)


def check(
    recipe: Recipe,
    anatomy: Anatomy,
    places: Places | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    suite: Suite | None = None,
    teacher: Model | None = None,
    processes: int = 1,
    sharded: bool = False,
) -> None:
    """Check that a recipe can be carried out on a model, and its artifact hold the outcome.

    Args:
        recipe: as loaded.
        anatomy: of what the student begins as: the teacher, or another model.
        places: where the recipe's parts were written (`load.locate`), so that mistakes name lines.
        config: of the same; with it, windows are held against the positions that it has.
        suite: by which the student will be judged.
        teacher: the teacher, where the student begins as another model.
        processes: that will share the run.
        sharded: whether they will share the weights that it trains.

    Raises:
        RecipeError: every mistake found.
    """
    reading = [config or {}, *([teacher.config] if teacher else [])]
    places = places or Places("recipe")
    uncut = list(reshaping.mistakes(recipe, anatomy, config or {}))
    left = rotation.turned(recipe, anatomy)
    if not uncut:
        left = reshaping.made(recipe, anatomy, config or {}).anatomy
    mistakes = [
        *rotation.mistakes(recipe, anatomy, config or {}),
        *uncut,
        *_mistakes(recipe, left),
        *pruning.mistakes(recipe, left),
        *caching.mistakes(recipe, anatomy, config or {}),
        *beginning.mistakes(recipe, anatomy, teacher),
        *sharing.mistakes(recipe, processes, sharded=sharded),
        *(one for read in reading for one in teaching.mistakes(recipe, read)),
        *teaching.unmatched(recipe, left, teacher.anatomy if teacher else anatomy),
        *teaching.immovable(recipe, left),
        *(one for read in reading for one in _too_long(recipe, read, suite)),
        *_computed_otherwise(recipe, config or {}),
    ]
    found = sorted(dict.fromkeys(mistakes), key=lambda mistake: places.order(mistake[0]))
    if found:
        raise RecipeError([f"{places.label(loc)}  {dotted(loc)}: {text}" for loc, text in found])


def _too_long(recipe: Recipe, config: Mapping[str, Any], suite: Suite | None) -> Found:
    longest = longest_window(config)
    asked: list[tuple[Loc, str, int]] = []
    if recipe.needs_calibration:
        asked.append((("calibration", "seq_len"), "", recipe.calibration.seq_len))
    if suite is not None:
        texts = {"perplexity": suite.perplexity, "divergence": suite.divergence}
        asked += [
            (("evaluate", "suite"), f"{name}: ", text.seq_len) for name, text in texts.items()
        ]
    for loc, what, tokens in asked:
        if longest is not None and tokens > longest:
            yield (
                loc,
                f"{what}{tokens} tokens, and the teacher has {longest} positions. Ask for fewer.",
            )


def _mistakes(recipe: Recipe, anatomy: Anatomy) -> Found:
    taken: dict[str, int] = {}
    for index, quantize in recipe.quantizations:
        loc: Loc = ("stages", index, "quantize")
        schemes = stage_schemes(recipe, index, anatomy)
        yield from _unmatched(loc, quantize, anatomy)
        yield from _undivided(loc, quantize, schemes)
        yield from _twice(loc, schemes, taken)
        if not schemes:
            yield loc, "leaves every linear dense. Widen targets or shorten ignore."
        if recipe.artifact.format == "compressed-tensors":
            yield from _not_exportable(loc, quantize, anatomy, schemes)
        if recipe.artifact.format == "bnb-int8":
            yield from _not_for_bitsandbytes(loc, quantize, anatomy, schemes)
        taken.update(dict.fromkeys((linear.name for linear in schemes), index))
    joint = any(prune.quantize for _, prune in recipe.prunings)
    if joint or recipe.artifact.format in ("gptq", "gguf"):
        yield from _refused(recipe, anatomy)


def _refused(recipe: Recipe, anatomy: Anatomy) -> Found:
    """What the format itself says it cannot hold."""
    format = recipe.artifact.format
    planned = sizes.matrices(anatomy, sizes.schemes(recipe, anatomy))
    stored = {name: matrix.scheme for name, matrix in planned.items()}
    for reason in FORMATS[format].refusals(anatomy, stored):
        yield ("artifact", "format"), reason.removeprefix("artifact.format ")


def _computed_otherwise(recipe: Recipe, config: Mapping[str, Any]) -> Found:
    """What llama.cpp would make of the model that it is not."""
    if recipe.artifact.format == "gguf":
        for flaw in flaws(config):
            yield ("artifact", "format"), f"gguf: {flaw}. Use artifact.format: packed."


def _unmatched(loc: Loc, quantize: Quantize, anatomy: Anatomy) -> Found:
    names = [linear.name for linear in anatomy.linears]
    for index, pattern in enumerate(quantize.targets):
        yield from matching_nothing((*loc, "targets", index), pattern, names)
    for index, pattern in enumerate(quantize.ignore):  # the head is dense, so naming it is right
        heads = [HEAD, anatomy.head.name]
        yield from matching_nothing((*loc, "ignore", index), pattern, [*names, *heads])
    quantized = [name for name in names if scheme_for(quantize, name)]
    decisive = {override_for(quantize, name) for name in quantized}
    yield from deciding_nothing(loc, quantize.overrides, decisive, quantized)


def _undivided(loc: Loc, quantize: Quantize, schemes: dict[Linear, Scheme]) -> Found:
    """One mistake for each field that sets a group size, however many linears it fails on."""
    by_field: dict[Loc, list[Linear]] = {}
    for linear in schemes:
        pattern = override_for(quantize, linear.name) if linear.block is not None else None
        if pattern is None or quantize.overrides[pattern].group_size is None:
            by_field.setdefault((*loc, "group_size"), []).append(linear)
        else:
            by_field.setdefault((*loc, "overrides", pattern, "group_size"), []).append(linear)
    for field, linears in by_field.items():
        size = schemes[linears[0]].group_size
        widths = [linear.in_features for linear in linears]
        if quantize.method in FLOATS:
            yield from _undivided_floats(loc, quantize, linears, size)
            continue
        if failing := [x for x in linears if size != -1 and x.in_features % size]:
            working = [s for s in GROUP_SIZES if not any(width % s for width in widths)]
            sizes = f"Use {' or '.join(map(str, working))}, or -1" if working else "Use -1"
            found = f"{size} does not divide in_features {by_inputs(failing)}"
            yield field, f"{found}. {sizes} for one scale per row."


def _undivided_floats(loc: Loc, quantize: Quantize, linears: Sequence[Linear], size: int) -> Found:
    """Of floating numbers only fp8 leaves a choice of what shares a scale."""
    if failing := [x for x in linears if size != -1 and x.in_features % size]:
        field = "strategy" if quantize.method == "fp8" else "method"
        found = f"{getattr(quantize, field)} needs in_features that {size} divides, not "
        choice = "Use strategy: channel" if field == "strategy" else "Put them on ignore"
        yield (*loc, field), f"{found}{by_inputs(failing)}. {choice}."


def _twice(loc: Loc, schemes: Iterable[Linear], taken: dict[str, int]) -> Found:
    again = [linear for linear in schemes if linear.name in taken]
    for index, group in groupby(again, key=lambda linear: taken[linear.name]):
        names = named(list(group))
        yield loc, f"{names}: already quantized by stages[{index}]. Narrow the targets of one."


def _not_exportable(
    loc: Loc, quantize: Quantize, anatomy: Anatomy, schemes: dict[Linear, Scheme]
) -> Found:
    remedy = "or artifact.format: packed"
    if quantize.method == "llm_int8" and quantize.threshold:
        yield (
            (*loc, "threshold"),
            f"compressed-tensors has no outlier columns. Use threshold: 0, artifact.format: "
            f"bnb-int8, {remedy}.",
        )
    if quantize.head and anatomy.tied:
        yield (
            (*loc, "head"),
            f"{quantize.head} bits, but {anatomy.embedding} is the head too, and "
            f"compressed-tensors has no quantized embedding. Use head: null, {remedy}.",
        )
    if transposed := [linear for linear in schemes if linear.transposed]:
        yield (
            loc,
            f"compressed-tensors holds no Conv1D, which {named(transposed)} of "
            f"{anatomy.model_type} are. Use artifact.format: packed.",
        )
    for fused, groups in _uneven(anatomy, schemes).items():
        names = named(groups[0])
        more = f", and so in {len(groups) - 1} more blocks" if len(groups) > 1 else ""
        yield (
            loc,
            f"{names} get unequal schemes{more}. Engines that open compressed-tensors fuse them "
            f"({fused}) and need one. Treat them alike, {remedy}.",
        )


def _not_for_bitsandbytes(
    loc: Loc, quantize: Quantize, anatomy: Anatomy, schemes: dict[Linear, Scheme]
) -> Found:
    """What LLM.int8() as bitsandbytes stores it cannot hold."""
    remedy = "or artifact.format: packed"
    if quantize.method not in INT8:
        known = " and ".join(INT8)
        yield (*loc, "method"), f"bnb-int8 holds {known}, not {quantize.method}. Use one, {remedy}."
    if quantize.method == "llm_int8" and quantize.threshold and quantize.outliers == "static":
        yield (*loc, "outliers"), f"bnb-int8 lists no columns. Use outliers: dynamic, {remedy}."
    if quantize.head:
        yield (*loc, "head"), f"bnb-int8 holds no rounded head. Use head: null, {remedy}."
    if transposed := [linear for linear in schemes if linear.transposed]:
        kind = f"no Conv1D, which {named(transposed)} of {anatomy.model_type} are"
        yield loc, f"bnb-int8 holds {kind}. Use artifact.format: packed."


def _uneven(anatomy: Anatomy, schemes: dict[Linear, Scheme]) -> dict[str, list[list[Linear]]]:
    """Fused groups whose linears do not all get the same integers, by the name of the fusion."""
    found: dict[str, list[list[Linear]]] = {}
    for block in anatomy.blocks:
        for fused in dict.fromkeys(linear.fused for linear in block.linears if linear.fused):
            group = [linear for linear in block.linears if linear.fused == fused]
            given = [schemes.get(linear) for linear in group]
            if len({scheme and _stored_alike(scheme) for scheme in given}) > 1:
                found.setdefault(fused, []).append(group)
    return found


def _stored_alike(scheme: Scheme) -> tuple[object, ...]:
    """What linears must have in common for engines to fuse them."""
    grid = scheme.bits, scheme.group_size, scheme.sym
    return *grid, scheme.numbers, scheme.scale_rows, scheme.activations
