"""Whether greedy samples are text at all: not empty, not a loop, not crumbs or broken characters.

The teacher's own answers to the same prompts are the measure, so that one which repeats itself does
not make its student fail.
"""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Callable, Iterable, Sequence

from compress.results import Sample

_GRAM = 12  # characters: longer than what languages repeat, shorter than what loops do
_LOOP = 0.5  # of all such pieces are repetitions
_BROKEN = 0.05  # of all characters cannot be shown
_CRUMBS = 0.2  # of all words have one character, which is no word of the teacher's
_WORDS = 12  # fewer tell nothing
_FOREIGN = 0.2  # of all letters are of a script that neither teacher nor prompt uses
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def insane(samples: Sequence[Sample]) -> tuple[tuple[str, str], ...]:
    """The student's answers that are no sane text, beyond as many as the teacher has of each fault.

    Args:
        samples: answers of both to the same prompts.

    Returns:
        pairs of a prompt and what is wrong with the student's answer to it.
    """
    known = [text for sample in samples for text in (sample.prompt, sample.teacher)]
    faults: dict[str, Callable[[str], bool]] = {
        "empty": lambda text: not text.strip(),
        "repeats itself": lambda text: repetition(text) > _LOOP,
        "is no text": lambda text: _is_no_text(text, known),
    }
    return tuple(
        (sample.prompt, fault) for fault, has in faults.items() for sample in _excess(has, samples)
    )


def repetition(text: str) -> float:
    """The share of 12-character pieces that occurred before, 0 to 1; runs of spaces count as one.

    Welleck et al. 2020, arXiv:1908.04319, measure pieces of four words; characters serve languages
    that write no spaces, and find `!!!!`.
    """
    plain = " ".join(text.split())
    pieces = [plain[start : start + _GRAM] for start in range(len(plain) - _GRAM + 1)]
    return 1 - len(set(pieces)) / len(pieces) if pieces else 0.0


def broken(text: str) -> float:
    """The share of characters that no text holds: replacements, controls, unassigned ones."""
    plain = text.rstrip(_REPLACEMENT)  # the length of an answer may cut a character in two
    return _share(character == _REPLACEMENT or _unshown(character) for character in plain)


def crumbs(text: str, known: Sequence[str]) -> float:
    """The share of one-character words that no known text has; 0 where words are too few to tell.

    Digits count as words, and so does a bullet that begins a line.
    """
    familiar = {word for other in known for word in _words(other)}
    words = _words(text)
    odd = (len(word) == 1 and not word.isdigit() and word not in familiar for word in words)
    return _share(odd) if len(words) >= _WORDS else 0.0


def foreign(text: str, known: Sequence[str]) -> float:
    """The share of letters of a script, by Unicode's names of them, that no known text has."""
    familiar = {_script(character) for other in known for character in other}
    return _share(_script(character) not in familiar for character in text if character.isalpha())


def _is_no_text(text: str, known: Sequence[str]) -> bool:
    odd = crumbs(text, known) > _CRUMBS or foreign(text, known) > _FOREIGN
    return odd or broken(text) > _BROKEN


def _words(text: str) -> list[str]:
    """Words without the marks around them; marks alone are words, but for bullets."""
    lines = (line.split() for line in text.splitlines())
    return [
        word.strip(string.punctuation) or word[0]
        for line in lines
        for place, word in enumerate(line)
        if place or word.strip(string.punctuation + "•–—")
    ]


def _excess(has: Callable[[str], bool], samples: Sequence[Sample]) -> list[Sample]:
    allowed = sum(has(sample.teacher) for sample in samples)
    # Where both fail on a prompt, that prompt is the excused one.
    faulty = sorted((s for s in samples if has(s.student)), key=lambda s: not has(s.teacher))
    return faulty[allowed:]


def _share(found: Iterable[bool]) -> float:
    flags = list(found)
    return sum(flags) / len(flags) if flags else 0.0


def _script(character: str) -> str:
    return unicodedata.name(character, "").partition(" ")[0] if character.isalpha() else ""


def _unshown(character: str) -> bool:
    return character not in "\n\r\t" and unicodedata.category(character) in ("Cc", "Cn", "Co", "Cs")
