"""The recipe file that the user gets: the shipped one for this teacher, and how it was picked."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from compress.auto.wanted import told
from compress.recipe.load import laid_over
from compress.recipe.resolve import as_yaml
from compress.report import numbers
from compress.results.choice import MEETS, Choice, Estimate, Option

_WIDTH = 100


def text(choice: Choice, name: str, *, date: str, command: str) -> str:
    """A recipe that says at its head why it is this one.

    Args:
        choice: with a chosen recipe.
        name: of the file, without its ending.
        date: when it was picked.
        command: that carries it out.
    """
    option = choice.option(choice.chosen or "")
    lines = {
        "": f"{name}: {option.recipe} for {choice.teacher}, picked by compress auto on {date}.",
        "wanted": told(choice.wanted),
        "found": found(option),
        "trial": choice.protocol,
        "gates": "hold the whole run to what is wanted; speed has no gate: compress bench OUT",
        "others": "; ".join(_others(choice)) or "none was tried",
        "run": command,
    }
    head = "\n".join(_comment(word, said) for word, said in lines.items())
    return f"{head}\n{as_yaml(laid_over(option.recipe, option.sets))}"


def found(option: Option) -> str:
    """What a trial found, in words."""
    if (one := option.trial) is None:
        return option.reason or option.verdict
    parts = [numbers.size(one.size_bytes)]
    parts += [f"KL {estimate(one.kl)}"] if one.kl else []
    parts += [f"{estimate(one.speed)} tokens/s"] if one.speed else []
    sure = "" if option.verdict == MEETS else f"; {option.verdict}"
    return ", ".join(parts) + sure


def estimate(one: Estimate) -> str:
    """A number with its interval: 0.0931 (0.0812 to 0.105)."""
    ends = f"{numbers.digits(one.low)} to {numbers.digits(one.high)}"
    return f"{numbers.digits(one.value)} ({ends})"


def _others(choice: Choice) -> Iterator[str]:
    for one in choice.options:
        if one.recipe != choice.chosen and (one.trial or one.verdict == "failed"):
            yield f"{one.recipe}: {found(one)}"


def _comment(word: str, said: str) -> str:
    first = f"# {word + ':':<8} " if word else "# "
    indent = "#          " if word else "# "
    return textwrap.fill(
        said, _WIDTH, initial_indent=first, subsequent_indent=indent, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
