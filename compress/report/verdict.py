"""What a report says of the gates: the verdict, one row for each gate, one for each round."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from compress.report import numbers
from compress.report.numbers import NONE
from compress.report.rows import Table
from compress.results import GateResult, Round, Verdict

PASSED, MISSED, UNKNOWN = "✓ passed", "✗ missed", "not measured"
_FRACTIONS = (
    "perplexity_increase_max",
    "top1_agreement_min",
    "accuracy_drop_max",
    "linear_error_max",
)


def sentence(verdict: Verdict) -> str:
    """How many gates the student passes, and why nothing more was tried."""
    count, results = len(verdict.gates), [result(gate) for gate in verdict.gates]
    missed, unknown, rounds = results.count(MISSED), results.count(UNKNOWN), len(verdict.rounds)
    tried = f" after {rounds} round{'s' if rounds > 1 else ''} of more bits" if rounds else ""
    if not verdict.missed:
        text = f"all {count} gates passed" if count > 1 else "the gate is passed"
    else:
        text = f"{missed} of {count} gate{'s' if count > 1 else ''} missed"
        text = f"{text}, {unknown} not measured" if unknown else text
    return text + tried + (f"; {verdict.reason}" if verdict.reason else "")


def gate_table(verdict: Verdict) -> Table:
    """Every gate: what is demanded, what was found."""
    rows = (
        (gate.name, result(gate), limit(gate), found(gate), gate.note or NONE)
        for gate in verdict.gates
    )
    return Table(("gate", "result", "limit", "found", "measured on"), tuple(rows), words=5)


def round_table(verdict: Verdict) -> Table:
    """Every student that was given up, and what the next one was given more bits for."""
    rows = (
        (str(number), _missed(given_up), numbers.size(given_up.size_bytes), _raised(given_up))
        for number, given_up in enumerate(verdict.rounds, 1)
    )
    return Table(("round", "missed", "size", "more bits for"), tuple(rows), words=4)


def told(verdict: Verdict, report: Path) -> str:
    """The message of a run that ends with a missed gate: each one, and where its report lies."""
    lines = [f"{verdict.outcome}: {sentence(verdict)}."]
    lines += [f"  {_line(gate)}" for gate in verdict.missed]
    remedy = "Give the student more bits, or widen what the gates allow."
    return "\n".join([*lines, f"{remedy} The report: {report}   docs/errors.md#gates"])


def result(gate: GateResult) -> str:
    """Whether a gate is passed, in words that need no colour."""
    if gate.found is None:
        return UNKNOWN
    return PASSED if gate.passed else MISSED


def limit(gate: GateResult) -> str:
    """What a gate demands: ≤ 10.0 %."""
    if gate.name == "generation":
        return "sane"
    return f"{'≥' if gate.name.endswith('_min') else '≤'} {_value(gate.name, gate.limit)}"


def found(gate: GateResult) -> str:
    """What was found, in the unit of the limit."""
    return NONE if gate.found is None else _value(gate.name, gate.found)


def _value(name: str, value: float) -> str:
    if name == "size_max":
        return numbers.size(round(value))
    if name == "generation":
        return f"{value:.0f} not sane" if value else "sane"
    if name == "linear_error_max":
        return numbers.error(value)
    if name in _FRACTIONS:
        return f"{numbers.signed(100 * value, 2)} %" if value < 0 else f"{100 * value:.2f} %"
    return f"{numbers.digits(value)} nats"


def _line(gate: GateResult) -> str:
    note = f" ({gate.note})" if gate.note else ""
    what = UNKNOWN if gate.found is None else f"found {found(gate)}"
    return f"{gate.name}: {what}, the limit is {limit(gate)}{note}"


def _missed(given_up: Round) -> str:
    missed = (gate for gate in given_up.gates if not gate.passed)
    return ", ".join(f"{gate.name} {found(gate)}" for gate in missed)


def _raised(given_up: Round) -> str:
    return "; ".join(_steps(given_up))


def _steps(given_up: Round) -> Iterator[str]:
    """Linears by the step they take: 12 linears 3 → 4 bits."""
    steps: dict[tuple[int, int], list[str]] = {}
    for raised in given_up.raised:
        steps.setdefault((raised.from_bits, raised.to_bits), []).append(raised.name)
    for (was, now), names in sorted(steps.items()):
        listed = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
        yield f"{listed}: {was} → {now} bits"
