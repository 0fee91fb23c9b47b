import json
import shutil

import pytest

from compress import library
from compress.results import to_json


@pytest.fixture
def finished(tmp_path, results, measured):
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "results.json").write_text(to_json(results), encoding="utf-8")
    (folder / "measured.json").write_text(to_json(measured), encoding="utf-8")
    return folder


def test_report_rebuilds_both_pages(run, finished):
    code, out, _ = run("report", finished)
    assert code == 0
    assert out.splitlines() == [str(finished / "report.md"), str(finished / "report.html")]
    assert "<html" in (finished / "report.html").read_text(encoding="utf-8")
    first = (finished / "report.html").read_bytes()
    run("report", finished)
    assert (finished / "report.html").read_bytes() == first


def test_report_as_json(run, finished):
    code, out, _ = run("report", finished, "--json")
    assert (code, len(json.loads(out)["pages"])) == (0, 2)


def test_report_without_times(run, finished):
    (finished / "measured.json").unlink()
    assert run("report", finished)[0] == 0


@pytest.mark.parametrize("text", ["{", "[]", '{"schema_version": 99}', '{"before": 1}'])
def test_report_of_broken_results_is_one_message(run, finished, text):
    (finished / "results.json").write_text(text)
    code, out, err = run("report", finished)
    assert (code, out) == (2, "")
    assert "results.json: not what this version writes" in err
    assert not (finished / "report.html").exists()


def test_report_of_nothing(run, tmp_path):
    code, _, err = run("report", tmp_path)
    assert code == 2
    assert "results.json: cannot be read (No such file or directory)" in err


def test_inspect_reads_a_model_folder(run, tiny_tied, tmp_path):
    code, out, _ = run("inspect", tiny_tied)
    assert code == 0
    for text in ("format", "dense", "model type", "llama", "tied", "yes", "dense: 14"):
        assert text in out
    found = json.loads(run("inspect", tiny_tied, "--json")[1])
    assert (found["blocks"], found["hidden_size"], found["linears"]) == (2, 64, {"dense": 14})
    assert found["bits_per_weight"] == 32.0


def test_inspect_says_what_made_a_folder(run, tiny_tied, results, tmp_path):
    folder = shutil.copytree(tiny_tied, tmp_path / "made")
    (folder / "results.json").write_text(to_json(results), encoding="utf-8")
    found = json.loads(run("inspect", folder, "--json")[1])
    assert (found["recipe"], found["calibration"], found["seed"]) == ("quickstart", "self", 0)


def test_inspect_of_nothing(run, tmp_path):
    code, _, err = run("inspect", tmp_path)
    assert code == 2
    assert "config.json" in err


def test_recipes_ls_names_every_shipped_recipe(run):
    code, out, _ = run("recipes", "ls")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == library.names("recipes")


def test_recipes_show_and_copy_give_the_file_as_it_is(run, tmp_path):
    text = library.find("recipes", "quickstart").read_text(encoding="utf-8")
    assert run("recipes", "show", "quickstart") == (0, text, "")
    assert run("recipes", "copy", "quickstart") == (0, "quickstart.yaml\n", "")
    assert (tmp_path / "quickstart.yaml").read_text(encoding="utf-8") == text
    assert run("recipes", "check", "./quickstart.yaml")[0] == 0


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


def test_env_says_what_a_bug_report_needs(run):
    found = json.loads(run("env", "--json")[1])
    assert {
        "compress",
        "python",
        "torch",
        "cpu_flags",
        "gpus",
        "cache_folder",
        "cache_free_bytes",
    } <= set(found)
    assert "cache folder" in run("env")[1]


def test_env_names_no_personal_folder(run, tmp_path, monkeypatch):
    home = tmp_path / "someone"
    (home / ".cache" / "compress").mkdir(parents=True)
    (home / ".cache" / "compress" / "kept").write_bytes(b"12345")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("COMPRESS_CACHE", str(home / ".cache" / "compress"))
    out = run("env", "--json")[1]
    found = json.loads(out)
    assert "someone" not in out
    assert (found["cache_folder"], found["cache_bytes"]) == ("~/.cache/compress", 5)
    assert found["extras"]["vllm"]
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "elsewhere"))
    out = run("env")[1]
    assert "$COMPRESS_CACHE" in out
    assert str(tmp_path) not in out
