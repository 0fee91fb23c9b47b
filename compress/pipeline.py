"""A recipe carried out: `apply` is the flow, in order, and each step has a room of its own name."""

from __future__ import annotations

import contextlib
import datetime
import platform
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from compress import __version__, plan, storage
from compress.anatomy import longest_window
from compress.artifact import manifest, output, write
from compress.artifact.layout import Artifact, open_artifact
from compress.calibrate import sets
from compress.calibrate.selfgen import Author
from compress.calibrate.tokens import Windows
from compress.errors import (
    CalibrationError,
    ModelError,
    RecipeError,
    RequestError,
)
from compress.evaluate import sizes, speed
from compress.evaluate.judge import Judge
from compress.recipe import resolve
from compress.recipe.schema import Recipe
from compress.recipe.source import Places
from compress.recipe.suite import Suite, load_suite
from compress.report import html, markdown
from compress.results import (
    Divergence,
    Measured,
    Progress,
    Provenance,
    Results,
    Side,
    StageResult,
    to_json,
)
from compress.stages.context import Context
from compress.stages.table import STAGES
from compress.student import Student
from compress.surgery import load
from compress.surgery.walk import Watch
from compress.teacher import sources
from compress.teacher.folder import Teacher

_LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors")


@dataclass(frozen=True)
class Outcome:
    """A finished run: the folder it left and what it found."""

    folder: Path
    results: Results
    measured: Measured


@dataclass
class _Clock:
    """Seconds by step."""

    seconds: dict[str, float] = field(default_factory=dict)
    _begun: float = field(default_factory=time.perf_counter)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - begun, 3)

    def stop(self) -> dict[str, float]:
        return {**self.seconds, "total": round(time.perf_counter() - self._begun, 3)}


@dataclass(frozen=True)
class _Machine:
    """Where a run computes."""

    device: str
    dtype: torch.dtype
    watch: Watch


def apply(
    recipe: Recipe,
    *,
    out: Path,
    device: str = "cpu",
    threads: int | None = None,
    watch: Watch = None,
    places: Places | None = None,
) -> Outcome:
    """Carry out a recipe: from its teacher to a finished, judged artifact.

    Work lives in ``OUT.partial`` and gets its name when it is whole; when anything fails, nothing
    stays.

    Args:
        recipe: as loaded; a lock's fingerprints are held against what is found.
        out: the folder to make.
        device: cpu or cuda.
        threads: processor threads; a lock's own, or torch's choice, by default.
        watch: told of progress.
        places: where the recipe's parts were written, so that late mistakes can name their lines.

    Raises:
        RequestError: the recipe cannot be carried out, or `out` is there already.
        RunError: it could, and something failed.
    """
    clock, suite = _Clock(), _suite(recipe)
    with output.in_the_making(out) as partial:
        machine = _machine(recipe, device, threads, watch)
        with clock.step("teacher"):
            teacher = _teacher(recipe, watch)
        plan.check(recipe, teacher.anatomy, places)
        _check_windows(recipe, teacher, suite)
        judge = None if suite is None else _judge(teacher.folder, suite, machine)
        if judge:
            judge.read_texts()  # what is wrong with them is told before any long work
        with clock.step("calibrate"):
            windows = _windows(recipe, teacher, machine)
        with clock.step("compress"):
            stages = _compress(recipe, teacher, windows, partial, machine)
        locked = _lock(recipe, teacher, windows, machine)
        storage.write_text(partial / "recipe.lock.yaml", locked)
        with clock.step("evaluate"):
            provenance = _provenance(recipe, teacher, windows, machine, locked)
            results = _results(teacher, open_artifact(partial), stages, judge, provenance)
        with clock.step("time"):
            timings = speed.timings(partial)
        measured = Measured(
            clock.stop(),
            _peak_memory_bytes(),
            _hardware(),
            _today(),
            timings.decode_tokens_per_second if timings else None,
            timings.prefill_tokens_per_second if timings else None,
        )
        write_records(partial, results, measured)
        facts = {"teacher": teacher.name, "teacher_fingerprint": teacher.fingerprint}
        manifest.write_manifest(partial, {**facts, "versions": _versions()})
    return Outcome(out, results, measured)


def compress_only(
    recipe: Recipe, *, out: Path, device: str = "cpu", threads: int | None = None
) -> dict[str, Any]:
    """Carry out a recipe without judging the student, and time what is compared with other tools.

    Returns:
        ``seconds`` from the token windows at hand to the last shard on disk, and the windows'
        ``calibration_fingerprint``, None when no stage looks at any.
    """
    clock = _Clock()
    with output.in_the_making(out) as partial:
        machine = _machine(recipe, device, threads, None)
        teacher = _teacher(recipe, None)
        plan.check(recipe, teacher.anatomy)
        windows = _windows(recipe, teacher, machine)
        with clock.step("compress"):
            _compress(recipe, teacher, windows, partial, machine)
    fingerprint = windows.fingerprint if windows else None
    return {"seconds": clock.seconds["compress"], "calibration_fingerprint": fingerprint}


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
    if (folder / "recipe.lock.yaml").is_file():
        from compress.recipe.load import load as load_recipe

        locked = load_recipe(str(folder / "recipe.lock.yaml"))
        machine = _machine(locked, device, threads, watch)
        teacher, artifact = _teacher(locked, watch), open_artifact(folder)
        judge = _judge(teacher.folder, chosen, machine)
        _, after, divergence, _ = judge.compare(teacher, artifact)
        return sizes.side_after(artifact, after), divergence
    if threads:
        torch.set_num_threads(threads)
    machine = _Machine(device, _compute_dtype(device, "bfloat16"), watch)
    if _is_quantized(folder):
        artifact = open_artifact(folder)
        return sizes.side_after(artifact, _judge(folder, chosen, machine).alone(artifact)), None
    teacher = sources.fetch(model, watch=watch)
    found = _judge(teacher.folder, chosen, machine).alone(teacher)
    return sizes.side_before(teacher, sizes.parts_before(teacher), found), None


def _is_quantized(folder: Path) -> bool:
    path = folder / "config.json"
    return path.is_file() and "quantization_config" in path.read_text(encoding="utf-8")


def write_records(folder: Path, results: Results, measured: Measured) -> None:
    """Write results, times, both reports and the model card."""
    storage.write_text(folder / "results.json", to_json(results))
    storage.write_text(folder / "measured.json", to_json(measured))
    storage.write_text(folder / "report.md", markdown.render(results, measured))
    storage.write_text(folder / "report.html", html.render(results, measured))
    storage.write_text(folder / "README.md", markdown.model_card(results, None))


def _machine(recipe: Recipe, device: str, threads: int | None, watch: Watch) -> _Machine:
    if wanted := threads or recipe.resolved.threads:
        torch.set_num_threads(wanted)
    locked = recipe.resolved.device
    if locked not in (None, device):
        raise RequestError(
            f"the lock was made on {locked}, this run would be on {device}, whose sums round "
            f"otherwise. Say --device {locked}, or run the recipe that was locked."
        )
    torch.manual_seed(recipe.seed)
    return _Machine(device, _compute_dtype(device, recipe.teacher.dtype), watch)


def _compute_dtype(device: str, teacher_dtype: str) -> torch.dtype:
    """bfloat16 where the processor multiplies it faster, unless the teacher is to be float32."""
    fast = device == "cuda" or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast and teacher_dtype != "float32" else torch.float32


def _cache() -> Path:
    return sources.cache_folder() / "judged"


def _teacher(recipe: Recipe, watch: Watch) -> Teacher:
    wanted, promised = recipe.teacher, recipe.resolved.teacher_fingerprint
    teacher = sources.fetch(
        wanted.model,
        revision=wanted.revision,
        sha256=wanted.sha256,
        dtype=wanted.dtype,
        watch=watch,
    ).cast(wanted.dtype)
    if promised not in (None, teacher.fingerprint):
        raise ModelError(
            f"{wanted.model}: its fingerprint is {teacher.fingerprint}, the lock says {promised}. "
            "The teacher has changed since the lock was written."
        )
    return teacher


def _windows(recipe: Recipe, teacher: Teacher, machine: _Machine) -> Windows | None:
    """The calibration windows; None when no stage looks at any."""
    if not recipe.needs_calibration:
        return None
    tokenizer = load.tokenizer(teacher.folder)
    cache = sources.cache_folder() / "written"
    author = Author(teacher, tokenizer, teacher.fingerprint, cache, machine.device, machine.watch)
    windows = sets.load(recipe.calibration, tokenizer, generate=author)
    promised = recipe.resolved.calibration_fingerprint
    if promised not in (None, windows.fingerprint):
        raise CalibrationError(
            f"calibration.set {recipe.calibration.set}: its fingerprint is {windows.fingerprint}, "
            f"the lock says {promised}. The text, the tokenizer or the machine that wrote it has "
            "changed."
        )
    return windows


def _compress(
    recipe: Recipe, teacher: Teacher, windows: Windows | None, partial: Path, machine: _Machine
) -> tuple[StageResult, ...]:
    """Run the stages, then write the artifact."""
    scratch = partial / ".work"
    ids = windows.ids if windows else torch.empty(0, 1, dtype=torch.long)
    context = Context(ids, machine.device, machine.dtype, scratch, machine.watch)
    student = Student(teacher, scratch)
    results = []
    for stage in recipe.stages:
        (name,) = stage.model_fields_set
        results.append(STAGES[name](student, getattr(stage, name), context))
    _tell(machine, "write", 0)
    write.write(
        partial,
        student.parts(),
        anatomy=teacher.anatomy,
        config=teacher.config,
        tokenizer_files=write.companions(teacher.folder),
        format=recipe.artifact.format,
        max_shard_bytes=recipe.artifact.max_shard_bytes,
    )
    _tell(machine, "write", 1)
    return tuple(results)


def _tell(machine: _Machine, step: str, done: int) -> None:
    if machine.watch:
        machine.watch(Progress(step, done, 1, unit="artifact"))


def _suite(recipe: Recipe) -> Suite | None:
    """The suite, read before any work so that a mistake in it costs nothing."""
    if recipe.evaluate.suite == "none":
        return None
    suite = load_suite(recipe.evaluate.suite)
    if recipe.evaluate.text is None:
        return suite
    change = {"set": recipe.evaluate.text, "split": None}
    texts = {
        name: getattr(suite, name).model_copy(update=change)
        for name in ("perplexity", "divergence")
    }
    return suite.model_copy(update=texts)


def _judge(folder: Path, suite: Suite, machine: _Machine) -> Judge:
    tokenizer = load.tokenizer(folder)
    return Judge(suite, tokenizer, _cache(), machine.device, machine.dtype, machine.watch)


def _check_windows(recipe: Recipe, teacher: Teacher, suite: Suite | None) -> None:
    """Refuse windows longer than the model has positions."""
    longest = longest_window(teacher.config)
    asked = {"calibration.seq_len": recipe.calibration.seq_len if recipe.needs_calibration else 0}
    for name in ("perplexity", "divergence") if suite else ():
        asked[f"evaluate.suite: {name}.seq_len"] = getattr(suite, name).seq_len
    mistakes = [
        f"{name}: {tokens} tokens, and {teacher.name} has {longest} positions. Ask for fewer."
        for name, tokens in asked.items()
        if longest is not None and tokens > longest
    ]
    if mistakes:
        raise RecipeError(mistakes)


def _results(
    teacher: Teacher,
    artifact: Artifact,
    stages: tuple[StageResult, ...],
    judge: Judge | None,
    provenance: Provenance,
) -> Results:
    """Judge what was written, as read back from disk."""
    parts = sizes.parts_before(teacher)
    by_part = sizes.by_part(parts, artifact)
    if judge is None:
        before, after = sizes.side_before(teacher, parts, None), sizes.side_after(artifact, None)
        return Results(provenance, before, after, None, stages, by_part)
    first, second, divergence, samples = judge.compare(teacher, artifact)
    return Results(
        provenance,
        sizes.side_before(teacher, parts, first),
        sizes.side_after(artifact, second),
        divergence,
        stages,
        by_part,
        samples,
    )


def _lock(recipe: Recipe, teacher: Teacher, windows: Windows | None, machine: _Machine) -> str:
    return resolve.lock(
        recipe,
        {
            "teacher_revision": teacher.revision,
            "teacher_sha256": teacher.source_sha256,
            "calibration_revision": windows.revision if windows else None,
            "teacher_fingerprint": teacher.fingerprint,
            "calibration_fingerprint": windows.fingerprint if windows else None,
            "threads": torch.get_num_threads(),
            "device": machine.device,
            "versions": _versions(),
        },
    )


def _provenance(
    recipe: Recipe, teacher: Teacher, windows: Windows | None, machine: _Machine, locked: str
) -> Provenance:
    return Provenance(
        recipe=recipe.resolved.recipe or "recipe",
        recipe_text=locked,
        teacher=teacher.name,
        teacher_fingerprint=teacher.fingerprint,
        calibration=recipe.calibration.set if windows else "none",
        calibration_fingerprint=windows.fingerprint if windows else "",
        calibration_tokens=windows.ids.numel() if windows else 0,
        seed=recipe.seed,
        threads=torch.get_num_threads(),
        device=machine.device,
        versions=_versions(),
    )


def _versions() -> dict[str, str]:
    found = {name: version(name) for name in _LIBRARIES}
    return {"compress": __version__, "python": platform.python_version(), **found}


def _peak_memory_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _hardware() -> str:
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        processor = names[0] if names else processor
    return f"{processor}, {torch.get_num_threads()} threads"


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()
