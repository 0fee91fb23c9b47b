"""The commands on recipes, and what was measured of them."""

import json
import shutil
from dataclasses import asdict, replace

import pytest

from compress import catalogue, library
from compress.catalogue import Catalogue, Measurement, fingerprint
from compress.cli import recipes
from compress.recipe.load import load
from compress.results import to_json

ONE = Measurement(
    "", "pypi:x==1", "quick", ("ab",), 117_000_000, 4.26, 23.1, 0.0931, 0.714, 0.8774, 210.4,
    600.0, 1100.0, 2**31, 2, "2026-11-22", "abcdef1", "a processor, 2 cores", "python catalogue.py",
)  # fmt: skip


def measured(name, **changes):
    text = library.find("recipes", name).read_text("utf-8")
    return replace(ONE, recipe_sha256=fingerprint(text), **changes)


@pytest.fixture
def shipped(monkeypatch):
    """A catalogue as it could be: two recipes, one of them changed since, and another suite."""
    monkeypatch.delenv("COLUMNS", raising=False)
    found = Catalogue(
        replace(ONE, size_bytes=269_000_000, perplexity=21.4, kl_mean=0.0, bits_per_weight=16.0),
        {
            "w4-best": measured("w4-best"),
            "w3-best": replace(measured("w3-best", size_bytes=10**8), recipe_sha256="another"),
            "smoke": measured("smoke", suite="smoke", perplexity=None),
        },
    )
    monkeypatch.setattr(catalogue, "read", lambda: found)
    return found


@pytest.fixture
def terminal(monkeypatch):
    """`terminal(columns)`: a terminal so wide."""

    def wide(columns):
        monkeypatch.setattr(recipes.console, "terminal_width", lambda: columns)

    return wide


def test_ls_names_every_shipped_recipe(run):
    code, out, _ = run("recipes", "ls")
    assert code == 0
    words = [line.split()[0].rstrip("*†") for line in out.splitlines() if line]
    assert set(library.names("recipes")) < set(words)


def test_ls_shows_the_smallest_first_and_what_was_not_measured_last(run, shipped):
    lines = run("recipes", "ls")[1].splitlines()
    assert lines[0].split()[:4] == ["recipe", "MB", "bits", "perplexity"]
    first = [line.split()[0] for line in lines[1:6]]
    assert first[0] == "w3-best*"
    assert sorted(first[1:3]) == ["smoke†", "w4-best"]
    assert first[3:] == ["dense", "depth-75"]
    assert next(line for line in lines if line.startswith("w4-best")).split()[1:10] == (
        ["117.0", "4.26", "23.10", "0.0931", "87.7", "210", "10.0", "18.3", "2.00"]
    )
    notes = "\n".join(lines[-4:]).replace("\n", " ")
    assert "* measured before the recipe was changed." in notes
    assert "† judged by smoke: its perplexity and KL compare with no other." in notes
    assert "pypi:x==1, 2 threads of a processor, 2 cores, 2026-11-22" in notes
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize("columns", [20, 30, 45, 60, 80, 100, 120, 250])
def test_a_narrow_terminal_gets_fewer_columns_and_whole_lines(run, shipped, terminal, columns):
    terminal(columns)
    lines = run("recipes", "ls")[1].splitlines()
    end = next(place for place, line in enumerate(lines) if line.startswith("Measured"))
    table = [line for line in lines[:end] if line]
    assert max(map(len, table)) <= max(columns, 22)
    header = table[0].split()
    assert len(table) == len(library.names("recipes")) + 3, "no row is broken over lines"
    assert ("MB" in header, "GiB" in header) == (columns >= 30, columns == 250)
    if columns >= 100:
        assert {"KL", "perplexity", "tokens/s", "what"} < set(header)


def test_ls_as_json(run, shipped):
    found = json.loads(run("recipes", "ls", "--json")[1])
    assert found["dense"]["size_bytes"] == 269_000_000
    rows = {row["name"]: row for row in found["recipes"]}
    assert set(rows) == set(library.names("recipes"))
    assert rows["w4-best"]["measured"] == json.loads(json.dumps(asdict(measured("w4-best"))))
    assert (rows["w3-best"]["changed"], rows["w4-best"]["changed"]) == (True, False)
    assert rows["fp8"]["measured"] is None


def test_show_prints_the_recipe_and_what_was_measured_as_comments(run, shipped, tmp_path):
    code, out, _ = run("recipes", "show", "w4-best")
    text = library.find("recipes", "w4-best").read_text("utf-8")
    assert code == 0
    assert out.startswith(text)
    assert "#   size           269 MB → 117 MB, 4.26 bits per weight in the blocks" in out
    assert "#   perplexity     21.40 → 23.10   (suite quick)" in out
    assert "#   time           10 min 00 s on the wall, 18 min 20 s of processors" in out
    (tmp_path / "mine.yaml").write_text(out)
    assert load("./mine.yaml").stages == load("w4-best").stages
    assert "# Measured before it was changed:" in run("recipes", "show", "w3-best")[1]
    assert json.loads(run("recipes", "show", "w3-best", "--json")[1])["changed"] is True
    assert run("recipes", "show", "fp8")[1] == library.find("recipes", "fp8").read_text("utf-8")


def test_show_of_a_file_of_ones_own_has_nothing_measured(run, shipped):
    shutil.copy(library.find("recipes", "w4-best"), "w4-best.yaml")
    assert "Measured" not in run("recipes", "show", "./w4-best.yaml")[1]


def test_copy_gives_the_file_as_it_is(run, tmp_path):
    text = library.find("recipes", "quickstart").read_text(encoding="utf-8")
    assert run("recipes", "copy", "quickstart") == (0, "quickstart.yaml\n", "")
    assert (tmp_path / "quickstart.yaml").read_text(encoding="utf-8") == text
    assert run("recipes", "check", "./quickstart.yaml")[0] == 0


def test_a_catalogue_that_cannot_be_read_is_one_message(run, monkeypatch, tmp_path):
    (tmp_path / "catalogue.json").write_text('{"recipes": {"w4-best": {"size_bytes": "x"}}}')
    monkeypatch.setattr(library, "folder", lambda kind: tmp_path)
    code, out, err = run("recipes", "ls")
    assert (code, out) == (2, "")
    assert "catalogue.json: not the catalogue that this version reads (" in err


def test_the_fingerprint_of_a_recipe_is_of_what_it_does():
    text = "# a\nversion: 1  # one\nteacher: {model: x}\n"
    assert fingerprint(text) == fingerprint("# b\n# c\n\nversion: 1  # one\nteacher: {model: x}")
    assert fingerprint(text) != fingerprint(text.replace("x", "y"))


def test_a_catalogue_without_a_file_is_empty_and_is_read_back(tmp_path):
    assert catalogue.read(tmp_path) == Catalogue()
    (tmp_path / "catalogue.json").write_text(to_json(Catalogue(ONE, {"w4-best": ONE})))
    assert catalogue.read(tmp_path) == Catalogue(ONE, {"w4-best": ONE})
    assert catalogue.changed(catalogue.read(tmp_path), tmp_path) == []


def test_recipes_as_json(run, tmp_path):
    found = json.loads(run("recipes", "show", "quickstart", "--json")[1])
    assert (found["name"], found["recipe"]["version"]) == ("quickstart", 1)
    found = json.loads(run("recipes", "copy", "quickstart", "mine.yaml", "--json")[1])
    assert found == {"name": "quickstart", "file": "mine.yaml"}
    found = json.loads(run("recipes", "check", "mine.yaml", "--json")[1])
    assert found == {"checked": [{"recipe": "mine.yaml", "mistakes": []}], "passed": True}
    (tmp_path / "mine.yaml").write_text("version: 2\n")
    code, out, err = run("recipes", "check", "mine.yaml", "--json")
    found = json.loads(out)
    assert (code, found["passed"]) == (2, False)
    assert found["checked"][0]["mistakes"][0] in err


def test_recipes_copy_never_overwrites(run, tmp_path):
    (tmp_path / "mine.yaml").write_text("mine")
    code, out, err = run("recipes", "copy", "quickstart", "mine.yaml")
    assert (code, out) == (2, "")
    assert "mine.yaml: exists and is not overwritten" in err
    assert (tmp_path / "mine.yaml").read_text() == "mine"


def test_recipes_copy_writes_nothing_that_would_not_be_taken_for_a_path(run, tmp_path):
    code, out, err = run("recipes", "copy", "quickstart", "mine")
    assert (code, out) == (2, "")
    assert "mine: recipes end in .yaml. Name it mine.yaml." in err
    assert not list(tmp_path.iterdir())


def test_recipes_copy_into_a_missing_folder(run):
    code, _, err = run("recipes", "copy", "quickstart", "no/such/mine.yaml")
    assert code == 2
    assert "cannot be written (No such file or directory)" in err


def test_recipes_of_an_unknown_name(run):
    code, _, err = run("recipes", "show", "quikstart")
    assert code == 2
    assert "Did you mean quickstart?" in err


def test_recipes_check_reports_the_mistakes_of_all(run, tmp_path):
    text = library.find("recipes", "quickstart").read_text(encoding="utf-8")
    (tmp_path / "a.yaml").write_text(text.replace("bits: 4", "bits: 5"))
    (tmp_path / "b.yaml").write_text(text.replace("suite:", "siute:"))
    code, out, err = run("recipes", "check", "./a.yaml", "quickstart", "./b.yaml")
    assert (code, out) == (2, "quickstart: ok\n")
    assert "a.yaml:" in err
    assert "b.yaml:" in err
    assert "suite" in err
    assert "2 mistakes; nothing was run." in err
