"""What the stages hold in memory: a block, and what is held while its linears are solved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from compress.anatomy import Block, Linear, parallel_residual
from compress.families import Role
from compress.plan import caching, rotation, sizes, teaching
from compress.plan.footprint import HEAP, Job
from compress.plan.pace import CURVATURE_WINDOWS, DRAWS
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
from compress.recipe.methods import INT8
from compress.recipe.pruning import MEASURED
from compress.recipe.restructure import Restructure
from compress.recipe.schema import Prune, Quantize
from compress.recipe.scheme import Scheme, scheme_for
from compress.results import Limits

_CHOOSING = 3  # float32 copies of the inverse and of the weight (kernels.structure)
_PROBABILITIES = 128  # kernels.fisher: tokens whose probabilities are held at once
_HESSIANS = 6  # of a block, and one being inverted
_PRUNED = 4  # more float32 copies of a matrix that is pruned and refined (kernels.admm)
_CUT = 4  # float32 copies of a curvature (kernels.two_sided)
_SLICE = 3.4  # float32 copies of the rows being solved (kernels.gptq), and their codes


def compress(job: Job, limits: Limits) -> int:
    """The most that the stages hold: a block and what is held while it is solved, or the head."""
    peak = 0
    before: frozenset[str] = frozenset()
    for index, spec in job.recipe.quantizations:
        found = sizes.stage_schemes(job.recipe, index, job.anatomy)
        schemes = {linear.name: scheme for linear, scheme in found.items()}
        for block in job.anatomy.blocks:
            solver = _BlockMemory(job, limits, spec, block, before, schemes)
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
            solver = _BlockMemory(job, limits, spec, block, frozenset(), schemes)
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
        fields = {"error_correction": 1.0 if spec.repair else 0.0}
        like = Quantize.model_validate({"bits": 8, "group_size": -1, **fields})
        for block in job.anatomy.blocks:
            cut = [linear for linear in block.linears if linear.role in _solved(spec)]
            found = ((linear.name, scheme_for(like, linear.name)) for linear in cut)
            schemes = {name: scheme for name, scheme in found if scheme is not None}
            solver = _BlockMemory(job, limits, like, block, frozenset(), schemes)
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
    return states + 12 * head.in_features**2 + codes + int(4 * _SLICE * rows * head.in_features)


@dataclass(frozen=True)
class _BlockMemory:
    """What is held while the linears of one block are solved, one group after another."""

    job: Job
    limits: Limits
    spec: Quantize
    block: Block
    before: frozenset[str]  # linears that earlier stages have made codes of
    schemes: Mapping[str, Scheme]

    def peak(self) -> int:
        """The most at any moment, the libraries left out."""
        walked = bool(self.spec.smooth) or any(s.needs_hessian for _, s in self.solved())
        solving = max(self.walk(), self.catch_up()) if walked else self.round()
        if self.spec.method in INT8 and self.spec.needs_calibration:
            solving = max(self.watch(), self.catch_up())
        return max(solving, self.commit())

    def solved(self) -> list[tuple[Linear, Scheme]]:
        """Linears to solve, with their schemes."""
        found = [(linear, self.schemes.get(linear.name)) for linear in self.block.linears]
        return [(linear, scheme) for linear, scheme in found if scheme is not None]

    def weights(self) -> int:
        """The block as it is read."""
        copied = self.job.worked_bytes * sum(linear.weights for linear in self.block.linears)
        turned = [linear.weights for linear in self.block.linears if linear.name in self.before]
        return copied + (4 + self.job.item_bytes) * sum(turned)

    def round(self) -> int:
        """Rounded to nearest: slices of a stack, and the codes of all linears."""
        together: dict[str, list[Linear]] = {}  # what engines fuse is rounded as one stack
        for linear, _ in self.solved():
            together.setdefault(linear.fused or linear.name, []).append(linear)
        floating = any(scheme.floating for _, scheme in self.solved())
        copied = 1 + self.job.item_bytes if floating else 0  # such a stack is joined as it lies
        peak = 0
        for stack in together.values():
            columns, rows = stack[0].in_features, sum(x.out_features for x in stack)
            slice_rows = min(self.limits.solve_rows, rows)
            peak = max(peak, 12 * slice_rows * columns + (1 + copied) * rows * columns)
        return self.weights() + peak + self.codes()

    def watch(self) -> int:
        """Watched, smoothed and rounded to nearest; see `stages.int8`."""
        linears = sum(linear.weights for linear in self.block.linears)
        smoothed = 0 if self.spec.smooth is None else 2 * self.job.item_bytes * linears
        seen = self.round() + self.held("") + smoothed + self.forward()
        if self.spec.solver != "gptq":
            return seen
        groups = [list(g) for _, g in groupby(self.solved(), key=lambda pair: pair[0].shares)]
        hessians = 4 * sum(group[0][0].in_features ** 2 for group in groups)
        return seen + 2 * hessians + max(self.solving(group) for group in groups)

    def codes(self) -> int:
        """Codes and scales of the whole block, one byte a code."""
        return sum(_codes(linear, scheme) for linear, scheme in self.solved())

    def commit(self) -> int:
        """The block's codes, and the same packed."""
        packed = sum(linear.weights * scheme.bits // 8 for linear, scheme in self.solved())
        return self.weights() + self.held("") + self.codes() + packed

    def catch_up(self) -> int:
        """Walked again, expanded from its codes, by a run that goes on behind it."""
        expanded = sum(linear.weights for linear, _ in self.solved())
        return self.weights() + self.held("") + (4 + self.job.item_bytes) * expanded

    def walk(self) -> int:
        """Solved from the inputs of each group of linears."""
        groups = [list(g) for _, g in groupby(self.solved(), key=lambda pair: pair[0].shares)]
        hessians = [4 * group[0][0].in_features ** 2 for group in groups]
        peak = codes = replaced = 0
        for number, group in enumerate(groups):
            alive = [hessians[number]] if self.spec.true_sequential else hessians[number:]
            here = self.weights() + self.held(group[0][0].shares) + codes + replaced + sum(alive)
            here += self.beside(group)
            here += 4 * sum(linear.weights for linear, _ in group) if self.spec.smooth else 0
            peak = max(peak, here + self.forward(), here + self.solving(group))
            codes += sum(_codes(linear, scheme) for linear, scheme in group)
            largest = max(linear.weights for linear, _ in group)
            replaced += self.job.item_bytes * sum(linear.weights for linear, _ in group)
            peak = max(peak, here + codes + replaced + 4 * largest)
        return peak

    def beside(self, group: Sequence[tuple[Linear, Scheme]]) -> int:
        """For error correction: the teacher's forwards, the drift, and what the linears lack."""
        if not self.spec.error_correction:
            return 0
        columns = group[0][0].in_features
        lacks = 8 * sum(linear.weights for linear, _ in group)  # and the targets they make
        return (
            self.weights() + self.held(group[0][0].shares) + self.held("") + lacks + 8 * columns**2
        )

    def solving(self, group: Sequence[tuple[Linear, Scheme]]) -> int:
        """Beside the Hessian: two more of its size to invert it, then its factor and rows."""
        columns = group[0][0].in_features
        peaks = [8 * columns**2]
        for _, members in groupby(group, key=lambda pair: pair[1]):
            rows = sum(linear.out_features for linear, _ in members)
            slice_rows = min(self.limits.solve_rows, rows)
            working = int(4 * _SLICE * slice_rows * columns)
            peaks.append(4 * columns**2 + working + 2 * rows * columns + self.two_sided(group))
        return max(peaks)

    def two_sided(self, group: Sequence[tuple[Linear, Scheme]]) -> int:
        """Where outputs are known: the curvature, cut and damped, and a whole weight's errors."""
        if not self.spec.output_curvature:
            return 0
        rows = max(linear.out_features for linear, _ in group)
        return 4 * (_CUT * rows**2 + 3 * rows * group[0][0].in_features)

    def held(self, shares: str) -> int:
        """Activations that wait while linears of one input are solved; see decision 0005."""
        job, hidden = self.job, self.job.anatomy.hidden_size

        def room(width: int) -> int:
            size = job.tokens * width * job.item_bytes
            return 0 if size > self.limits.resident_bytes else size

        if not self.spec.true_sequential or not shares:
            return room(hidden)
        linears = {linear.role: linear for linear in self.block.linears}
        three = sum(linears[r].out_features for r in ("q", "k", "v", "qkv") if r in linears)
        stream = job.tokens * hidden * job.item_bytes  # residuals are on the forwards' own stacks
        parallel = room(hidden) if parallel_residual(job.headers.config) else 0
        return (
            room(hidden)
            + {
                "attention_input": room(hidden),
                "attention_output": room(hidden)
                + job.tokens * three * job.item_bytes
                + room(linears["o"].in_features),
                "mlp_input": stream + parallel,
                "mlp_hidden": stream + parallel + room(linears["down"].in_features),
            }[shares]
        )

    def forward(self) -> int:
        """One batch inside the block: attention in float32, or the MLP and its Hessian's inputs."""
        job = self.job
        seq_len = job.recipe.calibration.seq_len
        tokens = max(1, self.limits.batch_tokens // seq_len) * seq_len
        linears = {linear.role: linear for linear in self.block.linears}
        heads = int(job.headers.config.get("num_attention_heads") or job.headers.config["n_head"])
        inner, outer = linears["down"].in_features, linears["o"].in_features
        attention = tokens * (4 * 3 * outer + 4 * 3 * 64 * heads)
        mlp = tokens * inner * (3 * job.item_bytes + 4)
        return max(attention, mlp) + job.item_bytes * linears["down"].weights


def _codes(linear: Linear, scheme: Scheme) -> int:
    size = linear.in_features if scheme.group_size == -1 else scheme.group_size
    return linear.weights + 5 * linear.weights // size
