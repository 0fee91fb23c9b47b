"""Cut one block, and repair what is left: each linear that reads what goes is fitted anew.

Only o and down read heads and channels, and they write to the residual stream: each is fitted to
give what all of its inputs gave, and to bring the stream to where the teacher's is. All others read
the stream: where it becomes narrower, they are fitted to give what the teacher's do. Behind the
block others may be missing: then it is the teacher's stream behind those.

Source: Kurtic et al. 2023 (ZipLM), arXiv:2302.04089; An et al. 2024 (FLAP), arXiv:2312.11983;
targets from the teacher's stream: Li et al. 2025 (GPTAQ), arXiv:2504.02692.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from compress.anatomy import Block, Linear
from compress.families import Role
from compress.kernels.hessian import mean, output_errors
from compress.kernels.structure import Moments, cheapest, damped_inverse, magnitudes, refit
from compress.recipe.restructure import Restructure
from compress.results import LinearResult
from compress.shape import Kept, Shape, spread
from compress.stages.drift import Sinks, accumulate_windows, catch_up, mean_of_pairs
from compress.stages.merging import Attention
from compress.stages.stream import Stream
from compress.surgery.inputs import Forwards, assign

Scores = Mapping[str, Sequence[float]]  # of the units of a linear's inputs, by its name
_ATTENTION: tuple[Role, ...] = ("q", "k", "v")
_MLP: tuple[Role, ...] = ("gate", "up")
_WRITING: tuple[Role, ...] = ("o", "down")
_TENSORS = ("weight", "bias")
DAMPINGS = (0.01, 0.03, 0.1, 0.3, 1.0)


@dataclass
class Beside:
    """The teacher's forwards of one block, paused where the student's are."""

    stream: Stream
    block: Block
    stored: Mapping[str, Tensor]
    forwards: Forwards
    parts: Sequence[Tensor]  # its activations, [B, T, D]
    behind: list[Tensor] | None  # [N, D] each: what the stream lacks; None where a norm is between
    missing: int  # blocks behind this one that the student has not
    _finished: bool = False

    def given(self, linear: Linear) -> list[Tensor]:
        """What a linear is given, [N, I] each."""
        found: list[Tensor] = []
        self.forwards.to(linear, found.append)
        return found

    def finish(self) -> None:
        """Let the forwards come to their end, and the stream pass the blocks that are missing."""
        if not self._finished:
            self.forwards.finish()
            self.stream.passed(self.block.index)
            self._finished = True

    def beyond(self) -> list[Tensor] | None:
        """What blocks that the student has not add to the stream, [N, D] each."""
        if not self.missing or self.behind is None:
            return None
        self.finish()
        came = [part.clone() for part in self.parts]
        self.stream.before(self.block.index + 1 + self.missing)
        return [(now - then).flatten(0, 1) for now, then in zip(self.parts, came, strict=True)]


@dataclass
class Cutting:
    """A filled block of the student, what enters it, and the teacher's beside it."""

    block: Block
    module: nn.Module
    stored: Mapping[str, Tensor]
    forwards: Forwards
    seq_len: int
    spec: Restructure
    before: Shape
    after: Shape
    teacher: Beside | None  # None: nothing is repaired
    scores: Scores = field(default_factory=dict)
    hidden: Sequence[int] | None = None  # channels of the stream that stay; None: all
    changed: dict[str, Tensor] = field(default_factory=dict)  # tensors, by full name
    results: list[LinearResult] = field(default_factory=list)

    def cut(self) -> Kept:
        """Cut the attention, then the MLP behind it, and run the forwards to their end."""
        before, after = self.before, self.after
        roles: dict[Role, Linear] = {linear.role: linear for linear in self.block.linears}
        merges = before.heads == after.heads and before.kv_heads != after.kv_heads
        if merges:
            self._merge(roles)
        size = before.group * before.head_dim
        keep = before.kv_heads if merges else after.kv_heads
        self._narrow(roles)
        self._fit_to_stream([roles[role] for role in _ATTENTION if role in roles])
        groups = self._fit(_Reader((roles["o"],), keep, size, merges))
        self._fit_to_stream([roles[role] for role in _MLP if role in roles])
        channels = self._fit(_Reader((roles["down"],), after.channels, 1))
        self.forwards.finish()
        if merges:
            groups = tuple(range(0, before.kv_heads, before.kv_heads // after.kv_heads))
            return Kept(tuple(range(before.heads)), groups, channels)
        return Kept(spread(groups, before.group), groups, channels)

    def _merge(self, roles: Mapping[Role, Linear]) -> None:
        """Let neighbouring heads share keys and values."""
        given: list[Tensor] = []
        self.forwards.to(roles["q"], given.append)
        normed = any(name.endswith(("q_norm.weight", "k_norm.weight")) for name in self.stored)
        attention = Attention(roles, self.stored, given, self.before, normed)
        merged = attention.merged(self.after.kv_heads, apart=self.spec.repair)
        for name, tensor in merged.items():
            self._assign(name, tensor)

    def _narrow(self, roles: Mapping[Role, Linear]) -> None:
        """Let nothing be written to the channels of the stream that go."""
        if self.hidden is None:
            return
        gone = without(self.before.hidden, self.hidden)
        for name in [f"{roles[role].name}.{kind}" for role in _WRITING for kind in _TENSORS]:
            if name in self.stored:
                silent = self.stored[name].clone()
                silent[gone] = 0  # families of which it can be cut store rows by their outputs
                self._assign(name, silent)

    def _fit_to_stream(self, linears: Sequence[Linear]) -> None:
        """Fit linears that read the stream to the channels of it that are left."""
        if self.hidden is not None and self.teacher is not None:
            self._fit(_Reader(tuple(linears), len(self.hidden), 1, left=tuple(self.hidden)))

    def _fit(self, reader: _Reader) -> tuple[int, ...]:
        """Choose the units of a linear's inputs that stay, and fit it to do without the others.

        Linears that share an input are fitted as one.
        """
        linear, teacher = reader.linears[0], self.teacher
        if teacher is None and reader.keep == reader.units:
            return tuple(range(reader.units))
        x: list[Tensor] = []
        self.forwards.to(linear, x.append)
        biased = linear.bias and teacher is not None
        seen = _Seen(_with_ones(x) if biased else x, self._weight(reader, self._now(), biased))
        halves = [self._hessian(half) for half in _halves(seen.x)]
        hessian = _together(halves, _shares(seen.x))
        left = self._chosen(reader, x, seen.weight, hessian)
        kept = _places(left, reader, seen.weight)
        dense, damp = torch.zeros(seen.weight.shape, device=seen.weight.device), None
        if teacher is None:
            dense[:, kept] = seen.weight[:, kept].float()
        else:
            theirs = teacher.given(linear)
            theirs = _with_ones(theirs) if biased else theirs
            wanted = self._weight(reader, teacher.stored, biased)
            moments = self._moments(reader, seen, halves, theirs, wanted)
            found = refit(
                seen.weight, moments, kept, damp_percents=self._dampings(x, linear),
                most=self.spec.error_correction,
            )  # fmt: skip
            dense[:, kept], damp = found.weight, found.damp_percent
            if linear.role == "o" and teacher.behind is not None:
                catch_up(teacher.behind, theirs, wanted, seen.x, dense)
        sizes = [linear.out_features for linear in reader.linears]
        pieces = zip(seen.weight.float().split(sizes), dense.split(sizes), strict=True)
        for linear, (before, after) in zip(reader.linears, pieces, strict=True):
            self._put(linear, after, biased)
            self.results.append(_result(linear, before, after, hessian, damp))
        return left

    def _chosen(
        self, reader: _Reader, x: Sequence[Tensor], weight: Tensor, hessian: Tensor
    ) -> tuple[int, ...]:
        """The units of a linear's inputs that stay, ascending."""
        keep, unit, inner = reader.keep, reader.unit, reader.linears[0].in_features
        if reader.left is not None:
            return reader.left
        if keep == reader.units:
            return tuple(range(keep))
        if (scores := self.scores.get(reader.linears[0].name)) is not None:
            return _best(torch.tensor(scores), keep)
        if self.spec.importance == "activation":
            windows = torch.cat([part.view(-1, self.seq_len, inner) for part in x])
            return _best(magnitudes(windows, unit=unit), keep)
        damp = self.spec.damp_percent or inner / sum(map(len, x))  # the noise of a mean
        inverse = damped_inverse(hessian, min(damp, 1.0))[:inner, :inner]
        return tuple(cheapest(weight[:, :inner], inverse, keep, unit=unit).tolist())

    def _dampings(self, x: Sequence[Tensor], linear: Linear) -> tuple[float, ...]:
        """To choose from; of few windows there are no halves to choose on."""
        if self.spec.damp_percent is not None:
            return (self.spec.damp_percent,)
        return DAMPINGS if len(x) > 1 else (min(1.0, linear.in_features / len(x[0])),)

    def _moments(
        self,
        reader: _Reader,
        seen: _Seen,
        hessians: Sequence[Tensor],
        theirs: Sequence[Tensor],
        wanted: Tensor,
    ) -> list[Moments]:
        """What was seen, in halves: what a linear must make up for, and what would be well."""
        teacher, role = self.teacher, reader.linears[0].role
        behind = teacher.behind if teacher and role in _WRITING else None
        found = []
        for number, (x, hessian) in enumerate(zip(_halves(seen.x), hessians, strict=True)):
            lacks = wanted.float() @ self._pairs(_halves(theirs)[number], x)
            lacks -= seen.weight.float() @ hessian
            wish = torch.zeros_like(lacks)
            if behind is not None:
                wish += self._pairs(_halves(behind)[number], x)
            # what was merged is no more what the teacher's linear reads: all of it is made up for
            must = lacks if reader.merged else torch.zeros_like(lacks)
            wish += 0 if reader.merged else lacks
            found.append(Moments(float(sum(map(len, x))), hessian, must, wish))
        beyond = teacher.beyond() if teacher and role == "down" else None
        if beyond is not None:
            pairs = zip(_halves(beyond), _halves(seen.x), strict=True)
            more = [self._pairs(added, x) for added, x in pairs]
            both = zip(found, more, strict=True)
            found = [replace(one, must=one.must + part) for one, part in both]
        if self.hidden is not None and role in _WRITING:
            gone = without(self.before.hidden, self.hidden)
            for one in found:  # nothing is asked for where nothing is left
                one.must[gone], one.wish[gone] = 0, 0
        return found

    def _put(self, linear: Linear, dense: Tensor, biased: bool) -> None:
        """Give a linear another weight [O, I], and a bias where that is its last column."""
        if biased:
            self._assign(f"{linear.name}.bias", dense[:, -1])
        weight = dense[:, : linear.in_features]
        self._assign(f"{linear.name}.weight", linear.turned(weight))

    def _assign(self, name: str, tensor: Tensor) -> None:
        stored = tensor.to(self.stored[name].dtype).contiguous()
        assign(self.module, self.block, name, stored)
        self.changed[name] = stored.cpu()

    def _now(self) -> dict[str, Tensor]:
        return {**self.stored, **self.changed}

    def _weight(self, reader: _Reader, stored: Mapping[str, Tensor], biased: bool) -> Tensor:
        """[O, I], or [O, I + 1] with the bias as what a one is multiplied by."""
        device, found = next(self.module.parameters()).device, []
        for linear in reader.linears:
            weight = linear.turned(stored[f"{linear.name}.weight"].to(device))
            if biased:
                bias = stored[f"{linear.name}.bias"].to(weight)
                weight = torch.cat([weight, bias[:, None]], 1)
            found.append(weight)
        return found[0] if len(found) == 1 else torch.cat(found)

    def _hessian(self, x: Sequence[Tensor]) -> Tensor:
        """E[x xᵀ], [I, I]; attention sinks count many times."""
        width, sinks = x[0].shape[1], self._sinks
        total = torch.zeros(width, width, device=x[0].device)
        for part in x:
            accumulate_windows(total, part, self.seq_len, sinks)
        return mean(total, sinks.counted(sum(map(len, x)) // self.seq_len, self.seq_len))

    def _pairs(self, left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
        return mean_of_pairs(left, right, self.seq_len, self._sinks)

    @property
    def _sinks(self) -> Sinks:
        return Sinks(self.spec.sink_tokens, self.spec.sink_weight)


@dataclass(frozen=True)
class _Reader:
    """Linears that share an input of which something is cut, and how many units of it stay."""

    linears: tuple[Linear, ...]
    keep: int
    unit: int  # channels that go together
    merged: bool = False  # what it reads is no more what the teacher's does
    left: tuple[int, ...] | None = None  # the units that stay, where that is settled

    @property
    def units(self) -> int:
        return self.linears[0].in_features // self.unit


@dataclass(frozen=True)
class _Seen:
    """What a linear is given, [N, I] each, and its weight [O, I]."""

    x: Sequence[Tensor]
    weight: Tensor


def without(size: int, channels: Sequence[int]) -> list[int]:
    """The channels of a stream that do not stay."""
    return sorted(set(range(size)) - set(channels))


def _best(scores: Tensor, keep: int) -> tuple[int, ...]:
    """The units [U] that score highest, ascending."""
    return tuple(sorted(scores.topk(keep).indices.tolist()))


def _places(left: Sequence[int], reader: _Reader, weight: Tensor) -> Tensor:
    """The inputs of units, and that of the bias where the weight has a column of it."""
    inner = reader.linears[0].in_features
    bias = range(inner, weight.shape[1])
    return torch.tensor([*spread(left, reader.unit), *bias], device=weight.device)


def _with_ones(x: Sequence[Tensor]) -> list[Tensor]:
    """Inputs [N, I] with a one behind each, for the bias."""
    return [torch.cat([part, torch.ones_like(part[:, :1])], 1) for part in x]


def _halves(x: Sequence[Tensor]) -> list[Sequence[Tensor]]:
    """Every other batch; a single one cannot be halved."""
    return [x[::2], x[1::2]] if len(x) > 1 else [x]


def _together(halves: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    return halves[0] if len(halves) == 1 else torch.lerp(halves[0], halves[1], shares[1])


def _shares(x: Sequence[Tensor]) -> list[float]:
    """Of the tokens, in each half."""
    counts = [sum(map(len, half)) for half in _halves(x)]
    return [count / sum(counts) for count in counts]


def _result(
    linear: Linear, weight: Tensor, dense: Tensor, hessian: Tensor, damp: float | None
) -> LinearResult:
    error, energy = (float(each.sum()) for each in output_errors(weight, dense.clone(), hessian))
    return LinearResult(
        linear.name, linear.block, linear.role, "restructure", "solved", None, None,
        relative_error=error / energy if energy else 0.0,
        damp_percent=damp,
    )  # fmt: skip
