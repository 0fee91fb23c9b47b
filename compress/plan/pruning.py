"""The stage `prune` before a run: what cannot work, how much stays, where a mask pays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from compress.anatomy import Anatomy, Linear
from compress.artifact.formats.matrix import Matrix
from compress.artifact.formats.sparse import Sparse, codes_pay, weights_pay, words
from compress.plan.naming import Found, deciding_nothing, matching_nothing, named
from compress.recipe.pruning import Pruning, prune_override_for, pruning_for
from compress.recipe.schema import Prune, Recipe
from compress.recipe.scheme import Scheme, scheme_for
from compress.recipe.source import Loc
from compress.storage import ITEM_BITS

_QUANTIZED_ONLY = ("gptq", "bnb-int8", "gguf")  # formats that hold no model of floats
_PRUNED, _BOTH = "pruned by", "pruned and quantized"
_MASK_COLUMNS = 32  # masks are stored in whole words


def pruned(prune: Prune, anatomy: Anatomy) -> dict[Linear, Pruning]:
    """The linears that a stage prunes."""
    found = {linear: pruning_for(prune, linear.name) for linear in anatomy.linears}
    return {linear: pruning for linear, pruning in found.items() if pruning is not None}


def grids(prune: Prune, anatomy: Anatomy) -> dict[Linear, Scheme]:
    """What a stage rounds in the loop that prunes."""
    found = {linear: pruning.grid for linear, pruning in pruned(prune, anatomy).items()}
    return {linear: grid for linear, grid in found.items() if grid is not None}


def kept(recipe: Recipe, anatomy: Anatomy) -> dict[str, int]:
    """How many weights stay, by linear; none where nothing is pruned.

    Where zeros are shared out, as if all linears had the same sparsity; see `most`.
    """
    return {
        linear.name: pruning.kept(linear.out_features, linear.in_features)
        for _, prune in recipe.prunings
        for linear, pruning in pruned(prune, anatomy).items()
    }


def shared(recipe: Recipe, anatomy: Anatomy) -> dict[Linear, Pruning]:
    """The linears whose zeros are shared out by what is measured."""
    found = {x: p for _, prune in recipe.prunings for x, p in pruned(prune, anatomy).items()}
    return {linear: p for linear, p in found.items() if p.allocation != "uniform"}


def fewest(recipe: Recipe, anatomy: Anatomy) -> dict[str, int]:
    """The fewest weights that may stay of each linear whose zeros are shared out."""
    return {x.name: _kept_at(p.choices[-1], x, p) for x, p in shared(recipe, anatomy).items()}


def most(
    recipe: Recipe, anatomy: Anatomy, dtypes: Mapping[str, str], quantized: Mapping[str, Matrix]
) -> dict[str, int]:
    """How many weights stay of each such linear in the largest artifact that there may be.

    Bytes of a matrix grow ever less with what stays of it, so where all matrices store a weight
    alike none is larger than that of one sparsity. Elsewhere each is taken to keep its most.
    """

    def form(linear: Linear) -> tuple[object, ...]:
        matrix, masks = quantized.get(linear.name), linear.in_features % _MASK_COLUMNS == 0
        if matrix is None:
            return masks, dtypes[f"{linear.name}.weight"]
        return masks, matrix.scheme.bits, matrix.scheme.numbers, matrix.scheme.inputs is None

    found = shared(recipe, anatomy)
    if len({form(linear) for linear in found}) < 2:
        return {}
    return {x.name: _kept_at(p.choices[0], x, p) for x, p in found.items()}


def _kept_at(sparsity: float, linear: Linear, pruning: Pruning) -> int:
    return replace(pruning, sparsity=sparsity).kept(linear.out_features, linear.in_features)


def masked_codes(
    recipe: Recipe, counts: Mapping[str, int], found: Mapping[str, Matrix]
) -> dict[str, Matrix]:
    """Quantized matrices as they will be stored: some with a mask, where `packed` holds them.

    `counts` says how many weights stay, by linear.
    """
    held = counts if recipe.artifact.format == "packed" else {}
    return {name: _masked(matrix, held.get(name)) for name, matrix in found.items()}


def _masked(matrix: Matrix, count: int | None) -> Matrix:
    scheme = matrix.scheme
    plain = scheme.numbers == "int" and scheme.inputs is None
    if not count or not plain or not codes_pay(matrix.rows, matrix.columns, count, scheme.bits):
        return matrix
    return replace(matrix, kept_words=words(count, scheme.bits))


def masked_weights(
    anatomy: Anatomy,
    counts: Mapping[str, int],
    dtypes: Mapping[str, str],
    quantized: Mapping[str, Matrix],
) -> dict[str, Sparse]:
    """The linears whose weights stay floats and are stored with a mask in `packed`, by name."""
    found = {
        linear.name: Sparse(
            linear.out_features, linear.in_features, counts[linear.name],
            dtypes[f"{linear.name}.weight"],
        )
        for linear in anatomy.linears
        if linear.name in counts and linear.name not in quantized
    }  # fmt: skip
    return {
        name: s
        for name, s in found.items()
        if weights_pay(s.rows, s.columns, s.kept, ITEM_BITS[s.dtype])
    }


def stored_bits(pruning: Pruning, shape: tuple[int, int], bits: int) -> float:
    """Bits a weight of a mask and what stays, where both are less than all weights or codes are."""
    kept = pruning.kept(*shape)
    check = codes_pay if bits < ITEM_BITS["F16"] else weights_pay
    return 1 + bits * kept / math.prod(shape) if check(*shape, kept, bits) else bits


def mistakes(recipe: Recipe, anatomy: Anatomy) -> Found:
    """What of the stages `prune` cannot work on a model."""
    taken: dict[str, str] = {}
    zeros, healed = dict[str, int](), set[str]()
    loc: Loc
    for index, stage in enumerate(recipe.stages):
        if stage.distill:
            healed |= {name for name, why in taken.items() if why.startswith(_PRUNED)}
        if stage.quantize:
            names = _names(recipe, index, anatomy)
            if twice := [name for name in names if taken.get(name, "").startswith(_BOTH)]:
                loc = ("stages", index, "quantize")
                yield loc, f"{twice[0]}: already {taken[twice[0]]}. Leave out one of them."
            taken |= dict.fromkeys(names, f"quantized by stages[{index}]")
        if stage.prune is None:
            continue
        loc = ("stages", index, "prune")
        found = pruned(stage.prune, anatomy)
        yield from _unmatched(loc, stage.prune, anatomy)
        yield from _undivided(loc, stage.prune, found)
        if not found:
            yield loc, "leaves every linear whole. Widen targets or shorten ignore."
        again = {x: zeros[x.name] for x in found if x.name in healed and x.name in zeros}
        for why in dict.fromkeys(taken[x.name] for x in found if x.name in taken.keys() - healed):
            alike = [linear for linear in found if taken.get(linear.name) == why]
            first = "Put a distill between them" if why.startswith(_PRUNED) else "Prune before"
            yield loc, f"{named(alike)}: already {why}. {first}, or prune once."
        if fewer := [linear for linear, least in again.items() if _zeros(linear, found) < least]:
            yield loc, f"{named(fewer)}: had more zeros already. Ask for as many, or more."
        how = _BOTH if stage.prune.quantize else "pruned"
        taken |= dict.fromkeys((linear.name for linear in found), f"{how} by stages[{index}]")
        zeros |= {linear.name: _zeros(linear, found) for linear in found}
        healed -= {linear.name for linear in found}
    if recipe.prunings and recipe.artifact.format in _QUANTIZED_ONLY and not _rounds(recipe):
        yield (
            ("artifact", "format"),
            f"{recipe.artifact.format} holds linears of integers, and nothing is quantized. Use "
            "packed, or compressed-tensors, which is then a plain folder with zeros.",
        )


def _zeros(linear: Linear, found: Mapping[Linear, Pruning]) -> int:
    rows, columns = linear.out_features, linear.in_features
    return rows * columns - found[linear].kept(rows, columns)


def _rounds(recipe: Recipe) -> bool:
    return bool(recipe.quantizations) or any(prune.quantize for _, prune in recipe.prunings)


def _names(recipe: Recipe, index: int, anatomy: Anatomy) -> list[str]:
    """The block linears that a stage quantizes."""
    quantize = recipe.stages[index].quantize
    if quantize is None:
        return []
    names = [linear.name for linear in anatomy.linears]
    return [name for name in names if scheme_for(quantize, name)]


def _unmatched(loc: Loc, prune: Prune, anatomy: Anatomy) -> Found:
    names = [linear.name for linear in anatomy.linears]
    for index, pattern in enumerate(prune.targets):
        yield from matching_nothing((*loc, "targets", index), pattern, names)
    for index, pattern in enumerate(prune.ignore):
        heads = ["lm_head", anatomy.head.name]
        yield from matching_nothing((*loc, "ignore", index), pattern, [*names, *heads])
    there = [name for name in names if pruning_for(prune, name)]
    decisive = {prune_override_for(prune, name) for name in there}
    yield from deciding_nothing(loc, prune.overrides, decisive, there)


def _undivided(loc: Loc, prune: Prune, found: Mapping[Linear, Pruning]) -> Found:
    """Patterns n:m whose m does not divide the inputs of a linear; groups that do not."""
    by_field: dict[Loc, list[Linear]] = {}
    for linear, pruning in found.items():
        if linear.in_features % (pruning.neighbours or 1):
            override = prune_override_for(prune, linear.name)
            where = ("overrides", override) if override else ()
            by_field.setdefault((*loc, *where, "pattern"), []).append(linear)
    for field, failing in by_field.items():
        one, width = found[failing[0]], failing[0].in_features
        yield (
            field,
            f"{one.pattern} needs in_features that {one.neighbours} divides, not {width} of "
            f"{named(failing)}. Use another pattern, or put them on ignore.",
        )
    size = prune.quantize.group_size if prune.quantize else -1
    if failing := [x for x in found if size != -1 and x.in_features % size]:
        width = failing[0].in_features
        yield (
            (*loc, "quantize", "group_size"),
            f"{size} does not divide in_features {width} of {named(failing)}. Use another, or -1 "
            "for one scale per row.",
        )


def said(pruning: Pruning) -> str:
    """How much is pruned, and how, in words."""
    much = pruning.pattern or f"{100 * (pruning.sparsity or 0):.4g} % zeros"
    shared = "" if pruning.allocation == "uniform" else f" by {pruning.allocation}"
    return f"{pruning.method}, {much}{shared}"
