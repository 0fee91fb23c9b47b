"""Compiled steps against the same model in float32, whose arithmetic is held to transformers'."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from compress.kernels.activations import Inputs
from compress.kernels.kv import KVScales, fit
from compress.runtime.batch import alone, gather
from compress.runtime.ledger import PAGE_TOKENS
from compress.runtime.model import Model
from compress.runtime.native import caching, layout, step
from compress.runtime.native.decoder import Decoder, refusal
from compress.runtime.scheduler import Span

F32, BF16 = torch.float32, torch.bfloat16
SHAPE = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 96}
FAMILIES = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 12},
    "qwen2": {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    "qwen3": {},
}
SCHEMES = [
    None,
    {"bits": 4, "group_size": 32},
    {"bits": 3, "group_size": 16, "sym": False},
    {"bits": 8, "group_size": -1},
]


def prompt(tokens, seed=1):
    return torch.randint(0, 256, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("number", [1, 2**31 - 1, 2**31, 2**38])
def test_what_is_to_do_is_taken_once_in_a_step_of_any_number(number):
    counts = np.zeros(2 * layout.LINE, np.int64)
    for this in (number, number + 1):
        address = counts.ctypes.data
        assert [step._take(address, this, 3) for _ in range(5)] == [0, 1, 2, -1, -1]
        for _ in range(3):
            step._made(address, this)
        assert counts[layout.LINE] & step._LOW == 3
        step._await(address, this, 3)
    assert step._take(address, number, 3) == -1


def models(stored):
    """The model in float32, and in bfloat16 with compiled steps."""
    exact, model = Model(stored, F32), Model(stored, BF16)
    assert refusal(model, model.pages(32)) is None
    return exact, model


def near(found, exact, share=0.02):
    """Whether logits are as near as bfloat16 keys, values and inputs let them be."""
    return (found - exact).norm() < share * exact.norm()


def spoken(model, ids, parts, pages=None):
    """Logits behind every token of a prompt, read in parts."""
    pages, found, start = pages or model.pages(len(ids)), [], 0
    for size in parts:
        batch = alone(ids[start : start + size], start, wanted=size)
        found.append(model.next_logits(batch, pages))
        start += size
    return torch.cat(found)


@pytest.fixture(scope="module")
def wide(tiny_model, memory):
    """A tiny model of widths that compiled steps take: `wide("llama", scheme)`."""

    def make(family, scheme=None, **head):
        folder = tiny_model(family, **SHAPE, **FAMILIES[family])
        return memory(folder, **(scheme or {}), **head)

    return make


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_logits_are_those_of_float32(wide, family, scheme):
    exact, model = models(wide(family, scheme))
    ids = prompt(75)
    expected = spoken(exact, ids, [75])
    for parts in ([1] * 75, [40, 1, 3, 31]):
        assert near(spoken(model, ids, parts), expected)


def test_compiled_steps_read_what_long_prompts_wrote(wide):
    exact, model = models(wide("llama", {"bits": 4, "group_size": 32}))
    ids = prompt(75)
    assert near(spoken(model, ids, [70, 4, 1])[70:], spoken(exact, ids, [75])[70:], 0.04)


@pytest.mark.parametrize("granularity", ["tensor", "head", "channel", "token"])
def test_codes_of_keys_and_values_are_read_as_torch_reads_them(wide, granularity):
    stored, ids = wide("llama"), prompt(75)
    written = torch.randn(500, 2, 16)
    made = (
        fit(written, "int8", granularity=granularity, search="none")
        if granularity != "token"
        else None
    )
    stored.caches = lambda index: KVScales("int8", made, made)
    exact, model = models(stored)
    assert near(spoken(model, ids, [40, 30, 1, 4]), spoken(exact, ids, [75]), 0.04)


@pytest.mark.parametrize(
    "inputs",
    [
        Inputs("int8"), Inputs("int8", threshold=2.0), Inputs("int8", scale=0.02),
        Inputs("int8", columns=torch.tensor([2, 5])),
    ],
    ids=["w8a8", "dynamic outliers", "one scale", "static outliers"],
)  # fmt: skip
def test_inputs_are_rounded_as_torch_rounds_them(wide, inputs):
    stored, ids = wide("llama", {"bits": 8, "group_size": -1}), prompt(40)
    stored.codes = {name: replace(one, inputs=inputs) for name, one in stored.codes.items()}
    exact, model = models(stored)
    assert model.linears["model.layers.0.mlp.down_proj"].path == "int8"
    expected = spoken(exact, ids, [40])
    assert near(spoken(model, ids, [40]), expected, 0.04)
    rest = replace(inputs, threshold=0.0)  # which outliers there are depends on the batch
    stored.codes = {name: replace(one, inputs=rest) for name, one in stored.codes.items()}
    _, model = models(stored)
    assert torch.equal(spoken(model, ids, [40]), spoken(model, ids, [1] * 40))


def test_a_request_says_the_same_to_the_bit_whatever_is_in_its_batch(wide):
    _, model = models(wide("llama", {"bits": 4, "group_size": 32}))
    asked = [prompt(40, 1), prompt(1, 2), prompt(33, 3)]
    tables = [[7, 0], [6], [2, 4]]
    pages = model.pages(8 * PAGE_TOKENS)
    for ids, table in zip(asked, tables, strict=True):
        if ids[:-1]:
            model.next_logits(gather([Span(ids[:-1], 0, table, 0)]), pages)
    last = [Span(ids[-1:], len(ids) - 1, t) for ids, t in zip(asked, tables, strict=True)]
    together = model.next_logits(gather(last), pages)
    for span, row in zip(last, together, strict=True):
        assert torch.equal(model.next_logits(gather([span]), pages)[0], row)


def test_a_request_reads_pages_that_another_fills_in_the_same_step(wide):
    _, model = models(wide("llama"))
    ids = prompt(34)
    pages = model.pages(4 * PAGE_TOKENS)
    both = gather([Span(ids[:33], 0, [0, 1]), Span(ids[32:33], 32, [0, 2])])
    first, second = model.next_logits(both, pages)
    assert torch.equal(first, second)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_bit(wide, threads):
    _, model = models(wide("llama", {"bits": 4, "group_size": 32}))
    ids, model.threads = prompt(40), 1
    one = spoken(model, ids, [37, 1, 1, 1])
    model.threads = threads
    assert torch.equal(spoken(model, ids, [37, 1, 1, 1]), one)


def test_what_is_not_compiled_says_why(tiny_model, memory, wide):
    narrow = Model(memory(tiny_model("llama", hidden_size=48, head_dim=8)), BF16)
    assert "multiple of 16" in refusal(narrow, narrow.pages(32))
    exact, model = models(wide("llama"))
    assert "float32" in refusal(exact, exact.pages(32))
    fp8 = model.pages(32, [KVScales("fp8_e4m3", None, None)] * len(model.blocks))
    assert "fp8" in refusal(model, fp8)


def test_threads_end_with_their_decoder(wide):
    import gc
    import threading

    _, model = models(wide("llama"))
    before, model.threads = set(threading.enumerate()), 3
    decoder = Decoder(model, model.pages(32))
    ours = set(threading.enumerate()) - before
    assert len(ours) == 2
    del decoder
    gc.collect()
    for thread in ours:
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_a_late_thread_keeps_what_its_step_points_to(monkeypatch):
    import gc
    import threading
    import weakref

    from compress.runtime.native import layout, team

    class Buffer:
        """Something that addresses point to."""

    there, go = threading.Event(), threading.Event()

    def serve(thread, control, patience):
        there.set()
        go.wait()
        return False

    monkeypatch.setattr(team.step, "serve", serve)
    monkeypatch.setattr(team, "_LEAVING", 0.01)
    before, buffer = set(threading.enumerate()), Buffer()
    seen, control = weakref.ref(buffer), np.zeros(layout.ASLEEP + 2 * layout.LINE, np.int64)
    walkers = team.Team([], control, 2, [buffer])
    [late] = set(threading.enumerate()) - before
    there.wait()
    del buffer, walkers
    gc.collect()
    assert control[layout.GO] == layout.ENDED
    assert seen() is not None
    go.set()
    late.join()
    gc.collect()
    assert seen() is None


def test_kernels_are_kept_where_numba_is_told_to_or_in_our_cache(tmp_path, monkeypatch):
    folder = caching._folder.__wrapped__
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "told"))
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "ours"))
    assert folder().parent == tmp_path / "told"
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    assert folder().parent == tmp_path / "ours" / "kernels"


def test_a_process_ends_while_its_decoder_lives(tiny_llama):
    program = (
        "import sys\n"
        "from compress.runtime.engine import Engine\n"
        "engine = Engine.open(sys.argv[1], threads=3)\n"
        "list(engine.generate([1, 2, 3], max_new_tokens=4))\n"
        "import threading\n"
        "assert threading.active_count() == 3\n"
    )
    command = [sys.executable, "-c", program, str(tiny_llama)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
