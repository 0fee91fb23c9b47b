from __future__ import annotations

import pytest

from compress import library


@pytest.mark.parametrize(
    ("argument", "expected"),
    [("quickstart", False), ("a.yaml", True), ("a.YML", True), ("./a", True), ("notes.txt", True),
     ("chats.jsonl", True), ("w4g64-gptq", False), ("w4.5", False)],
)  # fmt: skip
def test_a_suffix_or_a_separator_makes_a_path(argument, expected):
    assert library.is_path(argument) is expected


def test_names_and_paths_are_found(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.touch()
    assert library.find("recipes", str(mine)) == mine
    assert library.find("recipes", "quickstart").is_file()
    assert library.find("eval", "quick").parts[-3:] == ("eval", "suites", "quick.yaml")


@pytest.mark.parametrize("kind", ["recipes", "calib", "eval"])
def test_every_name_is_a_file(kind):
    assert library.names(kind)
    assert all(library.find(kind, name).is_file() for name in library.names(kind))


def test_what_is_not_there_is_told_with_what_is():
    with pytest.raises(
        LookupError, match=r"no shipped calibration set of this name\. Did you mean self\?"
    ):
        library.find("calib", "selv")
    with pytest.raises(LookupError, match="no such file"):
        library.find("calib", "nosuch.txt")


def test_a_path_is_said_to_end_as_files_of_its_kind_do():
    for kind, ends in (("recipes", ".yaml, .yml"), ("calib", ".yaml, .yml, .txt, .jsonl")):
        with pytest.raises(LookupError, match=f"A path ends in {ends} or holds a separator"):
            library.find(kind, "nosuch")


def test_a_wheel_finds_the_folders_inside_the_package(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "compress"
    (package / "shipped" / "recipes").mkdir(parents=True)
    monkeypatch.setattr(library.compress, "__file__", str(package / "__init__.py"))
    assert library.folder("recipes") == package / "shipped" / "recipes"
