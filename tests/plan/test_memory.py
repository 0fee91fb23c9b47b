import dataclasses

import pytest
from anatomies import job

from compress.errors import RequestError
from compress.forwards import writing_bytes, writing_rows
from compress.plan import footprint, memory
from compress.results import Limits

MIB, GIB = 1024**2, 1024**3


def compress_bytes(*sets, limits=None, **shape):
    return memory.predict(job(*sets, **shape), limits or Limits())["compress"]


def test_the_number_of_blocks_costs_no_memory():
    assert len({compress_bytes(blocks=blocks) for blocks in (8, 16, 32)}) == 1


def test_memory_grows_with_what_is_held():
    few = compress_bytes("calibration.samples=8")
    assert few < compress_bytes("calibration.samples=16")
    assert few < compress_bytes("calibration.samples=8", hidden=22016)
    rows = compress_bytes("calibration.samples=8", limits=Limits(solve_rows=1024))
    assert rows < few
    kept = compress_bytes(limits=Limits(resident_bytes=0))
    assert kept < compress_bytes()
    assert compress_bytes("quantize={method: rtn}") < rows


def test_a_solver_holds_three_squares_of_its_width():
    narrow, wide = (compress_bytes("calibration.samples=1", hidden=n) for n in (8192, 16384))
    assert wide - narrow > 3 * 4 * (16384**2 - 8192**2) * 0.9


def test_the_teacher_writes_as_many_rows_as_a_gibibyte_holds():
    small, large = job(width=512).anatomy, job().anatomy
    assert writing_rows(small, 128) == 128
    assert writing_rows(large, 4096) == 32
    rows = writing_rows(large, 48)
    assert rows == 96
    assert writing_bytes(large, rows, 48) <= GIB < writing_bytes(large, rows + 32, 48)


def test_without_a_budget_the_limits_are_the_usual_ones():
    assert memory.within(job(), None) == memory.Bounded(Limits())


def test_a_budget_tightens_limits_until_it_is_kept():
    wanted = job("calibration.samples=16")
    loose, tight = (memory.within(wanted, budget) for budget in (64 * GIB, 2500 * MIB))
    assert loose.limits == Limits()
    assert tight.limits != Limits()
    assert max(memory.predict(wanted, tight.limits, tight.left_out).values()) <= 2500 * MIB


def test_a_lock_keeps_its_limits():
    locked = job("calibration.samples=16")
    limits = {"batch_tokens": 512, "resident_bytes": 0, "solve_rows": 1024}
    resolved = locked.recipe.resolved.model_copy(update={"limits": limits})
    locked = dataclasses.replace(
        locked, recipe=locked.recipe.model_copy(update={"resolved": resolved})
    )
    assert memory.within(locked, None).limits == Limits(**limits)
    assert memory.within(locked, 64 * GIB).limits == Limits(**limits)
    with pytest.raises(RequestError, match="the tightest limits of the lock"):
        memory.within(locked, GIB // 2)


def test_steps_that_hold_the_student_whole_are_left_out_where_they_do_not_fit():
    wanted = job("calibration.samples=16", suite="quick")
    assert memory.within(wanted, 64 * GIB).left_out == ()
    assert memory.within(wanted, 6 * GIB).left_out == ("samples", "time")


def test_a_budget_that_cannot_be_kept_names_the_step_and_the_least():
    with pytest.raises(RequestError) as caught:
        memory.within(job(), GIB)
    message = str(caught.value)
    assert message.startswith("--max-memory 1,024 MiB cannot be kept")
    assert "  compress: " in message
    assert "calibrate on fewer samples" in message
    assert "in place of self" not in message  # it calibrates on a text
    least = int(message.rpartition("Allow ")[2].split(" ")[0].replace(",", "")) * MIB
    assert memory.within(job(), least)
    with pytest.raises(RequestError):
        memory.within(job(), least - 2 * MIB)


def test_the_least_leaves_room_for_nothing_else():
    assert footprint.LIBRARIES < 600 * MIB


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GiB", 4 * GIB), ("800 MiB", 800 * MIB), ("2GB", 2 * 10**9), ("1.5g", 15 * 10**8),
     ("12345678", 12345678), ("64K", 64000)],
)  # fmt: skip
def test_sizes_are_read_as_people_write_them(text, size):
    assert memory.parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "4 gallons", "-1GB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(RequestError, match="is no size"):
        memory.parse_bytes(text)


def test_a_size_whose_unit_was_forgotten_is_refused():
    with pytest.raises(RequestError, match=r"'4' is 4 bytes\. Name the unit, as in 4GiB"):
        memory.parse_bytes("4")


def test_activations_past_the_limit_are_counted_on_disk():
    wanted = job()
    assert memory.spilled_bytes(wanted, Limits()) == 0
    tokens = 128 * 512
    assert memory.spilled_bytes(wanted, Limits(resident_bytes=0)) == 2 * tokens * (
        4096 + 4096 + 11008
    )


def test_codes_that_learn_need_what_enters_a_block_and_what_it_should_make_of_that():
    kept = Limits(resident_bytes=0)
    learned = job("quantize.learned_rounding=10")
    more = memory.spilled_bytes(learned, kept) - memory.spilled_bytes(job(), kept)
    assert more == 2 * 2 * 128 * 512 * 4096
    short, long = (
        compress_bytes(
            "quantize.learned_rounding=10", f"calibration.seq_len={n}", "calibration.samples=8"
        )
        for n in (512, 4096)
    )
    assert long - short > 2 * 32 * (4096**2 - 512**2)  # what attention keeps for the way back


def test_the_arithmetic_is_that_of_the_run():

    from compress import machine

    for dtype in ("bfloat16", "float32"):
        assert memory.computes_in(dtype) == machine.compute_dtype("cpu", dtype).itemsize
