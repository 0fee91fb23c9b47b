"""A run as it could be: the teacher of the quickstart, 30 blocks of 7 linears, one kept dense."""

import math
import random
from dataclasses import replace

import pytest

from compress.results import (
    Allocation,
    Divergence,
    LinearResult,
    Measured,
    Perplexity,
    Provenance,
    Results,
    Sample,
    Share,
    Side,
    SizePart,
    StageResult,
    TaskScore,
    Width,
)

RECIPE = """\
# what was asked for, with every default, revision and hash written out
version: 1
teacher:
  model: HuggingFaceTB/SmolLM2-135M-Instruct
  revision: 12fd25f77366fa6b3b4b768ec3050bf629380bac
  dtype: bfloat16
calibration: {set: self, samples: 128, seq_len: 512, seed: 0}
stages:
  - quantize: {method: gptq, bits: 4, group_size: 64, sym: true, scale_search: hessian,
               desc_act: true, damp_percent: 0.01, targets: ["*"], ignore: [], head: 8}
evaluate:    {suite: quick}
artifact:    {format: packed}
"""
ROLES = {
    "q": ("self_attn.q_proj", 0.011),
    "k": ("self_attn.k_proj", 0.009),
    "v": ("self_attn.v_proj", 0.019),
    "o": ("self_attn.o_proj", 0.024),
    "gate": ("mlp.gate_proj", 0.014),
    "up": ("mlp.up_proj", 0.017),
    "down": ("mlp.down_proj", 0.021),
}
BLOCKS = 30


def _linears():
    chance = random.Random(0)
    for block in range(BLOCKS):
        for role, (name, typical) in ROLES.items():
            ends = 1.6 if block == BLOCKS - 1 else 0.25 if block == 0 else 1.0
            error = typical * ends * (0.6 + block / BLOCKS) * math.exp(chance.gauss(0, 0.28))
            linear = LinearResult(
                f"model.layers.{block}.{name}", block, role, "gptq", "solved", 4, 64, error, 0.01
            )
            if (block, role) == (29, "down"):
                note = "the damped hessian is not positive definite at damp_percent 1.0"
                linear = replace(
                    linear,
                    outcome="kept_dense",
                    bits=None,
                    group_size=None,
                    relative_error=0,
                    note=note,
                )
            yield linear
    yield LinearResult("lm_head", None, "head", "rtn", "solved", 8, 64, 0.00021)


def _divergence():
    edges = tuple(10 ** (-7 + place / 6) for place in range(55))
    shape = [
        math.exp(-(((place - 35) / 5.5) ** 2) / (1 if place > 35 else 2.2)) for place in range(54)
    ]
    counts = tuple(round(20460 * share / sum(shape)) for share in shape)
    return Divergence(
        "heldout", sum(counts), kl_mean=0.0931, kl_p50=0.0512, kl_p99=0.714, top1_agreement=0.8774,
        flips=round(sum(counts) * 0.1226), histogram_edges=edges, histogram_counts=counts,
    )  # fmt: skip


def _perplexity(value):
    return Perplexity(value, "heldout", seq_len=1024, stride=1024, windows=40, tokens=40920)


@pytest.fixture(scope="session")
def results():
    teacher = (
        TaskScore("common_knowledge", "accuracy", 160, 0.58125, 0.0390),
        TaskScore("cloze", "accuracy", 180, 0.5111, 0.0373),
        TaskScore("everyday_reasoning", "accuracy", 150, 0.5533, 0.0406),
    )
    student = (
        TaskScore("common_knowledge", "accuracy", 160, 0.5625, 0.0392, 13),
        TaskScore("cloze", "accuracy", 180, 0.5056, 0.0373, 17),
        TaskScore("everyday_reasoning", "accuracy", 150, 0.56, 0.0405, 11),
    )
    return Results(
        provenance=Provenance(
            recipe="quickstart", recipe_text=RECIPE, teacher="HuggingFaceTB/SmolLM2-135M-Instruct",
            teacher_fingerprint="5a1d7dd0c35b6d1fd3c1d4b0ad2a2c74f63a9fd6ac5c1b4c8b1d3ff2d1b1f0a9",
            calibration="self", calibration_tokens=65536,
            calibration_fingerprint="e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            seed=0, threads=2, device="cpu",
            versions={"compress": "0.1.0", "python": "3.11.7", "torch": "2.13.0"},
        ),
        before=Side(271_134_572, 16.0, _perplexity(21.37), teacher),
        after=Side(90_412_108, 4.27, _perplexity(22.94), student),
        divergence=_divergence(),
        stages=(StageResult("quantize", "gptq", tuple(_linears())),),
        sizes=(
            SizePart("block linears", 106_168_320, 212_336_640, 57_901_312),
            SizePart("head", 28_311_552, 56_623_104, 29_196_288),
            SizePart("embedding", 0, 0, 0),
            SizePart("norms and biases", 35_136, 70_272, 70_272),
            SizePart("other files", 0, 2_104_556, 3_244_236),
        ),
        samples=(
            Sample(
                "Why is the sky blue?",
                "The sky is blue because of the way light scatters in the Earth’s atmosphere. "
                "Short blue waves are scattered more than long red ones, so that blue reaches us "
                "from every side.",
                "The sky is blue because of the way light scatters in the air. Blue light is "
                "scattered more than red light, which is why we see blue wherever we look.",
            ),
            Sample("The capital of France is", " Paris.", " Paris."),
            Sample(
                "Write a Python function that adds two numbers.",
                "```python\ndef add(a, b):\n    return a + b\n```\n\nCall it with `add(2, 3)`.",
                "```python\ndef add(a, b):\n    return a + b\n```\n\n"
                "This <b>function</b> takes two arguments & adds.",
            ),
        ),
    )  # fmt: skip


@pytest.fixture(scope="session")
def allocated(results):
    """The same run, its bits shared out under a budget."""
    bits = {"qkv": 4, "o": 2, "gate_up": 3, "down": 8}
    fused = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}
    groups = {}
    for linear in results.linears:
        kind = fused.get(linear.role, linear.role)
        groups.setdefault((linear.block, kind), []).append(linear.name)
    shares = tuple(
        Share(
            tuple(names), block, kind, bits.get(kind, 8),
            tuple(Width(b, 0.004 * 4.0**-b, 1000 * b) for b in (2, 3, 4, 8) if block != 0 or b == 8)
            if kind in bits and bits[kind] != 8
            else (Width(8, 1e-6, 8000),),
        )
        for (block, kind), names in groups.items()
        if not (block == 0 and bits.get(kind) != 8)
    )  # fmt: skip
    allocation = Allocation("3.7 bits", 0.0912, 3.6999, 72_000_000, shares)
    linears = tuple(
        replace(r, bits=r.bits and bits.get(fused.get(r.role, r.role), 8)) for r in results.linears
    )
    stages = (
        StageResult("allocate", "allocate", (), allocation),
        replace(results.stages[0], linears=linears),
    )
    return replace(results, stages=stages)


@pytest.fixture(scope="session")
def measured():
    seconds = {
        "teacher": 3.1,
        "calibrate": 61.2,
        "quantize": 96.4,
        "evaluate": 41.0,
        "report": 1.8,
        "artifact": 1.4,
    }
    return Measured(
        seconds={**seconds, "total": sum(seconds.values())}, peak_memory_bytes=812_646_400,
        hardware="2 cores, AMD EPYC 9R45", date="2025-11-03",
        prefill_tokens_per_second=402.0, decode_tokens_per_second=31.7,
    )  # fmt: skip


@pytest.fixture(scope="session")
def bare(results):
    """A run that measured nothing and solved nothing."""
    side = replace(results.before, perplexity=None, tasks=())
    return Results(results.provenance, side, side, None, (), ())


@pytest.fixture(scope="session")
def headings():
    """The sections of both reports, in order."""
    return [
        "Before and after",
        "Where the error is",
        "How far from the teacher",
        "Where the bytes are",
        "Side by side",
        "Fallbacks",
        "Provenance",
    ]
