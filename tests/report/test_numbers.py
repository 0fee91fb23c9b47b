import pytest

from compress.report import numbers


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (90_412_108, "90.4 MB"),
        (269_060_552, "269 MB"),
        (1_345_000_000, "1.34 GB"),
    ],
)
def test_sizes_have_three_digits_and_decimal_units(count, text):
    assert numbers.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.9, "59.9 s"),
        (59.96, "1 min 00 s"),
        (412, "6 min 52 s"),
        (3599.7, "1 h 00 min"),
        (7380, "2 h 03 min"),
    ],
)
def test_durations_read_as_people_say_them(seconds, text):
    assert numbers.duration(seconds) == text


def test_differences_have_a_sign_unless_they_round_to_nothing():
    assert numbers.signed(1.25, 1) == "+1.2"
    assert numbers.signed(-11.731, 2) == "−11.73"
    assert numbers.signed(-0.04, 1) == "0.0"
    assert numbers.change(21.37, 22.94) == "+7.3 %"
    assert numbers.change(0, 1) == numbers.NONE


def test_ratios_say_which_way():
    assert numbers.ratio(300, 100) == "3.0 times smaller"
    assert numbers.ratio(100, 120) == "1.2 times larger"
    assert numbers.ratio(100, 101) == "as large as before"
    assert numbers.ratio(0, 101) == numbers.NONE


def test_small_and_large_values_keep_three_digits():
    assert [numbers.digits(v) for v in (0.0731, 4.275, 99.96, 402.4)] == [
        "0.0731", "4.28", "100", "402",
    ]  # fmt: skip
    assert [numbers.amount(v) for v in (12, 35_136, 106_168_320)] == ["12", "35.1 k", "106 M"]
    assert numbers.error(0.0123) == "1.23 %"


def test_one_of_something_is_no_plural():
    assert [numbers.counted(n, "answer") for n in (0, 1, 1_175)] == [
        "0 answers", "1 answer", "1,175 answers",
    ]  # fmt: skip
