"""Several processes of one run, without starting any; tests/stages/test_processes.py starts two."""

import pytest
import torch
from students import IDS, states

from compress.journal import Journal
from compress.recipe.schema import KVCache, Prune, Quantize, Restructure, Rotate
from compress.stages import kv_cache, prune, quantize, restructure, rotate, stream
from compress.stages.context import Context
from compress.stages.team import ALONE, Shared, Team
from compress.student import Student
from compress.teacher.folder import open_folder


@pytest.mark.parametrize(("windows", "size"), [(7, 2), (8, 2), (3, 3), (2, 3), (10, 4)])
def test_every_window_belongs_to_one_process(windows, size):
    shares = [Team(rank, size).own(windows) for rank in range(size)]
    assert [window for share in shares for window in share] == list(range(windows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_windows_lie_as_they_lay():
    parts = [Team(rank, 3).windows(IDS) for rank in range(3)]
    assert torch.equal(torch.cat(parts), IDS)


@pytest.mark.parametrize(("threads", "size", "share"), [(8, 2, 4), (3, 2, 1), (1, 2, 1)])
def test_threads_are_shared_out_evenly(threads, size, share):
    assert Team(0, size, threads).share == share


def test_a_process_alone_is_asked_nothing():
    found = torch.ones(2)
    assert ALONE.add_up(found) is found
    assert ALONE.largest(found) is found
    assert ALONE.mean(3.0, 4) == 3.0
    assert ALONE.first(lambda: 5) == 5
    with ALONE.together(), ALONE.leading():
        ALONE.meet()
    journal = object()
    assert ALONE.ledger(journal) is journal


def test_only_the_first_process_finishes_units(tmp_path):
    first, other = Team(0, 2), Team(1, 2)
    journal = Journal(tmp_path / "journal.jsonl", {})
    first.ledger(journal).add("unit", {"a": 1})
    assert first.ledger(journal).get("unit") == {"a": 1}
    assert other.ledger(None).get("unit") is None
    other.hear_of({"unit": journal.get("unit")})
    assert other.ledger(None).get("unit") == {"a": 1}
    with pytest.raises(TypeError, match="only the first process"):
        other.ledger(None).add("next", {})


ALONE_STAGES = {
    "restructure": (restructure, lambda: Restructure(ffn=0.5, depth=0.5)),
    "narrowed": (restructure, lambda: Restructure(hidden=0.75)),
    "rotate": (rotate, lambda: Rotate(values="hadamard")),
    "nearest": (quantize, lambda: Quantize(method="rtn", group_size=32, head=8)),
    "int8": (quantize, lambda: Quantize(method="llm_int8")),
    "magnitude": (prune, lambda: Prune(method="magnitude", sparsity=0.5)),
    "kv_cache": (kv_cache, lambda: KVCache(numbers="int8")),
}


@pytest.mark.parametrize("name", ALONE_STAGES)
def test_others_take_up_what_the_first_has_carried_out(tiny_llama, tmp_path, monkeypatch, name):
    """Nothing is written, nothing walked; the student becomes what the first one's is."""
    room, spec = ALONE_STAGES[name]
    teacher, journal = open_folder(tiny_llama), Journal(tmp_path / "journal.jsonl", {})

    def taken(ledger):
        student = Student(teacher, tmp_path, ledger)
        context = Context(IDS, "cpu", torch.float32, tmp_path, ledger=ledger)
        return room.run(student, spec(), context), student

    result, first = taken(journal)
    monkeypatch.setattr(stream, "_activations", None)
    heard = {unit: journal.get(unit) for unit in journal.finished}
    again, other = taken(Shared(None, heard, {}))
    assert again == result
    assert other.anatomy == first.anatomy
    assert torch.equal(states(other), states(first))
