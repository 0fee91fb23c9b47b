"""Limits as people write them, and how far a number is from them."""

from __future__ import annotations

import math
import re
from fractions import Fraction

from compress.report import numbers
from compress.results.choice import Wanted

_SIZE = re.compile(r"(\d{1,9}(?:\.\d{1,6})?) ?(B|KB|MB|GB)", re.IGNORECASE)
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def parse(
    max_size: str | None, max_kl: str | None, min_speed: str | None
) -> tuple[Wanted, list[str]]:
    """Read all limits; what is wrong with them comes as messages, all at once."""
    mistakes: list[str] = []
    if max_size is max_kl is min_speed is None:
        mistakes.append(
            "no limit: at least one says what the student must keep. Give --max-size 80MB, "
            "--max-kl 0.1 or --min-speed 100, or several of them."
        )
    nbytes = _bytes(max_size, mistakes)
    kl = _positive("--max-kl", max_kl, "nats per token, as in 0.1", mistakes)
    speed = _positive("--min-speed", min_speed, "tokens a second, as in 100", mistakes)
    return Wanted(nbytes, kl, speed), mistakes


def told(wanted: Wanted) -> str:
    """All limits in words."""
    parts = []
    if wanted.max_size_bytes is not None:
        parts.append(f"at most {numbers.size(wanted.max_size_bytes)}")
    if wanted.max_kl is not None:
        parts.append(f"a mean KL of at most {wanted.max_kl:g}")
    if wanted.min_speed is not None:
        parts.append(f"at least {wanted.min_speed:g} tokens/s")
    return ", ".join(parts)


def excess(
    wanted: Wanted, *, size_bytes: float | None, kl: float | None, speed: float | None
) -> float:
    """How many times the worst of some numbers is beyond its limit; 1 and less keeps all.

    A number that is not known keeps nothing.
    """
    ratios = [
        (wanted.max_size_bytes, size_bytes, True),
        (wanted.max_kl, kl, True),
        (wanted.min_speed, speed, False),
    ]
    return max(_ratio(limit, found, most=most) for limit, found, most in ratios)


def _ratio(limit: float | None, found: float | None, *, most: bool) -> float:
    if limit is None:
        return 0.0
    if found is None or (found <= 0 < limit and not most):
        return math.inf
    return found / limit if most else limit / found


def _bytes(text: str | None, mistakes: list[str]) -> int | None:
    if text is None:
        return None
    found = _SIZE.fullmatch(text.strip())
    nbytes = int(Fraction(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if not nbytes:
        mistakes.append(
            f'--max-size {text!r}: is no size with its unit. Write it as "80 MB"; B, KB, MB and '
            "GB are known, and 1 MB is 1,000,000 bytes."
        )
    return nbytes


def _positive(name: str, text: str | None, unit: str, mistakes: list[str]) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        mistakes.append(f"{name} {text!r}: is no number above 0. It is in {unit}.")
    return value
