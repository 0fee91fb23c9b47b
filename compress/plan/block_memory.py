"""What one block holds in memory while its linears are solved, one group after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from compress.anatomy import Block, Linear, parallel_residual
from compress.forwards import block_bytes
from compress.plan.footprint import Job
from compress.recipe.methods import INT8
from compress.recipe.schema import Quantize
from compress.recipe.scheme import Scheme
from compress.results import Limits

_LEARNED = 13  # bytes a weight: latent, its gradient twice, and its code (stages.learned)
_CUT = 4  # float32 copies of a curvature (kernels.two_sided)
SLICE = 3.4  # float32 copies of the rows being solved (kernels.gptq), and their codes


@dataclass(frozen=True)
class BlockMemory:
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
        solving = max(self.walk(), self.learn(), self.catch_up()) if walked else self.round()
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
            here += self.beside(group) + self.seen_by_learner()
            here += 4 * sum(linear.weights for linear, _ in group) if self.spec.smooth else 0
            peak = max(peak, here + self.forward(), here + self.solving(group))
            codes += sum(_codes(linear, scheme) for linear, scheme in group)
            largest = max(linear.weights for linear, _ in group)
            replaced += self.job.item_bytes * sum(linear.weights for linear, _ in group)
            peak = max(peak, here + codes + replaced + 4 * largest)
        return peak

    def seen_by_learner(self) -> int:
        """What enters the block and what it should make of that; see `stages.learned`."""
        return 2 * self.held("") if self.spec.learned_rounding else 0

    def learn(self) -> int:
        """All codes of the block learned at once: latent weights, gradients, what they make."""
        if not self.spec.learned_rounding:
            return 0
        job, seq_len = self.job, self.job.recipe.calibration.seq_len
        tokens = max(1, self.limits.batch_tokens // seq_len) * seq_len
        solved = sum(linear.weights for linear, _ in self.solved())
        kept = block_bytes(job.anatomy, self.block, tokens, job.item_bytes)
        kept += 2 * self.heads() * tokens * seq_len  # probabilities, float32, half of them zero
        teacher = self.held("") if self.spec.error_correction else 0
        held = self.weights() + self.held("") + self.seen_by_learner() + teacher
        learned = solved * (_LEARNED + 3 * job.item_bytes) + self.codes()
        return held + learned + 2 * kept + self.forward()

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
            working = int(4 * SLICE * slice_rows * columns)
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

    def heads(self) -> int:
        """Query heads."""
        config = self.job.headers.config
        return int(config.get("num_attention_heads") or config["n_head"])

    def forward(self) -> int:
        """One batch inside the block: attention in float32, or the MLP and its Hessian's inputs."""
        job = self.job
        seq_len = job.recipe.calibration.seq_len
        tokens = max(1, self.limits.batch_tokens // seq_len) * seq_len
        linears = {linear.role: linear for linear in self.block.linears}
        inner, outer = linears["down"].in_features, linears["o"].in_features
        attention = tokens * (4 * 3 * outer + 4 * 3 * 64 * self.heads())
        mlp = tokens * inner * (3 * job.item_bytes + 4)
        return max(attention, mlp) + job.item_bytes * linears["down"].weights


def _codes(linear: Linear, scheme: Scheme) -> int:
    size = linear.in_features if scheme.group_size == -1 else scheme.group_size
    return linear.weights + 5 * linear.weights // size
