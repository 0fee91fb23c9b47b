from dataclasses import replace

import pytest

from compress.report import html, markdown, rows, summary
from compress.results import KVBlock, Results, StageResult, from_json, to_json


def line(results, measured, label):
    return next(row for row in summary.summary(results, measured) if row.label == label)


def test_summary_lists_every_measure_in_order(results, measured):
    labels = [row.label for row in summary.summary(results, measured)]
    assert labels == [
        "size on disk",
        "bits per weight",
        "bits per weight, head",
        "perplexity",
        "KL to the teacher, mean",
        "KL to the teacher, median",
        "KL to the teacher, 99th percentile",
        "top-1 agreement",
        "flips",
        "common_knowledge",
        "cloze",
        "everyday_reasoning",
        "time",
        "peak memory",
        "prefill",
        "decode",
    ]


def test_summary_without_times_or_measures_has_no_such_rows(results, bare):
    assert "time" not in {row.label for row in summary.summary(results, None)}
    assert [row.label for row in summary.summary(bare, None)] == ["size on disk", "bits per weight"]


def test_zeros_are_told_and_that_they_make_nothing_faster(results):
    stage = results.stages[0]
    thin = [replace(linear, sparsity=0.5, kept_weights=5) for linear in stage.linears]
    thin[0] = replace(thin[0], sparsity=0.75, bits=None, group_size=None)
    pruned = replace(results, stages=(replace(stage, linears=tuple(thin)),))
    row = line(pruned, None, "zeros")
    assert row.after == "50.0 % to 75.0 %"
    assert row.note.endswith("nothing here runs faster for it")
    stored = {name: how for name, how, *_ in rows.worst_table(pruned).rows}
    assert all("zeros" in how for how in stored.values())
    assert "zeros" not in {row.label for row in summary.summary(results, None)}


def test_perplexity_stands_with_its_protocol(results):
    row = line(results, None, "perplexity")
    assert (row.before, row.after, row.difference) == ("21.37", "22.94", "+7.3 %")
    assert row.note == "heldout, 40 windows of 1,024 tokens, stride 1,024"


def test_tasks_stand_with_standard_error_and_flipped_answers(results):
    row = line(results, None, "common_knowledge")
    assert (row.before, row.after) == ("58.1 ± 3.9 %", "56.2 ± 3.9 %")
    assert row.difference == "−1.9 points, 13 answers flipped"
    assert row.note == "accuracy of 160 items ± standard error"


def test_a_task_of_one_side_only_has_no_difference(results):
    alone = replace(results, before=replace(results.before, tasks=()))
    row = line(alone, None, "cloze")
    assert (row.before, row.difference) == ("–", "–")


def test_a_rotation_is_told_and_a_head_that_it_took_off_has_no_bits_before(results):
    sizes = tuple(
        replace(part, before_bytes=0) if part.part == "head" else part for part in results.sizes
    )
    turned = StageResult("rotate", "residual hadamard, values none", ())
    found = replace(results, sizes=sizes, stages=(turned, *results.stages))
    row = line(found, None, "bits per weight, head")
    assert (row.before, row.difference) == ("–", "–")
    assert row.note == "was the embedding, and is a matrix of its own"
    table = dict(rows.provenance_table(found, None).rows)
    assert table["rotated"] == "residual hadamard, values none"
    assert "rotated" not in dict(rows.provenance_table(results, None).rows)


def test_head_is_counted_apart(results):
    assert line(results, None, "bits per weight").after == "4.27"
    assert line(results, None, "bits per weight, head").after == "8.25"


def test_verdict_says_it_in_plain_words(results, bare):
    assert rows.verdict(results) == (
        "The student is 3.0 times smaller on disk (271 MB → 90.4 MB). "
        "Its perplexity rises by 7.3 % (21.37 → 22.94). "
        "It picks the teacher’s next token 88 times out of 100. "
        "1 linear stayed dense."
    )
    assert rows.verdict(bare) == "The student is as large as before on disk (271 MB → 271 MB)."


def test_a_later_stage_has_the_last_word_on_a_linear(results):
    first = results.stages[0].linears[0]
    again = replace(results.stages[0], linears=(replace(first, relative_error=0.5),))
    both = replace(results, stages=(*results.stages, again))
    assert len(rows.linears(both)) == len(rows.linears(results))
    assert rows.worst(both)[0].name == first.name


def test_worst_five_are_solved_and_fall(results):
    errors = [linear.relative_error for linear in rows.worst(results)]
    assert len(errors) == 5
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == max(linear.relative_error for linear in rows.linears(results))
    assert len(rows.worst_table(results).rows) == 5


def test_error_table_has_a_cell_for_every_block_and_role(results):
    table = rows.error_table(results)
    assert table.header == ("block", "q", "k", "v", "o", "gate", "up", "down")
    assert [row[0] for row in table.rows] == [str(block) for block in range(30)]
    assert table.rows[29][7] == "kept dense"


def test_error_table_leaves_untouched_linears_open(results):
    stage = results.stages[0]
    some = replace(stage, linears=tuple(r for r in stage.linears if (r.block, r.role) != (3, "v")))
    assert rows.error_table(replace(results, stages=(some,))).rows[3][3] == "–"


def test_size_table_adds_up_and_leaves_out_what_has_no_bytes(results):
    table = rows.size_table(results)
    parts = ["block linears", "head", "norms and biases", "other files", "together"]
    assert [row[0] for row in table.rows] == parts
    assert table.rows[1] == ("head", "28.3 M", "56.6 MB", "29.2 MB", "8.25")
    assert table.rows[-1][2:4] == ("271 MB", "90.4 MB")


def test_fallbacks_are_named_with_their_reason(results):
    assert rows.fallback_text(results).startswith("1 of 211 linears did not become")
    (row,) = rows.fallback_table(results).rows
    assert row[0] == "model.layers.29.mlp.down_proj"
    assert "not positive definite" in row[3]


def test_no_fallback_is_said_too(results, bare):
    stage = results.stages[0]
    solved = replace(stage, linears=tuple(r for r in stage.linears if r.outcome == "solved"))
    text = rows.fallback_text(replace(results, stages=(solved,)))
    assert text == "None: all 210 linears were solved as the recipe asked."
    assert rows.fallback_text(bare) == "None."


def test_time_by_step_ends_with_the_total(measured):
    assert rows.time_table(measured).rows[-1] == ("total", "3 min 25 s")


@pytest.mark.parametrize(
    ("teacher", "student", "split"),
    [
        ("the same", "the same", ("the same", "", "")),
        ("one two three", "one two four", ("one two ", "three", "four")),
        ("one two", "one two three", ("one two", "", " three")),
        ("scatter", "scattered light", ("", "scatter", "scattered light")),
        ("a b", "x y", ("", "a b", "x y")),
        ("", "x", ("", "", "x")),
        ("line\nnext", "line\nother", ("line\n", "next", "other")),
    ],
)
def test_continuations_split_at_the_first_word_that_differs(teacher, student, split):
    assert rows.differing_tail(teacher, student) == split
    assert "".join((split[0], split[1])) == teacher
    assert "".join((split[0], split[2])) == student


def test_errors_of_a_run_without_calibration_are_those_of_weights(results):
    assert "to the output of each linear" in rows.error_text(results)
    blind = replace(results.provenance, calibration_tokens=0)
    told = rows.error_text(replace(results, provenance=blind))
    assert told.startswith("The squared error of the rounded weights")


@pytest.fixture
def cached(results):
    """The same run, its keys and values rounded."""
    blocks = [KVBlock(i, "int8", "head", 0.125, 0.03, 1e-4 * (i + 1), 2e-5) for i in range(2)]
    stage = StageResult("kv_cache", "int8, a scale each head", (), kv=tuple(blocks))
    return replace(
        results,
        before=replace(results.before, kv_bytes_per_token=23_040),
        after=replace(results.after, kv_bytes_per_token=11_520),
        stages=(*results.stages, stage),
    )


def test_keys_and_values_have_a_row_where_they_are_rounded(results, cached):
    assert "keys and values" not in {row.label for row in summary.summary(results, None)}
    row = line(cached, None, "keys and values")
    assert (row.before, row.after) == ("23,040", "11,520")
    assert row.difference.startswith("−50.0 %")
    assert row.note == "bytes a token; int8, a scale each head"


def test_keys_and_values_are_told_block_by_block(results, cached):
    assert rows.cache_text(results) == ""
    assert not rows.cache_table(results).rows
    assert "cached as int8, with a scale for each head" in rows.cache_text(cached)
    assert "block 1" in rows.cache_text(cached)
    assert [cells[0] for cells in rows.cache_table(cached).rows] == ["0", "1"]
    for page in (markdown.render(cached, None), html.render(cached, None)):
        assert "Keys and values" in page
    assert "Keys and values" not in html.render(results, None)
    assert from_json(Results, to_json(cached)) == cached


def test_processor_time_stands_beside_the_wall_where_it_is_known(results, measured):
    assert rows.time_table(measured).header == ("step", "time")
    both = replace(measured, cpu_seconds={"quantize": 80.0, "total": 200.0})
    table = rows.time_table(both)
    assert table.header == ("step", "time", "processor time")
    assert table.rows[-1] == ("total", "3 min 25 s", "3 min 20 s")
    assert {row[2] for row in table.rows} == {"1 min 20 s", "3 min 20 s", "–"}
    labels = [row.label for row in summary.summary(results, both)]
    assert labels.index("processor time") == labels.index("time") + 1
