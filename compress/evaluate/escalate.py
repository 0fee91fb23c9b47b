"""Give more bits to a student that misses a gate: to which of its linears, and how often.

Plans on plain numbers. Whoever calls makes and judges the students.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from compress.anatomy import Anatomy, Linear
from compress.evaluate.gates import check
from compress.recipe.gates import Gates, wider
from compress.results import LinearResult, Raised, Results, Round

SHARE = 1 / 8  # of the rounded weights get more bits in one round
_FAR = 4.0  # times the median error of its kind makes a group the first to get more bits


@dataclass(frozen=True)
class Attempt:
    """What one student is to be made with."""

    number: int = 0  # 0: as the recipe asks
    raised: Mapping[str, int] = field(default_factory=dict)  # linear name → bits to begin with
    first_block: int = 0  # where anything changes; the number of blocks where only the head does
    first_blocks: tuple[int, ...] = ()  # of all attempts but the first, this one's last


def until_accepted(
    make: Callable[[Attempt], Results],
    gates: Gates | None,
    *,
    anatomy: Anatomy,
    widths: Sequence[int],
) -> Results:
    """Make and judge a student; where its gates escalate, again and again with more bits.

    It ends: each round begins at least one linear wider than it was, and widths end.

    Args:
        make: makes a student and judges it as read back from disk. Blocks before `first_block`
            become what the attempt before made of them. Where a linear ends the walk, because no
            width is left for it, `after` is None and nothing more is tried.
        gates: of the recipe; None judges nothing.
        anatomy: of the teacher.
        widths: that the artifact can hold.

    Returns:
        the last results, with their verdict and a round for every student that was given up.
    """
    attempt, rounds = Attempt(), list[Round]()
    while True:
        results = make(attempt)
        if gates is None:
            return results
        verdict, raises, reason = check(gates, results), list[Raised](), ""
        if verdict.missed and gates.escalates and results.after:
            raises, reason = next_raises(
                results, gates, rounds=len(rounds), anatomy=anatomy, widths=widths
            )
        if not raises:
            outcome = "INFEASIBLE" if reason else verdict.outcome
            told = dataclasses.replace(
                verdict, outcome=outcome, rounds=tuple(rounds), reason=reason or verdict.reason
            )
            return dataclasses.replace(results, verdict=told)
        attempt = following(attempt, raises, anatomy)
        size = results.after.size_bytes if results.after else 0
        rounds.append(Round(verdict.gates, size, tuple(raises), attempt.first_block))


def next_raises(
    results: Results, gates: Gates, *, rounds: int, anatomy: Anatomy, widths: Sequence[int]
) -> tuple[list[Raised], str]:
    """Which linears get more bits in the next round; none, and why, where there is none.

    Fused groups are taken until they hold an eighth of the rounded weights; each gets the next
    width. The narrowest come first; of these, those whose relative error is far above the median of
    their kind, the worst first; then from the first block on, for all behind carry its error too.
    Relative error alone would be worse than chance (docs/log.md): attention sinks rule its
    denominator, and the kinds with the largest error matter least. Groups that `size_max` leaves
    no room for are passed over.

    Args:
        results: of the student that missed a gate.
        gates: of the recipe.
        rounds: made until now.
        anatomy: of the teacher.
        widths: that the artifact can hold.
    """
    if rounds >= gates.rounds_max:
        return [], f"rounds_max {gates.rounds_max} is reached"
    groups = _by_urgency(list(_groups(results, anatomy, widths)))
    if not groups:
        return [], "no linear can be given more bits"
    size = results.after.size_bytes if results.after else 0
    room = float("inf") if gates.size_max_bytes is None else gates.size_max_bytes - size
    wanted = SHARE * _rounded_weights(results, anatomy)
    raises: list[Raised] = []
    for group in groups:
        if wanted <= 0:
            break
        if group.added_bytes <= room:
            raises += group.raises
            room, wanted = room - group.added_bytes, wanted - group.weights
    return raises, "" if raises else f"size_max {gates.size_max} leaves no room for more bits"


def following(attempt: Attempt, raises: Sequence[Raised], anatomy: Anatomy) -> Attempt:
    """The attempt that begins the raised linears wider, and all others as the one before did."""
    wide = {raised.name: raised.to_bits for raised in raises}
    of_block = {linear.name: linear.block for linear in anatomy.linears}
    touched = [block for name in wide if (block := of_block.get(name)) is not None]
    first = min(touched, default=len(anatomy.blocks))
    firsts = (*attempt.first_blocks, first)
    return Attempt(attempt.number + 1, {**attempt.raised, **wide}, first, firsts)


@dataclass(frozen=True)
class _Group:
    """Linears that share one scheme, and what the next width would cost them."""

    raises: tuple[Raised, ...]
    kind: str
    bits: int  # of the narrowest
    block: float  # infinite for the head, which is behind them all
    error: float  # of the worst of them
    weights: int
    added_bytes: int  # codes only: the groups that share a scale stay as they are


def _by_urgency(groups: Sequence[_Group]) -> list[_Group]:
    kinds: dict[tuple[str, int], list[float]] = {}  # by role and width
    for group in groups:
        kinds.setdefault((group.kind, group.bits), []).append(group.error)
    usual = {kind: statistics.median(errors) for kind, errors in kinds.items()}

    def key(group: _Group) -> tuple[int, float, float, float]:
        far = group.error > _FAR * usual[group.kind, group.bits]
        cost = -group.error * group.weights
        return group.bits, -group.error if far else 0.0, group.block, cost

    return sorted(groups, key=key)


def _groups(results: Results, anatomy: Anatomy, widths: Sequence[int]) -> Iterator[_Group]:
    """Every fused group that can still be given more bits."""
    records = {record.name: record for record in results.linears if record.bits is not None}
    for members in _fused(anatomy):
        found = [(linear, records[linear.name]) for linear in members if linear.name in records]
        to = wider(min((r.bits or 0 for _, r in found), default=max(widths)), widths)
        if to is not None:
            yield _group(found, to)


def _fused(anatomy: Anatomy) -> Iterator[list[Linear]]:
    for block in anatomy.blocks:
        for _, group in groupby(block.linears, key=lambda linear: linear.fused or linear.name):
            yield list(group)
    yield [anatomy.head]


def _group(members: Sequence[tuple[Linear, LinearResult]], to: int) -> _Group:
    narrow = [(linear, r.bits, r) for linear, r in members if r.bits is not None and r.bits < to]
    first = members[0][0]
    return _Group(
        tuple(Raised(linear.name, bits, to) for linear, bits, _ in narrow),
        first.fused or first.role,
        min(bits for _, bits, _ in narrow),
        float("inf") if first.block is None else first.block,
        max(record.relative_error for _, _, record in narrow),
        sum(linear.weights for linear, _, _ in narrow),
        sum(linear.weights * (to - bits) for linear, bits, _ in narrow) // 8,
    )


def _rounded_weights(results: Results, anatomy: Anatomy) -> int:
    rounded = {record.name for record in results.linears if record.bits is not None}
    return sum(x.weights for x in (*anatomy.linears, anatomy.head) if x.name in rounded)
