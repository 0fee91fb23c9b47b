import json
import shutil

import pytest

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
    for folder in (tmp_path, "", "."):
        code, _, err = run("inspect", folder)
        assert code == 2
        assert f"{tmp_path / 'config.json'}: cannot be read" in err


def test_env_says_what_a_bug_report_needs(run):
    found = json.loads(run("env", "--json")[1])
    assert {
        "compress",
        "python",
        "torch",
        "accelerate",
        "cpu_flags",
        "gpus",
        "cache_folder",
        "cache_free_bytes",
    } <= set(found)
    assert {"optuna", "ray"} <= set(found["extras"])
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
