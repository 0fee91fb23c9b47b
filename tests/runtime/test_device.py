"""The same model off the CPU.

No GPU is needed: torch's fake tensors carry a device and a shape and no numbers, and refuse an
operation that mixes devices, as CUDA does. What they cannot show is whether numbers are right.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from compress.errors import RequestError
from compress.kernels.kv import KVScales
from compress.runtime import linear as linears
from compress.runtime.batch import Batch, gather
from compress.runtime.engine import Engine
from compress.runtime.model import Model
from compress.runtime.scheduler import Span

BF16 = torch.bfloat16
GPU = "meta"  # a device that every torch knows; fake tensors do not mix it with the CPU
SCHEMES = [{}, {"bits": 4, "group_size": 32}, {"bits": 8, "group_size": 32, "sym": False}]
FAMILIES = ["llama", "gemma3_text", "gpt2"]


def moved(thing: Any, device: str) -> Any:
    """Anything made of dataclasses, dicts and tuples, its tensors on a device."""
    if isinstance(thing, Tensor):
        return torch.empty(thing.shape, dtype=thing.dtype, device=device)
    if dataclasses.is_dataclass(thing):
        parts = {one.name: getattr(thing, one.name) for one in dataclasses.fields(thing)}
        return dataclasses.replace(thing, **moved(parts, device))
    if isinstance(thing, dict):
        return {name: moved(part, device) for name, part in thing.items()}
    return type(thing)(moved(part, device) for part in thing) if type(thing) is tuple else thing


class Told(list):
    """Numbers that Python reads of a tensor; of fake ones it cannot."""

    def tolist(self):
        return self


def follow(model: Model, scales=()) -> Tensor:
    """Read two requests on a GPU that is not there."""
    batch = gather([Span([1, 2, 3], 0, (1,), 1), Span([4], 33, (2, 3), 1)])
    told = {one: Told(getattr(batch, one).tolist()) for one in ("starts", "lengths")}
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        parts = {one: fake.from_tensor(getattr(batch, one)) for one in Batch.ON_DEVICE}
        batch = dataclasses.replace(batch, **parts, **told)
        for name, part in vars(model).items():
            setattr(model, name, moved(part, GPU))
        model.device = GPU
        return model.next_logits(batch, model.pages(128, scales))


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """Weights in rows, no compiled products."""
    monkeypatch.setattr(linears, "_held", lambda weight, dtype, device: weight.to(device, dtype))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_step_stays_on_its_device(tiny_model, memory, family, scheme):
    logits = follow(Model(memory(tiny_model(family), **scheme), BF16))
    assert logits.device.type == GPU
    assert logits.shape[0] == 2


@pytest.mark.parametrize("numbers", ["int8", "fp8_e4m3"])
@pytest.mark.parametrize("shared", [True, False])
def test_cached_codes_stay_on_their_device(tiny_llama, memory, numbers, shared):
    model = Model(memory(tiny_llama), BF16)
    scale = torch.ones(model.settings.kv_heads, 1) if shared else None
    scales = [KVScales(numbers, scale, scale)] * len(model.blocks)
    assert follow(model, scales).device.type == GPU


def test_what_would_mix_devices_is_seen():
    with FakeTensorMode(), pytest.raises(RuntimeError, match="same device"):
        torch.ones(3, device="cuda") + torch.ones(3)


def test_cuda_without_triton_is_refused(tiny_llama, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RequestError, match="kernels of triton, which is not installed"):
        Engine.open(tiny_llama, device="cuda")


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("tpu", "device: 'tpu' is not computed on. Use cpu or cuda"),
        ("cuda", "device: cuda was asked for, and torch .* finds no CUDA device. Use cpu"),
    ],
)
def test_a_device_that_is_not_there_is_refused(tiny_llama, monkeypatch, device, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RequestError, match=message):
        Engine.open(tiny_llama, device=device)
