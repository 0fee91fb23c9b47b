"""Whether greedy samples are text at all: not empty, not a loop, not made of broken characters.

The teacher's own answers to the same prompts are the measure, so that one which repeats itself does
not make its student fail.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence

from compress.results import Sample

_GRAM = 12  # characters: longer than what languages repeat, shorter than what loops do
_LOOP = 0.5  # of all grams are repetitions
_BROKEN = 0.05  # of all characters cannot be shown
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def repetition(text: str) -> float:
    """The share of 12-character pieces that occurred before, 0 to 1; runs of spaces count as one.

    Welleck et al. 2020, arXiv:1908.04319, measure pieces of words; characters serve languages that
    write no spaces, and find `!!!!`.
    """
    plain = " ".join(text.split())
    grams = [plain[start : start + _GRAM] for start in range(len(plain) - _GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def broken_share(text: str) -> float:
    """The share of characters that no text holds: replacements, controls, unassigned ones."""
    plain = text.rstrip(_REPLACEMENT)  # the length of an answer may cut a character in two
    broken = sum(character == _REPLACEMENT or _unshown(character) for character in plain)
    return broken / len(plain) if plain else 0.0


FAULTS: dict[str, Callable[[str], bool]] = {
    "empty": lambda text: not text.strip(),
    "repeats itself": lambda text: repetition(text) > _LOOP,
    "is no text": lambda text: broken_share(text) > _BROKEN,
}


def insane(samples: Sequence[Sample]) -> tuple[tuple[str, str], ...]:
    """The student's answers that are no sane text, beyond as many as the teacher has of each fault.

    Args:
        samples: answers of both to the same prompts.

    Returns:
        pairs of a prompt and what is wrong with the student's answer to it.
    """
    return tuple(pair for fault in FAULTS for pair in _excess(fault, samples))


def _excess(fault: str, samples: Sequence[Sample]) -> Iterator[tuple[str, str]]:
    has = FAULTS[fault]
    allowed = sum(has(sample.teacher) for sample in samples)
    # Where both fail on a prompt, that prompt is the excused one.
    faulty = sorted((s for s in samples if has(s.student)), key=lambda s: not has(s.teacher))
    yield from ((sample.prompt, fault) for sample in faulty[allowed:])


def _unshown(character: str) -> bool:
    return character not in "\n\r\t" and unicodedata.category(character) in ("Cc", "Cn", "Co", "Cs")
