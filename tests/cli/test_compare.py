"""`compress compare` as it is typed."""

import json

import pytest
from contenders import three

from compress.cli.app import run


@pytest.fixture
def folders(tiny_llama, tmp_path):
    return list(map(str, three(tiny_llama, tmp_path)))


def test_the_terminal_shows_one_table_and_who_differs_in_what(folders, capsys):
    assert run(["compare", *folders]) == 0
    out = capsys.readouterr().out
    assert "9.50 ★" in out
    assert "Not compared: decode" in out
    assert "What is rain" not in out


def test_one_artifact_is_a_table_with_no_other_line_before_it(folders, capsys):
    assert run(["compare", folders[0]]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert (first, second.strip()) == ("", "small"), "the edge of the table, as of any other"


def test_files_are_written_beside_what_is_printed(folders, tmp_path, capsys):
    page, numbers = tmp_path / "page.html", tmp_path / "numbers.csv"
    arguments = ["--html", str(page), "--csv", str(numbers), "--json"]
    assert run(["compare", *folders, *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["schema_version"] == 1
    assert page.read_text().startswith("<!doctype html>")
    assert numbers.read_text().startswith("artifact,folder,measure")


def test_markdown_is_printed(folders, capsys):
    assert run(["compare", *folders, "--markdown"]) == 0
    assert capsys.readouterr().out.startswith("# small, good and other")


def test_quiet_shows_neither_progress_nor_table_and_json_and_markdown_all_the_same(
    folders, tmp_path, capsys
):
    page = str(tmp_path / "page.html")
    assert run(["compare", *folders, "--html", page, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert run(["compare", *folders, "--markdown", "--quiet"]) == 0
    assert capsys.readouterr().out.startswith("# small")
    assert run(["compare", *folders, "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["schema_version"] == 1


def test_how_to_measure_is_refused_where_nothing_is_measured(folders, capsys):
    assert run(["compare", *folders, "--device", "cuda", "--threads", "2"]) == 2
    out, told = capsys.readouterr()
    assert out == ""
    assert "--device: says how to measure, and only --evaluate SUITE measures." in told
    assert "--threads: says how to measure" in told
    assert run(["compare", *folders, "--device", "auto", "--quiet"]) == 0


def test_what_cannot_be_done_is_said_all_at_once_with_exit_2(folders, tmp_path, capsys):
    page = str(tmp_path / "none" / "page.html")
    assert run(["compare", *folders, "--html", page, "--json", "--markdown", "--teacher", "m"]) == 2
    told = capsys.readouterr().err
    assert "is no folder" in told
    assert "only one of them can be printed" in told
    assert "--teacher: says how to measure, and only --evaluate SUITE measures" in told


def test_no_folder_and_a_missing_one_are_exit_2(capsys):
    assert run(["compare"]) == 2
    assert run(["compare", "nowhere"]) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
