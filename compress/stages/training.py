"""Train a learner step by step, look at held-out windows, keep the best, and go on after a cut.

A killed run goes on from its last look: weights, AdamW's moments, the schedule and the state of the
random numbers lie in files that the journal names; which windows come next is told by the step.

Of several processes each holds the whole learner and reads its share of the windows of every step.
Their gradients are added up, the same bits in all, so their learners stay the same; the first alone
decides, and saves. Gradients are added up in place, weight by weight: buckets would hold all of
them twice, and be cut otherwise after a run goes on, so that sums would end in other bits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from compress import storage
from compress.errors import RunError, TrainingError
from compress.forwards import training_pass
from compress.recipe.distill import Distill
from compress.results import HeldOut
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
            RunError: other processes were launched beside this one than share the run.
        """
        self.spec, self.context, self.unit = spec, context, unit
        self.team = context.team
        self.lessons, self.exam = lessons, exam
        windows, seq_len = lessons.ids.shape
        a_step = spec.windows_a_step(seq_len)
        self.order = Order(windows, a_step, spec.seed)
        self.steps = spec.steps_on(windows, seq_len)
        most = -(-a_step // self.team.size)  # windows of one process
        self.at_once, recompute = training_pass(
            learner.anatomy, most, seq_len, context.dtype.itemsize, context.limits.resident_bytes
        )
        if recompute:
            learner.recompute_blocks()
        self.accelerator = _accelerator(context)
        self.learner = learner.to(self.device)
        optimizer = _adamw(learner, spec)
        schedule = _schedule(optimizer, spec, self.steps)
        self.optimizer, self.schedule = self.accelerator.prepare(optimizer, schedule)
        self.pruned = learner.pruned(pruned)
        self.checks: list[HeldOut] = []
        self.best: str | None = None  # the file of the best weights; None: those of the beginning

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return torch.device(self.accelerator.device)

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
            self.learner.load(self._read(self.best))
        finished = self.checks[-1].step == self.steps
        return Course(tuple(self.checks), self._best().step, "finished" if finished else "patience")

    def _step(self, step: int) -> float:
        """One optimizer step; its loss, nats per token."""
        windows = self.order.of(step)
        mine, total = [windows[place] for place in self.team.own(len(windows))], 0.0
        with self.learner.made():
            for first in range(0, len(mine), self.at_once):
                piece = mine[first : first + self.at_once]
                share = len(piece) / len(windows)  # all are full: a mean of means over all tokens
                ids, said = (part.to(self.device) for part in self.lessons.of(piece))
                total += self._backward(ids, said, share)
        total = self._added_up(total)
        for weight in self.pruned:
            if weight.grad is not None:
                weight.grad *= weight != 0
        norm = self.accelerator.clip_grad_norm_(self.learner.parameters(), self.spec.clip_norm)
        self.team.first(partial(self._check_step, step + 1, total, float(norm)))
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return total

    def _backward(self, ids: Tensor, said: Tensor, share: float) -> float:
        loss = self.learner(ids, said) * share
        self.accelerator.backward(loss)
        return float(loss.detach())

    def _added_up(self, loss: float) -> float:
        """The loss of all processes; their gradients become the sum of what each has found."""
        if self.team.size == 1:
            return loss
        for parameter in self.learner.learning().values():
            if parameter.grad is not None:
                self.team.add_up(parameter.grad)
        return float(self.team.add_up(torch.tensor(loss, device=self.device)))

    def _check_step(self, step: int, loss: float, norm: float) -> None:
        """Refuse to go on with what is no number."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise self._failed(step, f"the loss is {loss}, the norm of its gradient {norm}")

    def _held_out(self) -> float:
        """KL of the held-out windows, mean per token, nats."""
        mine, total = self.team.own(len(self.exam.ids)), 0.0
        with torch.no_grad(), self.learner.made():
            for first in mine[:: self.at_once]:
                windows = list(range(first, min(first + self.at_once, mine.stop)))
                ids, said = (part.to(self.device) for part in self.exam.of(windows))
                total += float(self.learner.divergence(ids, said)) * len(windows)
        found = self.team.mean(total / len(mine) if mine else 0.0, len(mine))
        return self.team.told(found)

    def _check(self, step: int, losses: Sequence[float]) -> None:
        """Look at the held-out windows, and make the state final."""
        look = HeldOut(step, self._held_out(), sum(losses) / len(losses), self._rate())
        self.best = self.team.first(partial(self._settled, look))
        self.checks.append(look)
        self._tell(step, losses[-1])

    def _settled(self, look: HeldOut) -> str | None:
        """Refuse to go on where the KL diverges; save the state; the file of the best weights."""
        first = self.checks[0].kl
        if not math.isfinite(look.kl) or look.kl > _GROWN[0] * first + _GROWN[1]:
            grown = f"the held-out KL went from {first:.4g} to {look.kl:.4g} nats"
            raise self._failed(look.step, grown)
        return self._saved(look)

    def _saved(self, look: HeldOut) -> str | None:
        """Weights and moments in new files; then the journal names them; then old ones go."""
        weights = self._path(f"weights-{look.step}")
        moments = self._path(f"moments-{look.step}")
        held = {name: p.detach().cpu() for name, p in self.learner.learning().items()}
        storage.write_file(weights, held)
        storage.write_file(moments, {**self._moments(), _RANDOM: torch.get_rng_state()})
        best = weights.name if look.kl < self._best().kl else self.best
        named = dict.fromkeys([weights.name, moments.name, *([best] if best else [])])
        record = {
            "weights": weights.name,
            "moments": moments.name,
            "best": best,
            "rates": [group["lr"] for group in self.optimizer.param_groups],
            "schedule": self.schedule.state_dict(),
            "checks": [dataclasses.asdict(check) for check in (*self.checks, look)],
        }
        self.context.note(self.unit, record, [self.context.scratch / name for name in named])
        _remove_others(self.context, self.unit, named)
        return best

    def _resumed(self) -> bool:
        """Take up the state that the journal names; False where there is none."""
        record = self.context.noted(self.unit)
        if record is None:
            return False
        self.learner.load(self._read(record["weights"]))
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


def _accelerator(context: Context) -> Any:
    """What knows the device of this process, and steps optimizer and schedule."""
    from accelerate import Accelerator

    found = Accelerator(
        cpu=context.device == "cpu",
        mixed_precision="no",  # the learner casts: a recipe's dtype is not a launcher's to change
        step_scheduler_with_optimizer=False,
    )
    if found.num_processes != context.team.size:
        raise RunError(
            f"distill: launched as {found.num_processes} processes, and {context.team.size} share "
            "the run. Launch the command compress itself, or a program that runs alone."
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
