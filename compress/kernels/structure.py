"""Take whole inputs away from a linear, and let those that are left make up for them.

Without the inputs D, the outputs W x come nearest with

    W_K + W_D H_DK (H_KK + λ)⁻¹,    H = E[x xᵀ]

and what is lost is tr(W_D [(H⁻¹)_DD]⁻¹ W_Dᵀ): the exact cost of removing D, updates counted.

Source: Hassibi and Stork 1992 (OBS); one after another: Kurtic et al. 2023 (ZipLM),
arXiv:2302.04089.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.kernels.hessian import invert

_STEPS = 32  # in which units are removed; what others cost is known anew after each


def magnitudes(inputs: Tensor, *, unit: int = 1) -> Tensor:
    """How strongly units are driven: mean |x| over time, root of the sum of squares over samples.

    Args:
        inputs: [B, T, I].
        unit: channels that go together.

    Returns:
        [I / unit] float32.

    Source: Muralidharan et al. 2024 (Minitron), arXiv:2407.14679, section 2.2.
    """
    channels = inputs.float().abs().mean(1)
    return channels.view(len(channels), -1, unit).sum(2).square().sum(0).sqrt()


def cheapest(
    weight: Tensor, inverse: Tensor, keep: int, *, unit: int = 1, metric: Tensor | None = None
) -> Tensor:
    """Choose the units of inputs that are left when those go that cost least, a few at a time.

    Args:
        weight: [O, I].
        inverse: [I, I] float32, of the damped Hessian.
        keep: units that stay.
        unit: neighbouring inputs that go together: the channels of a group of heads.
        metric: [O], how much a squared error of each output counts; all alike by default.

    Returns:
        [keep] int64, ascending.
    """
    ((left, _),) = removed(weight, inverse, [keep], unit=unit, metric=metric)
    return left


def removed(
    weight: Tensor,
    inverse: Tensor,
    keeps: Sequence[int],
    *,
    unit: int = 1,
    metric: Tensor | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Remove units of inputs, those that cost least first, and make up for them.

    Args:
        weight: [O, I].
        inverse: [I, I] float32, of the damped Hessian.
        keeps: how many units stay each time something is yielded, falling.
        unit: as for `cheapest`.
        metric: as there.

    Yields:
        the units that are left, [keep] int64, ascending, and the weight [O, I] float32 that makes
        up for the others, zero where these were, each output times the root of its metric.
    """
    W = weight.float() if metric is None else weight.float() * metric.sqrt()[:, None]  # [O, I]
    Hinv = inverse.clone()
    left = torch.arange(W.shape[1] // unit, device=W.device)
    few = max(1, -(-(len(left) - keeps[-1]) // _STEPS))
    within = torch.arange(unit, device=W.device)
    for keep in keeps:
        while len(left) > keep:
            costs = _costs(W, Hinv, left[:, None] * unit + within)
            going = costs.topk(min(few, len(left) - keep), largest=False).indices
            places = (left[going][:, None] * unit + within).flatten()
            update = torch.linalg.solve(Hinv[places[:, None], places], Hinv[places])  # [D, I]
            W = W - W[:, places] @ update
            Hinv = Hinv - Hinv[:, places] @ update
            stay = torch.ones(len(left), dtype=torch.bool, device=W.device)
            stay[going] = False
            left = left[stay]
        yield left, W


def _costs(W: Tensor, Hinv: Tensor, units: Tensor) -> Tensor:
    """tr(W_u [(H⁻¹)_uu]⁻¹ W_uᵀ) of each unit u of `units` [U, unit]: [U]."""
    if units.shape[1] == 1:
        places = units[:, 0]
        return W[:, places].square().sum(0) / Hinv.diagonal()[places]
    parts = Hinv[units[:, :, None], units[:, None, :]]  # [U, unit, unit]
    columns = W[:, units].permute(1, 2, 0)  # [U, unit, O]
    costs: Tensor = (columns * torch.linalg.solve(parts, columns)).sum((1, 2))
    return costs


def principal(second: Tensor, metric: Tensor | None = None) -> Tensor:
    """Orthonormal directions [I, I] of inputs x, a column each: the first few hold most of x.

    Sums of the first K come nearest to x, whatever K is; with a metric they do where that counts.
    The nearest x of rank K is C^½ U Uᵀ C^-½ x with the first K eigenvectors U of C^½ G C^½.

    Args:
        second: C, [I, I], E[x xᵀ].
        metric: G, [I, I], positive definite: an error δ counts as δᵀ G δ; by default as δᵀ δ.
    """
    energy, directions = torch.linalg.eigh(second.double())
    if metric is None:
        first: Tensor = directions.flip(1).float()
        return first
    root = (directions * energy.clamp_min(0).sqrt()) @ directions.T
    _, found = torch.linalg.eigh(root @ metric.double() @ root)
    spanning: Tensor = torch.linalg.qr(root @ found.flip(1)).Q.float()
    return spanning


@dataclass(frozen=True)
class Moments:
    """What was seen of a linear on some windows: means over so many tokens."""

    tokens: float
    hessian: Tensor  # [I, I] float32, E[x xᵀ]
    must: Tensor  # [O, I] float32, E[(y - W x) xᵀ]: outputs y are wanted other than W x
    wish: Tensor  # [O, I] float32, the same, of what may be asked for in part

    def __add__(self, other: Moments) -> Moments:
        """Of both together."""
        tokens = self.tokens + other.tokens
        share = other.tokens / tokens
        pairs = zip(self._means, other._means, strict=True)
        return Moments(tokens, *(torch.lerp(one, two, share) for one, two in pairs))

    @property
    def _means(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.hessian, self.must, self.wish


@dataclass(frozen=True)
class Fitted:
    """A weight on the inputs that are left, and how far what was seen was trusted."""

    weight: Tensor  # [O, K] float32
    damp_percent: float
    share: float  # of the wish


def refit(
    weight: Tensor,
    halves: Sequence[Moments],
    kept: Tensor,
    *,
    damp_percents: Sequence[float],
    most: float = 1.0,
) -> Fitted:
    """The weight on the inputs that are left which comes nearest to what is wanted.

    Seen are a few thousand tokens, and inputs are many: without damping a fit repeats the noise of
    its text. What is fitted to one half of the text is asked of the other, for each damping; with
    it the best share of the wish is known in closed form.

    Args:
        weight: [O, I].
        halves: what was seen, in two halves of the text, or in one: then nothing can be asked.
        kept: [K] int64, the inputs that are left, ascending.
        damp_percents: to choose from; of the diagonal of each input.
        most: of the wish.

    Raises:
        SolveError: a Hessian is not positive definite.
    """
    W, whole = weight.float(), halves[0] if len(halves) == 1 else halves[0] + halves[1]
    damp, share = damp_percents[0], most
    if len(halves) == 2:
        tried = [_asked(W, halves, kept, one, most) for one in damp_percents]
        _, share, damp = min(zip(*zip(*tried, strict=True), damp_percents, strict=True))
    must, wish = _solutions(W, whole, kept, damp)
    return Fitted(must + share * wish, damp, share)


def _asked(
    W: Tensor, halves: Sequence[Moments], kept: Tensor, damp_percent: float, most: float
) -> tuple[float, float]:
    """What halves lose with what the other was fitted to, but for a constant; the best share."""
    square = linear = loss = 0.0
    for seen, asked in (halves, halves[::-1]):
        must, wish = _solutions(W, seen, kept, damp_percent)
        H = asked.hessian[kept[:, None], kept]
        wanted = (W @ asked.hessian + asked.must + asked.wish)[:, kept]
        given = must @ H
        loss += float((given * must).sum() - 2 * (wanted * must).sum())
        linear += float((given * wish).sum() - (wanted * wish).sum())
        square += float(((wish @ H) * wish).sum())
    share = min(max(-linear / square, 0.0), most) if square > 0 else 0.0
    return loss + 2 * share * linear + share * share * square, share


def _solutions(
    W: Tensor, seen: Moments, kept: Tensor, damp_percent: float
) -> tuple[Tensor, Tensor]:
    """What half a text asks for, [O, K]: without the wish, and what the wish adds."""
    gone = torch.ones(W.shape[1], dtype=torch.bool, device=W.device)
    gone[kept] = False
    missing = W[:, gone] @ seen.hessian[gone][:, kept] + seen.must[:, kept]
    inverse = damped_inverse(seen.hessian[kept[:, None], kept], damp_percent)
    return W[:, kept] + missing @ inverse, seen.wish[:, kept] @ inverse


def damped_inverse(hessian: Tensor, damp_percent: float) -> Tensor:
    """The inverse [I, I] of a Hessian, each diagonal entry raised by a share of itself.

    A few channels are driven a thousand times harder than others: a share of the mean would keep
    these from being fitted at all.

    Raises:
        SolveError: the Hessian is not positive definite.
    """
    scale = hessian.diagonal().sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    normed = hessian / scale / scale[:, None]
    found = invert(normed, damp_percent).inverse
    return found.div_(scale).div_(scale[:, None])
