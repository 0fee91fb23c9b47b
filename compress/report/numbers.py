"""Numbers as people read them: decimal units, three digits, a real minus."""

from __future__ import annotations

NONE = "–"  # what a cell says where nothing was measured


def size(count: int) -> str:
    """Bytes in decimal units: 269 MB."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{count} B" if unit == "B" else f"{digits(value)} {unit}"


def amount(count: int) -> str:
    """A large count in thousands, millions or billions: 106 M."""
    for unit, one in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= one:
            return f"{digits(count / one)} {unit}"
    return str(count)


def duration(seconds: float) -> str:
    """Seconds as people say them: 8.4 s, 6 min 52 s, 2 h 03 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def counted(count: int, noun: str) -> str:
    """So many of something: 1 thread, 1,175 tokens."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def percent(fraction: float) -> str:
    """A fraction in percent with one decimal: 7.3 %."""
    return f"{100 * fraction:.1f} %"


def change(before: float, after: float) -> str:
    """A change as a signed percentage of what was: +7.3 %."""
    return f"{signed(100 * (after / before - 1), 1)} %" if before else NONE


def error(relative: float) -> str:
    """A relative error in percent with three digits: 1.24 %."""
    return f"{digits(100 * relative)} %"


def ratio(before: int, after: int) -> str:
    """The change of a size in words: 3.1 times smaller."""
    if not before or not after:
        return NONE
    times = f"{max(before, after) / min(before, after):.1f}"
    if times == "1.0":
        return "as large as before"
    return f"{times} times {'smaller' if after < before else 'larger'}"


def digits(value: float) -> str:
    """Three significant digits: 0.0731, 4.28, 402."""
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"


def signed(value: float, decimals: int) -> str:
    """A difference with its sign; one that rounds to nothing has none."""
    text = f"{abs(value):.{decimals}f}"
    if float(text) == 0:
        return text
    return ("+" if value > 0 else "−") + text
