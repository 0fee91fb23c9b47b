"""Who makes trials: alike, or refused."""

from compress import machine
from compress.sweep import worker


def test_processes_that_would_make_other_bytes_are_told_apart():
    here = machine.made_with()
    assert worker._unlike(here, dict(here)) == []
    other = {"versions": {**here["versions"], "torch": "1"}, "code": "", "processor": "AVX9"}
    told = worker._unlike(here, other)
    assert [one.partition(" (")[0] for one in told] == [
        "torch", "the code of compress", "its processor",
    ]  # fmt: skip
