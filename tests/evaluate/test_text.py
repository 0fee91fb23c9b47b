import math

import pytest
import torch
from torch.nn.functional import kl_div
from transformers import AutoModelForCausalLM

from compress.calibrate.tokens import fingerprint
from compress.evaluate.text import Reading, _quantile, divergence, perplexity
from compress.surgery.walk import hidden_states
from compress.teacher.folder import open_folder

IDS = torch.randint(0, 256, (3, 40), generator=torch.Generator().manual_seed(0))


def reading(folder):
    teacher = open_folder(folder)
    hidden = hidden_states(teacher, IDS, device="cpu", dtype=torch.float32)
    return Reading(teacher, hidden, IDS, "random")


def logits(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(IDS).logits.double()


def test_perplexity_is_that_of_transformers_own_loss(tiny_llama):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = math.exp(model(IDS, labels=IDS).loss)
    found = perplexity(reading(tiny_llama))
    assert found.perplexity == pytest.approx(expected, rel=1e-4)
    assert (found.seq_len, found.stride, found.windows, found.tokens) == (40, 40, 3, 3 * 39)
    assert found.fingerprint == fingerprint(IDS)


def test_divergence_from_oneself_is_nothing(tiny_llama):
    one = reading(tiny_llama)
    found = divergence(one, one)
    assert found.kl_mean == pytest.approx(0, abs=1e-6)
    assert (found.top1_agreement, found.flips) == (1.0, 0)


def test_divergence_is_that_of_float64(tiny_llama, tiny_tied):
    found = divergence(reading(tiny_llama), reading(tiny_tied))
    p, q = (logits(folder).log_softmax(-1).flatten(0, 1) for folder in (tiny_llama, tiny_tied))
    kl = kl_div(q, p, reduction="none", log_target=True).sum(-1)
    assert found.kl_mean == pytest.approx(float(kl.mean()), rel=1e-3)
    assert found.kl_p50 == pytest.approx(float(kl.quantile(0.5)), rel=1e-3)
    assert found.kl_p99 == pytest.approx(float(kl.quantile(0.99)), rel=1e-3)
    assert found.flips == int((p.argmax(-1) != q.argmax(-1)).sum())
    assert sum(found.histogram_counts) == found.tokens == 120


def test_quantiles_have_no_largest_size(monkeypatch, tiny_llama, tiny_tied):
    before, after = reading(tiny_llama), reading(tiny_tied)
    expected = divergence(before, after)

    def refuse(*_):
        raise RuntimeError("quantile() input tensor is too large")  # torch's, above 2**24 elements

    monkeypatch.setattr(torch.Tensor, "quantile", refuse)
    assert divergence(before, after) == expected


@pytest.mark.parametrize("size", [1, 2, 3, 100, 101])
@pytest.mark.parametrize("fraction", [0, 0.01, 0.5, 0.99, 1])
def test_quantiles_are_those_of_torch(size, fraction):
    values = torch.rand(size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    assert _quantile(values.sort().values, fraction) == float(values.quantile(fraction))
