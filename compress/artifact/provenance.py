"""What decided an artifact and what it is worth, as the plain facts of its manifest."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import compress
from compress.results import Divergence, Results, Side


def facts(
    results: Results,
    *,
    teacher_revision: str | None,
    teacher_source_sha256: str | None,
    commit: str | None,
) -> dict[str, Any]:
    """The facts of ``manifest.json``: nothing in them depends on the hour or the folder.

    Args:
        results: of the finished run; its provenance holds the lock, versions, seed, threads.
        teacher_revision: commit of a hub repository.
        teacher_source_sha256: of the wheel or GGUF file that the teacher came from.
        commit: of compress itself, as `checkout_commit` finds it.
    """
    made = results.provenance
    return {
        "teacher": {
            "name": made.teacher,
            "revision": teacher_revision,
            "source_sha256": teacher_source_sha256,
            "fingerprint": made.teacher_fingerprint,
        },
        **(
            {"student": {"name": made.student, "fingerprint": made.student_fingerprint}}
            if made.student
            else {}
        ),
        "calibration": {
            "set": made.calibration,
            "tokens": made.calibration_tokens,
            "fingerprint": made.calibration_fingerprint or None,
        },
        "recipe": {
            "name": made.recipe,
            "lock_sha256": hashlib.sha256(made.recipe_text.encode()).hexdigest(),
        },
        "seed": made.seed,
        "threads": made.threads,
        "device": made.device,
        "versions": dict(made.versions),
        "commit": commit,
        "evaluation": {
            "before": _side(results.before),
            "after": _side(results.after),
            "divergence": _divergence(results.divergence),
        },
    }


def checkout_commit(package: Path | None = None) -> str | None:
    """The commit that compress was run from; None where it is no git checkout.

    Read from git's own files: git need not be installed. What is changed and not committed does not
    show; the lock's versions and the run's journal hold a hash of the code itself.

    Args:
        package: a folder inside the checkout; compress's own by default.
    """
    root = (package or Path(compress.__file__).resolve().parent).parent
    try:
        git = root / ".git"
        if git.is_file():  # a worktree: the file says where its folder is
            git = root / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        name = head.removeprefix("ref:").strip()
        return head if name == head else _reference(git, name)
    except (OSError, ValueError):
        return None


def _reference(git: Path, name: str) -> str | None:
    """The commit of a branch, from a file of its own or from the packed ones."""
    common = git / "commondir"
    shared = git / common.read_text(encoding="utf-8").strip() if common.is_file() else git
    for folder in (git, shared):
        if (folder / name).is_file():
            return (folder / name).read_text(encoding="utf-8").strip()
    packed = (shared / "packed-refs").read_text(encoding="utf-8").splitlines()
    return next((line.split()[0] for line in packed if line.endswith(f" {name}")), None)


def _side(side: Side | None) -> dict[str, Any] | None:
    """One model as judged; what it answered to every single item is told in ``results.json``."""
    if side is None:
        return None
    tasks = tuple(dataclasses.replace(task, answered=(), right=()) for task in side.tasks)
    return dataclasses.asdict(dataclasses.replace(side, tasks=tasks))


def _divergence(found: Divergence | None) -> dict[str, Any] | None:
    if found is None:
        return None
    numbers = dataclasses.asdict(found)
    detail = ("histogram", "window")
    return {name: value for name, value in numbers.items() if not name.startswith(detail)}
