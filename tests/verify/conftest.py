"""Artifacts as `apply` leaves them: a student rounded to nearest, written, with its reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.artifact.manifest import write_manifest
from compress.artifact.write import companions, write
from compress.kernels.activations import Inputs
from compress.kernels.grid import Rounded, fit, round_to_nearest
from compress.kernels.kv import KVScales
from compress.surgery.load import tokenizer
from compress.teacher.folder import open_folder
from compress.verify import reference

Plan = Callable[[str], tuple[int, int, bool] | None]  # module name → bits, group_size, sym


class Student:
    """A teacher folder and what a plan makes of it; can be walked."""

    def __init__(self, folder: Path, plan: Plan, dtype: str) -> None:
        self.teacher = open_folder(folder).cast(dtype)
        self.config, self.anatomy = self.teacher.config, self.teacher.anatomy
        self.turned = {linear.name for linear in self.anatomy.linears if linear.transposed}
        self.plan = plan

    def parts(self) -> Iterator[tuple[str, torch.Tensor | Rounded]]:
        yield from self.rounded_once

    @cached_property
    def rounded_once(self) -> list[tuple[str, torch.Tensor | Rounded]]:
        with torch.inference_mode(False):  # kept tensors serve callers of either mode
            return list(self.rounding())

    def rounding(self) -> Iterator[tuple[str, torch.Tensor | Rounded]]:
        blocks = [self.teacher.block(block.index) for block in self.anatomy.blocks]
        for tensors in (self.teacher.outside(), *blocks):
            for name, tensor in tensors.items():
                module = name.removesuffix(".weight")
                scheme = self.plan(module) if tensor.dim() == 2 else None
                part = self.rounded(module, tensor, *scheme) if scheme else tensor
                if isinstance(part, Rounded):
                    yield module, part
                else:  # pruned, [O, I], or as it was
                    turned = scheme is not None and module in self.turned
                    yield name, part.T.contiguous() if turned else part

    @property
    def kept(self) -> dict[str, int]:
        """What a function makes of a weight is pruned by half."""
        schemes = {linear: self.plan(linear.name) for linear in self.anatomy.linears}
        return {x.name: x.weights // 2 for x, s in schemes.items() if s and callable(s[0])}

    def rounded(self, name: str, tensor: torch.Tensor, bits: Any, *how: Any) -> Any:
        weight = tensor.T if name in self.turned else tensor
        if callable(bits):
            return bits(weight)
        size, sym = how
        grid = {"bits": bits, "sym": sym}
        scale, zero = fit(weight, group_size=size, search="none", **grid)
        return round_to_nearest(weight, scale, zero, **grid)

    def dense(self) -> dict[str, torch.Tensor]:
        return self.dense_once

    @cached_property
    @torch.inference_mode(False)
    def dense_once(self) -> dict[str, torch.Tensor]:
        found = {}
        for name, part in self.parts():
            if isinstance(part, Rounded):
                weight = part.dequantize()
                found[f"{name}.weight"] = weight.T if name in self.turned else weight
            else:
                found[name] = part
        return found

    def block(self, index: int) -> dict[str, torch.Tensor]:
        return {name: self.dense_once[name] for name in self.anatomy.inside(index)}

    def outside(self) -> dict[str, torch.Tensor]:
        return {name: self.dense_once[name] for name in self.anatomy.outside()}

    def inputs(self, index: int) -> dict[str, Inputs]:
        prefix = self.anatomy.blocks[index].prefix + "."
        parts = ((name, part) for name, part in self.parts() if name.startswith(prefix))
        return {n: p.inputs for n, p in parts if isinstance(p, Rounded) and p.inputs is not None}

    def kv(self, index: int) -> KVScales | None:
        return None


def linears(bits: Any = 4, group_size: int = 32, sym: bool = True) -> Plan:
    """Every block linear alike; in place of bits, what rounds a weight [O, I]."""
    outer = ("embed", "lm_head", "wte", "wpe")
    scheme = (bits,) if callable(bits) else (bits, group_size, sym)
    return lambda name: None if any(part in name for part in outer) else scheme


@pytest.fixture(scope="session")
def artifact(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Make an artifact, once per set of arguments; tests that change it copy it first."""
    made: dict[str, Path] = {}

    def make(
        format: str = "packed",
        *scheme: Any,
        family: str = "llama",
        plan: Plan | None = None,
        dtype: str = "bfloat16",
        max_shard_bytes: int = 2**31,
        **options: Any,
    ) -> Path:
        key = repr((format, scheme, family, plan, dtype, max_shard_bytes, options))
        if key not in made:
            teacher = tiny_model(family, **options)
            student = Student(teacher, plan or linears(*scheme), dtype)
            folder = tmp_path_factory.mktemp("verify") / "artifact"
            write(
                folder, student.parts(), anatomy=student.anatomy, config=student.config,
                tokenizer_files=companions(teacher), format=format,
                max_shard_bytes=max_shard_bytes, kept=student.kept,
            )  # fmt: skip
            stored_as = dtype if format == "dense" else None
            known = reference.record(student, tokenizer(teacher), stored_as=stored_as)
            write_manifest(folder, {"seed": 0}, known)
            made[key] = folder
        return made[key]

    return make
