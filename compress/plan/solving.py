"""What the stages hold in memory: a block, and what is held while its linears are solved."""

from __future__ import annotations

from compress.families import Role
from compress.plan import caching, rotation, sizes, teaching
from compress.plan.block_memory import SLICE, BlockMemory
from compress.plan.footprint import HEAP, Job
from compress.plan.pruning import pruned
from compress.plan.reshaping import (
    DEPTH_TOKENS,
    SCORED_DRAWS,
    SCORED_TOKENS,
    SCORED_WINDOWS,
    SHARED_ASKED,
    SHARED_TRIED,
    SHARED_WINDOWS,
    fitted_roles,
)
from compress.plan.work import CURVATURE_WINDOWS, DRAWS
from compress.recipe.pruning import MEASURED
from compress.recipe.restructure import Restructure
from compress.recipe.schema import Prune, Quantize
from compress.recipe.scheme import Scheme, scheme_for
from compress.results import Limits

_CHOOSING = 3  # float32 copies of the inverse and of the weight (kernels.structure)
_PROBABILITIES = 128  # kernels.fisher: tokens whose probabilities are held at once
_HESSIANS = 6  # of a block, and one being inverted
_PRUNED = 4  # more float32 copies of a matrix that is pruned and refined (kernels.admm)


def compress(job: Job, limits: Limits) -> int:
    """The most that the stages hold: a block and what is held while it is solved, or the head."""
    peak = 0
    before: frozenset[str] = frozenset()
    for index, spec in job.recipe.quantizations:
        found = sizes.stage_schemes(job.recipe, index, job.anatomy)
        schemes = {linear.name: scheme for linear, scheme in found.items()}
        for block in job.anatomy.blocks:
            solver = BlockMemory(job, limits, spec, block, before, schemes)
            peak = max(peak, solver.peak())
        peak = max(peak, _curvature(job, limits, spec))
        if job.anatomy.head.name in schemes:
            peak = max(peak, _head(job, limits, found[job.anatomy.head]))
        before |= schemes.keys()
    peak = max(peak, _allocate(job, limits), _prune(job, limits), rotation.memory(job))
    peak = max(peak, _restructure(job, limits))
    others = caching.memory(job, limits), teaching.memory(job, limits)
    return max(job.base_bytes + HEAP + peak, *others)


def _prune(job: Job, limits: Limits) -> int:
    """Blocks that are pruned: walked and solved as GPTQ's are, with more copies of what is solved.

    What a block has become waits as weights, not as codes of one byte.
    """
    peak = 0
    for _, prune in job.recipe.prunings:
        walk = {
            "true_sequential": prune.true_sequential,
            "error_correction": prune.error_correction,
        }
        method = {"method": "gptq", **walk} if prune.by_inputs else {"method": "rtn"}
        spec = Quantize.model_validate({**method, "bits": 8, "group_size": -1})
        names = [linear.name for linear in pruned(prune, job.anatomy)]
        schemes = {n: scheme for n in names if (scheme := scheme_for(spec, n)) is not None}
        for block in job.anatomy.blocks:
            solver = BlockMemory(job, limits, spec, block, frozenset(), schemes)
            matrices = [linear.weights for linear, _ in solver.solved()]
            waiting = job.item_bytes * sum(matrices)
            peak = max(peak, solver.peak() + waiting + 4 * _PRUNED * max(matrices, default=0))
        peak = max(peak, _zeros(job, limits, prune))
    return peak


def _zeros(job: Job, limits: Limits, prune: Prune) -> int:
    """What is measured to share zeros out: scores of a linear, or a walk there and back.

    On that, each linear of a block is held as every sparsity leaves it.
    """
    windows, seq_len = MEASURED
    free = [x for x, one in pruned(prune, job.anatomy).items() if one.allocation != "uniform"]
    if not free:
        return 0
    largest = max(linear.weights for linear in free)
    if prune.allocation == "owl":
        states = min(job.tokens, windows * seq_len) * job.anatomy.hidden_size * job.item_bytes
        entering = 0 if states > limits.resident_bytes else states
        return entering + 8 * largest + job.worked_bytes * largest
    widest = max(linear.in_features for linear in free)
    tried = len(pruned(prune, job.anatomy)[free[0]].choices)
    linears = job.anatomy.blocks[0].linears
    held = (tried + 1) * job.item_bytes * sum(linear.weights for linear in linears)
    solving = 4 * (_HESSIANS * widest**2 + _PRUNED * largest)
    return _there_and_back(job, limits, windows, seq_len, DRAWS, beside=held, or_else=solving)


def _restructure(job: Job, limits: Limits) -> int:
    """Blocks that are cut, o and down solved, the teacher's beside them where they are repaired.

    Before that, what enters every block is held for a few tokens, and what is said of them.
    """
    peak = 0
    for _, spec in job.recipe.restructurings:
        if spec.takes_whole:
            continue
        fields = {"error_correction": 1.0 if spec.repair else 0.0}
        like = Quantize.model_validate({"bits": 8, "group_size": -1, **fields})
        for block in job.anatomy.blocks:
            cut = [linear for linear in block.linears if linear.role in _solved(spec)]
            found = ((linear.name, scheme_for(like, linear.name)) for linear in cut)
            schemes = {name: scheme for name, scheme in found if scheme is not None}
            solver = BlockMemory(job, limits, like, block, frozenset(), schemes)
            widest = max(cut, key=lambda linear: linear.in_features)
            choosing = 4 * _CHOOSING * (widest.in_features**2 + widest.weights)
            waiting = job.item_bytes * sum(linear.weights for linear in cut)
            peak = max(peak, solver.peak() + waiting + choosing)
        if spec.depth is not None or spec.searches:
            entering = len(job.anatomy.blocks) * DEPTH_TOKENS * job.anatomy.hidden_size
            said = 4 * 4 * DEPTH_TOKENS // 4 * job.anatomy.vocab_size
            peak = max(peak, job.item_bytes * (entering + job.anatomy.head.weights) + said)
        if spec.importance == "first_order":
            peak = max(peak, _scored(job, limits))
        peak = max(peak, _narrowed(job, spec), 0 if spec.uniform else _share(job, limits))
    return peak


def _solved(spec: Restructure) -> tuple[Role, ...]:
    """What is solved from its inputs; what is merged is not."""
    return fitted_roles(spec) if spec.hidden is not None else ("o", "down")


def _narrowed(job: Job, spec: Restructure) -> int:
    """The head solved for a narrower stream: final states of both models, and its weight thrice."""
    if spec.hidden is None or not spec.repair or job.made_ends == job.anatomy.head.weights:
        return 0
    hidden = job.anatomy.hidden_size
    states = 2 * job.tokens * hidden * (job.item_bytes + 4)  # joined, then float32 by halves
    return states + rotation.memory(job) + 4 * (2 * job.anatomy.head.weights + 8 * hidden**2)


def _scored(job: Job, limits: Limits) -> int:
    """The walk there and back, and on the way each input of down times its gradient, float32."""
    seq_len = min(SCORED_TOKENS, job.recipe.calibration.seq_len)
    inner = max(linear.in_features for linear in job.anatomy.linears)
    moves = 3 * 4 * max(seq_len, limits.batch_tokens) * inner
    return _there_and_back(job, limits, SCORED_WINDOWS, seq_len, SCORED_DRAWS, beside=moves)


def _share(job: Job, limits: Limits) -> int:
    """Models side by side, windows to which down is fitted, and what it is fitted from."""
    anatomy, calibration = job.anatomy, job.recipe.calibration
    downs = [linear for linear in anatomy.linears if linear.role == "down"]
    widest = max(downs, key=lambda linear: linear.in_features)
    models = SHARED_ASKED * (1 + SHARED_TRIED * len(downs))
    fit = min(SHARED_WINDOWS, calibration.samples) * calibration.seq_len
    part = max(calibration.seq_len, limits.batch_tokens)
    wide = sum(linear.in_features + linear.out_features for linear in anatomy.blocks[0].linears)
    held = job.item_bytes * ((models + fit) * anatomy.hidden_size + part * wide)
    choosing = 4 * (1 + _CHOOSING) * (widest.in_features**2 + widest.weights)
    said = 4 * 4 * SHARED_ASKED // 2 * anatomy.vocab_size
    return held + max(choosing, said + job.item_bytes * anatomy.head.weights)


def _allocate(job: Job, limits: Limits) -> int:
    """The walk there and back, and on the way codes of every width."""
    spec, anatomy = job.recipe.allocate, job.anatomy
    if spec is None:
        return 0
    linears = anatomy.blocks[0].linears
    solving = 12 * max(linear.in_features for linear in linears) ** 2
    codes = (len(spec.bits) + job.item_bytes) * sum(linear.weights for linear in linears)
    windows, seq_len = spec.samples, spec.seq_len
    return _there_and_back(job, limits, windows, seq_len, DRAWS, beside=codes, or_else=solving)


def _curvature(job: Job, limits: Limits, spec: Quantize) -> int:
    """The walk there and back, and on the way the sums of one block."""
    if not spec.output_curvature:
        return 0
    sums = max(
        sum(4 * linear.out_features**2 for linear in block.linears) for block in job.anatomy.blocks
    )
    seq_len = job.recipe.calibration.seq_len
    return _there_and_back(job, limits, CURVATURE_WINDOWS, seq_len, 1, beside=sums)


def _there_and_back(
    job: Job,
    limits: Limits,
    windows: int,
    seq_len: int,
    draws: int,
    *,
    beside: int,
    or_else: int = 0,
) -> int:
    """What enters each block, gradients, and what is held beside them (see `stages.backward`).

    `or_else` is held beside it while no gradients run through a block.
    """
    calibration, anatomy = job.recipe.calibration, job.anatomy
    seq_len = min(seq_len, calibration.seq_len)
    tokens = min(windows, calibration.samples) * seq_len
    states = tokens * anatomy.hidden_size
    entering = (len(anatomy.blocks) + 1) * states * job.item_bytes
    held = 0 if entering > limits.resident_bytes else entering
    slopes = draws * states * (8 + 2 * job.item_bytes)  # by final states, by a block's two ends
    part = min(tokens, max(1, limits.batch_tokens // seq_len) * seq_len)
    linears = anatomy.blocks[0].linears
    wide = sum(linear.in_features + (draws + 2) * linear.out_features for linear in linears)
    head = 8 * anatomy.head.weights + 16 * _PROBABILITIES * anatomy.vocab_size
    block = beside + max(or_else, part * wide * job.item_bytes)
    return held + slopes + max(block, head)


def _head(job: Job, limits: Limits, scheme: Scheme) -> int:
    """The head, solved from the final hidden states of all windows, joined to one tensor."""
    head = job.anatomy.head
    states = 2 * job.tokens * job.anatomy.hidden_size * job.item_bytes
    codes = 2 * head.weights  # of slices, then of the whole
    rows = min(limits.solve_rows, head.out_features)
    states += rotation.memory(job)
    return states + 12 * head.in_features**2 + codes + int(4 * SLICE * rows * head.in_features)
