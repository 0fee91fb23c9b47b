import pytest
import torch
from conftest import CONFIGS
from students import IDS, run, states

from compress.errors import ModelError, SolveError
from compress.journal import Journal
from compress.kernels.kv import rounded
from compress.recipe.kv_cache import KVCache
from compress.results import Limits
from compress.stages import kv_cache
from compress.stages.context import Context
from compress.student import Student
from compress.surgery import caching
from compress.surgery.walk import Walk
from compress.teacher.folder import open_folder


def cached(student, scratch, *, resident_bytes=1 << 30, **fields):
    student.enter(1)
    limits = Limits(64, resident_bytes)
    context = Context(IDS, "cpu", torch.float32, scratch, limits=limits)
    return kv_cache.run(student, KVCache(**fields), context)


def fresh(folder, scratch):
    scratch.mkdir(exist_ok=True)
    return Student(open_folder(folder), scratch, Journal(scratch / "journal.jsonl", {}))


def scales(student):
    found = [student.kv(block.index) for block in student.anatomy.blocks]
    return [half for one in found for half in (one.keys, one.values)]


@pytest.mark.parametrize("family", sorted(set(CONFIGS) - {"gemma2"}))
def test_every_family_gets_scales_and_its_weights_stay(tiny_model, tmp_path, family):
    student, _ = run(tiny_model(family), tmp_path, method="rtn")
    before = {i: student.block(i) for i in range(2)}
    result = cached(student, tmp_path)
    assert result.stage == "kv_cache"
    assert result.method == "int8, a scale each head"
    assert [one.block for one in result.kv] == [0, 1]
    for one in result.kv:
        assert 0 < one.key_error < 1e-3
        assert 0 < one.value_error < 1e-3
        assert one.key_scale_max > 0
        assert one.value_scale_max > 0
    for index, tensors in before.items():
        found = student.block(index)
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("granularity", ["tensor", "head", "channel", "token"])
def test_finer_scales_do_less_damage_than_none_would(tiny_llama, tmp_path, granularity):
    student = fresh(tiny_llama, tmp_path)
    plain = states(student)
    cached(student, tmp_path, granularity=granularity)
    error = float((states(student) - plain).square().mean() / plain.square().mean())
    assert 0 < error < 1e-2


def test_the_relative_error_is_that_of_what_the_blocks_before_really_make(tiny_llama, tmp_path):
    student = fresh(tiny_llama, tmp_path)
    result = cached(student, tmp_path)
    walk = Walk(student, device="cpu", dtype=torch.float32)
    hidden = walk.embed(IDS)
    with walk.filled(0) as module:
        hidden = walk.call(0, module, hidden)  # its keys and values rounded
    with walk.filled(1) as module:
        keys, _ = caching.states(walk, 1, module, hidden)
    exact = keys.transpose(0, 1).flatten(1, 2)
    missed = (rounded(exact, student.kv(1).keys, "int8") - exact).square().sum()
    assert result.kv[1].key_error == pytest.approx(float(missed / exact.square().sum()), rel=1e-4)


@pytest.mark.parametrize("granularity", ["head", "token"])
def test_a_run_cut_short_goes_on_to_the_same_scales(tiny_llama, tmp_path, monkeypatch, granularity):
    whole = fresh(tiny_llama, tmp_path / "whole")
    expected = cached(whole, tmp_path / "whole", granularity=granularity)

    class CutError(Exception):
        pass

    commit = Student.commit

    def once(self, unit, *args, **options):
        commit(self, unit, *args, **options)
        raise CutError

    monkeypatch.setattr(Student, "commit", once)
    with pytest.raises(CutError):
        cached(fresh(tiny_llama, tmp_path / "cut"), tmp_path / "cut", granularity=granularity)
    monkeypatch.undo()
    student = fresh(tiny_llama, tmp_path / "cut")
    assert cached(student, tmp_path / "cut", granularity=granularity) == expected
    if granularity == "head":
        assert all(torch.equal(a, b) for a, b in zip(scales(student), scales(whole), strict=True))
    assert torch.equal(states(student), states(whole))


def test_what_does_not_fit_memory_lies_in_a_file_and_gives_the_same(tiny_llama, tmp_path):
    held, spilled = fresh(tiny_llama, tmp_path / "held"), fresh(tiny_llama, tmp_path / "spilled")
    assert cached(held, tmp_path / "held") == cached(
        spilled, tmp_path / "spilled", resident_bytes=0
    )


def test_scales_come_with_the_parts_of_a_student_behind_each_block(tiny_llama, tmp_path):
    student = fresh(tiny_llama, tmp_path)
    assert not [part for _, part in student.parts() if not isinstance(part, torch.Tensor)]
    cached(student, tmp_path, granularity="channel")
    names = [name for name, _ in student.parts()]
    first = names.index("model.layers.0.self_attn")
    assert names[first + 1].startswith("model.layers.1.")
    assert names[-1] == "model.layers.1.self_attn"


def test_values_that_are_no_numbers_end_the_run(tiny_llama, tmp_path, monkeypatch):
    student = fresh(tiny_llama, tmp_path)
    found = caching.states

    def broken(*args):
        keys, values = found(*args)
        return keys, values * torch.inf

    monkeypatch.setattr(caching, "states", broken)
    with pytest.raises(SolveError, match=r"layers.0.self_attn: its keys or values hold NaN"):
        cached(student, tmp_path)


def test_a_family_whose_scores_are_capped_is_refused(tiny_model, tmp_path):
    with pytest.raises(ModelError, match="attn_logit_softcapping"):
        cached(fresh(tiny_model("gemma2"), tmp_path), tmp_path)
