"""Judge one model that is there already: an artifact beside its teacher, or any model alone."""

from __future__ import annotations

from pathlib import Path

from compress import library, machine, storage
from compress.artifact.layout import open_artifact
from compress.evaluate import sizes
from compress.evaluate.judge import Judge, Judgement
from compress.machine import Machine
from compress.recipe.load import load as load_recipe
from compress.recipe.suite import Suite, load_suite
from compress.results import Divergence, Side
from compress.surgery import load
from compress.surgery.walk import Watch
from compress.teacher import sources


def evaluate(
    model: str,
    *,
    suite: str = "quick",
    device: str = "cpu",
    threads: int | None = None,
    watch: Watch = None,
) -> tuple[Side, Divergence | None]:
    """Judge a finished artifact beside the teacher that its lock names, or any model alone.

    Args:
        model: an artifact's folder, or a teacher as a recipe names it.
        suite: a shipped suite or a path.
        device: cpu or cuda.
        threads: processor threads.
        watch: told of progress.
    """
    chosen, folder = load_suite(suite), Path(model)
    lock = folder / "recipe.lock.yaml"
    if lock.is_file():
        return _beside_teacher(folder, lock, chosen, device, threads, watch)
    here = machine.prepare(device, dtype="bfloat16", seed=0, threads=threads)
    if is_quantized(folder):
        artifact = open_artifact(folder)
        found = judge_for(folder, chosen, here, watch).alone(artifact)
        return sizes.side_after(artifact, found), None
    teacher = sources.fetch(model, watch=watch)
    found = judge_for(teacher.folder, chosen, here, watch).alone(teacher)
    return sizes.side_before(teacher, sizes.parts_before(teacher), found), None


def _beside_teacher(
    folder: Path, lock: Path, suite: Suite, device: str, threads: int | None, watch: Watch
) -> tuple[Side, Divergence]:
    recipe = load_recipe(str(lock))
    here = machine.prepare(
        device,
        dtype=recipe.teacher.dtype,
        seed=recipe.seed,
        threads=threads or recipe.resolved.threads,
    )
    teacher, artifact = sources.of_recipe(recipe, watch=watch), open_artifact(folder)
    judge = judge_for(teacher.folder, suite, here, watch)
    read, asked = judge.read(teacher, artifact), judge.ask(teacher, artifact)
    found = Judgement(read.after, asked.after)
    return sizes.side_after(artifact, found), read.divergence


def judge_for(folder: Path, suite: Suite, here: Machine, watch: Watch) -> Judge:
    """The judge of a suite, with the tokenizer of a model folder."""
    tokenizer = load.tokenizer(folder)
    cache = library.cache_folder() / "judged"
    return Judge(suite, tokenizer, cache, here.device, here.dtype, watch)


def is_quantized(folder: Path) -> bool:
    """Whether its config says so; a folder without a config is none."""
    try:
        config = storage.read_json(folder / "config.json")
    except (OSError, ValueError):
        return False  # as a teacher it is refused with the reason
    return isinstance(config, dict) and "quantization_config" in config
