"""The stage `distill` before a run: what cannot be read, what training holds and how long it is."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Mapping
from typing import Any

from compress.anatomy import Anatomy, longest_window
from compress.forwards import training_bytes, training_pass
from compress.plan import sizes
from compress.plan.footprint import HEAP, Job
from compress.plan.naming import Found
from compress.plan.reshaping import made_headers
from compress.recipe.distill import ROUNDED, Distill
from compress.recipe.schema import Recipe
from compress.recipe.source import Loc
from compress.results import Limits
from compress.teacher.headers import Headers

_PIECE_TOKENS, _PIECE_COPIES = 128, 7  # of logits: kernels.distillation
_BACK = 3  # forwards in whose time a step goes there and back
_MOVED = 40  # operations in whose time AdamW moves a weight
_MOVING_BYTES = 12  # of a learning weight: its gradient and two moments, float32
_COMPARED = 3  # float32 tensors by which states are compared
_STATE_BYTES = 12  # of the same on disk: itself and two moments


def mistakes(recipe: Recipe, config: Mapping[str, Any]) -> Found:
    """Texts with longer windows than the teacher has positions; `lora` without `peft`."""
    longest, can_correct = longest_window(config), importlib.util.find_spec("peft") is not None
    for index, spec in recipe.distillations:
        asked = spec.text.seq_len if spec.text else 0  # the calibration's own are held elsewhere
        if longest is not None and asked > longest:
            yield (
                ("stages", index, "distill", "text", "seq_len"),
                f"{asked} tokens, and the teacher has {longest} positions. Ask for fewer.",
            )
        if spec.lora and not can_correct:
            yield (
                ("stages", index, "distill", "train"),
                "lora needs peft, which is not installed. Install it with pip install "
                "'compress-llm[lora]', or choose train: all.",
            )


def unmatched(recipe: Recipe, student: Anatomy, teacher: Anatomy) -> Found:
    """Blocks whose states are to be matched, and that are not there.

    Args:
        recipe: as loaded.
        student: as it will be made; of a shape that is searched for, the largest it may be.
        teacher: its own.
    """
    there = {"student": len(student.blocks), "teacher": len(teacher.blocks)}
    for index, spec in recipe.distillations:
        hidden = spec.loss.hidden
        if hidden is None or isinstance(hidden.blocks, str):
            continue
        loc: Loc = ("stages", index, "distill", "loss", "hidden", "blocks")
        for whose, asked in zip(there, zip(*hidden.blocks, strict=True), strict=True):
            if beyond := sorted({block for block in asked if block >= there[whose]}):
                yield (
                    loc,
                    f"block {' and '.join(map(str, beyond))} of the {whose}, which has "
                    f"{there[whose]}, 0 to {there[whose] - 1}. Name those, or use uniform.",
                )
        before = recipe.stages[:index]
        if any(stage.restructure and stage.restructure.searches for stage in before):
            yield loc, "how many blocks there will be is searched for. Use uniform."


def immovable(recipe: Recipe, student: Anatomy) -> Found:
    """Embeddings that are to learn as floats, and become codes.

    Args:
        recipe: as loaded.
        student: as it will be made.
    """
    for index, spec in recipe.distillations:
        if spec.embedding_learning_rate and not _float_ends(recipe, student):
            yield (
                ("stages", index, "distill", "embedding_learning_rate"),
                "the head is the embedding, and becomes codes, whose scales learn. Leave this out, "
                "or the head as it is (quantize.head: null).",
            )


def learned(recipe: Recipe, spec: Distill, anatomy: Anatomy) -> int:
    """Numbers that a stage trains, given the anatomy of what will be made."""
    if spec.train == "all":
        return sum(map(math.prod, anatomy.tensors.values()))
    if spec.lora:
        return spec.lora.rank * sum(x.in_features + x.out_features for x in anatomy.linears)
    codes = _coded(recipe, anatomy)[0] if spec.train == "codes" else 0
    return codes + _floats(recipe, spec, anatomy)


def _floats(recipe: Recipe, spec: Distill, anatomy: Anatomy) -> int:
    """Numbers that learn beside codes, or in their place."""
    ends = _float_ends(recipe, anatomy) if spec.embedding_learning_rate else 0
    return _scales_and_norms(recipe, anatomy) + ends


def _float_ends(recipe: Recipe, anatomy: Anatomy) -> int:
    """Numbers of embedding and head that do not become codes; a tied one is both."""
    coded = anatomy.head in sizes.schemes(recipe, anatomy)
    table = math.prod(anatomy.tensors[f"{anatomy.embedding}.weight"])
    if anatomy.tied:
        return 0 if coded else table
    return table + (0 if coded else anatomy.head.weights)


def _scales_and_norms(recipe: Recipe, anatomy: Anatomy) -> int:
    matrices = sizes.matrices(anatomy, sizes.schemes(recipe, anatomy)).values()
    norms = sum(math.prod(s) for n, s in anatomy.tensors.items() if len(s) == 1 and "bias" not in n)
    return sum(matrix.rows * matrix.groups for matrix in matrices) + norms


def _coded(recipe: Recipe, anatomy: Anatomy) -> tuple[int, int]:
    """Weights of blocks that become codes, and those of a head that does."""
    found = sizes.schemes(recipe, anatomy)
    head = anatomy.head.weights if anatomy.head in found else 0
    return sum(linear.weights for linear in found) - head, head


def _pairs(spec: Distill, student: Anatomy, teacher: Anatomy) -> tuple[tuple[int, int], ...]:
    """Blocks of both whose states are matched."""
    hidden = spec.loss.hidden
    return hidden.pairs(len(student.blocks), len(teacher.blocks)) if hidden else ()


def _carried(spec: Distill, student: Anatomy, teacher: Anatomy) -> int:
    """Numbers of the matrices that carry a student's states over to its teacher's width."""
    widths = student.hidden_size, teacher.hidden_size
    return 0 if widths[0] == widths[1] else math.prod(widths) * len(_pairs(spec, student, teacher))


def _read_beside(spec: Distill, student: Anatomy, teacher: Anatomy) -> int:
    """How many of the teacher's blocks run beside the student."""
    if spec.on_policy:
        return len(teacher.blocks)
    return max((block + 1 for _, block in _pairs(spec, student, teacher)), default=0)


def _beside(job: Job, spec: Distill, student: Anatomy, tokens: int) -> int:
    """Bytes of the teacher beside its student: weights that are cast, and the states of a pass."""
    teachers = job.teachers
    teacher = teachers.anatomy
    count = _read_beside(spec, student, teacher)
    if not count:
        return 0
    weights = sum(x.weights for block in teacher.blocks[:count] for x in block.linears)
    held = teachers.copied_bytes * (weights + teacher.head.weights)
    states = (job.item_bytes + 4 * _COMPARED) * teacher.hidden_size + 4 * student.hidden_size
    moved = (4 + _MOVING_BYTES) * _carried(spec, student, teacher)
    written = 0  # keys and values of what the student writes
    if spec.on_policy:
        written = 2 * job.item_bytes * tokens * student.hidden_size * len(student.blocks)
    return held + moved + written + (len(_pairs(spec, student, teacher)) + 1) * tokens * states


def memory(job: Job, limits: Limits) -> int:
    """The student whole in float32, gradients and moments of what learns, and one pass."""
    anatomy, peak = made_headers(job.recipe, job.headers).anatomy, 0
    for _, spec in job.recipe.distillations:
        seq_len = job.recipe.read_by(spec).seq_len
        at_once, recompute = training_pass(
            anatomy, spec.windows_a_step(seq_len), seq_len, job.item_bytes, limits.resident_bytes
        )
        tokens = at_once * seq_len
        kept = training_bytes(anatomy, tokens, job.item_bytes, recompute=recompute)
        pieces = 4 * _PIECE_TOKENS * anatomy.vocab_size * _PIECE_COPIES
        head = 8 * anatomy.head.weights + 4 * job.item_bytes * anatomy.head.weights
        here = _held(job, spec, anatomy) + kept + pieces + head
        peak = max(peak, here + _beside(job, spec, anatomy, tokens))
    return job.base_bytes + HEAP + peak if peak else 0


def _held(job: Job, spec: Distill, anatomy: Anatomy) -> int:
    """Bytes of weights and of what moves them.

    Products in bfloat16 have narrow copies of weights. Grids hold their codes; the weights that are
    made of them, and their gradients, are as wide as products, those of a tied head float32.
    """
    whole, count = anatomy.weights + job.made_ends, learned(job.recipe, spec, anatomy)
    if spec.train not in ROUNDED:
        return 4 * whole + (2 * whole if job.item_bytes == 2 else 0) + _MOVING_BYTES * count
    inside, head = _coded(job.recipe, anatomy)
    dense, made = whole - inside, (1 + 2 * job.item_bytes) * inside + (1 + 2 * 4) * head
    return 4 * dense + made + (4 + _MOVING_BYTES) * count


def work(job: Job, index: int) -> float:
    """Operations: the teacher once, every step there and back, every look, and AdamW."""
    spec = job.recipe.stages[index].distill
    if spec is None:
        return 0.0
    text, anatomy = job.recipe.read_by(spec), made_headers(job.recipe, job.headers).anatomy
    steps = spec.steps_on(text.samples - spec.held_out, text.seq_len)
    tokens = float(steps * spec.windows_a_step(text.seq_len) * text.seq_len)
    _, recompute = training_pass(
        anatomy, spec.windows_a_step(text.seq_len), text.seq_len, job.item_bytes,
        Limits().resident_bytes,
    )  # fmt: skip
    forwards = _BACK + (1 if recompute else 0)
    a_step = float(forwards * anatomy.weights + (_BACK + 1) * anatomy.head.weights)
    teacher = job.headers.taught_by.anatomy
    beside = teacher.blocks[: _read_beside(spec, anatomy, teacher)]
    share = 1.0 if spec.loss.hidden else 0.0
    if spec.on_policy:
        share = max(share, spec.on_policy.share)
        a_step += spec.on_policy.share * (anatomy.weights + anatomy.head.weights)
    a_step += share * sum(linear.weights for block in beside for linear in block.linears)
    looks = (steps // spec.check_every + 3) * spec.held_out * text.seq_len
    said = text.samples * text.seq_len * teacher.weights
    moved = _MOVED * steps * learned(job.recipe, spec, anatomy)
    looked = looks * (anatomy.weights + 2 * anatomy.head.weights)
    return 2.0 * (tokens * a_step + looked + said) + moved


def said_bytes(recipe: Recipe, headers: Headers, item_bytes: int = 2) -> int:
    """Of the teacher's final hidden states, in the cache."""
    texts = {recipe.read_by(spec) for _, spec in recipe.distillations}
    width = headers.taught_by.anatomy.hidden_size
    return sum(t.samples * t.seq_len * width * item_bytes for t in texts)


def state_bytes(recipe: Recipe, headers: Headers) -> int:
    """Of a training as it is saved (the state before, the one that replaces it, the best).

    And of what it then commits: the weights, or codes and scales.
    """
    anatomy, total = made_headers(recipe, headers).anatomy, 0
    for _, spec in recipe.distillations:
        count = learned(recipe, spec, anatomy)
        count += _carried(spec, anatomy, headers.taught_by.anatomy)
        parts = anatomy.weights + 4 * _floats(recipe, spec, anatomy)
        committed = parts if spec.train in ROUNDED else max(4 * count, 4 * anatomy.weights)
        total += (2 * _STATE_BYTES + 4) * count + committed
    return total


def notes(recipe: Recipe, headers: Headers) -> Iterator[str]:
    """How much is read, and where that is too little for what learns from it."""
    anatomy = made_headers(recipe, headers).anatomy
    width = headers.taught_by.anatomy.hidden_size
    for index, spec in recipe.distillations:
        text = recipe.read_by(spec)
        windows = text.samples - spec.held_out
        steps, a_step = spec.steps_on(windows, text.seq_len), spec.windows_a_step(text.seq_len)
        count = learned(recipe, spec, anatomy)
        yield (
            f"stages[{index}].distill: {steps:,} steps of {a_step * text.seq_len:,} tokens, "
            f"{count:,} numbers learned; {2 * width:,} bytes a token cached"
        )
        if beside := _read_beside(spec, anatomy, headers.taught_by.anatomy):
            steps_of = "every step" if spec.loss.hidden else "steps on the student's own text"
            yield f"stages[{index}].distill: {beside} blocks of the teacher run beside {steps_of}"
        for caution in spec.cautions(windows, text.seq_len, count):
            yield f"stages[{index}].distill: {caution}"
