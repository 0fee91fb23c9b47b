import pytest

from compress.plan.processes import mistakes, notes, shares
from compress.recipe.schema import Recipe


def recipe(*stages, **fields):
    return Recipe.model_validate(
        {"version": 1, "teacher": {"model": "m"}, "stages": list(stages), **fields}
    )


CUT = {"restructure": {"ffn": 0.5}}
GPTQ = {"quantize": {"method": "gptq", "group_size": 32}}
DISTILL = {"distill": {"batch_tokens": 1024}}


@pytest.mark.parametrize(
    ("stage", "together"),
    [
        (GPTQ, True),
        ({"quantize": {"method": "rtn", "group_size": 32}}, False),
        ({"quantize": {"method": "rtn", "group_size": 32, "scale_search": "hessian"}}, True),
        ({"quantize": {"method": "rtn", "group_size": 32, "smooth": "awq"}}, True),
        ({"quantize": {"method": "llm_int8"}}, False),
        ({"quantize": {"method": "w8a8", "solver": "gptq"}}, False),
        ({"prune": {"method": "sparsegpt", "sparsity": 0.5}}, True),
        ({"prune": {"method": "wanda", "sparsity": 0.5}}, True),
        ({"prune": {"method": "magnitude", "sparsity": 0.5}}, False),
        (CUT, False),
        ({"rotate": {"values": "hadamard"}}, False),
        ({"kv_cache": {"numbers": "int8"}}, False),
    ],
)
def test_walks_that_add_up_are_shared(stage, together):
    assert [shares(one) for one in recipe(stage).stages] == [together]


def test_training_is_shared():
    assert [shares(one) for one in recipe(CUT, DISTILL).stages] == [False, True]


def test_one_process_can_do_everything():
    assert not list(mistakes(recipe(GPTQ, calibration={"samples": 1}), 1))
    assert not list(notes(recipe(GPTQ), 1, 4))


def test_every_process_needs_a_window():
    (found,) = mistakes(recipe(GPTQ, calibration={"samples": 3}), 4)
    assert found[0] == ("calibration", "samples")
    assert "3 windows cannot be shared among 4 processes" in found[1]
    nearest = {"quantize": {"method": "rtn", "group_size": 32}}
    assert not list(mistakes(recipe(nearest, calibration={"samples": 3}), 4))


def test_every_process_needs_a_window_of_every_step():
    (found,) = mistakes(recipe(CUT, DISTILL), 3)  # windows of 512 tokens
    assert found[0] == ("stages", 1, "distill", "batch_tokens")
    assert "1024 are 2 windows of 512 tokens" in found[1]
    assert "Ask for 1536 or more" in found[1]
    assert not list(mistakes(recipe(CUT, DISTILL), 2))


def test_a_measured_time_is_refused():
    (found,) = mistakes(recipe({"restructure": {"decode_latency": "0.7x"}}), 2)
    assert found[0] == ("stages", 0, "restructure", "decode_latency")


def test_a_plan_says_who_does_what():
    asked = recipe(CUT, DISTILL, GPTQ)
    assert list(notes(asked, 2, 4)) == [
        "2 processes share stages[1].distill, stages[2].quantize, each with 2 of its 4 threads; "
        "the first alone, with all threads, carries out stages[0].restructure"
    ]
