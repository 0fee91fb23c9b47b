"""compress from Python: what `compress.apply`, `compress.evaluate` and `compress.load` do.

The commands in a program: the same recipes, the same defaults, results as typed records. torch is
imported when something is computed. Pages: docs/api.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from compress.recipe.load import Given, load, locate

if TYPE_CHECKING:
    from compress.pipeline import Outcome
    from compress.results import Divergence, Side
    from compress.surgery.walk import Watch

__all__ = ["Evaluation", "apply", "evaluate", "load"]
Device: TypeAlias = Literal["auto", "cpu", "cuda"]


class Evaluation(NamedTuple):
    """What a model is worth, and how far it is from its teacher where that is known."""

    side: Side
    divergence: Divergence | None


def apply(  # noqa: PLR0913 - the options of a command
    recipe: Given,
    out: str | Path | None = None,
    *,
    device: Device = "auto",
    threads: int | None = None,
    max_memory: int | str | None = None,
    sign: str | Path | None = None,
    fresh: bool = False,
    watch: Watch = None,
    sets: Sequence[str] = (),
    **changes: Any,
) -> Outcome:
    """Make a smaller model by a recipe, and measure what it cost.

    Cut short, the same call goes on where it stopped.

    Args:
        recipe: as for `load`: a name, a path, a mapping, or a `Recipe`.
        out: the folder to make; ``./<recipe>-<teacher>`` by default.
        device: where to compute; auto takes CUDA if there is one.
        threads: processor threads; a lock's own, or torch's choice, by default.
        max_memory: anonymous memory to keep within, as bytes or as "4GiB".
        sign: a private key (PEM) with which to sign the artifact; needs the extra `signing`.
        fresh: forget what an earlier run has begun.
        watch: called with each `Progress` record; silent by default.
        sets: fields to change, as ``key=value``.
        changes: fields to change, as nested mappings: ``quantize={"bits": 3}``.

    Returns:
        the folder, results, times and verification of the finished run.

    Raises:
        RequestError: the recipe cannot be carried out, or `out` is there already.
        RunError: it could, and something failed; what was finished stays in ``OUT.partial``.
        GateMissed: the student was judged not good enough; it lies in ``OUT.rejected``.
    """
    from compress.artifact.output import default_folder, refuse_finished
    from compress.plan.memory import parse_bytes

    located = locate(recipe, sets, **changes)
    folder = Path(out) if out is not None else default_folder(located.recipe)
    refuse_finished(folder)
    budget = parse_bytes(max_memory) if isinstance(max_memory, str) else max_memory
    from compress import machine, pipeline  # import torch: not before the request is right

    resolved = located.recipe.resolved
    return pipeline.apply(
        located.recipe,
        out=folder,
        device=machine.find_device(resolved.device or device if device == "auto" else device),
        threads=threads or resolved.threads,
        watch=watch,
        places=located.places,
        fresh=fresh,
        max_memory_bytes=budget,
        sign=Path(sign) if sign is not None else None,
    )


def evaluate(
    model: str | Path | Outcome,
    suite: str | Path = "quick",
    *,
    device: Device = "auto",
    threads: int | None = None,
    watch: Watch = None,
) -> Evaluation:
    """Measure a finished artifact beside the teacher that its lock names, or any model alone.

    Args:
        model: an artifact's folder, what `apply` returned, or a teacher as a recipe names it.
        suite: a shipped suite or a path.
        device: where to compute; auto takes CUDA if there is one.
        threads: processor threads; a lock's own, or torch's choice, by default.
        watch: called with each `Progress` record; silent by default.

    Raises:
        RequestError: the model or the suite is not there, or is not what it should be.
        RunError: a measurement could not be taken.
    """
    from compress import machine, pipeline

    named = model if isinstance(model, str | Path) else model.folder
    found = pipeline.evaluate(
        str(named),
        suite=str(suite),
        device=machine.find_device(device),
        threads=threads,
        watch=watch,
    )
    return Evaluation(*found)
