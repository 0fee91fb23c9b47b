"""How large teacher and student are, by part, and what each side of a comparison holds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from compress.artifact import write
from compress.artifact.formats.kv import bytes_per_token
from compress.artifact.layout import PARTS, Artifact
from compress.evaluate.judge import Judgement
from compress.results import Side, SizePart
from compress.teacher.folder import Teacher


def by_part(before: Mapping[str, int], artifact: Artifact) -> tuple[SizePart, ...]:
    """Stored bytes of every part, before and after."""
    after, weights = artifact.parts_sizes(), artifact.parts_weights()
    return tuple(SizePart(part, weights[part], before[part], after[part]) for part in PARTS)  # type: ignore[arg-type]


def side_before(teacher: Teacher, parts: Mapping[str, int], found: Judgement | None) -> Side:
    """The teacher as it was found, and what it scored, if it was judged."""
    bits = 8 * parts["block linears"] / teacher.anatomy.weights
    cached = bytes_per_token(teacher.anatomy, teacher.config, None)
    return _side(sum(parts.values()), bits, cached, found)


def side_after(artifact: Artifact, found: Judgement | None) -> Side:
    """The student as it lies on disk, and what it scored, if it was judged."""
    cached = artifact.kv_bytes_per_token
    return _side(artifact.size_bytes, artifact.bits_per_weight, cached, found)


def _side(
    size_bytes: int, bits_per_weight: float, kv_bytes_per_token: int, found: Judgement | None
) -> Side:
    perplexity, tasks = (found.perplexity, found.tasks) if found else (None, ())
    return Side(size_bytes, bits_per_weight, perplexity, tasks, kv_bytes_per_token)


def parts_before(teacher: Teacher) -> dict[str, int]:
    """Stored bytes of the teacher by part; mapped tensors are counted, not read."""
    anatomy, parts = teacher.anatomy, dict.fromkeys(PARTS, 0)
    linears = {linear.name + ".weight" for linear in anatomy.linears}
    named = {anatomy.embedding + ".weight": "embedding", anatomy.head.name + ".weight": "head"}
    blocks = (teacher.block(block.index) for block in anatomy.blocks)
    for tensors in itertools.chain([teacher.outside()], blocks):
        for name, tensor in tensors.items():
            other = "embedding" if tensor.dim() == 2 else "norms and biases"
            plain = "block linears" if name in linears else other
            parts[named.get(name, plain)] += tensor.nbytes
    beside = {*write.companions(teacher.folder), teacher.folder / "config.json"}
    parts["other files"] = sum(path.stat().st_size for path in beside)
    return parts
