"""A comparison as Markdown, CSV and a page."""

import csv
import io
import json
import re
from dataclasses import replace

import pytest
from contenders import copies, found, put, three

from compress.compare import compare
from compress.report import numbers
from compress.report.compared import cells, files, page, tables


@pytest.fixture(scope="module")
def comparison(tiny_llama, tmp_path_factory):
    return compare(three(tiny_llama, tmp_path_factory.mktemp("three")))


def renamed(comparison, name):
    """The same, the first artifact under another name."""

    def of(values):
        return {name if key == "small" else key: value for key, value in values.items()}

    entries = (replace(comparison.artifacts[0], name=name), *comparison.artifacts[1:])
    measures = tuple(
        replace(
            one, numbers=of(one.numbers),
            ranking=tuple(name if who == "small" else who for who in one.ranking),
        )
        for one in comparison.measures
    )  # fmt: skip
    return replace(comparison, artifacts=entries, measures=measures)


def test_what_is_not_compared_says_who_differs_in_what(comparison):
    (refusal,) = cells.refusals(comparison)
    assert refusal.startswith(
        "Not compared: decode, prefill, first token and peak memory of its making."
    )
    assert "threads 2 (small, good), 1 (other)" in refusal


def test_only_what_can_be_ranked_is_called_best(comparison):
    decode = comparison.measure("decode_tokens_per_second")
    assert tables.marked(comparison, decode, "small") == "120 tokens/s ≠"
    assert tables.marked(comparison, comparison.measure("perplexity"), "good") == "9.50 ★"
    assert cells.bests(comparison, comparison.measure("size_bytes")) == ()  # all of one size


def test_a_task_has_a_best_only_where_the_paired_test_shows_one(comparison, tiny_llama, tmp_path):
    cloze = comparison.measure("tasks.cloze.acc")
    assert cells.bests(comparison, cloze) == ("other",)  # 6 : 0 against small; good has 5 : 0
    a, b = copies(tiny_llama, tmp_path, "a b")
    close = compare([put(a, found(wrong=(1,))), put(b, found(wrong=(1, 2, 3)))])
    assert close.measure("tasks.cloze.acc").ranking == ("a", "b")
    assert cells.bests(close, close.measure("tasks.cloze.acc")) == ()


@pytest.mark.parametrize(("speed", "best"), [(109.0, ()), (111.0, ("b",)), (89.0, ("a",))])
def test_what_was_timed_has_a_best_only_beyond_a_margin(tiny_llama, tmp_path, speed, best):
    a, b = copies(tiny_llama, tmp_path, "a b")
    timed = compare([put(a, found(), speed=100.0), put(b, found(), speed=speed)])
    assert cells.bests(timed, timed.measure("decode_tokens_per_second")) == best
    assert cells.bests(timed, timed.measure("ttft_seconds")) == ()


def test_what_a_star_says_stands_below_the_numbers(comparison):
    assert "speed and memory by more than 10 %." in files.markdown(comparison)
    assert cells.BEST_IS in page.render(comparison)


def test_equal_numbers_have_no_best(tiny_llama, tmp_path):
    twins = copies(tiny_llama, tmp_path, "a b")
    said = cells.sentences(compare([put(twin, found()) for twin in twins]))
    assert said[0].startswith("All have the size ")
    assert said[1:] == [
        "All have the same KL, mean (0.100 nats).", "On the front of size and KL, mean: a and b."
    ]  # fmt: skip


def test_csv_has_a_number_a_row_beside_its_protocol(comparison):
    rows = list(csv.DictReader(io.StringIO(files.as_csv(comparison))))
    parts = [row for row in rows if row["measure"].startswith("parts_bytes.")]
    assert len(rows) - len(parts) == sum(len(one.numbers) for one in comparison.measures)
    mine = [row for row in parts if row["artifact"] == "other"]
    assert sum(int(row["value"]) for row in mine) == comparison.artifacts[2].size_bytes
    assert {row["unit"] for row in mine} == {"bytes"}
    row = next(r for r in rows if (r["artifact"], r["measure"]) == ("other", "perplexity"))
    assert (float(row["value"]), row["rank"], row["comparable"]) == (9.9, "2", "true")
    assert json.loads(row["protocol"])["seq_len"] == 512
    speed = next(r for r in rows if r["measure"] == "decode_tokens_per_second")
    assert (speed["rank"], speed["comparable"]) == ("", "false")
    assert speed["differs"] == "hardware, threads"


def test_a_name_is_no_formula_in_csv_and_no_markup_in_markdown(comparison):
    odd = renamed(comparison, "=1|2<b>")
    assert "'=1|2<b>" in files.as_csv(odd)
    assert "=1\\|2\\<b\\>" in files.markdown(odd)


def test_markdown_holds_every_section_and_table_rows_are_whole(comparison):
    text = files.markdown(comparison)
    headings = re.findall(r"^## (.*)", text, re.MULTILINE)
    assert headings == [
        "Size by part", "How far from the teacher, by share of tokens", "Protocols",
        "Who is right more often", "What differs in the recipes", "What else decided the runs",
        "Flipped answers", "The same prompts, answered",
    ]  # fmt: skip
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_markdown_has_everybodys_answer_to_each_prompt_below_the_teachers(comparison):
    text = files.markdown(comparison)
    said = [
        "**What is rain?**", "", "- teacher: It rains down.", "- small: It rains.",
        "- good: It rains down.", "- other: \\<b\\>Rain\\</b\\> & more",
    ]  # fmt: skip
    assert "\n".join(said) in text


def test_the_spread_of_kl_is_told_in_shares_of_tokens(comparison):
    table = tables.spread_table(comparison)
    assert table.header[1:] == (
        "below 0.0001 nats", "to 0.001", "to 0.01", "to 0.1", "to 1", "above 1"
    )  # fmt: skip
    entry = comparison.artifacts[0]
    below = sum(entry.histogram_counts[:8]) / sum(entry.histogram_counts)  # edges 1e-6 to 1e-4
    assert table.rows[0][:2] == ("small", numbers.percent(below))
    apart = replace(entry, histogram_edges=entry.histogram_edges[::-1])
    unlike = replace(comparison, artifacts=(apart, *comparison.artifacts[1:]))
    assert tables.spread_table(unlike).rows == ()


def test_json_says_its_version_first_and_what_is_comparable(comparison):
    told = json.loads(json.dumps(comparison.as_dict()))
    assert next(iter(told)) == "schema_version"
    comparable = {one["name"]: one["comparable"] for one in told["measures"]}
    assert comparable["perplexity"]
    assert not comparable["ttft_seconds"]


def test_the_page_is_the_same_bytes_each_time_and_needs_no_other_file(comparison):
    text = page.render(comparison)
    assert text == page.render(comparison)
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", text)
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}
    assert len(text) < 400_000


def test_a_strangers_words_are_no_markup_on_the_page(comparison):
    odd = renamed(comparison, "</script><img src=x>")
    text = page.render(odd)
    assert "<img" not in text
    assert text.count("</script>") == 2
    assert "<b>Rain</b>" not in text


def test_a_comparison_of_one_without_results_is_a_page_too(tiny_llama):
    text = page.render(compare([tiny_llama]))
    assert "sizes only" in text
    assert "Who is right more often" not in text
