"""What both sides of distill.py share: the options, the windows, and a clock that looks do not run.

Needs torch and safetensors only: it runs in the environment of the peer, too.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

BETAS, FINAL_RATE, WARMUP, CLIP = (0.9, 0.95), 0.1, 0.05, 1.0  # of AdamW and its schedule


def options(description: str) -> argparse.ArgumentParser:
    """The command line of a side."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("student", type=Path)
    parser.add_argument("data", type=Path, help="windows, as ours_distill.py --prepare wrote them")
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--look-every", type=int, default=5)
    parser.add_argument("--scratch", type=Path, required=True)
    return parser


@dataclass(frozen=True)
class Data:
    """Windows of tokens."""

    rows: Tensor  # [steps · a_step, T], in the order in which steps read them
    held: Tensor  # [H, T]
    a_step: int

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return len(self.rows) // self.a_step


def read(path: Path) -> Data:
    """The windows that both sides read."""
    found = load_file(path)
    return Data(found["rows"], found["held"], int(found["a_step"]))


@dataclass
class Looks:
    """Held-out KL by the seconds of training before it; looks themselves take none."""

    began: float = field(default_factory=time.perf_counter)
    paused: float = 0.0
    curve: list[tuple[int, float, float]] = field(default_factory=list)  # step, seconds, KL

    @property
    def seconds(self) -> float:
        """Of training so far."""
        return time.perf_counter() - self.began - self.paused

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Stop the clock."""
        begun = time.perf_counter()
        yield
        self.paused += time.perf_counter() - begun

    def tell(self, **facts: object) -> None:
        """The JSON line that the driver reads."""
        print(json.dumps({"curve": self.curve, "seconds": self.seconds, **facts}), flush=True)
