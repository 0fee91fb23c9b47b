"""A recipe carried out: `apply` is the flow, in order, and each step has a room of its own name."""

from __future__ import annotations

import contextlib
import datetime
import platform
import resource
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from compress import __version__, plan, storage
from compress.artifact import manifest, write
from compress.artifact.layout import PARTS, Artifact, open_artifact
from compress.calibrate import sets
from compress.calibrate.selfgen import Author
from compress.calibrate.tokens import Windows
from compress.errors import ArtifactError, CalibrationError, ModelError, RequestError
from compress.evaluate import speed
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
    SizePart,
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
    with _partial(out) as partial:
        machine = _machine(recipe, device, threads, watch)
        with clock.step("teacher"):
            teacher = _teacher(recipe, watch)
        plan.check(recipe, teacher.anatomy, places)
        with clock.step("calibrate"):
            windows = _windows(recipe, teacher, machine)
        with clock.step("compress"):
            stages = _compress(recipe, teacher, windows, partial, machine)
        locked = _lock(recipe, teacher, windows, machine)
        storage.write_text(partial / "recipe.lock.yaml", locked)
        with clock.step("evaluate"):
            results = _results(
                teacher, open_artifact(partial), stages, suite, machine,
                _provenance(recipe, teacher, windows, machine, locked),
            )  # fmt: skip
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
    with _partial(out) as partial:
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
    chosen = load_suite(suite)
    if threads:
        torch.set_num_threads(threads)
    machine = _Machine(device, _compute_dtype(device, "bfloat16"), watch)
    folder = Path(model)
    if (folder / "recipe.lock.yaml").is_file():
        from compress.recipe.load import load as load_recipe

        teacher = _teacher(load_recipe(str(folder / "recipe.lock.yaml")), watch)
        artifact = open_artifact(folder)
        _, after, divergence, _ = _judge(teacher, chosen, machine).compare(teacher, artifact)
        side = Side(artifact.size_bytes, artifact.bits_per_weight, after.perplexity, after.tasks)
        return side, divergence
    if (folder / "config.json").is_file():
        artifact = open_artifact(folder)
        tokenizer = load.tokenizer(folder)
        judge = Judge(chosen, tokenizer, _cache(), device, machine.dtype, watch)
        found = judge.alone(artifact)
        return Side(
            artifact.size_bytes, artifact.bits_per_weight, found.perplexity, found.tasks
        ), None
    teacher = sources.fetch(model, watch=watch)
    found = _judge(teacher, chosen, machine).alone(teacher)
    parts = _parts_before(teacher)
    return _side_before(teacher, parts, found.perplexity, found.tasks), None


def write_records(folder: Path, results: Results, measured: Measured) -> None:
    """Write results, times, both reports and the model card."""
    storage.write_text(folder / "results.json", to_json(results))
    storage.write_text(folder / "measured.json", to_json(measured))
    storage.write_text(folder / "report.md", markdown.render(results, measured))
    storage.write_text(folder / "report.html", html.render(results, measured))
    storage.write_text(folder / "README.md", markdown.model_card(results, None))


@contextlib.contextmanager
def _partial(out: Path) -> Iterator[Path]:
    """The folder in which `out` is made: renamed when all is done, removed when anything fails."""
    if out.exists():
        raise ArtifactError(
            f"{out}: exists. A finished output is never written over: choose another --out, or "
            "move it away."
        )
    partial = out.with_name(out.name + ".partial")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        (partial / ".work").mkdir()
    except FileExistsError:
        raise ArtifactError(
            f"{partial}: exists: another run is at work there, or one was killed. Remove it, or "
            "choose another --out."
        ) from None
    except OSError as error:
        raise RequestError(
            f"{partial}: cannot be made ({error.strerror}). Choose another --out."
        ) from error
    try:
        yield partial
        shutil.rmtree(partial / ".work")
        partial.rename(out)
        storage.sync_folder(out.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _machine(recipe: Recipe, device: str, threads: int | None, watch: Watch) -> _Machine:
    if wanted := threads or recipe.resolved.threads:
        torch.set_num_threads(wanted)
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
    )
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


def _judge(teacher: Teacher, suite: Suite, machine: _Machine) -> Judge:
    tokenizer = load.tokenizer(teacher.folder)
    return Judge(suite, tokenizer, _cache(), machine.device, machine.dtype, machine.watch)


def _results(
    teacher: Teacher,
    artifact: Artifact,
    stages: tuple[StageResult, ...],
    suite: Suite | None,
    machine: _Machine,
    provenance: Provenance,
) -> Results:
    """Judge what was written, as read back from disk."""
    parts = _parts_before(teacher)
    after_bytes, weights = artifact.parts_sizes(), artifact.parts_weights()
    sizes = tuple(SizePart(part, weights[part], parts[part], after_bytes[part]) for part in PARTS)  # type: ignore[arg-type]
    size, bits = artifact.size_bytes, artifact.bits_per_weight
    if suite is None:
        before, after = _side_before(teacher, parts, None, ()), Side(size, bits, None)
        return Results(provenance, before, after, None, stages, sizes)
    first, second, divergence, samples = _judge(teacher, suite, machine).compare(teacher, artifact)
    return Results(
        provenance,
        _side_before(teacher, parts, first.perplexity, first.tasks),
        Side(size, bits, second.perplexity, second.tasks),
        divergence,
        stages,
        sizes,
        samples,
    )


def _side_before(teacher: Teacher, parts: Mapping[str, int], perplexity: Any, tasks: Any) -> Side:
    bits = 8 * parts["block linears"] / teacher.anatomy.weights
    return Side(sum(parts.values()), bits, perplexity, tasks)


def _parts_before(teacher: Teacher) -> dict[str, int]:
    """Stored bytes of the teacher by part; mapped tensors are counted, not read."""
    anatomy, parts = teacher.anatomy, dict.fromkeys(PARTS, 0)
    linears = {linear.name + ".weight" for linear in anatomy.linears}
    named = {anatomy.embedding + ".weight": "embedding", anatomy.head.name + ".weight": "head"}
    tensors = dict(teacher.outside())
    for block in anatomy.blocks:
        tensors |= teacher.block(block.index)
    for name, tensor in tensors.items():
        plain = "block linears" if name in linears else "norms and biases"
        parts[named.get(name, plain)] += tensor.nbytes
    beside = {*write.companions(teacher.folder), teacher.folder / "config.json"}
    parts["other files"] = sum(path.stat().st_size for path in beside)
    return parts


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
