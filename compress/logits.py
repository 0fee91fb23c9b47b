"""What a teacher expects behind every token of a text, written down for who does not have its head.

Of each token the likeliest next ones with their log-probabilities, and the log of the mass of all
others: no truncation, a distribution over k + 1 outcomes that is exact.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from compress import library, storage
from compress.calibrate import sets
from compress.calibrate.selfgen import Author
from compress.calibrate.tokens import Windows
from compress.errors import ArtifactError, RequestError
from compress.kernels.topk import keep
from compress.machine import Machine
from compress.recipe.schema import Recipe
from compress.results import Progress
from compress.run import set_up
from compress.surgery import load, walk
from compress.surgery.walk import Watch
from compress.teacher import sources
from compress.teacher.folder import Teacher
from compress.teacher.hidden import HiddenCache

RECORD = "logits.json"
SHARD_TOKENS = 32_768
_CHUNK_TOKENS = 256  # whose logits are held at once
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Written:
    """What was written."""

    teacher: str
    teacher_fingerprint: str
    text: str
    text_fingerprint: str  # sha256 of its token ids
    vocab_size: int
    top_k: int
    windows: int
    seq_len: int
    bytes_per_token: float  # of all that is kept of it, its own id included
    tail_mean: float  # mean mass of what is not among the k
    files: tuple[str, ...]
    version: int = SCHEMA_VERSION


def export(
    recipe: Recipe, *, out: Path, top_k: int = 64, device: str = "cpu",
    threads: int | None = None, watch: Watch = None,
) -> Written:  # fmt: skip
    """Write what the teacher of a recipe says of the text on which its stage `distill` trains.

    Args:
        recipe: its teacher, and the text of its first stage `distill`, else its calibration.
        out: the folder to make; its last file is `logits.json`, which tells of all others.
        top_k: tokens that are kept of each distribution.
        device: where the teacher runs.
        threads: of this process.
        watch: told of progress.

    Raises:
        RequestError: `out` is there already, the vocabulary is smaller than `top_k`, or teacher or
            text cannot be had.
        StorageError: the disk refuses.
    """
    if out.exists():
        raise ArtifactError(f"{out}: is there already. Give another --out, or remove it.")
    here = set_up(recipe, device, threads)
    teacher = sources.of_recipe(recipe, watch=watch)
    if top_k > teacher.anatomy.vocab_size:
        raise RequestError(
            f"--top-k {top_k}: the teacher's vocabulary has {teacher.anatomy.vocab_size:,} tokens. "
            "Ask for fewer."
        )
    text = _text(recipe, teacher, here, watch)
    storage.make_folder(out)
    states = HiddenCache(teacher, library.cache_folder() / "said", here.device, here.dtype, watch)
    rows = max(1, SHARD_TOKENS // text.ids.shape[1])
    files, tails = list[str](), list[Tensor]()
    parts = text.ids.split(rows)
    for number, ids in enumerate(parts):
        kept = _of(teacher, ids, states.get(ids), top_k, here.dtype)
        files.append(f"logits-{number + 1:05d}-of-{len(parts):05d}.safetensors")
        storage.write_file(out / files[-1], kept)
        tails.append(kept["log_tail"].exp().flatten())
        if watch:
            watch(Progress("logits", number + 1, len(parts), "file"))
    size = sum((out / name).stat().st_size for name in files)
    windows, seq_len = text.ids.shape
    found = Written(
        teacher.name, teacher.fingerprint, text.source, text.fingerprint,
        teacher.anatomy.vocab_size, top_k, windows, seq_len, size / text.ids.numel(),
        float(torch.cat(tails).mean()), tuple(files),
    )  # fmt: skip
    storage.write_text(out / RECORD, json.dumps(asdict(found), indent=2) + "\n")
    return found


def _text(recipe: Recipe, teacher: Teacher, here: Machine, watch: Watch) -> Windows:
    asked = next((recipe.read_by(spec) for _, spec in recipe.distillations), recipe.calibration)
    tokenizer = load.tokenizer(teacher.folder)
    cache = library.cache_folder() / "written"
    author = Author(teacher, tokenizer, teacher.fingerprint, cache, here.device, watch)
    return sets.load(asked, tokenizer, generate=author)


def _of(
    teacher: Teacher, ids: Tensor, hidden: Tensor, top_k: int, dtype: torch.dtype
) -> dict[str, Tensor]:
    """What is kept of some windows: [B, T, …] each."""
    weight, bias = walk.head_of(teacher)
    head = weight.to(dtype), bias
    found = [
        keep(walk.logits(teacher, piece.to(dtype), head=head), top_k)
        for piece in hidden.flatten(0, 1).split(_CHUNK_TOKENS)
    ]
    shape = ids.shape
    return {
        "tokens": ids.to(torch.int32),
        "ids": torch.cat([one.ids for one in found]).view(*shape, top_k),
        "log_probs": torch.cat([one.log_probs for one in found]).view(*shape, top_k),
        "log_tail": torch.cat([one.log_tail for one in found]).view(*shape),
    }
