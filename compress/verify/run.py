"""`compress verify`: every check in order, then every consumer; what was found is kept."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress.errors import ArtifactError, VerificationFailed
from compress.results import Check, Consumer, Progress, Verification, to_json
from compress.storage import write_text
from compress.surgery.walk import Watch
from compress.verify import checks, reference
from compress.verify.consumers import ANYWHERE, CONSUMERS, Pythons, ask
from compress.verify.layout import open_folder
from compress.verify.reader import Reading

NAME = "verification.json"
_SHOWN = 3  # problems of one check that are told; the rest are counted
_AFTER_LAYOUT = ("tensors", "numbers", "fused linears", "tokenizer", "weights", "logits")


def verify(
    folder: Path,
    *,
    consumers: Collection[str] = CONSUMERS,
    pythons: Pythons = ANYWHERE,
    watch: Watch = None,
) -> Verification:
    """Hold an artifact against its format, its manifest and its student; load it in its consumers.

    Nothing that is wrong with the artifact raises; what was found is also written into its folder
    as ``verification.json``.

    Args:
        folder: the artifact.
        consumers: which to load it in, of `CONSUMERS`; none of them when the layout is wrong.
        pythons: interpreters of the environments that hold vLLM and llama.cpp; by default the
            variables COMPRESS_VLLM_PYTHON and COMPRESS_LLAMA_PYTHON, else this one.
        watch: told of progress.

    Raises:
        ArtifactError: there is no such folder.
        StorageError: ``verification.json`` cannot be written.
    """
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no such folder. Give the folder of an artifact.")
    found = _Found(len(_AFTER_LAYOUT) + 3 + len(consumers), watch)
    reading = _check(folder, found)
    answers = () if reading is None else _consume(reading, consumers, pythons, found)
    outcome = Verification(reading.format if reading else None, tuple(found.checks), answers)
    write_text(folder / NAME, to_json(outcome))
    return outcome


def check_passed(folder: Path, found: Verification) -> None:
    """Say what is wrong with an artifact, if anything is.

    Raises:
        VerificationFailed: something disagrees; the message names it.
    """
    if not found.passed:
        told = "\n".join(f"{one.name}: {one.detail}" for one in found.failures)
        raise VerificationFailed(
            f"{folder}: not what it should be. Make it again, or fetch it again.\n{told}"
        )


@dataclass
class _Found:
    """The checks so far."""

    total: int
    watch: Watch
    checks: list[Check] = field(default_factory=list)
    done: int = 0

    def add(self, name: str, problems: Iterable[str], detail: str = "") -> None:
        """Take the problems of one check."""
        told = list(problems)
        more = f"\nand {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
        failed = "\n".join(told[:_SHOWN]) + more
        self.put(Check(name, "failed" if told else "passed", failed if told else detail))

    def put(self, check: Check) -> None:
        """Take one check as it is."""
        self.checks.append(check)
        self.step(check.name)

    def step(self, name: str) -> None:
        """Tell of progress."""
        self.done += 1
        if self.watch:
            self.watch(Progress("verify", self.done, self.total, "check", name))


def _check(folder: Path, found: _Found) -> Reading | None:
    """All that needs no consumer; the reading when the layout is right."""
    manifest, known = _manifest(folder, found)
    also = frozenset(known["weights"]) if known else frozenset()
    try:
        reading = open_folder(folder, also)
    except ArtifactError as error:
        found.add("layout", str(error).splitlines())
        for name in _AFTER_LAYOUT:
            found.put(Check(name, "not run", "the layout is wrong"))
        return None
    found.add("layout", (), f"{reading.format}, {len(reading.entries)} tensors")
    if manifest is None:
        found.put(Check("tensors", "not applicable", "no manifest"))
    else:
        found.add("tensors", checks.tensors(reading, manifest), "every sha256 as in the manifest")
    found.add(
        "numbers", checks.numbers(reading), "scales exact in bfloat16 and float16, all finite"
    )
    found.put(_fused(reading))
    found.add("tokenizer", checks.tokenizer(reading, known), "loads, and fits the embedding")
    _hold(reading, known, found)
    return reading


def _manifest(folder: Path, found: _Found) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The manifest and its reference, where there are any that can be read."""
    made_here = any((folder / name).exists() for name in ("recipe.lock.yaml", "results.json"))
    if not (folder / checks.MANIFEST).exists() and not made_here:
        found.put(Check("manifest", "not applicable", "none: not the folder of a finished run"))
        found.put(Check("files", "not applicable", "no manifest"))
        return None, None
    try:
        manifest = checks.read_manifest(folder)
        known = manifest.get("reference")
        if known is not None:
            reference.check_reference(known)
    except ArtifactError as error:
        found.add("manifest", [str(error)])
        found.put(Check("files", "not run", "no manifest that can be read"))
        return None, None
    found.add("manifest", (), "with a reference of the student" if known else "without a reference")
    found.add("files", checks.files(folder, manifest), "every sha256 as in the manifest")
    return manifest, known


def _fused(reading: Reading) -> Check:
    """A note where nobody minds, a failure where engines that fuse are meant to open the folder."""
    unequal = list(checks.fused(reading))
    if not unequal:
        return Check("fused linears", "passed", "q, k, v and gate, up share one scheme each")
    told = f"{len(unequal)} groups differ, which only engines that fuse them mind (vLLM)"
    fuses = reading.format in ("compressed-tensors", "gptq")
    return Check("fused linears", "failed" if fuses else "passed", f"{told}: {unequal[0]}")


def _hold(reading: Reading, known: Mapping[str, Any] | None, found: _Found) -> None:
    """Hold weights and logits against the student's."""
    if known is None:
        for name in ("weights", "logits"):
            found.put(Check(name, "not applicable", "the manifest holds no reference"))
        return
    try:
        hashes, logits = reference.observe(reading, known["ids"])
        weights, far, worst = reference.disagreements(known, hashes, logits)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        found.add("weights", [f"manifest.json: its reference is malformed ({error})"])
        found.put(Check("logits", "not run", "no reference that can be read"))
        return
    found.add("weights", weights, f"{len(hashes)} tensors bit-equal to the student's")
    within = f"largest difference {worst:.1g}, allowed {reference.TOLERANCE:g}"
    found.add("logits", far, within)


def _consume(
    reading: Reading, consumers: Collection[str], pythons: Pythons, found: _Found
) -> tuple[Consumer, ...]:
    answers: list[Consumer] = []
    for name in consumers:
        answers += ask(reading, name, pythons)
        found.step(name)
    return tuple(answers)
