"""Two real processes find what one finds. They take some seconds to start, so they start once."""

import pytest
import torch
from together import CASES, WALKS, everything, in_processes

from compress.plan import processes
from compress.recipe.schema import Recipe
from compress.stages.team import ALONE

pytestmark = pytest.mark.slow
SHARDS = ("shards", "shards, hidden states", "shards, lora")
LEARNED = ("distill", "codes", *SHARDS)
SOLVED = [case for case in CASES if case not in LEARNED]


@pytest.fixture(scope="module")
def two(tiny_llama, tmp_path_factory):
    return in_processes(2, tiny_llama, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def one(tiny_llama, tmp_path_factory):
    return everything(ALONE, tiny_llama, tmp_path_factory.mktemp("one"))


@pytest.mark.parametrize("walk", WALKS)
def test_hessians_of_two_processes_are_those_of_one(one, two, walk):
    ours, theirs = (found[0][walk]["seen"] for found in (one, two[0]))
    assert len(ours) == len(theirs) == 8  # four groups of linears in each of two blocks
    for wanted, found in zip(ours, theirs, strict=True):
        for tensor, other in zip(wanted, found, strict=True):
            near = 1e-5 * max(1.0, float(tensor.abs().max()))
            torch.testing.assert_close(other, tensor, rtol=1e-4, atol=near)
    assert not two[1][0][walk]["seen"]  # the first alone solves
    halves = torch.cat([found[0][walk]["states"] for found in two])
    torch.testing.assert_close(halves, one[0][walk]["states"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_all_processes_end_with_the_same_student(two, case):
    first, other = (found[1][case] for found in two)
    assert first["results"] == other["results"]
    assert all(torch.equal(other["tensors"][n], tensor) for n, tensor in first["tensors"].items())


@pytest.mark.parametrize("case", SOLVED)
def test_what_two_processes_make_is_as_good_as_what_one_makes(one, two, case):
    ours, theirs = (found[1][case]["results"][-1].linears for found in (one, two[0]))
    for wanted, found in zip(ours, theirs, strict=True):
        assert found.name == wanted.name
        # a weight halfway between two integers goes to either, and the others make up for it
        assert found.relative_error == pytest.approx(wanted.relative_error, rel=0.2)


@pytest.mark.parametrize("case", LEARNED)
def test_what_two_processes_learn_is_worth_what_one_learns(one, two, case):
    ours, theirs = (found[1][case]["results"][-1].distilled for found in (one, two[0]))
    assert theirs.kl_after < theirs.kl_before
    # codes begin where GPTQ left them: what lay halfway there may have gone to the other side
    assert theirs.kl_after == pytest.approx(ours.kl_after, rel=0.1 if case == "codes" else 1e-4)


@pytest.mark.parametrize("case", ["distill", *SHARDS])
def test_training_in_two_processes_goes_step_for_step_as_in_one(one, two, case):
    ours, theirs = (found[1][case] for found in (one, two[0]))
    wanted, found = (case["results"][-1].distilled for case in (ours, theirs))
    assert found.kl_after == pytest.approx(wanted.kl_after, rel=1e-5)
    assert found.kept_step == wanted.kept_step
    assert len(wanted.checks) == len(found.checks) == 4
    for look, other in zip(wanted.checks, found.checks, strict=True):
        assert other.kl == pytest.approx(look.kl, rel=1e-5)
        assert other.loss == (look.loss and pytest.approx(look.loss, rel=1e-5))
    for name, tensor in ours["tensors"].items():
        assert torch.equal(tensor == 0, theirs["tensors"][name] == 0)
        torch.testing.assert_close(theirs["tensors"][name], tensor, rtol=1e-3, atol=1e-5)


def test_shards_that_were_cut_short_go_on_to_the_same_bits(two):
    whole, cut = (two[0][1][case] for case in ("shards", "shards, cut"))
    assert cut["results"][-1].distilled == whole["results"][-1].distilled
    for name, tensor in whole["tensors"].items():
        assert torch.equal(cut["tensors"][name], tensor)


def test_training_that_cannot_be_held_in_shards_is_refused():
    codes = {"distill": {"train": "codes", "text": {"set": "smoke"}}}
    writing = {"distill": {"on_policy": {"share": 0.5}, "text": {"set": "smoke"}}}
    stages = [{"restructure": {"ffn": 0.5}}, writing, {"quantize": {"method": "rtn"}}, codes]
    made = Recipe.model_validate({"version": 1, "teacher": {"model": "a/b"}, "stages": stages})
    found = [text for _, text in processes.mistakes(made, 2, sharded=True)]
    assert any(text.startswith("codes makes weights of their grids once a step") for text in found)
    assert any("the student writes token by token" in text for text in found)
    assert not list(processes.mistakes(made, 2))
