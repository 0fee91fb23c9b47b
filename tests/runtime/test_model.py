"""Our arithmetic against that of transformers, in float32, on the same weights."""

from __future__ import annotations

import dataclasses
import types
from pathlib import Path

import pytest
import torch

from compress.errors import ModelError
from compress.families import FAMILIES as FAMILIES_OF_ALL
from compress.kernels.kv import KVScales, fit
from compress.runtime.attention import visible
from compress.runtime.batch import alone, gather
from compress.runtime.ledger import PAGE_TOKENS
from compress.runtime.model import Model
from compress.runtime.scheduler import Span
from compress.runtime.settings import WAYS, read_settings

F32, BF16 = torch.float32, torch.bfloat16
FAMILIES = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 12},
    "qwen2": {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    "qwen3": {"head_dim": 24},
    "gemma": {"head_dim": 24},
    "gemma2": {"sliding_window": 9, "attn_logit_softcapping": 0.5, "query_pre_attn_scalar": 5},
    "gemma3_text": {"sliding_window": 9, "layer_types": ["full_attention", "sliding_attention"]},
    "gpt2": {},
    "opt": {},
    "gpt_neox": {"use_parallel_residual": False},
}
ROPES = {
    "default": {"rope_theta": 500.0},
    "linear": {"rope_theta": 10_000.0, "factor": 4.0},
    "llama3": {
        "rope_theta": 500.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}
SCHEMES = [{"bits": 4, "group_size": 32}, {"bits": 8, "group_size": 64, "sym": False}]


def theirs(folder: Path, state=None):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=F32, attn_implementation="eager")
    if state is not None:
        model.load_state_dict(state, strict=False)
    return model.eval()


def prompt(tokens=21, seed=1):
    return torch.randint(0, 256, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.inference_mode()
def greedy(model: Model, ids, count):
    pages, tokens, read = model.pages(len(ids) + count), list(ids), 0
    for _ in range(count):
        logits = model.logits(model.forward(alone(tokens[read:], read), pages))
        read = len(tokens)
        tokens.append(int(logits.argmax()))
    return tokens[len(ids) :]


@torch.inference_mode()
def all_logits(model: Model, ids, pages=None, start=0):
    """Logits behind every token, [T, V]; of a request's next tokens where it has pages."""
    pages = pages or model.pages(len(ids))
    return model.logits(model.forward(alone(ids, start, wanted=len(ids)), pages))


@torch.inference_mode()
def check(folder, stored, state=None):
    reference, ids = theirs(folder, state), prompt()
    model = Model(stored, F32)
    given = torch.tensor([ids])
    expected = reference(given).logits[0]
    torch.testing.assert_close(all_logits(model, ids), expected, rtol=1e-4, atol=1e-4)
    expected = reference.generate(given, max_new_tokens=40, do_sample=False, eos_token_id=None)
    assert greedy(model, ids, 40) == expected[0, len(ids) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_forty_greedy_tokens_equal_those_of_transformers(tiny_model, memory, family, tied):
    folder = tiny_model(family, tied=tied, **FAMILIES[family])
    check(folder, memory(folder))


@pytest.mark.parametrize("kind", ROPES)
def test_every_rope_equals_that_of_transformers(tiny_model, memory, kind):
    folder = tiny_model("llama", rope_parameters={"rope_type": kind, **ROPES[kind]})
    check(folder, memory(folder))


OTHER_WAYS = {
    "parallel": ("gpt_neox", {}),
    "no cap": ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "a window a whole": ("gemma3_text", {"sliding_window_pattern": 2, "num_hidden_layers": 4}),
    "no window": ("mistral", {"sliding_window": None}),
    "gelu": ("llama", {"hidden_act": "gelu"}),
    "ungated": ("opt", {"enable_bias": False, "activation_function": "gelu"}),
}


@pytest.mark.parametrize("way", OTHER_WAYS)
def test_what_a_config_can_ask_of_its_family_equals_transformers(tiny_model, memory, way):
    family, config = OTHER_WAYS[way]
    folder = tiny_model(family, **config)
    check(folder, memory(folder))


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "opt", "gpt_neox"])
def test_codes_of_other_families_run_too(tiny_model, memory, family):
    folder = tiny_model(family, tied=True)
    stored = memory(folder, **SCHEMES[0])
    check(folder, stored, stored.dense())


REFUSED = [
    ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before False is not run here"),
    ("opt", {"word_embed_proj_dim": 32}, "embeddings of width 32 in a model of width 64"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "True is not run here. Supported: False"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention True"),
]


@pytest.mark.parametrize(("family", "config", "message"), REFUSED)
def test_what_a_family_can_be_told_and_is_not_run_is_refused(
    tiny_model, memory, family, config, message
):
    stored = memory(tiny_model(family, **config))
    with pytest.raises(ModelError, match=message):
        read_settings(stored.config, stored.anatomy)


BROKEN = [
    ("gemma2", {"attn_logit_softcapping": "x"}, "of a kind that cannot be computed with"),
    ("gemma2", {"layer_types": ["full_attention"]}, "layer_types is not 2 of"),
    ("gemma3_text", {"layer_types": ["full_attention", "odd"]}, "layer_types is not 2 of"),
    ("mistral", {"sliding_window": "x"}, "of a kind that cannot be computed with"),
    ("gpt2", {"n_positions": 300, "max_position_embeddings": 300}, "256 rows, too few for 300"),
    ("opt", {"max_position_embeddings": 257}, "258 rows, too few for 257"),
]


@pytest.mark.parametrize(("family", "config", "message"), BROKEN)
def test_a_config_that_its_checkpoint_contradicts_is_refused(
    tiny_model, memory, family, config, message
):
    stored = memory(tiny_model(family))
    stored.config = {**stored.config, **config}
    with pytest.raises(ModelError, match=message):
        Model(stored, F32)


def test_every_family_of_the_first_picture_has_ways():
    assert WAYS.keys() == FAMILIES_OF_ALL.keys() == FAMILIES.keys()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("head", [8, 4, None])
@pytest.mark.parametrize("tied", [True, False])
def test_codes_run_as_the_weights_they_stand_for(tiny_model, memory, scheme, head, tied):
    folder = tiny_model("llama", tied=tied)
    stored = memory(folder, head=head, **scheme)
    state = stored.dense()
    if tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    check(folder, stored, state)


def test_a_rope_of_an_older_config_is_read(tiny_model, memory):
    folder = tiny_model("llama", rope_parameters={"rope_type": "linear", **ROPES["linear"]})
    new = memory(folder)
    rest = {key: value for key, value in new.config.items() if key != "rope_parameters"}
    old = {**rest, "rope_theta": 10_000.0, "rope_scaling": {"type": "linear", "factor": 4.0}}
    ids = prompt()
    expected = all_logits(Model(new, F32), ids)
    new.config = old
    assert torch.equal(all_logits(Model(new, F32), ids), expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunks", [[1] * 75, [4, 1, 9, 7, 33, 21]])
def test_a_prompt_in_chunks_equals_the_whole(tiny_model, memory, family, chunks):
    folder = tiny_model(family, **FAMILIES[family])
    model, ids = Model(memory(folder), F32), prompt(75)
    pages, found, start = model.pages(75), [], 0
    for size in chunks:
        found.append(all_logits(model, ids[start : start + size], pages, start))
        start += size
    torch.testing.assert_close(torch.cat(found), all_logits(model, ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_requests_of_a_batch_do_not_meet(tiny_model, memory, family):
    model = Model(memory(tiny_model(family, **FAMILIES[family])), F32)
    asked = [prompt(70, 1), prompt(1, 2), prompt(33, 3)]
    tables = [[7, 0, 5], [6], [2, 4]]  # pages in no order
    pages = model.pages(8 * PAGE_TOKENS)
    for half in (pages.keys, pages.values):
        half.codes.fill_(torch.nan)  # of what nobody wrote, nothing may be read
    first = [Span(ids[:-1], 0, t, 0) for ids, t in zip(asked, tables, strict=True) if ids[:-1]]
    assert len(model.forward(gather(first), pages)) == 0
    last = [Span(ids[-1:], len(ids) - 1, t) for ids, t in zip(asked, tables, strict=True)]
    together = model.logits(model.forward(gather(last), pages))
    apart = torch.stack([all_logits(model, ids)[-1] for ids in asked])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dtype", "near"), [(F32, 1e-4), (BF16, 2e-2)])
def test_what_one_request_computes_another_reads_in_the_same_step(tiny_tied, memory, dtype, near):
    model, ids = Model(memory(tiny_tied, head=8, **SCHEMES[0]), dtype), prompt(40)
    pages = model.pages(4 * PAGE_TOKENS)
    first, second = Span(ids, 0, [3, 1]), Span(ids[32:36], 32, [3, 0])  # of page 3 nothing is there
    together = model.next_logits(gather([second, first]), pages)
    other = model.pages(64)
    apart = [model.next_logits(alone(part), other)[-1] for part in (ids[:36], ids)]
    torch.testing.assert_close(together, torch.stack(apart), rtol=near, atol=near)


@pytest.mark.parametrize("scheme", [*SCHEMES, {"bits": 8, "group_size": -1}])
def test_packed_logits_are_close_to_the_exact_ones(tiny_tied, memory, scheme):
    stored, ids = memory(tiny_tied, head=8, **scheme), prompt()
    exact = all_logits(Model(stored, F32), ids)
    packed = all_logits(Model(stored, BF16), ids)
    assert (packed - exact).norm() / exact.norm() < 0.03


def test_each_linear_takes_the_path_of_what_it_is_stored_as(tiny_llama, memory):
    mixed = memory(tiny_llama, bits=4, group_size=32)
    del mixed.codes["model.layers.0.self_attn.v_proj"]
    model = Model(mixed, BF16)
    assert [one.path for one in model.blocks[0].qkv] == ["packed", "packed", "dense"]
    paths = {name: one.path for name, one in model.linears.items()}
    assert paths["model.layers.0.self_attn.v_proj"] == "dense"
    assert paths["model.layers.1.self_attn.v_proj"] == "packed"


def test_a_window_counts_the_query_itself():
    assert visible(2, 4, 2).int().tolist() == [[0, 1, 1, 0], [0, 0, 1, 1]]
    assert visible(2, 4, None).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "mish"}, "hidden_act 'mish' is not run here. Supported: silu, gelu"),
        ({"num_attention_heads": None}, "num_attention_heads missing"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope type 'yarn' is not run here"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8}}, "no number 'low_freq_factor'"),
    ],
)
def test_what_is_not_run_is_refused_by_name(tiny_llama, memory, change, message):
    stored = memory(tiny_llama)
    stored.config = {**stored.config, **change}
    with pytest.raises(ModelError, match=message):
        Model(stored, F32)


CACHES = [
    ("int8", "tensor"), ("int8", "head"), ("int8", "channel"), ("int8", "token"),
    ("fp8_e4m3", "head"),
]  # fmt: skip


def cached(made, numbers, granularity):
    """Scales for the blocks of a model in memory, from what it caches of a prompt."""
    plain = Model(made, F32)
    pages, table = plain.pages(48), torch.arange(2)
    all_logits(plain, prompt(48), pages)
    found = {}
    for index in range(len(plain.blocks)):
        halves = (pages.keys, pages.values)
        states = (half.read(index, table, 48).transpose(0, 1) for half in halves)
        fitted = (fit(x, numbers, granularity=granularity, search="none") for x in states)
        scales = (None, None) if granularity == "token" else fitted
        found[index] = KVScales(numbers, *scales)
    return dataclasses.replace(made, caches=found.get)


@pytest.mark.parametrize(("numbers", "granularity"), CACHES)
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
def test_decoding_from_codes_is_reading_all_at_once(
    tiny_model, memory, family, numbers, granularity
):
    model = Model(cached(memory(tiny_model(family)), numbers, granularity), F32)
    ids, pages = prompt(31), model.pages(31)
    whole = all_logits(model, ids)
    stepwise = [all_logits(model, ids[:9], pages)]
    stepwise += [all_logits(model, ids[at : at + 1], pages, at) for at in range(9, 31)]
    close = (torch.cat(stepwise) - whole).abs()
    assert close.mean() < 1e-3
    assert close.max() < 0.1
    assert (whole - all_logits(Model(memory(tiny_model(family)), F32), ids)).abs().max() > 1e-3


@pytest.mark.parametrize(("numbers", "granularity"), CACHES)
def test_the_runtime_rounds_what_a_walk_rounds(tiny_llama, memory, numbers, granularity):
    from compress.surgery.walk import hidden_states
    from compress.teacher.folder import open_folder

    made = cached(memory(tiny_llama), numbers, granularity)
    teacher = open_folder(tiny_llama)
    walked = types.SimpleNamespace(
        config=teacher.config, anatomy=teacher.anatomy, block=teacher.block,
        outside=teacher.outside, inputs=teacher.inputs, kv=made.kv,
    )  # fmt: skip
    ids = prompt(40)
    model = Model(made, F32)
    ours = model.forward(alone(ids, wanted=40), model.pages(40))
    theirs = hidden_states(walked, torch.tensor([ids]), device="cpu", dtype=F32)[0]
    assert (ours - theirs).abs().mean() < 1e-3
