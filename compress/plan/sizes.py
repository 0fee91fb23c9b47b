"""What an artifact will take, to the byte, and the disk that making it takes: from headers alone.

Formats say themselves what they store of a matrix (`Format.stored`), so nothing here can disagree
with what is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from compress.anatomy import Anatomy, Linear
from compress.artifact.formats import FORMATS, kv, sparse
from compress.artifact.formats.input_scheme import InputScheme
from compress.artifact.formats.matrix import Matrix, Specs
from compress.artifact.formats.matrix import Scheme as Stored
from compress.artifact.layout import PARTS, part_of
from compress.artifact.write import beside, config_text
from compress.plan import pruning
from compress.plan.files import Tensor, gguf_bytes, index_bytes, nbytes, shard_bytes
from compress.plan.files import shards as split
from compress.plan.reshaping import cut_bytes, cut_headers, made_headers
from compress.recipe.allocate import free, head_is_free
from compress.recipe.schema import Allocate, Quantize, Recipe
from compress.recipe.scheme import Scheme, head_scheme, scheme_for
from compress.results import SizePart
from compress.shape import Shape
from compress.teacher.headers import DTYPES, Headers


@dataclass(frozen=True)
class Size:
    """An artifact before it is made. Bits count all stored bytes: codes, scales, zeros."""

    size_bytes: int  # of all files that a loader needs
    before_bytes: int
    bits_per_weight: float  # of the block linears
    bits_per_weight_with_head: float  # and of the head, with all that a tied one has become
    parts: tuple[SizePart, ...]
    shards: int
    at_most: bool = False  # bits, zeros or a shape have yet to be found; see `plan.budget`
    least_bytes: int | None = None  # where it is at most: no way of sharing takes less, if known


def quantized(
    quantize: Quantize, anatomy: Anatomy, allocated: Mapping[str, int] | None = None
) -> dict[Linear, Scheme]:
    """The linears that a stage quantizes, the head among them; `allocated` as for `scheme_for`."""
    bits, head = allocated or {}, anatomy.head
    found = {linear: scheme_for(quantize, linear.name, bits) for linear in anatomy.linears}
    found[head] = head_scheme(quantize, head.name, bits)
    return {linear: scheme for linear, scheme in found.items() if scheme}


def stage_schemes(
    recipe: Recipe, index: int, anatomy: Anatomy, allocated: Mapping[str, int] | None = None
) -> dict[Linear, Scheme]:
    """What one stage makes of the linears that it quantizes; none where it is no `quantize`.

    Where `allocate` says how many bits and nothing is known yet (None), it is the most it may.
    """
    quantize, allocate = recipe.stages[index].quantize, recipe.fed(index)
    if (prune := recipe.stages[index].prune) is not None:
        return pruning.grids(prune, anatomy)
    if quantize is None:
        return {}
    if allocate is not None and allocated is None:
        allocated = dict.fromkeys(free_linears(allocate, quantize, anatomy), max(allocate.bits))
    return quantized(quantize, anatomy, allocated if allocate else None)


def free_linears(allocate: Allocate, quantize: Quantize, anatomy: Anatomy) -> list[str]:
    """The linears whose bits `allocate` says, the head among them where the budget counts it."""
    names = [linear.name for linear in anatomy.linears if free(quantize, linear.name)]
    return [*names, *([anatomy.head.name] if head_is_free(allocate, quantize) else [])]


def schemes(
    recipe: Recipe, anatomy: Anatomy, allocated: Mapping[str, int] | None = None
) -> dict[Linear, Scheme]:
    """What all stages together make of each linear, in the order of the model."""
    found: dict[Linear, Scheme] = {}
    for index in range(len(recipe.stages)):
        found |= stage_schemes(recipe, index, anatomy, allocated)
    return {linear: found[linear] for linear in (*anatomy.linears, anatomy.head) if linear in found}


def matrices(anatomy: Anatomy, found: Mapping[Linear, Scheme]) -> dict[str, Matrix]:
    """The quantized matrices of an artifact by module name: a tied head goes by its embedding's."""
    return {
        anatomy.embedding if linear == anatomy.head and anatomy.tied else linear.name: Matrix(
            _scheme(linear, scheme),
            linear.out_features,
            linear.in_features,
        )
        for linear, scheme in found.items()
    }


def _scheme(linear: Linear, scheme: Scheme) -> Stored:
    """How a linear will be stored."""
    inputs = None
    if scheme.activations != "none":
        static = scheme.activations == "static"
        inputs = InputScheme(scheme.numbers, static=static, group_size=scheme.input_group)
    if scheme.int8_inputs:
        threshold = scheme.threshold if scheme.method == "llm_int8" else 0.0
        listed = threshold > 0 and scheme.outliers == "static"  # how many, calibration will find
        inputs = InputScheme("int8", 0.0 if listed else threshold, outliers=listed)
    size = linear.in_features if scheme.group_size == -1 else scheme.group_size
    return Stored(scheme.bits, size, scheme.sym, inputs, scheme.numbers, scheme.scale_rows)


def size(
    recipe: Recipe,
    headers: Headers,
    allocated: Mapping[str, int] | None = None,
    kept: Mapping[str, int] | None = None,
) -> Size:
    """The artifact that a recipe makes of a teacher; group sizes divide, see `mistakes.check`.

    Args:
        recipe: as loaded.
        headers: of its teacher.
        allocated: bits by linear, as the stage `allocate` said; None for the most that it may say.
        kept: how many weights stay, of linears where `prune` shares zeros out; None for what
            makes the artifact largest.
    """
    before, headers = headers.taught_by, made_headers(recipe, headers.cast(recipe.teacher.dtype))
    anatomy = headers.anatomy
    found = matrices(anatomy, schemes(recipe, anatomy, allocated))
    if kept is None:
        kept = pruning.most(recipe, anatomy, headers.dtypes, found)
    counts = pruning.kept(recipe, anatomy) | dict(kept)
    found = pruning.masked_codes(recipe, counts, found)
    cached, format = caches(recipe), recipe.artifact.format
    held = counts if format == "packed" else {}
    masked = pruning.masked_weights(anatomy, held, headers.dtypes, found)
    scales = kv.stored(format, anatomy, headers.config, cached)
    specs = {name: FORMATS[format].stored(name, matrix) for name, matrix in found.items()}
    specs |= {name: sparse.stored(name, weights) for name, weights in masked.items()}
    tensors = list(_tensors(headers, specs, format, scales))
    after, weights = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0)
    for name, dtype, shape in tensors:
        after[part_of(anatomy, name)] += nbytes(dtype, shape)
    for name, shape in anatomy.tensors.items():
        weights[part_of(anatomy, name)] += math.prod(shape)
    shards = [tensors]
    if format == "gguf":
        files = gguf_bytes(tensors, headers.files.get("tokenizer.json", 0))
    else:
        shards = list(split(tensors, recipe.artifact.max_shard_bytes))
        files = sum(map(shard_bytes, shards)) + index_bytes(shards)
    form = FORMATS[format]
    written = {name: found[name].scheme for name in _order(anatomy) if name in found}
    quantization = kv.describe(format, form.config(anatomy, written), cached, anatomy)
    files += len(config_text(headers.config, quantization).encode())
    files += sum(len(text.encode()) for text in beside(format, quantization).values())
    files += sum(headers.files.values())
    after["other files"] = files - sum(after.values())
    was = _before(before)
    parts = tuple(SizePart(part, weights[part], was[part], after[part]) for part in PARTS)  # type: ignore[arg-type]
    ends = after["head"] + (after["embedding"] if before.anatomy.tied else 0)
    return Size(
        files,
        sum(was.values()),
        8 * after["block linears"] / anatomy.weights,
        8 * (after["block linears"] + ends) / (anatomy.weights + anatomy.head.weights),
        parts,
        len(shards),
    )


def caches(recipe: Recipe) -> kv.KVScheme | None:
    """How keys and values will be cached; None where they are not rounded."""
    spec = recipe.kv_cache
    return None if spec is None else kv.KVScheme(spec.numbers, spec.granularity)


@dataclass(frozen=True)
class Counter:
    """Counts an artifact whose bits have yet to be shared out; see `stages.context.Sizes`."""

    recipe: Recipe
    headers: Headers
    kept: Mapping[str, int] | None = None  # as for `size`: what a stage `prune` found

    def artifact(self, allocated: Mapping[str, int]) -> Size:
        """The artifact with these bits by linear."""
        return size(self.recipe, self.headers, allocated, self.kept)

    def shaped(self, sizes: Shape) -> int:
        """Bytes of all files when the model has another shape, behind all other stages."""
        return self.cut(cut_headers(self.headers, sizes)).artifact({}).size_bytes

    def divides(self, sizes: Shape) -> bool:
        """Whether groups of the stages behind divide what linears of another shape read."""
        behind = self.cut(cut_headers(self.headers, sizes))
        anatomy = made_headers(behind.recipe, behind.headers).anatomy
        return not any(
            linear.in_features % size for linear, size in _groups(behind.recipe, anatomy)
        )

    def cut(self, headers: Headers) -> Counter:
        """The same, of a model that was given another shape, and of the stages behind that.

        That is by the first stage `restructure` that is left of the recipe.
        """
        stages, done = self.recipe.stages, self.recipe.restructurings[0][0]
        left = (*stages[:done], *stages[done + 1 :])
        return Counter(self.recipe.model_copy(update={"stages": left}), headers)

    def linear(self, linear: Linear, allocated: Mapping[str, int]) -> int:
        """Stored bytes of one quantized linear, or of the head."""
        headers = made_headers(self.recipe, self.headers)
        anatomy, form = headers.anatomy, self.recipe.artifact.format
        scheme = schemes(self.recipe, anatomy, allocated)[linear]
        counts = pruning.kept(self.recipe, anatomy) | dict(self.kept or {})
        found = pruning.masked_codes(self.recipe, counts, matrices(anatomy, {linear: scheme}))
        ((module, matrix),) = found.items()
        stored = _placed(headers, FORMATS[form].stored(module, matrix))
        return sum(nbytes(*tensor[1:]) for tensor in stored)


def _groups(recipe: Recipe, anatomy: Anatomy) -> Iterator[tuple[Linear, int]]:
    """How many neighbouring inputs share a scale, or compete to stay, in all stages."""
    for index, stage in enumerate(recipe.stages):
        for linear, scheme in stage_schemes(recipe, index, anatomy).items():
            if scheme.group_size > 0:
                yield linear, scheme.group_size
        if stage.prune is not None:
            for linear, one in pruning.pruned(stage.prune, anatomy).items():
                yield linear, one.neighbours or 1


def disk(recipe: Recipe, headers: Headers, spilled_bytes: int) -> dict[str, int]:
    """Bytes that a run takes on disk at most, by what takes them.

    Args:
        recipe: as loaded.
        headers: of its teacher.
        spilled_bytes: activations that do not fit memory, see `memory.spilled_bytes`.
    """
    anatomy = headers.anatomy
    read = [headers, *([headers.teacher] if headers.teacher else [])]
    found = matrices(anatomy, schemes(recipe, anatomy))
    committed = sum(4 * math.prod(m.code_words) + 5 * m.rows * m.groups for m in found.values())
    return {
        "download": sum(one.download_bytes for one in read),
        "dequantized teacher": sum(one.converted_bytes for one in read),
        "artifact": size(recipe, headers).size_bytes,
        # in OUT.partial, until the artifact is whole
        "finished blocks": committed + _pruned_bytes(recipe, headers) + cut_bytes(recipe, headers),
        "activations": spilled_bytes,
    }


def _pruned_bytes(recipe: Recipe, headers: Headers) -> int:
    """Of weights that were pruned and stay floats, as they are committed: whole, with zeros."""
    headers = headers.cast(recipe.teacher.dtype)
    return sum(headers.nbytes(f"{name}.weight") for name in pruning.kept(recipe, headers.anatomy))


def _order(anatomy: Anatomy) -> Iterator[str]:
    """Modules and tensors in the order in which a student hands them over."""
    return chain.from_iterable(
        _within(anatomy, index) for index in (None, *range(len(anatomy.blocks)))
    )


def _within(anatomy: Anatomy, index: int | None) -> Iterator[str]:
    """Modules and tensors of one block, or (None) of none."""
    names = anatomy.outside() if index is None else anatomy.inside(index)
    return (name.removesuffix(".weight") for name in names)


def _placed(headers: Headers, specs: Specs) -> Iterator[Tensor]:
    """Tensors as they are written: in the dtype of the model where their format leaves a choice."""
    computed = DTYPES.get(str(headers.config.get("dtype", headers.config.get("torch_dtype"))))
    for name, (dtypes, shape) in specs.items():
        yield name, dtypes[0] if len(dtypes) == 1 else computed or "BF16", shape


def _tensors(
    headers: Headers, changed: Mapping[str, Specs], format: str, scales: Specs
) -> Iterator[Tensor]:
    """Every tensor of the artifact, in the order in which it is written.

    `changed` says what holds the matrices that are not stored as they were, by module name.
    """
    anatomy = headers.anatomy
    for index in (None, *range(len(anatomy.blocks))):
        for module in _within(anatomy, index):
            if module in changed:
                yield from _placed(headers, changed[module])
            else:
                name = module if module in anatomy.tensors else f"{module}.weight"
                vector = format == "gguf" and len(anatomy.tensors[name]) == 1
                yield name, "F32" if vector else headers.dtypes[name], anatomy.tensors[name]
        if index is not None:
            attention = anatomy.blocks[index].attention + "."
            here = {name: spec for name, spec in scales.items() if name.startswith(attention)}
            yield from _placed(headers, here)


def _before(headers: Headers) -> dict[str, int]:
    parts = dict.fromkeys(PARTS, 0)
    for name in headers.anatomy.tensors:
        parts[part_of(headers.anatomy, name)] += headers.nbytes(name)
    parts["other files"] = headers.config_bytes + sum(headers.files.values())
    return parts
