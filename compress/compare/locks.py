"""What differs between locked recipes, field by field."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from compress.compare.measures import ABSENT
from compress.compare.sides import Artifact
from compress.results.comparison import Field

_RESOLVED = "resolved"  # what a run found out: not what its recipe asks for
_REPEATED = ("sets", "recipe")  # of `resolved`: said by the fields themselves, and by the name


def asked(artifacts: Sequence[Artifact]) -> tuple[Field, ...]:
    """Fields in which the recipes differ; stages go by their names, not by their places."""
    return _differing({one.name: dict(_asked(one.lock)) for one in artifacts if one.lock})


def made_by(artifacts: Sequence[Artifact]) -> tuple[Field, ...]:
    """What else decided the runs: machine, versions, fingerprints."""
    facts = {}
    for one in artifacts:
        resolved = {
            key: value for key, value in one.lock.get(_RESOLVED, {}).items() if key not in _REPEATED
        }
        if one.measured:
            resolved["hardware"] = one.measured.hardware
        if resolved:
            facts[one.name] = dict(_flat("", resolved))
    return _differing(facts)


def _asked(lock: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    stages = [stage for stage in lock.get("stages", ()) if isinstance(stage, Mapping)]
    yield "stages", ", ".join(str(name) for stage in stages for name in stage)
    seen: Counter[str] = Counter()
    for stage in stages:
        for name, fields in stage.items():
            seen[name] += 1
            yield from _flat(name if seen[name] == 1 else f"{name} {seen[name]}", fields)
    for name, value in lock.items():
        if name not in ("stages", _RESOLVED):
            yield from _flat(name, value)


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Every value inside by its dotted name; lists as they are written."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}" if name else str(key), inner)
    elif isinstance(value, list):
        yield name, ", ".join(map(str, value)) or "none"
    else:
        yield name, value


def _differing(facts: Mapping[str, Mapping[str, Any]]) -> tuple[Field, ...]:
    names = dict.fromkeys(name for fact in facts.values() for name in fact)
    found = (Field(n, {who: fact.get(n, ABSENT) for who, fact in facts.items()}) for n in names)
    return tuple(one for one in found if not _alike(list(one.values.values())))


def _alike(values: Sequence[Any]) -> bool:
    """Whether values are the same as they are written: 1 and true are not."""
    return all((type(value), value) == (type(values[0]), values[0]) for value in values)
