"""What each step of a run holds in memory that the system cannot take back: anonymous memory.

Weights are mapped from files, and so are activations past `Limits.resident_bytes`: those pages come
and go with the room there is. The sums follow the code they name; docs/plan.md holds them against
what runs really took.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from compress.anatomy import Anatomy, Block, Linear, parallel_residual
from compress.artifact.formats.matrix import Matrix
from compress.plan import sizes
from compress.recipe.schema import Quantize, Recipe
from compress.recipe.scheme import Scheme, scheme_for
from compress.recipe.suite import Suite
from compress.results import Limits
from compress.teacher.headers import DTYPES, Headers

MIB = 1024**2
# Measured with torch 2.13 and transformers 5.23 on a CPU; see docs/plan.md.
LIBRARIES = 310 * MIB  # everything that a run imports, its tokenizer, its threads
JUDGING = 85 * MIB  # lm-eval and what it imports, from the first task on
HEAP = 50 * MIB  # small pieces that were freed, and that the C library keeps
WRITTEN = 80 * MIB  # what stays when the teacher has written its own text
CONVERTER = 300 * MIB  # the process that dequantizes a GGUF file; 6 bytes a weight come on top
_HELD_SHARD = 256 * MIB  # storage.writing: what waits of a shard
_SLICE = 3.4  # float32 copies of the rows being solved: docs of kernels.gptq, and the codes
_TASK_TOKENS = 30_000  # of all that the shipped tasks ask
_WALK_TOKENS = 4096  # surgery.walk: of one forward, when text is read
_LOGITS_TOKENS, _LOGITS_COPIES = 512, 10  # evaluate.text: what comparing two models holds at a time
_LOGITS_IN_HEAP = 17  # the same where a copy is smaller than what the C library keeps: 32 MiB
_WRITER_BATCH = 32  # calibrate.selfgen


@dataclass(frozen=True)
class Job:
    """What decides the memory of a run."""

    recipe: Recipe
    headers: Headers
    suite: Suite | None
    item_bytes: int  # of an activation: 2 in bfloat16, 4 in float32

    @cached_property
    def anatomy(self) -> Anatomy:
        """Of the teacher."""
        return self.headers.anatomy

    @cached_property
    def copied_bytes(self) -> int:
        """Bytes a weight takes when it is read to be walked; none where it is used as mapped."""
        wanted = DTYPES[self.recipe.teacher.dtype]
        cast = 2 if wanted != "F32" else 4
        copied = 0 if self.headers.cast(self.recipe.teacher.dtype) is self.headers else cast
        return copied + (self.item_bytes if cast != self.item_bytes else 0)

    @property
    def base_bytes(self) -> int:
        """What every step behind the calibration holds."""
        return LIBRARIES + (WRITTEN if self.writes else 0)

    @property
    def writes(self) -> bool:
        """Whether the teacher writes the calibration itself."""
        return bool(self.tokens) and self.recipe.calibration.set == "self"

    @property
    def tokens(self) -> int:
        """Of the calibration."""
        calibration = self.recipe.calibration
        return calibration.samples * calibration.seq_len if self.recipe.needs_calibration else 0

    @property
    def ends(self) -> int:
        """Weights of embedding and head."""
        return self.anatomy.head.weights * (1 if self.anatomy.tied else 2)


def convert(job: Job) -> int:
    """A GGUF file is dequantized by a process of its own, beside this one."""
    weights = sum(linear.weights for linear in job.anatomy.linears) + job.ends
    return LIBRARIES + CONVERTER + 6 * weights if job.headers.converted_bytes else 0


def write_text(job: Job) -> int:
    """The teacher writes its own text: keys and values of a batch of windows."""
    calibration = job.recipe.calibration
    if not job.writes:
        return LIBRARIES if job.tokens else 0
    batch = min(_WRITER_BATCH, calibration.samples)
    copied = 0 if job.recipe.teacher.dtype == "bfloat16" else 2
    weights = copied * (job.anatomy.weights + job.ends)
    scores = 4 * batch * job.anatomy.vocab_size * 4
    return LIBRARIES + HEAP + weights + _cache(job, batch, calibration.seq_len) + scores


def _cache(job: Job, batch: int, tokens: int) -> int:
    """Keys and values of a whole model, two bytes each."""
    return 2 * 2 * batch * tokens * sum(_width(b, "k", "qkv") for b in job.anatomy.blocks)


def _width(block: Block, *roles: str) -> int:
    """Outputs of the linear with the first of these roles; of one of three where they are one."""
    linear = next(x for role in roles for x in block.linears if x.role == role)
    return linear.out_features // (3 if linear.role == "qkv" else 1)


def compress(job: Job, limits: Limits) -> int:
    """The most that the stages hold: a block and what is held while it is solved, or the head."""
    """The most that the stages hold: a block and what is held while it is solved, or the head."""
    peak = 0
    before: frozenset[str] = frozenset()
    for stage in job.recipe.stages:
        spec = stage.quantize
        found = sizes.quantized(spec, job.anatomy)
        schemes = {linear.name: scheme for linear, scheme in found.items()}
        for block in job.anatomy.blocks:
            solver = _BlockMemory(job, limits, spec, block, before)
            peak = max(peak, solver.peak())
        if job.anatomy.head.name in schemes:
            peak = max(peak, _head(job, limits, found[job.anatomy.head]))
        before |= schemes.keys()
    return job.base_bytes + HEAP + peak


def _head(job: Job, limits: Limits, scheme: Scheme) -> int:
    """The head, solved from the final hidden states of all windows, joined to one tensor."""
    head = job.anatomy.head
    states = 2 * job.tokens * job.anatomy.hidden_size * job.item_bytes
    codes = 2 * head.weights  # of slices, then of the whole
    rows = min(limits.solve_rows, head.out_features)
    return states + 12 * head.in_features**2 + codes + int(4 * _SLICE * rows * head.in_features)


@dataclass(frozen=True)
class _BlockMemory:
    """What is held while the linears of one block are solved, one group after another."""

    job: Job
    limits: Limits
    spec: Quantize
    block: Block
    before: frozenset[str]  # linears that earlier stages have made codes of

    def peak(self) -> int:
        """The most at any moment, the libraries left out."""
        walked = any(scheme.needs_hessian for _, scheme in self.solved())
        return max(self.walk() if walked else self.round(), self.commit())

    def solved(self) -> list[tuple[Linear, Scheme]]:
        """Linears to solve, with their schemes."""
        found = [(linear, scheme_for(self.spec, linear.name)) for linear in self.block.linears]
        return [(linear, scheme) for linear, scheme in found if scheme is not None]

    def weights(self) -> int:
        """The block as it is read: nothing where it is used as it is mapped."""
        copied = self.job.copied_bytes * sum(linear.weights for linear in self.block.linears)
        turned = [linear.weights for linear in self.block.linears if linear.name in self.before]
        return copied + (4 + self.job.item_bytes) * sum(turned)

    def round(self) -> int:
        """Rounded to nearest: slices of one linear, and the codes of those before it."""
        slices = [
            12 * min(self.limits.solve_rows, x.out_features) * x.in_features
            for x, _ in self.solved()
        ]
        return self.weights() + max(slices, default=0) + self.codes()

    def codes(self) -> int:
        """Codes and scales of the whole block, one byte a code."""
        return sum(_codes(linear, scheme) for linear, scheme in self.solved())

    def commit(self) -> int:
        """The block's codes, and the same packed."""
        packed = sum(linear.weights * scheme.bits // 8 for linear, scheme in self.solved())
        return self.weights() + self.held("") + self.codes() + packed

    def walk(self) -> int:
        """Solved from the inputs of each group of linears."""
        groups = [list(g) for _, g in groupby(self.solved(), key=lambda pair: pair[0].shares)]
        hessians = [4 * group[0][0].in_features ** 2 for group in groups]
        peak = codes = replaced = 0
        for number, group in enumerate(groups):
            alive = [hessians[number]] if self.spec.true_sequential else hessians[number:]
            here = self.weights() + self.held(group[0][0].shares) + codes + replaced + sum(alive)
            peak = max(peak, here + self.forward(), here + self.solving(group))
            codes += sum(_codes(linear, scheme) for linear, scheme in group)
            largest = max(linear.weights for linear, _ in group)
            replaced += self.job.item_bytes * sum(linear.weights for linear, _ in group)
            peak = max(peak, here + codes + replaced + 4 * largest)
        return peak

    def solving(self, group: Sequence[tuple[Linear, Scheme]]) -> int:
        """Beside the Hessian: two more of its size to invert it, then its factor and rows."""
        columns = group[0][0].in_features
        peaks = [8 * columns**2]
        for _, members in groupby(group, key=lambda pair: pair[1]):
            rows = sum(linear.out_features for linear, _ in members)
            slice_rows = min(self.limits.solve_rows, rows)
            working = int(4 * _SLICE * slice_rows * columns)
            peaks.append(4 * columns**2 + working + 2 * rows * columns)
        return max(peaks)

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


def write(job: Job) -> int:
    """One matrix unpacked and packed again, and what waits of a shard."""
    matrices = _matrices(job)
    largest = max(matrix.rows * matrix.columns for matrix in matrices)
    written = sum(m.rows * m.columns * m.scheme.bits // 8 for m in matrices)
    return job.base_bytes + HEAP + 3 * largest + min(written, _HELD_SHARD)


def evaluate(job: Job) -> int:
    """Text that teacher and student read, their logits compared, and tasks."""
    if job.suite is None:
        return 0
    found = job.base_bytes + max(_read(job, job.suite), _compare(job, job.suite))
    tasks = bool(job.suite.tasks or job.suite.lm_eval_tasks)
    return max(found, job.base_bytes + JUDGING + _ask(job)) if tasks else found


def _states(job: Job, suite: Suite) -> int:
    """Final hidden states of all text, float32."""
    texts = {suite.perplexity, suite.divergence}
    return 4 * job.anatomy.hidden_size * sum(text.windows * text.seq_len for text in texts)


def _read(job: Job, suite: Suite) -> int:
    """Text read in float32, block by block, once the embedding has been let go."""
    anatomy, states = job.anatomy, _states(job, suite)
    tokens = min(_WALK_TOKENS, states // (4 * anatomy.hidden_size))
    inner = max(linear.in_features for linear in anatomy.linears)
    embedding = 0 if job.recipe.teacher.dtype == "float32" else 4 * anatomy.head.weights
    return max(embedding + states, 2 * states + 4 * _block(job) + 3 * 4 * tokens * inner)


def _compare(job: Job, suite: Suite) -> int:
    """Logits of a piece of a window by both heads, float32."""
    heads = 0 if job.recipe.teacher.dtype == "float32" else 2 * 4 * job.anatomy.head.weights
    piece = 4 * min(_LOGITS_TOKENS, suite.divergence.seq_len) * job.anatomy.vocab_size
    copies = _LOGITS_COPIES if piece >= 32 * MIB else _LOGITS_IN_HEAP
    return _states(job, suite) + heads + copies * piece


def _ask(job: Job) -> int:
    """All requests at once, block by block; a block is expanded, then cast."""
    requests = 2 * _TASK_TOKENS * job.anatomy.hidden_size * job.item_bytes
    return requests + (4 + job.item_bytes) * _block(job)


def _block(job: Job) -> int:
    """Weights of the largest block."""
    return max(sum(linear.weights for linear in block.linears) for block in job.anatomy.blocks)


def samples(job: Job) -> int:
    """The student whole, expanded, then cast."""
    suite = job.suite
    if suite is None or suite.samples is None or not suite.samples.prompts:
        return 0
    whole = sum(matrix.rows * matrix.columns for matrix in _matrices(job))
    dense = job.anatomy.weights + job.ends - whole
    expanded = (4 + job.item_bytes) * whole + job.copied_bytes * dense
    tokens = suite.samples.max_new_tokens + 64  # and the prompt, with its template
    cache = _cache(job, len(suite.samples.prompts), tokens)
    return job.base_bytes + (JUDGING if suite.tasks else 0) + expanded + cache


def time(job: Job) -> int:
    """The student in our runtime: its codes twice, in two layouts, and what is dense."""
    matrices = _matrices(job)
    codes = sum(m.rows * m.columns * (1 if m.scheme.bits <= 4 else 2) for m in matrices)
    scales = sum(6 * m.rows * m.groups for m in matrices)
    expanding = 5 * max(m.rows * m.columns for m in matrices)
    judged = JUDGING if job.suite and job.suite.tasks else 0
    return job.base_bytes + HEAP + judged + codes + scales + expanding


def _matrices(job: Job) -> list[Matrix]:
    """What will be quantized."""
    return list(sizes.matrices(job.anatomy, sizes.schemes(job.recipe, job.anatomy)).values())
