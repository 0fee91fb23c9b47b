import pytest
import torch
from conftest import CONFIGS, HEADS, WIDTH

from compress.errors import ModelError
from compress.kernels.kv import KVScales, fit
from compress.surgery import caching
from compress.surgery.decode import Decoder
from compress.surgery.load import materialize
from compress.surgery.walk import Walk, hidden_states
from compress.teacher.folder import open_folder

IDS = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(0))
ATTENDS = sorted(set(CONFIGS) - {"gemma2"})  # which caps its scores


class Cached:
    """A teacher whose blocks round what they cache."""

    def __init__(self, teacher, numbers="int8", granularity="head"):
        self.teacher, self.config, self.anatomy = teacher, teacher.config, teacher.anatomy
        self.block, self.outside, self.inputs = teacher.block, teacher.outside, teacher.inputs
        self.scales = {}
        for block in self.anatomy.blocks:
            keys, values = seen(self, block.index)
            found = (
                fit(
                    x.transpose(1, 2).flatten(0, 1), numbers, granularity=granularity, search="none"
                )
                for x in (keys, values)
            )
            self.scales[block.index] = KVScales(numbers, *found)

    def kv(self, index):
        return self.scales.get(index)


def seen(weights, index):
    walk = Walk(weights, device="cpu", dtype=torch.float32)
    hidden = walk.embed(IDS)
    for behind in range(index):
        with walk.filled(behind) as module:
            hidden = walk.call(behind, module, hidden)
    with walk.filled(index) as module:
        return caching.states(walk, index, module, hidden)


def states(weights, dtype=torch.float32):
    return hidden_states(weights, IDS, device="cpu", dtype=dtype)


@pytest.mark.parametrize("family", ATTENDS)
def test_what_is_seen_is_what_transformers_caches(tiny_model, family):
    from transformers import AutoModelForCausalLM

    folder = tiny_model(family)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        cache = model(IDS, use_cache=True).past_key_values
    keys, values = seen(open_folder(folder), 1)
    assert torch.allclose(keys, cache.layers[1].keys, atol=1e-5)
    assert torch.allclose(values, cache.layers[1].values, atol=1e-5)


@pytest.mark.parametrize("family", ATTENDS)
def test_a_walk_attends_to_what_is_cached(tiny_model, family):
    teacher = open_folder(tiny_model(family))
    error = (states(Cached(teacher)) - states(teacher)).square().mean()
    coarse = (states(Cached(teacher, "fp8_e4m3")) - states(teacher)).square().mean()
    assert 0 < error < coarse < states(teacher).square().mean() / 20


def test_keys_are_rounded_behind_their_rotation_and_values_as_they_are(tiny_llama):
    student = Cached(open_folder(tiny_llama))
    used = []

    def keep(keys, values):
        pair = student.scales[0].round(keys, values)
        used.append((keys, *pair))
        return pair

    walk = Walk(student.teacher, device="cpu", dtype=torch.float32)
    with walk.filled(0) as module:
        caching.attach(caching.attention_of(module, walk.anatomy.blocks[0]), keep)
        walk.call(0, module, walk.embed(IDS))
    plain, keys, _ = used[0]
    assert torch.equal(plain, seen(student.teacher, 0)[0])
    step = student.scales[0].keys[:, None]
    codes = keys / step
    assert torch.allclose(codes, codes.round(), atol=1e-4)
    assert keys.shape == (2, 2, 24, WIDTH // HEADS)


def test_nothing_stays_attached_to_a_block_that_is_emptied(tiny_llama):
    student = Cached(open_folder(tiny_llama))
    walk = Walk(student, device="cpu", dtype=torch.float32)
    with walk.filled(0) as module:
        attention = caching.attention_of(module, walk.anatomy.blocks[0])
        assert caching._STATE in vars(attention)
    assert caching._STATE not in vars(attention)


@pytest.mark.parametrize("granularity", ["tensor", "head", "channel"])
def test_the_whole_model_and_its_decoder_round_alike(tiny_llama, granularity):
    student = Cached(open_folder(tiny_llama), granularity=granularity)
    with torch.no_grad():
        whole = materialize(student, torch.float32)(IDS).logits
    decoder = Decoder(materialize(student, torch.float32), room=24)
    for position in range(24):
        found = decoder.step(IDS[:, position])
        assert torch.allclose(found, whole[:, position], atol=2e-3)
    head = student.outside()["lm_head.weight"]
    assert torch.allclose(states(student) @ head.T, whole, atol=1e-4)


def test_attention_that_is_not_ours_is_refused(tiny_model):
    teacher = open_folder(tiny_model("gemma2"))
    with pytest.raises(ModelError, match="attn_logit_softcapping"):
        seen(teacher, 0)
