"""A model that a recipe turns round inside: what cannot be turned, and what that leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from compress.anatomy import Anatomy, head_width, turning, turns, untied
from compress.kernels.orthogonal import hadamard_core
from compress.recipe.schema import Recipe
from compress.recipe.source import Loc
from compress.teacher.headers import Headers

if TYPE_CHECKING:
    from compress.plan.footprint import Job

_READ = 3  # times that a walk, a writer and verification read a block
_LOC: Loc = ("stages", 0, "rotate")


def mistakes(
    recipe: Recipe, anatomy: Anatomy, config: Mapping[str, Any]
) -> Iterator[tuple[Loc, str]]:
    """What of the stage `rotate` cannot work on a model."""
    spec, family = recipe.rotate, anatomy.model_type
    if spec is None:
        return
    width = head_width(anatomy.blocks[0], config)
    if spec.residual != "none" and not turns(family):
        yield (
            (*_LOC, "residual"),
            f"{spec.residual}, and norms of {family} do more than divide by a length and multiply "
            f"by a weight, or lie behind linears. Use residual: none; families that can: "
            f"{', '.join(turning())}.",
        )
    if spec.values != "none" and width is None:
        yield (
            (*_LOC, "values"),
            f"{spec.values}, and q, k and v of {family} are one matrix. Use values: none.",
        )
    for field, size in (("residual", anatomy.hidden_size), ("values", width)):
        if getattr(spec, field) == "hadamard" and size and hadamard_core(size) is None:
            yield (*_LOC, field), f"no Hadamard matrix of size {size} is known here. Use random."


def turned(recipe: Recipe, anatomy: Anatomy) -> Anatomy:
    """What a recipe compresses: a turned residual stream takes a tied head off its embedding."""
    return untied(anatomy) if recipe.turns else anatomy


def turned_headers(recipe: Recipe, headers: Headers) -> Headers:
    """The headers of what a recipe compresses."""
    found = turned(recipe, headers.anatomy)
    if found is headers.anatomy:
        return headers
    head, embedding = f"{found.head.name}.weight", f"{found.embedding}.weight"
    dtypes = {**headers.dtypes, head: headers.dtypes[embedding]}
    config = {**headers.config, "tie_word_embeddings": False}
    return replace(headers, config=config, anatomy=found, dtypes=dtypes)


def note(recipe: Recipe, headers: Headers) -> Iterator[str]:
    """What a turned stream adds to the artifact."""
    cast = headers.cast(recipe.teacher.dtype)
    if turned(recipe, cast.anatomy) is not cast.anatomy:
        size = cast.nbytes(f"{cast.anatomy.embedding}.weight")
        rotated = recipe.rotate is not None and recipe.rotate.residual != "none"
        what, when = "rotate.residual", "rounded"
        if not rotated:
            what, when = "restructure.hidden turns the stream and", "cut"
        yield (
            f"{what} unties the head, which takes up the weight of the final norm: "
            f"{size / 1e6:.1f} MB more before it is {when}"
        )


def memory(job: Job) -> int:
    """Turned embedding and head, float32, while a walk begins or the head is solved."""
    return 2 * 4 * job.anatomy.head.weights if job.recipe.turns else 0


def work(job: Job) -> float:
    """Operations: each time that it is read, a weight meets a column of the matrix that turns."""
    hidden = job.anatomy.hidden_size
    if not job.recipe.turns:
        return 0.0  # heads are narrow
    return 2.0 * _READ * hidden * (job.anatomy.weights + 2 * job.anatomy.head.weights)
