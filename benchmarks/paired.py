"""Two models that answered the same items: what differs, and whether chance explains it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Answered:
    """One item as one model answered it: its choice, and whether that is right."""

    choice: int
    right: bool


@dataclass(frozen=True)
class Pairing:
    """A student beside its teacher.

    flipped counts items with another choice, right or wrong; lost and gained those that only the
    teacher, and only the student, has right. `interval` is 95 % for the share of flipped items, by
    Wilson; `p_value` is McNemar's, exact and two-sided: how often two equally good models would be
    at least as far apart in lost and gained.
    """

    items: int
    teacher_right: int
    student_right: int
    flipped: int
    lost: int
    gained: int

    @property
    def interval(self) -> tuple[float, float]:
        """Between which shares of flipped items the true one lies."""
        return wilson(self.flipped, self.items)

    @property
    def p_value(self) -> float:
        """McNemar's, of lost against gained."""
        return mcnemar(self.lost, self.gained)


def pair(teacher: Mapping[int, Answered], student: Mapping[int, Answered]) -> Pairing:
    """Hold a student's answers, by item, against the teacher's.

    Raises:
        ValueError: they did not answer the same items.
    """
    if teacher.keys() != student.keys():
        raise ValueError(f"{len(teacher)} and {len(student)} items, not the same ones")
    both = [(teacher[item], student[item]) for item in teacher]
    return Pairing(
        items=len(both),
        teacher_right=sum(one.right for one, _ in both),
        student_right=sum(other.right for _, other in both),
        flipped=sum(one.choice != other.choice for one, other in both),
        lost=sum(one.right and not other.right for one, other in both),
        gained=sum(other.right and not one.right for one, other in both),
    )


def together(pairings: Sequence[Pairing]) -> Pairing:
    """All items of several tasks as one."""
    fields = ("items", "teacher_right", "student_right", "flipped", "lost", "gained")
    return Pairing(*(sum(getattr(one, name) for one in pairings) for name in fields))


def wilson(count: int, items: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval of a share, 95 % for the default z; 0 to 1 where there are no items."""
    if not items:
        return 0.0, 1.0
    share, spread = count / items, z * z / items
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / items + spread / items / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


def mcnemar(lost: int, gained: int) -> float:
    """The exact two-sided p-value: lost and gained as throws of a fair coin."""
    throws = lost + gained
    tail = sum(math.comb(throws, k) for k in range(min(lost, gained) + 1))
    return min(1.0, 2 * tail / 2**throws)
