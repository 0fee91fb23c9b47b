"""A number hidden in a long text, to be told at its end: what is lost when keys are rounded badly.

The text is our own (eval/texts/heldout.txt), its sentences in an order drawn anew for every item;
the number stands at an even share of the way through it. Everything follows from one seed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

NEEDLE = "The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "What is the pass key? The pass key is"
DIGITS = 5


@dataclass(frozen=True)
class Item:
    """One prompt and what must follow."""

    ids: tuple[int, ...]
    key: str
    depth: float  # of the needle: 0 at the beginning, 1 at the end


def items(
    text: str,
    *,
    count: int,
    tokens: int,
    seed: int,
    encode: Callable[[str], Sequence[int]],
) -> list[Item]:
    """Make `count` prompts of at most `tokens` tokens each; depths are spread evenly.

    Args:
        text: whose sentences surround the needle.
        count: items.
        tokens: in one prompt.
        seed: decides keys and the order of the sentences.
        encode: text to token ids, no special ones added.
    """
    sentences = [s for s in re.split(r"(?<=[.!?])\s+", " ".join(text.split())) if s]
    drawn = random.Random(seed)
    return [
        _item(sentences, drawn, (number + 0.5) / count, tokens, encode) for number in range(count)
    ]


def _item(
    sentences: Sequence[str],
    drawn: random.Random,
    depth: float,
    tokens: int,
    encode: Callable[[str], Sequence[int]],
) -> Item:
    key = "".join(drawn.choices("123456789", k=DIGITS))
    needle = list(encode("\n" + NEEDLE.format(key=key) + "\n"))
    question = list(encode("\n" + QUESTION))
    room = tokens - len(needle) - len(question)
    hay: list[int] = []
    while len(hay) < room:
        for sentence in drawn.sample(sentences, len(sentences)):
            hay += encode(sentence + " ")
    at = int(depth * room)
    return Item((*hay[:at], *needle, *hay[at:room], *question), key, depth)


def found(answer: str, key: str) -> bool:
    """Whether an answer begins with the key."""
    return answer.strip().startswith(key)
