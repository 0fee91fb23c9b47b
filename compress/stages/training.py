"""Train a learner step by step, look at held-out windows, keep the best, and go on after a cut.

Of several processes each holds the whole learner and reads its share of the windows of every step.
Their gradients are added up, the same bits in all, so their learners stay the same; the first alone
decides, and saves. Gradients are added up in place, weight by weight: buckets would hold all of
them twice, and be cut otherwise after a run goes on, so that sums would end in other bits. Or, when
asked to (`Team.sharded`), each holds a shard of all weights, gradients and moments: FSDP2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from compress.errors import TrainingError
from compress.forwards import training_pass
from compress.recipe.distill import Distill
from compress.results import HeldOut
from compress.stages import moving
from compress.stages.context import Context
from compress.stages.keeping import Kept, State, Tensors
from compress.stages.lessons import Lessons, Order, Said
from compress.surgery.learning import Learner, Lesson
from compress.surgery.sharding import plain

_BARS, _BARS_SHOWN = "▁▂▃▄▅▆▇█", 16
_GROWN = (2.0, 0.5)  # a held-out KL of more than so many times the first, and so much, diverges


def curve(values: Sequence[float]) -> str:
    """The last values of a row as bars between their least and their most; "" of less than two."""
    last = values[-_BARS_SHOWN:]
    least, most = min(last, default=0.0), max(last, default=0.0)
    if len(last) < 2 or not math.isfinite(most - least):
        return ""
    return "".join(_BARS[round((len(_BARS) - 1) * (v - least) / (most - least or 1))] for v in last)


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
        unit: str, pruned: frozenset[str], lessons: Lessons, exam: Said,
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
        self.spec, self.context = spec, context
        self.team = context.team
        self.lessons, self.exam = lessons, exam
        windows, seq_len = lessons.said.ids.shape
        a_step = spec.windows_a_step(seq_len)
        self.order = Order(windows, a_step, spec.seed)
        self.steps = spec.steps_on(windows, seq_len)
        most = -(-a_step // self.team.size)  # windows of one process
        self.at_once, recompute = training_pass(
            learner.anatomy, most, seq_len, context.dtype.itemsize, context.limits.resident_bytes
        )
        if recompute:
            learner.recompute_blocks()
        self.accelerator = moving.accelerator(context)
        if self.team.sharded:
            learner.shard(self.team.size, context.device)
        self.learner = learner.to(self.device)
        optimizer = moving.adamw(learner, spec)
        schedule = moving.schedule(optimizer, spec, self.steps)
        self.optimizer, self.schedule = self.accelerator.prepare(optimizer, schedule)
        self.pruned = learner.pruned(pruned)
        self.kept = Kept(context, unit)
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
            if (step + 1) % self.spec.check_every == 0 or step + 1 == self.steps:
                self._check(step + 1, losses)  # tells, too
                losses = []
            else:
                self._tell(step + 1, losses[-1])
        if self.best is not None:
            self.learner.load(self.kept.read(self.best))
        finished = self.checks[-1].step == self.steps
        return Course(tuple(self.checks), self._best().step, "finished" if finished else "patience")

    def _step(self, step: int) -> float:
        """One optimizer step; its loss, nats per token."""
        windows = self.order.of(step)
        mine, total = [windows[place] for place in self.team.own(len(windows))], 0.0
        whole = self.lessons.count(windows, step)
        with self.learner.made():
            for piece, counts in self._pieces(mine, len(windows)):
                share = self.lessons.count(piece, step) / whole  # a mean of means over all tokens
                lesson = self.lessons.of(piece, step, self.device)
                total += self._backward(lesson, share if counts else 0.0)
        total = self._added_up(total)
        for weight in self.pruned:
            if weight.grad is not None:
                weight.grad *= weight != 0
        norm = self.accelerator.clip_grad_norm_(self.learner.parameters(), self.spec.clip_norm)
        self.team.first(partial(self._check_step, step + 1, total, plain(norm)))
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return total

    def _pieces(self, mine: Sequence[int], of: int) -> Iterator[tuple[list[int], bool]]:
        """This process's windows of so many, as many as go through at once; and whether they count.

        Where shards are put together in every pass all processes take equally many: one that has
        no windows left reads some again, which count for nothing.
        """
        pieces = [list(mine[i : i + self.at_once]) for i in range(0, len(mine), self.at_once)]
        yield from ((piece, True) for piece in pieces)
        if self.team.sharded:
            most = -(-len(self.team.own(of, rank=0)) // self.at_once)
            yield from (((pieces or [[0]])[-1], False) for _ in range(most - len(pieces)))

    def _backward(self, lesson: Lesson, share: float) -> float:
        loss = self.learner(lesson) * share
        # shards divide the sum of all gradients by the number of processes
        self.accelerator.backward(loss * self.team.size if self.team.sharded else loss)
        return float(loss.detach())

    def _added_up(self, loss: float) -> float:
        """The loss of all processes; their gradients become the sum of what each has found."""
        if self.team.size == 1:
            return loss
        for parameter in () if self.team.sharded else self.learner.learning().values():
            if parameter.grad is not None:
                self.team.add_up(parameter.grad)
        return float(self.team.add_up(torch.tensor(loss, device=self.device)))

    def _check_step(self, step: int, loss: float, norm: float) -> None:
        """Refuse to go on with what is no number."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise self._failed(step, f"the loss is {loss}, the norm of its gradient {norm}")

    def _held_out(self) -> float:
        """KL of the held-out windows, mean per token, nats."""
        mine, total, seen = self.team.own(len(self.exam.ids)), 0.0, 0.0
        with torch.no_grad(), self.learner.made():
            for piece, counts in self._pieces(mine, len(self.exam.ids)):
                found = float(self.learner.divergence(self.exam.of(piece).to(self.device)))
                count = self.exam.count(piece) if counts else 0.0
                total, seen = total + found * count, seen + count
        return self.team.told(self.team.mean(total / seen if mine else 0.0, seen))

    def _check(self, step: int, losses: Sequence[float]) -> None:
        """Look at the held-out windows, and make the state final."""
        look = HeldOut(step, self._held_out(), sum(losses) / len(losses), self._rate())
        state = self._state()
        tensors = state.tensors(kept=not self.team.rank)  # the first writes them
        self.best = self.team.first(partial(self._settled, look, state, tensors))
        self.checks.append(look)
        self._tell(step, losses[-1])

    def _settled(self, look: HeldOut, state: State, tensors: Tensors) -> str | None:
        """Refuse to go on where the KL diverges; save the state; the file of the best weights."""
        first = self.checks[0].kl
        if not math.isfinite(look.kl) or look.kl > _GROWN[0] * first + _GROWN[1]:
            grown = f"the held-out KL went from {first:.4g} to {look.kl:.4g} nats"
            raise self._failed(look.step, grown)
        best = look.kl < self._best().kl
        return self.kept.save(state, tensors, (*self.checks, look), best=best)

    def _resumed(self) -> bool:
        """Take up the state that the journal names; False where there is none."""
        found = self.kept.take_up(self._state())
        if found is None:
            return False
        self.checks, self.best = found
        return True

    def _state(self) -> State:
        return State(self.learner, self.optimizer, self.schedule, self.best)

    def _best(self) -> HeldOut:
        """The look with the lowest KL, the first of equals."""
        return min(self.checks, key=lambda check: check.kl)

    def _impatient(self) -> bool:
        since = sum(check.step > self._best().step for check in self.checks)
        return self.spec.patience is not None and since >= self.spec.patience

    def _rate(self) -> float:
        return float(self.schedule.get_last_lr()[0])

    def _tell(self, step: int, loss: float) -> None:
        looks = [look.loss for look in self.checks if look.loss is not None]
        kls = [look.kl for look in self.checks]
        shown = (("loss", loss, looks), ("held-out KL", kls[-1], kls))
        now = ", ".join(f"{name} {last:.4g} {curve(row)}".rstrip() for name, last, row in shown)
        self.context.tell("distill", step, self.steps, now, unit="step")

    def _failed(self, step: int, what: str) -> TrainingError:
        best = self._best()
        kept = (
            f"The best state, of step {best.step} (held-out KL {best.kl:.4g} nats), is kept in "
            f"{self.context.scratch / self.best}"
            if self.best
            else f"No state was better than the first (held-out KL {best.kl:.4g} nats)"
        )
        used = self.spec.rates
        if not self.learner.projections():  # states are as wide as the teacher's
            used.pop("loss.hidden.learning_rate", None)
        rates = " or ".join(f"{name} (it is {rate:g})" for name, rate in used.items())
        return TrainingError(
            f"distill: step {step}: {what}. {kept}. Lower {rates} or clip_norm, or raise warmup, "
            "and give another --out."
        )
