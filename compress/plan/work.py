"""How many operations each step of a run has, counted from headers and the recipe alone.

Operations are those of products in bfloat16; what is slower counts for more.
"""

from __future__ import annotations

from compress.plan import caching, rotation, teaching
from compress.plan.footprint import Job
from compress.plan.pruning import pruned
from compress.plan.reshaping import (
    CANDIDATES,
    DEPTH_TOKENS,
    FITTED_WINDOWS,
    NARROWED_WINDOWS,
    SCORED_DRAWS,
    SCORED_TOKENS,
    SCORED_WINDOWS,
    SHARED_ASKED,
    SHARED_TRIED,
    SHARED_WINDOWS,
    fitted_roles,
)
from compress.plan.sizes import stage_schemes
from compress.recipe.methods import INT8
from compress.recipe.prune import Prune
from compress.recipe.pruning import MEASURED
from compress.recipe.restructure import Restructure

DRAWS = 4  # of `stages.sensitivity`, which needs torch; a test holds them equal
CURVATURE_WINDOWS = 32  # of `stages.curvature`, the same
LEARNED_WINDOWS = 8  # of `stages.learned`, in a step
_SLOW = 4.0  # a float32 product against a bfloat16 one (216 and 873 GFLOP/s on two cores of Zen 5)
_MOVED = 3_500  # operations in whose time a weight is read, rounded, packed and written
_GROWN = 11 * 80  # exponents that AWQ tries, and of how many rows it rounds each
_TRIED = 2 * 48 * 60  # operations of a scale search per weight: grids tried, each many passes


def work(job: Job) -> dict[str, float]:
    """Operations of each step that has many, in bfloat16 products; slower ones count for more."""
    anatomy, recipe = job.anatomy, job.recipe
    weights = float(anatomy.weights)
    texts = (job.suite.perplexity, job.suite.divergence) if job.suite else ()
    read = sum(text.windows * text.seq_len for text in texts)
    return {
        "calibrate": 2.0
        * sum(text.samples * text.seq_len for text in job.written)
        * (weights + anatomy.head.weights),
        "compress": sum(_stage_work(job, index) for index in range(len(recipe.stages))),
        "evaluate": 2 * 2 * _SLOW * read * (weights + anatomy.head.weights),
    }


def _stage_work(job: Job, index: int) -> float:
    """Forwards, Hessians, searches and solvers of one stage."""
    spec, tokens = job.recipe.stages[index].quantize, float(job.tokens)
    if job.recipe.stages[index].rotate:
        return _SLOW * rotation.work(job)
    if (prune := job.recipe.stages[index].prune) is not None:
        return _prune_work(job, prune)
    if (restructure := job.recipe.stages[index].restructure) is not None:
        return _restructure_work(job, restructure)
    if job.recipe.stages[index].distill:
        return teaching.work(job, index)
    if spec is None:
        return caching.work(job) if job.recipe.stages[index].kv_cache else _allocate_work(job)
    operations = 0.0
    seen: set[tuple[int | None, str]] = set()
    for linear, scheme in stage_schemes(job.recipe, index, job.anatomy).items():
        rows, columns = linear.out_features, linear.in_features
        searched = scheme.scale_search != "none"
        operations += (_MOVED + (_TRIED if searched else 0)) * linear.weights
        if scheme.by_gptq:
            rounds = 2 if spec.output_curvature else 1
            operations += _SLOW * 2 * rows * columns**2 * (1 + 2 * scheme.sweeps) * rounds
        grown = spec.smooth == "awq"
        operations += _GROWN * _TRIED * columns if grown else 0
        if (scheme.needs_hessian or grown) and (linear.block, linear.shares) not in seen:
            seen.add((linear.block, linear.shares))
            operations += tokens * columns**2 + _SLOW * 3 * columns**3
            operations += 2 * tokens * columns**2 if spec.error_correction else 0
    last = max(
        (len(job.anatomy.blocks) if block is None else block + 1 for block, _ in seen), default=0
    )
    int8 = spec.method in INT8 and spec.needs_calibration  # each block watched, then passed
    last = len(job.anatomy.blocks) if int8 else last
    walked = sum(linear.weights for block in job.anatomy.blocks[:last] for linear in block.linears)
    forwards = 2 if int8 or spec.error_correction or not spec.true_sequential else 1
    operations += _curvature_work(job) if spec.output_curvature else 0
    learned = spec.learned_rounding * _measured_tokens(job, LEARNED_WINDOWS) + tokens
    operations += 2 * 3 * learned * walked if spec.learned_rounding else 0
    return operations + 2 * forwards * tokens * walked


def _curvature_work(job: Job) -> float:
    """A walk there and back, and the products of all gradients."""
    tokens = _measured_tokens(job, CURVATURE_WINDOWS)
    products = sum(float(linear.out_features) ** 2 for linear in job.anatomy.linears)
    return tokens * (2 * 4 * float(job.anatomy.weights) + products)


def _restructure_work(job: Job, spec: Restructure) -> float:
    """Forwards of student and teacher, what o and down are solved from, blocks left out in turn."""
    if spec.takes_whole:
        return 0.0
    anatomy, tokens = job.anatomy, float(job.tokens)
    rounds = 2 if spec.repair else 1
    operations = 2 * rounds * tokens * anatomy.weights
    roles = fitted_roles(spec) if spec.hidden is not None else ("o", "down")
    for linear in anatomy.linears:
        if linear.role in roles:
            rows, columns = linear.out_features, linear.in_features
            products = tokens * columns * (columns + rounds * (columns + rows))
            operations += products + _SLOW * (6 * columns + 2 * rows) * columns**2
    if spec.searches:
        operations *= 1 + CANDIDATES * min(1.0, FITTED_WINDOWS / job.recipe.calibration.samples)
    if spec.searches or spec.depth is not None:
        blocks = len(anatomy.blocks)
        read = anatomy.weights / blocks * blocks**2 + blocks * anatomy.head.weights / 4
        operations += 2 * DEPTH_TOKENS * 2 * read
    if spec.hidden is not None:
        read = _measured_tokens(job, NARROWED_WINDOWS) * anatomy.weights
        operations += 2 * read + _SLOW * rotation.work(job)
    if spec.importance == "first_order":
        scored = _measured_tokens(job, SCORED_WINDOWS, SCORED_TOKENS)
        operations += 2 * (2 + 2 * SCORED_DRAWS) * scored * anatomy.weights
    return operations + (0 if spec.uniform else _sharing_work(job))


def _sharing_work(job: Job) -> float:
    """Windows that down is fitted to, and models side by side, each from its block to the end."""
    anatomy, fit = job.anatomy, float(_measured_tokens(job, SHARED_WINDOWS))
    models = SHARED_ASKED * SHARED_TRIED * len(anatomy.blocks)
    operations = 2 * (fit + models / 2) * anatomy.weights + models * float(anatomy.head.weights)
    for linear in anatomy.linears:
        if linear.role == "down":
            rows, columns = linear.out_features, linear.in_features
            operations += (fit + _SLOW * (5 * columns + 2 * rows)) * columns**2
    return operations


def _prune_work(job: Job, prune: Prune) -> float:
    """Forwards, Hessians and solvers; a round of refining is a product of the weight and H."""
    tokens, operations, seen = float(job.tokens), 0.0, set[tuple[int | None, str]]()
    found = pruned(prune, job.anatomy)
    for linear, pruning in found.items():
        rows, columns = linear.out_features, linear.in_features
        operations += _MOVED * linear.weights
        if not prune.by_inputs:
            continue
        solving = {"sparsegpt": 1, "admm": 2 + pruning.rounds}.get(pruning.method, 0)
        products = solving + pruning.refine
        products += 1 + 2 * pruning.grid.sweeps if pruning.grid else 0
        operations += _SLOW * 2 * rows * columns**2 * products
        if pruning.grid and pruning.grid.scale_search != "none":
            operations += _TRIED * linear.weights
        if (linear.block, linear.shares) not in seen:
            seen.add((linear.block, linear.shares))
            inverted = solving or pruning.refine
            operations += tokens * columns**2 + (_SLOW * 3 * columns**3 if inverted else 0)
            operations += 2 * tokens * columns**2 if prune.error_correction else 0
    last = max((block + 1 for block, _ in seen if block is not None), default=0)
    walked = sum(linear.weights for block in job.anatomy.blocks[:last] for linear in block.linears)
    forwards = 2 if prune.error_correction or not prune.true_sequential else 1
    return operations + 2 * forwards * tokens * walked + _zeros_work(job, prune)


def _zeros_work(job: Job, prune: Prune) -> float:
    """A walk there, and by sensitivity back: each sparsity solved once, and multiplied."""
    found, tokens = pruned(prune, job.anatomy), _measured_tokens(job, *MEASURED)
    free = {x: pruning for x, pruning in found.items() if pruning.allocation != "uniform"}
    walked = 2 * tokens * float(job.anatomy.weights) if free else 0.0
    if not free or prune.allocation == "owl":
        return walked
    tried = len(next(iter(free.values())).choices)
    solved = 0.0
    if prune.by_inputs:
        widths = {(x.block, x.fused or x.name): float(x.in_features) for x in free}.values()
        inverted = sum(3 * columns**3 for columns in widths)
        solved = inverted + sum(2.0 * x.weights * x.in_features for x in free)
    return (2 + 2 * DRAWS + tried) * walked + tried * _SLOW * solved


def _measured_tokens(job: Job, windows: int, seq_len: int | None = None) -> int:
    """Of the first windows, and the first of each or all, that something is measured on."""
    calibration = job.recipe.calibration
    tokens = min(seq_len or calibration.seq_len, calibration.seq_len)
    return min(windows, calibration.samples) * tokens


def _allocate_work(job: Job) -> float:
    """A walk there, and back for every draw; each width rounded, and multiplied once."""
    spec, weights = job.recipe.allocate, float(job.anatomy.weights)
    if spec is None:
        return 0.0
    tokens = _measured_tokens(job, spec.samples, spec.seq_len)
    walks = 2 + 2 * DRAWS + len(spec.bits)
    return 2 * walks * tokens * weights + len(spec.bits) * (_MOVED + _TRIED) * weights
