from __future__ import annotations

import pytest
import torch

from compress import machine
from compress.surgery import walk
from compress.teacher import hidden
from compress.teacher.folder import open_folder
from compress.teacher.hidden import HiddenCache


@pytest.fixture
def teacher(tiny_tied):
    return open_folder(tiny_tied)


@pytest.fixture
def counted(monkeypatch):
    """How often the teacher was really run."""
    calls, run = [], walk.hidden_states
    monkeypatch.setattr(walk, "hidden_states", lambda *a, **k: calls.append(1) or run(*a, **k))
    return calls


def test_shapes(teacher, tmp_path):
    hidden = HiddenCache(teacher, tmp_path).get(torch.arange(24).view(2, 12))
    assert (hidden.shape, hidden.dtype) == ((2, 12, 64), torch.bfloat16)


def test_the_same_tokens_run_the_teacher_once(teacher, tmp_path, counted):
    ids = torch.arange(24).view(2, 12)
    cache = HiddenCache(teacher, tmp_path / "new", dtype=torch.float32)
    first = cache.get(ids)
    assert torch.equal(first, cache.get(ids.clone()))
    assert len(counted) == 1
    cache.get(ids.view(3, 8))
    HiddenCache(teacher, tmp_path / "new").get(ids)  # another dtype
    assert len(counted) == 3


def test_what_others_would_compute_otherwise_is_computed_anew(
    teacher, tmp_path, counted, monkeypatch
):
    def get():
        HiddenCache(teacher, tmp_path).get(torch.arange(8)[None])
        return len(counted)

    assert (get(), get()) == (1, 1)
    monkeypatch.setattr(machine, "version", lambda name: f"another {name}")
    assert get() == 2
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    assert get() == 3
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    assert get() == 4
    monkeypatch.setattr(hidden, "ALGORITHM", hidden.ALGORITHM + 1)
    assert get() == 5


def test_it_is_what_the_whole_model_says(teacher, tmp_path):
    from compress.surgery import load

    ids = torch.arange(24).view(2, 12)
    hidden = HiddenCache(teacher, tmp_path, dtype=torch.float32).get(ids)
    expected = load.materialize(teacher, torch.float32).model(ids).last_hidden_state
    torch.testing.assert_close(hidden, expected, rtol=1e-5, atol=1e-5)


def test_a_broken_file_is_computed_again(teacher, tmp_path, counted, caplog):
    ids = torch.arange(8)[None]
    cache = HiddenCache(teacher, tmp_path)
    first = cache.get(ids).clone()
    [path] = (one for one in tmp_path.iterdir() if one.suffix != ".lock")
    path.write_bytes(path.read_bytes()[:-10])
    assert torch.equal(cache.get(ids), first)
    assert len(counted) == 2
    assert "computed again" in caplog.text
