"""A whole step with kernels in the place of torch's operations; and that they compile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from compress.runtime import linear as linears
from compress.runtime import model as models
from compress.runtime.batch import gather
from compress.runtime.model import Model
from compress.runtime.scheduler import Span
from compress.runtime.triton import attention, products

SPANS = [Span([5, 6, 7], 0, (1,), 1), Span([9], 0, (2,), 1)]


@torch.inference_mode()
def answers(model: Model) -> torch.Tensor:
    pages = model.pages(128)
    first = model.logits(model.forward(gather(SPANS), pages))
    later = gather([Span([8], 3, (1,), 1), Span([3, 4], 1, (2,), 2)])
    return torch.cat([first, model.logits(model.forward(later, pages))]).cpu()


@pytest.mark.slow  # the interpreter takes half a minute
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_model_says_the_same(tiny_model, memory, device, monkeypatch, family):
    model = Model(memory(tiny_model(family), bits=4, group_size=32), torch.bfloat16, device)
    with monkeypatch.context() as patched:
        if device == "cpu":
            plain = linears._by_codes
            patched.setattr(models, "paged_attention", attention.paged_attention)
            patched.setattr(
                linears,
                "_by_codes",
                lambda x, weight: (
                    plain(x, weight) if weight.bits == 16 else products.multiply(weight, x)
                ),
            )
        found = answers(model)
    exact = answers(Model(memory(tiny_model(family), bits=4, group_size=32), torch.float32))
    assert (found - exact).norm() / exact.norm() < 0.03


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_a_gpu_that_is_not_there(capability):
    script = Path(__file__).with_name("compiling.py")
    outside = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    root = str(Path(__file__).parents[3])
    ended = subprocess.run(
        [sys.executable, script, str(capability)],
        env={**outside, "PYTHONPATH": root}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
