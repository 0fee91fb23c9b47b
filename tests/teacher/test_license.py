"""A license is what a model's card says, and never a reason to stop."""

from __future__ import annotations

import pytest

from compress.teacher import license


@pytest.mark.parametrize(
    ("front", "found"),
    [
        ("license: apache-2.0", "apache-2.0"),
        ("license: other\nlicense_name: a-name\nlicense_link: LICENSE", "other (a-name)"),
        ("license: other", "other"),
        ("license: [mit, gpl]", ""),
        ("license: !!python/name:os.system", ""),
        ("license: 'two\n\n  lines'", ""),
        ("license: [", ""),
        ("tags: [a]", ""),
        ("- a list", ""),
    ],
)
def test_it_is_read_from_the_front_matter(tmp_path, front, found):
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n# A model\n", encoding="utf-8")
    assert license.stated(tmp_path) == found


@pytest.mark.parametrize("card", [b"", b"# A model\n", b"---\n", b"\xff\xfe", b" " * 2**21])
def test_a_card_without_one_states_none(tmp_path, card):
    (tmp_path / "README.md").write_bytes(card)
    assert license.stated(tmp_path) == ""


def test_a_folder_without_a_card_states_none(tmp_path):
    assert license.stated(tmp_path) == ""


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"general.license": "apache-2.0"}, "apache-2.0"),
        ({"general.license": "other", "general.license.name": "ours"}, "other (ours)"),
        ({"general.license": 3}, ""),
        ({}, ""),
    ],
)
def test_that_of_a_gguf_file_is_noted_beside_what_is_made_of_it(tmp_path, fields, found):
    license.note(tmp_path, fields)
    assert license.stated(tmp_path) == found
