"""Students made in a few lines: plain round-to-nearest over a tiny teacher."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from compress import anatomy
from compress.artifact.write import companions, write
from compress.kernels.activations import Inputs
from compress.kernels.floats import FloatGrid, fit, global_scale
from compress.kernels.grid import Rounded
from compress.storage import Checkpoint

# module name → bits, group_size, sym; or what floating numbers
Plan = Callable[[str], tuple[int, int, bool] | FloatGrid | None]


def round_to_nearest(weight: torch.Tensor, bits: int, group_size: int, sym: bool) -> Rounded:
    """[O, I] float → codes; scales exact in bfloat16 and float16, one group a row for -1."""
    rows, columns = weight.shape
    size = columns if group_size == -1 else group_size
    groups = weight.float().view(rows, -1, size)
    top = (1 << bits) - 1
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    span = 2 * groups.abs().amax(-1) if sym else high - low
    scale = (span / top).clamp(2.0**-14, 1e4).bfloat16().float()
    middle = torch.full_like(scale, 1 << (bits - 1))
    zero = middle if sym else (-low / scale).round().clamp(0, top)
    codes = (groups / scale[..., None] + zero[..., None]).round().clamp(0, top)
    return Rounded(codes.byte().view(rows, columns), scale, zero.byte(), bits, size, sym)


def round_to_floats(weight: torch.Tensor, grid: FloatGrid) -> Rounded:
    """[O, I] float → codes of floating numbers."""
    if grid.scales == "e4m3":
        grid = dataclasses.replace(grid, over=global_scale([weight]))
    return grid.round(weight, fit(weight, grid))


class Student:
    """A teacher folder and what a plan makes of it."""

    def __init__(self, teacher: Path, plan: Plan) -> None:
        self.teacher, self.plan = teacher, plan
        self.inputs: Inputs | None = None  # how every quantized linear rounds its own
        self.config: dict[str, Any] = json.loads((teacher / "config.json").read_text())
        self.checkpoint = Checkpoint(teacher)
        self.anatomy = anatomy.read(self.config, self.checkpoint.shapes())
        self.conv1d = {linear.name for linear in self.anatomy.linears if linear.transposed}

    def parts(self) -> Iterator[tuple[str, torch.Tensor | Rounded]]:
        for name in self.anatomy.tensors:
            module, tensor = name.removesuffix(".weight"), self.checkpoint.read(name)
            scheme = self.plan(module) if name.endswith(".weight") and tensor.dim() == 2 else None
            if scheme is None:
                yield name, tensor
            else:
                weight = tensor.T if module in self.conv1d else tensor
                rounded = isinstance(scheme, tuple) and round_to_nearest(weight, *scheme)
                rounded = rounded or round_to_floats(weight, scheme)
                yield module, dataclasses.replace(rounded, inputs=self.inputs)

    def dense(self) -> dict[str, torch.Tensor]:
        """The weights the student stands for, as a dense folder stores them."""
        found = {}
        for name, part in self.parts():
            if isinstance(part, Rounded):
                weight = part.dequantize()
                found[f"{name}.weight"] = weight.T if name in self.conv1d else weight
            else:
                found[name] = part
        return found

    def write(self, folder: Path, format: str, **options: Any) -> Path:
        write(
            folder,
            self.parts(),
            anatomy=self.anatomy,
            config=self.config,
            tokenizer_files=companions(self.teacher),
            format=format,
            **options,
        )
        return folder


@pytest.fixture
def every_linear() -> Callable[[int, int, bool], Plan]:
    """Make a plan that rounds all block linears alike: `every_linear(bits, group_size, sym)`."""
    outer = ("embed", "lm_head", "wte", "wpe", "project_")
    return lambda *scheme: (
        lambda name: (
            None if any(o in name for o in outer) else scheme[0] if len(scheme) == 1 else scheme
        )
    )


@pytest.fixture
def student(tiny_model: Callable[..., Path]) -> Callable[..., Student]:
    """Make a student: `student("llama", plan, tied=True)`."""
    return lambda family, plan, **options: Student(tiny_model(family, **options), plan)
