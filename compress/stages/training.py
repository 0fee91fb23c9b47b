"""Train a learner step by step, look at held-out windows, keep the best, and go on after a cut.

A killed run goes on from its last look: weights, AdamW's moments, the schedule and the state of the
random numbers lie in files that the journal names; which windows come next is told by the step.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from compress import storage
from compress.errors import RunError, TrainingError
from compress.recipe.distill import Distill
from compress.results import HeldOut
from compress.shape import training_pass
from compress.stages.context import Context
from compress.stages.lessons import Order, Said
from compress.surgery.learning import Learner

_BETAS = (0.9, 0.95)  # of AdamW, as language models are trained
_GROWN = (2.0, 0.5)  # a held-out KL of more than so many times the first, and so much, diverges
_RANDOM = "random_state"


@dataclass(frozen=True)
class Course:
    """How a training went."""

    checks: tuple[HeldOut, ...]
    kept_step: int  # the learner's weights are those after it, unless it is 0
    stopped: Literal["finished", "patience"]


class Training:
    """A learner, what moves it, and how far it is."""

    def __init__(
        self, learner: Learner, spec: Distill, context: Context, *,
        unit: str, pruned: frozenset[str], lessons: Said, exam: Said,
    ) -> None:  # fmt: skip
        """Prepare everything, and go on from what the journal knows.

        Args:
            learner: what learns.
            spec: the stage's fields.
            context: of the stage.
            unit: what the journal calls this training.
            pruned: linears whose zeros stay.
            lessons: windows to train on.
            exam: windows that are held out.

        Raises:
            RunError: several processes were launched.
        """
        self.spec, self.context, self.unit = spec, context, unit
        self.lessons, self.exam = lessons, exam
        windows, seq_len = lessons.ids.shape
        a_step = spec.windows_a_step(seq_len)
        self.order = Order(windows, a_step, spec.seed)
        self.steps = spec.steps_on(windows, seq_len)
        self.at_once, recompute = training_pass(
            learner.anatomy, a_step, seq_len, context.dtype.itemsize, context.limits.resident_bytes
        )
        if recompute:
            learner.recompute_blocks()
        self.accelerator = _accelerator(context.device)
        optimizer = _adamw(learner, spec)
        schedule = _schedule(optimizer, spec, self.steps)
        self.learner, self.optimizer, self.schedule = self.accelerator.prepare(
            learner, optimizer, schedule
        )
        self.pruned = learner.pruned(pruned)
        self.checks: list[HeldOut] = []
        self.best: str | None = None  # the file of the best weights; None: those of the beginning

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return torch.device(self.accelerator.device)

    @property
    def _own(self) -> Learner:
        """The learner itself, whatever moves gradients around it."""
        found: Learner = self.accelerator.unwrap_model(self.learner)
        return found

    def run(self) -> Course:
        """Train to the end, or as long as it helps; the learner is left at its best step, if any.

        Raises:
            TrainingError: the loss is no number, or the held-out KL grows out of hand.
            StorageError: the disk refuses a state.
        """
        if not self._resumed():
            self.checks.append(HeldOut(0, self._held_out(), None, self._rate()))
        losses: list[float] = []
        for step in range(self.checks[-1].step, self.steps):
            if self._impatient():
                break
            losses.append(self._step(step))
            self._tell(step + 1, losses[-1])
            if (step + 1) % self.spec.check_every == 0 or step + 1 == self.steps:
                self._check(step + 1, losses)
                losses = []
        if self.best is not None:
            self._own.load(self._read(self.best))
        finished = self.checks[-1].step == self.steps
        return Course(tuple(self.checks), self._best().step, "finished" if finished else "patience")

    def _step(self, step: int) -> float:
        """One optimizer step; its loss, nats per token."""
        windows = self.order.of(step)
        total = 0.0
        pieces = [windows[i : i + self.at_once] for i in range(0, len(windows), self.at_once)]
        with self._own.made():
            for number, piece in enumerate(pieces):
                share = len(piece) / len(windows)  # all are full: a mean of means over all tokens
                ids, said = (part.to(self.device) for part in self.lessons.of(piece))
                if number + 1 < len(pieces):
                    with self.accelerator.no_sync(self.learner):
                        total += self._backward(ids, said, share)
                else:
                    total += self._backward(ids, said, share)
        for weight in self.pruned:
            if weight.grad is not None:
                weight.grad *= weight != 0
        norm = self.accelerator.clip_grad_norm_(self.learner.parameters(), self.spec.clip_norm)
        if not (math.isfinite(total) and math.isfinite(float(norm))):
            raise self._failed(step + 1, f"the loss is {total}, the norm of its gradient {norm}")
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return total

    def _backward(self, ids: Tensor, said: Tensor, share: float) -> float:
        loss = self.learner(ids, said) * share
        self.accelerator.backward(loss)
        return float(loss.detach())

    def _held_out(self) -> float:
        """KL of the held-out windows, mean per token, nats."""
        total = 0.0
        with torch.no_grad(), self._own.made():
            for first in range(0, len(self.exam.ids), self.at_once):
                windows = list(range(first, min(first + self.at_once, len(self.exam.ids))))
                ids, said = (part.to(self.device) for part in self.exam.of(windows))
                total += float(self._own.divergence(ids, said)) * len(windows)
        return total / len(self.exam.ids)

    def _check(self, step: int, losses: Sequence[float]) -> None:
        """Look at the held-out windows, and make the state final."""
        kl = self._held_out()
        first = self.checks[0].kl
        if not math.isfinite(kl) or kl > _GROWN[0] * first + _GROWN[1]:
            raise self._failed(step, f"the held-out KL went from {first:.4g} to {kl:.4g} nats")
        better = kl < self._best().kl
        self.checks.append(HeldOut(step, kl, sum(losses) / len(losses), self._rate()))
        self._tell(step, losses[-1])
        self._save(step, better=better)

    def _save(self, step: int, *, better: bool) -> None:
        """Weights and moments in new files; then the journal names them; then old ones go."""
        weights = self._path(f"weights-{step}")
        moments = self._path(f"moments-{step}")
        held = {name: p.detach().cpu() for name, p in self._own.learning().items()}
        storage.write_file(weights, held)
        storage.write_file(moments, {**self._moments(), _RANDOM: torch.get_rng_state()})
        self.best = weights.name if better else self.best
        named = dict.fromkeys([weights.name, moments.name, *([self.best] if self.best else [])])
        record = {
            "weights": weights.name,
            "moments": moments.name,
            "best": self.best,
            "rates": [group["lr"] for group in self.optimizer.param_groups],
            "schedule": self.schedule.state_dict(),
            "checks": [dataclasses.asdict(check) for check in self.checks],
        }
        self.context.note(self.unit, record, [self.context.scratch / name for name in named])
        _remove_others(self.context, self.unit, named)

    def _resumed(self) -> bool:
        """Take up the state that the journal names; False where there is none."""
        record = self.context.noted(self.unit)
        if record is None:
            return False
        self._own.load(self._read(record["weights"]))
        moments = self._read(record["moments"])
        torch.set_rng_state(moments.pop(_RANDOM).clone())
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in moments.items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = tensor.clone()
        groups = self.optimizer.state_dict()["param_groups"]
        for group, rate in zip(groups, record["rates"], strict=True):
            group["lr"] = rate
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.schedule.load_state_dict(dict(record["schedule"]))
        self.checks = [HeldOut(**check) for check in record["checks"]]
        self.best = record["best"]
        return True

    def _moments(self) -> dict[str, Tensor]:
        state = self.optimizer.state_dict()["state"]
        return {f"{i}.{key}": t.cpu() for i, held in state.items() for key, t in held.items()}

    def _read(self, name: str) -> dict[str, Tensor]:
        path = self.context.scratch / name
        return storage.read_file(path, list(storage.read_header(path)))

    def _path(self, what: str) -> Path:
        return self.context.scratch / _file(self.unit, what)

    def _best(self) -> HeldOut:
        """The look with the lowest KL, the first of equals."""
        return min(self.checks, key=lambda check: check.kl)

    def _impatient(self) -> bool:
        since = sum(check.step > self._best().step for check in self.checks)
        return self.spec.patience is not None and since >= self.spec.patience

    def _rate(self) -> float:
        return float(self.schedule.get_last_lr()[0])

    def _tell(self, step: int, loss: float) -> None:
        now = f"loss {loss:.4g}, held-out KL {self.checks[-1].kl:.4g}"
        self.context.tell("distill", step, self.steps, now, unit="step")

    def _failed(self, step: int, what: str) -> TrainingError:
        best = self._best()
        kept = f"of step {best.step} (held-out KL {best.kl:.4g} nats)"
        where = (
            f" in {self.context.scratch / self.best}" if self.best else ", the student as it was"
        )
        return TrainingError(
            f"distill: step {step}: {what}. The best state, {kept}, is kept{where}. Lower "
            f"learning_rate (it is {self.spec.learning_rate:g}) or clip_norm, or raise warmup."
        )


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


def _accelerator(device: str) -> Any:
    """What moves tensors to a device and gradients between processes; here of one process."""
    from accelerate import Accelerator

    found = Accelerator(
        cpu=device == "cpu",
        mixed_precision="no",  # the learner casts: a recipe's dtype is not a launcher's to change
        step_scheduler_with_optimizer=False,
    )
    if found.num_processes > 1:
        raise RunError(
            f"distill: launched as {found.num_processes} processes, and trains in one. Run the "
            "command without accelerate launch."
        )
    return found


def _adamw(learner: Learner, spec: Distill) -> torch.optim.Optimizer:
    latent, matrices = learner.latent(), learner.matrices()
    apart = {id(parameter) for parameter in (*latent, *matrices)}
    others = [p for p in learner.learning().values() if id(p) not in apart]
    groups: list[dict[str, Any]] = [
        {"params": latent, "weight_decay": 0.0},
        {"params": matrices, "weight_decay": spec.weight_decay},
        {
            "params": others,
            "weight_decay": 0.0,
            "lr": spec.scale_learning_rate or spec.learning_rate,
        },
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=spec.learning_rate, betas=_BETAS, fused=True,
    )  # fmt: skip


def _schedule(optimizer: torch.optim.Optimizer, spec: Distill, steps: int) -> LRScheduler:
    """Up in a line, down by a cosine; every group of weights from its own peak."""
    rising = round(spec.warmup * steps)
    falling = max(1, steps - rising)

    def share(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        turned = math.pi * min(1.0, (step - rising) / falling)
        return spec.final_rate + (1 - spec.final_rate) * (1 + math.cos(turned)) / 2

    return LambdaLR(optimizer, share)
