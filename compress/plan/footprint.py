"""What each step of a run holds in memory that the system cannot take back: anonymous memory.

Weights are mapped from files, and so are activations past `Limits.resident_bytes`: those pages come
and go with the room there is. The sums follow the code they name; docs/plan.md holds them against
what runs really took.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from compress.anatomy import Anatomy
from compress.artifact.formats.matrix import Matrix
from compress.forwards import kv_bytes, writing_bytes, writing_rows
from compress.plan import sizes
from compress.plan.rotation import turned
from compress.recipe.schema import Calibration, Recipe
from compress.recipe.suite import Suite
from compress.recipe.text_set import describe
from compress.teacher.headers import DTYPES, Headers

MIB = 1024**2
# Measured with torch 2.13 and transformers 5.23 on a CPU; see docs/plan.md.
LIBRARIES = 310 * MIB  # everything that a run imports, its tokenizer, its threads
JUDGING = 85 * MIB  # lm-eval and what it imports, from the first task on
HEAP = 50 * MIB  # small pieces that were freed, and that the C library keeps
WRITTEN = 80 * MIB  # what stays when the teacher has written its own text
CONSUMER = 450 * MIB  # the process in which transformers opens it; 6 bytes a weight come on top
CONVERTER = 300 * MIB  # the process that dequantizes a GGUF file; 6 bytes a weight come on top
_HELD_SHARD = 256 * MIB  # storage.writing: what waits of a shard
_TASK_TOKENS = 30_000  # of all that the shipped tasks ask
_WALK_TOKENS = 4096  # surgery.walk: of one forward, when text is read
_LOGITS_TOKENS, _LOGITS_COPIES = 512, 9  # evaluate.text: what comparing two models holds at a time
_LOGITS_IN_HEAP = 17  # the same where a copy is smaller than what the C library keeps: 32 MiB


@dataclass(frozen=True)
class Job:
    """What decides the memory of a run."""

    recipe: Recipe
    headers: Headers
    suite: Suite | None
    item_bytes: int  # of an activation: 2 in bfloat16, 4 in float32

    @cached_property
    def anatomy(self) -> Anatomy:
        """Of what the student begins as: the teacher, or another model."""
        return self.headers.anatomy

    @cached_property
    def copied_bytes(self) -> int:
        """Bytes a weight takes when it is read to be walked; none where it is used as mapped."""
        wanted = DTYPES[self.recipe.teacher.dtype]
        cast = 2 if wanted != "F32" else 4
        copied = 0 if self.headers.cast(self.recipe.teacher.dtype) is self.headers else cast
        return copied + (self.item_bytes if cast != self.item_bytes else 0)

    @property
    def teachers(self) -> Job:
        """The same with the teacher in the place of what the student begins as."""
        taught = self.headers.teacher
        return self if taught is None else replace(self, headers=taught)

    @property
    def begins_anew(self) -> bool:
        """Whether the student begins as a model that the cache is yet to hold."""
        student = self.recipe.student
        return student is not None and bool(student.config or self.headers.fitted_from)

    @property
    def worked_bytes(self) -> int:
        """The same when a stage reads it: what was turned is float32."""
        if self.recipe.rotate is None and not self.recipe.turns:
            return self.copied_bytes
        return 4 + (0 if self.item_bytes == 4 else self.item_bytes)

    @property
    def base_bytes(self) -> int:
        """What every step behind the calibration holds."""
        return LIBRARIES + (WRITTEN if self.writes else 0)

    @property
    def writes(self) -> bool:
        """Whether the teacher writes some of the text itself."""
        return bool(self.written)

    @cached_property
    def written(self) -> tuple[Calibration, ...]:
        """The texts that it writes, each once; what sets are stands in files, read once."""
        recipe = self.recipe
        texts = [recipe.read_by(spec) for _, spec in recipe.distillations]
        texts += [recipe.calibration] if recipe.needs_calibration else []
        parts = (part for text in texts for part in text.parts)
        return tuple(dict.fromkeys(part for part in parts if describe(part)["kind"] == "self"))

    @cached_property
    def tokens(self) -> int:
        """Of the calibration."""
        calibration = self.recipe.calibration
        return calibration.samples * calibration.seq_len if self.recipe.needs_calibration else 0

    @property
    def ends(self) -> int:
        """Weights of embedding and head."""
        return self.anatomy.head.weights * (1 if self.anatomy.tied else 2)

    @property
    def made_ends(self) -> int:
        """The same of the student."""
        return self.anatomy.head.weights * (1 if turned(self.recipe, self.anatomy).tied else 2)


def _alone(job: Job) -> Job:
    """The same as if nothing else taught the student than what it begins as."""
    return replace(job, headers=replace(job.headers, teacher=None))


def convert(job: Job) -> int:
    """A GGUF file is dequantized by a process of its own, beside this one."""
    if (teacher := job.teachers) is not job:
        return max(convert(teacher), convert(_alone(job)))
    weights = sum(linear.weights for linear in job.anatomy.linears) + job.ends
    return LIBRARIES + CONVERTER + 6 * weights if job.headers.converted_bytes else 0


def begin(job: Job) -> int:
    """What a student begins as, made and written: its ends as read and as made, and a shard."""
    if not job.begins_anew:
        return 0
    width = 4 if job.recipe.teacher.dtype == "float32" else 2
    waits = min(width * (job.anatomy.weights + job.ends), _HELD_SHARD)
    return LIBRARIES + HEAP + 2 * width * job.ends + waits


def write_text(job: Job) -> int:
    """The teacher writes its own text: keys and values of a batch of windows."""
    if not job.written:
        return LIBRARIES if job.tokens else 0
    job = job.teachers
    copied = 0 if job.recipe.teacher.dtype == "bfloat16" else 2
    weights = copied * (job.anatomy.weights + job.ends)
    pages = (
        (min(writing_rows(job.anatomy, text.seq_len), text.samples), text.seq_len)
        for text in job.written
    )
    held = max(writing_bytes(job.anatomy, rows, seq_len) for rows, seq_len in pages)
    return LIBRARIES + HEAP + weights + held


def write(job: Job) -> int:
    """One matrix unpacked and packed again, and what waits of a shard."""
    matrices = _matrices(job)
    largest = max((matrix.rows * matrix.columns for matrix in matrices), default=0)
    written = sum(m.rows * m.columns * m.scheme.bits // 8 for m in matrices)
    return job.base_bytes + HEAP + 3 * largest + min(written, _HELD_SHARD)


def evaluate(job: Job) -> int:
    """Text that teacher and student read, their logits compared, and tasks."""
    if job.suite is None:
        return 0
    if (teacher := job.teachers) is not job:
        return max(evaluate(teacher), evaluate(_alone(job)))
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
    dense = job.anatomy.weights + job.made_ends - whole
    expanded = (4 + job.item_bytes) * whole + job.copied_bytes * dense
    tokens = suite.samples.max_new_tokens + 64  # and the prompt, with its template
    cache = len(suite.samples.prompts) * kv_bytes(job.anatomy, tokens)
    teacher = job.teachers
    answering = teacher.copied_bytes * (teacher.anatomy.weights + teacher.ends)
    answering += len(suite.samples.prompts) * kv_bytes(teacher.anatomy, tokens)
    judged = JUDGING if suite.tasks else 0
    return job.base_bytes + judged + max(expanded + cache, answering if teacher is not job else 0)


def time(job: Job) -> int:
    """The student in our runtime: its codes twice, in two layouts, and what is dense."""
    matrices = _matrices(job)
    codes = sum(m.rows * m.columns * (1 if m.scheme.bits <= 4 else 2) for m in matrices)
    scales = sum(6 * m.rows * m.groups for m in matrices)
    expanding = 5 * max((m.rows * m.columns for m in matrices), default=0)
    judged = JUDGING if job.suite and job.suite.tasks else 0
    return job.base_bytes + HEAP + judged + codes + scales + expanding


def verify(job: Job, *, consumers: bool) -> int:
    """The artifact read again by a reader of its own; then by consumers, who hold it whole.

    Our runtime and transformers expand it to float32, transformers in a process of its own.
    """
    head = job.anatomy.head.weights
    judged = JUDGING if job.suite and job.suite.tasks else 0
    unpacked = 9 * max(linear.weights for linear in job.anatomy.linears)  # its bits, a byte each
    found = max(4 * job.made_ends, 4 * _block(job) + unpacked)
    if consumers:
        weights = job.anatomy.weights + job.made_ends
        exported = job.recipe.artifact.format == "compressed-tensors"
        theirs = CONSUMER + 6 * weights if exported else 0
        found = max(found, 4 * weights + 8 * head, theirs)
    return job.base_bytes + HEAP + judged + found


def _matrices(job: Job) -> list[Matrix]:
    """What will be quantized."""
    return list(sizes.matrices(job.anatomy, sizes.schemes(job.recipe, job.anatomy)).values())
