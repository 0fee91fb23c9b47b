"""The state of a training on disk, so that a killed run goes on from its last look, to the bit.

Weights, AdamW's moments, the schedule and the state of the random numbers lie in files that the
journal names; which windows come next is told by the step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from compress import storage
from compress.results import HeldOut
from compress.stages.context import Context
from compress.surgery.learning import Learner
from compress.surgery.sharding import laid_out, whole

_RANDOM = "random_state"
Tensors = tuple[dict[str, Tensor], dict[str, Tensor]]  # of a state: weights, and moments


@dataclass(frozen=True)
class State:
    """All that goes on after a cut."""

    learner: Learner
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    best: str | None  # the file of the best weights so far

    def tensors(self, *, kept: bool = True) -> Tensors:
        """Weights and moments, whole, on the CPU; of shards all processes ask at the same time.

        Whoever does not keep them lets go of each as the next is put together, and has none.
        """
        weights = _put_together(self.learner.learning().items(), kept=kept)
        return weights, _put_together(_moments(self.optimizer), kept=kept)


@dataclass(frozen=True)
class Kept:
    """Where the state of one training lies."""

    context: Context
    unit: str  # what the journal calls the training

    def save(
        self,
        state: State,
        tensors: Tensors,
        checks: Sequence[HeldOut],
        *,
        best: bool,
    ) -> str | None:
        """Weights and moments in new files; then the journal names them; then old ones go.

        Args:
            state: as it is now.
            tensors: of it.
            checks: every look so far, the last one at this state.
            best: whether that look is the best.

        Returns:
            The file of the best weights.

        Raises:
            StorageError: the disk refuses it.
        """
        step = checks[-1].step
        weights = self.context.scratch / _file(self.unit, f"weights-{step}")
        moments = self.context.scratch / _file(self.unit, f"moments-{step}")
        storage.write_file(weights, tensors[0])
        storage.write_file(moments, {**tensors[1], _RANDOM: torch.get_rng_state()})
        found = weights.name if best else state.best
        named = dict.fromkeys([weights.name, moments.name, *([found] if found else [])])
        record = {
            "weights": weights.name,
            "moments": moments.name,
            "best": found,
            "rates": [group["lr"] for group in state.optimizer.param_groups],
            "schedule": state.schedule.state_dict(),
            "checks": [dataclasses.asdict(check) for check in checks],
        }
        self.context.note(self.unit, record, [self.context.scratch / name for name in named])
        _remove_others(self.context, self.unit, named)
        return found

    def take_up(self, state: State) -> tuple[list[HeldOut], str | None] | None:
        """Put back what the journal names.

        Returns:
            The looks so far and the file of the best weights; None where nothing was saved.
        """
        record = self.context.noted(self.unit)
        if record is None:
            return None
        state.learner.load(self.read(record["weights"]))
        moments = self.read(record["moments"])
        torch.set_rng_state(moments.pop(_RANDOM).clone())
        groups = state.optimizer.state_dict()["param_groups"]
        for group, rate in zip(groups, record["rates"], strict=True):
            group["lr"] = rate
        like = [p for group in state.optimizer.param_groups for p in group["params"]]
        state.optimizer.load_state_dict(
            {"state": _by_number(moments, like), "param_groups": groups}
        )
        state.schedule.load_state_dict(dict(record["schedule"]))
        return [HeldOut(**check) for check in record["checks"]], record["best"]

    def read(self, name: str) -> dict[str, Tensor]:
        """All tensors of one of its files."""
        path = self.context.scratch / name
        return storage.read_file(path, list(storage.read_header(path)))


def _put_together(found: Iterable[tuple[str, Tensor]], *, kept: bool) -> dict[str, Tensor]:
    together = ((name, whole(tensor)) for name, tensor in found)
    return {name: tensor for name, tensor in together if kept}


def _moments(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    state = optimizer.state_dict()["state"]
    yield from ((f"{i}.{key}", t) for i, held in state.items() for key, t in held.items())


def _by_number(moments: dict[str, Tensor], like: Sequence[Tensor]) -> dict[int, dict[str, Any]]:
    """Moments by the number of their weight, each as that lies."""
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in moments.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = laid_out(tensor.clone(), like[int(index)])
    return state


def forget(context: Context, unit: str) -> None:
    """Let go of the state of a training, once what was learned is final elsewhere."""
    context.note(unit, {})
    _remove_others(context, unit, ())


def _remove_others(context: Context, unit: str, named: Collection[str]) -> None:
    for path in context.scratch.glob(_file(unit, "*")):
        if path.name not in named:
            path.unlink()


def _file(unit: str, what: str) -> str:
    return f"{unit.replace('/', '-')}-{what}.safetensors"
