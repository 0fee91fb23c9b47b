"""Babble is found; a teacher that repeats itself does not make its student fail."""

import random

import pytest

from compress.evaluate.sanity import broken, crumbs, foreign, insane, repetition
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
REAL = [  # SmolLM2-135M-Instruct
    "The best thing about a rainy day is that it makes you realize that life is not always about "
    "the perfect weather. It's about embracing the unexpected, finding beauty in the unexpected, "
    "and finding the beauty in the unexpected.",
    "The capital of France is Paris. It is a city renowned for its historical landmarks, culture, "
    "and the iconic Eiffel Tower. Paris is also known for its cultural institutions, including the "
    "Louvre Museum, Notre-Dame Cathedral, and",
    "Dear [Name],\n\nI hope this message finds you well. I am writing to inform you of a recent "
    "incident involving a stray cat that was found by a local shelter. The cat was found in a "
    "abandoned building and was rescued by",
    "The moon is a special star that goes through a cycle called a cycle of the moon. The moon is "
    "made up of many parts, and each part has its own special shape. The moon is made of a special "
    "part called a moon,",
]
REAL_LOOP = (  # stories260K
    "fast and shiny. It is a big, red ball. It is a big, red ball. It is a big, red ball. It "
)
REAL_BABBLE = [  # SmolLM2-135M-Instruct, rounded to nearest at 2 bits in groups of 64
    'just (nexort- j j\xa0clud only " and cur " j iintrefname or "just " " j\xa0 j\xa0 j\xa0\xa0 j'
    '\xa0 \n\xa0\xa0 s \nреv.  "  "\n',
    'just "\xa0 \ufffd " a\xa0. from so a "\xa0artuvmck\xa0 rummelust "sustun and "sze "" "ist '
    "strenues\xa0uminust \"just \"vist ' - \" ' - ' And",
    " (edlor j orprev j, j and cry\\\\ j, cry - j or cry j or cry j or cryist or cry,p - or "
    "cryisteperamorp sat orprevsefor\xa0\xa0\xa0\xa0",
    "um (pre a calledgue nor\\\\ist (clud's a (ristocur \n\n - previous ' ' ' ' ' ' ' ' 'istlorg "
    "and I e.\n ' ' ' and '\n- 'ist",
]
BABBLE = {
    "a word": "the " * 40,
    "a mark": "!" * 64,
    "a phrase": "The cat sat on a mat. It likes fish. " * 6,
    "prose that falls into a loop": PROSE[:60] + " and then" * 30,
    "two words in turn": "on the on the on the of " * 12,
}


@pytest.mark.parametrize("text", SANE)
def test_ordinary_text_is_sane(text):
    assert repetition(text) < 0.2
    assert broken(text) == 0
    assert insane([Sample("prompt", text, text)]) == ()


@pytest.mark.parametrize("text", REAL)
def test_what_a_real_teacher_says_is_sane(text):
    assert repetition(text) < 0.2
    assert crumbs(text, [PROSE]) < 0.1
    assert insane([Sample("prompt", PROSE, text)]) == ()


@pytest.mark.parametrize("text", REAL_BABBLE)
def test_what_a_real_teacher_says_at_2_bits_is_found(text):
    assert insane([Sample("prompt", REAL[0], text)]) == (("prompt", "is no text"),)


def test_words_of_one_character_that_a_teacher_uses_are_no_crumbs():
    said = "I think that I am a cat, a big one, and I like a fish or two"
    assert crumbs(said, [PROSE]) < 0.2
    assert crumbs(said, [PROSE, "I"]) == 0
    assert crumbs("- Apples\n" * 12, []) == 0
    assert crumbs("1 2 3 4 5 6 7 8 9 8 7 6 5", []) == 0
    assert crumbs("x y z", []) == 0  # too few to tell
    assert crumbs("x y z \" ' x y z - \" ' x y", [PROSE]) > 0.9


def test_letters_that_nobody_asked_for_are_found():
    mixed = "Tiger 可能 instead 것은 ещё раз в доме bad 可能 です"
    assert insane([Sample("What is it?", PROSE, mixed)]) == (("What is it?", "is no text"),)
    assert insane([Sample("把它翻译成中文", PROSE, CHINESE)]) == ()  # the prompt asks in Chinese
    assert insane([Sample("In Chinese?", CHINESE, CHINESE[::-1])]) == ()
    assert foreign("π is near 3.14 for every circle there is", [PROSE]) < 0.2
    assert foreign("", [PROSE]) == 0


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
    assert broken("It is sunny ☀ and\ufffd\ufffd") == 0


def test_a_student_may_fail_where_its_teacher_fails():
    loop = BABBLE["a phrase"]
    assert insane([Sample("prompt", loop, BABBLE["a mark"])]) == ()
    assert insane([Sample("prompt", "", "")]) == ()


def test_a_teacher_that_really_repeats_itself_excuses_its_student():
    assert insane([Sample("A ball", REAL_LOOP, REAL_LOOP + "is")]) == ()
    assert insane([Sample("A ball", REAL[0], REAL_LOOP)]) == (("A ball", "repeats itself"),)


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
