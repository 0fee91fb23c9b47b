"""Babble is found; a teacher that repeats itself does not make its student fail."""

import random

import pytest

from compress.evaluate.sanity import broken_share, insane, repetition
from compress.results import Sample

PROSE = (
    "The best thing about a rainy day is the sound on the roof. You can stay inside with a book "
    "and a warm drink, and nobody expects you to be anywhere. The garden is watered for you, and "
    "in the evening the air smells of earth."
)
CODE = "def add(a, b):\n    return a + b\n\n\ndef subtract(a, b):\n    return a - b\n"
CHINESE = "下雨天最好的地方是可以待在家里看书，听着雨声，喝一杯热茶，没有人期待你去任何地方。"
LIST = "1. Apples\n2. Bread\n3. Milk and honey\n4. Eggs from the neighbour\n5. A bar of soap"
SANE = [PROSE, CODE, CHINESE, LIST, "Paris.", "4", "Yes! 🎉 It is."]
BABBLE = {
    "a word": "the " * 40,
    "a mark": "!" * 64,
    "a phrase": "I am a cat. I like fish. " * 8,
    "prose that falls into a loop": PROSE[:60] + " and then" * 30,
    "two words in turn": "on the on the on the of " * 12,
}


@pytest.mark.parametrize("text", SANE)
def test_ordinary_text_is_sane(text):
    assert repetition(text) < 0.2
    assert broken_share(text) == 0
    assert insane([Sample("prompt", PROSE, text)]) == ()


@pytest.mark.parametrize("kind", BABBLE)
def test_a_loop_is_found(kind):
    assert insane([Sample("prompt", PROSE, BABBLE[kind])]) == (("prompt", "repeats itself"),)


@pytest.mark.parametrize("text", ["", "  \n\t "])
def test_an_empty_answer_is_found(text):
    assert insane([Sample("prompt", PROSE, text)]) == (("prompt", "empty"),)


@pytest.mark.parametrize("junk", ["\ufffd", "\x00", "\x1b", "\ue000", "\u0378"])
def test_characters_that_no_text_holds_are_found(junk):
    chance = random.Random(0)
    text = "".join(chance.choice("abcdefghij klmnop" + 5 * junk) for _ in range(120))
    assert ("prompt", "is no text") in insane([Sample("prompt", PROSE, text)])


def test_a_last_character_cut_in_two_is_no_fault():
    assert broken_share("It is sunny ☀ and\ufffd\ufffd") == 0


def test_a_student_may_fail_where_its_teacher_fails():
    loop = BABBLE["a phrase"]
    assert insane([Sample("prompt", loop, BABBLE["a mark"])]) == ()
    assert insane([Sample("prompt", "", "")]) == ()


def test_a_student_may_fail_as_often_as_its_teacher_but_not_more():
    loop = BABBLE["a phrase"]
    swapped = [Sample("first", loop, PROSE), Sample("second", PROSE, loop)]
    assert insane(swapped) == ()
    more = [Sample("first", loop, loop), Sample("second", PROSE, loop)]
    assert insane(more) == (("second", "repeats itself"),)


def test_nothing_asked_is_nothing_wrong():
    assert insane([]) == ()


def test_repetition_is_a_share():
    assert repetition("") == 0
    assert repetition("short") == 0
    assert repetition(PROSE) <= repetition(PROSE + " " + PROSE) <= 1
    assert repetition("a" * 5000) > 0.99
