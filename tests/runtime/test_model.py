"""Our arithmetic against that of transformers, in float32, on the same weights."""

from __future__ import annotations

import dataclasses
import types
from pathlib import Path

import pytest
import torch

from compress.errors import ModelError, RequestError
from compress.kernels.kv import KVScales, fit
from compress.runtime.model import Model, visible
from compress.runtime.settings import read_settings

F32, BF16 = torch.float32, torch.bfloat16
FAMILIES = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 12},
    "qwen2": {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    "qwen3": {"head_dim": 24},
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


def prompt(tokens=21, batch=1):
    return torch.randint(0, 256, (batch, tokens), generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def greedy(model: Model, ids, count):
    cache, found = model.cache(), []
    for _ in range(count):
        ids = model.next_logits(ids, cache).argmax(-1, keepdim=True)
        found.append(int(ids))
    return found


@torch.inference_mode()
def all_logits(model: Model, ids, cache=None):
    hidden = model.hidden(ids, cache or model.cache(batch=len(ids)))
    return model.logits(hidden.flatten(0, 1)).view(*ids.shape, -1)


@torch.inference_mode()
def check(folder, stored, state=None):
    reference, ids = theirs(folder, state), prompt()
    model = Model(stored, F32)
    torch.testing.assert_close(all_logits(model, ids), reference(ids).logits, rtol=1e-4, atol=1e-4)
    expected = reference.generate(ids, max_new_tokens=40, do_sample=False, eos_token_id=None)
    assert greedy(model, ids, 40) == expected[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_forty_greedy_tokens_equal_those_of_transformers(tiny_model, memory, family, tied):
    folder = tiny_model(family, tied=tied, **FAMILIES[family])
    check(folder, memory(folder))


@pytest.mark.parametrize("kind", ROPES)
def test_every_rope_equals_that_of_transformers(tiny_model, memory, kind):
    folder = tiny_model("llama", rope_parameters={"rope_type": kind, **ROPES[kind]})
    check(folder, memory(folder))


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
def test_a_prompt_at_once_equals_its_tokens_one_by_one(tiny_model, memory, family):
    folder = tiny_model(family, **FAMILIES[family])
    model, ids = Model(memory(folder), F32), prompt()
    whole, cache = all_logits(model, ids), model.cache()
    single = [all_logits(model, ids[:, i : i + 1], cache) for i in range(ids.shape[1])]
    torch.testing.assert_close(torch.cat(single, 1), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_prompt_in_chunks_equals_the_whole(tiny_model, memory, family):
    folder = tiny_model(family, **FAMILIES[family])
    model, ids = Model(memory(folder), F32), prompt()
    cache = model.cache()
    chunks = [all_logits(model, part, cache) for part in ids.split([4, 1, 9, 7], dim=1)]
    torch.testing.assert_close(torch.cat(chunks, 1), all_logits(model, ids), rtol=1e-4, atol=1e-4)


def test_rows_of_a_batch_do_not_meet(tiny_llama, memory):
    model, ids = Model(memory(tiny_llama), F32), prompt(batch=3)
    alone = torch.cat([all_logits(model, row[None]) for row in ids])
    torch.testing.assert_close(all_logits(model, ids), alone, rtol=1e-4, atol=1e-4)
    cache = model.cache(batch=3)
    model.hidden(ids[:, :-1], cache)
    last = model.next_logits(ids[:, -1:], cache)
    torch.testing.assert_close(last, alone[:, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheme", [*SCHEMES, {"bits": 8, "group_size": -1}])
def test_packed_logits_are_close_to_the_exact_ones(tiny_tied, memory, scheme):
    stored, ids = memory(tiny_tied, head=8, **scheme), prompt()
    exact = all_logits(Model(stored, F32), ids)
    packed = all_logits(Model(stored, BF16), ids)
    assert (packed - exact).norm() / exact.norm() < 0.03


def test_what_is_stored_alike_is_stacked(tiny_llama, memory):
    same = Model(memory(tiny_llama, bits=4, group_size=32), BF16)
    assert len(same.blocks[0].qkv.linears) == len(same.blocks[0].gate_up.linears) == 1
    mixed = memory(tiny_llama, bits=4, group_size=32)
    del mixed.codes["model.layers.0.self_attn.v_proj"]
    model = Model(mixed, BF16)
    assert [one.path for one in model.blocks[0].qkv.linears] == ["int4pack", "int4pack", "dense"]
    paths = {name: one.path for name, one in model.linears()}
    assert paths["model.layers.0.self_attn.v_proj"] == "dense"
    assert paths["model.layers.1.self_attn.v_proj"] == "int4pack"


def test_a_window_counts_the_query_itself():
    assert visible(2, 4, 2).int().tolist() == [[0, 1, 1, 0], [0, 0, 1, 1]]
    assert visible(2, 4, None).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not run here. Supported: silu"),
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


def test_other_families_are_refused_with_those_that_run(tiny_model, memory):
    stored = memory(tiny_model("gpt2"))
    with pytest.raises(ModelError, match=r"'gpt2' is not run here\. Supported: llama, mistral"):
        read_settings(stored.config, stored.anatomy)


def test_a_context_past_the_model_is_refused(tiny_model, memory):
    model = Model(memory(tiny_model("llama", max_position_embeddings=16)), F32)
    with pytest.raises(RequestError, match="17 tokens, the model was made for 16"):
        model.hidden(prompt(17), model.cache())


CACHES = [
    ("int8", "tensor"), ("int8", "head"), ("int8", "channel"), ("int8", "token"),
    ("fp8_e4m3", "head"),
]  # fmt: skip


def cached(made, numbers, granularity):
    """Scales for the blocks of a model in memory, from what it caches of a prompt."""
    plain = Model(made, F32)
    cache = plain.cache()
    plain.hidden(prompt(48), cache)
    found = {}
    for index in range(len(plain.blocks)):
        states = (
            half.codes[index, 0, :, :48].transpose(0, 1) for half in (cache._keys, cache._values)
        )
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
    ids, cache = prompt(31), model.cache()
    whole = all_logits(model, ids)
    stepwise = [all_logits(model, ids[:, :9], cache)]
    stepwise += [all_logits(model, ids[:, at : at + 1], cache) for at in range(9, 31)]
    close = (torch.cat(stepwise, 1) - whole).abs()
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
    ours = model.hidden(ids, model.cache())
    theirs = hidden_states(walked, ids, device="cpu", dtype=F32)
    assert (ours - theirs).abs().mean() < 1e-3
