import json

import pytest

from compress.cli.app import run


@pytest.fixture
def mine(tmp_path, monkeypatch, tiny_llama):
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "mine.yaml"
    path.write_text(
        "version: 1\n"
        f"teacher: {{model: {tiny_llama}}}\n"
        "calibration: {set: smoke, samples: 2, seq_len: 32}\n"
        "stages:\n  - quantize: {method: gptq, group_size: 32}\n"
        "evaluate: {suite: none}\n"
    )
    return str(path)


def test_a_plan_is_tables_or_one_document(mine, capsys):
    assert run(["plan", mine]) == 0
    text = capsys.readouterr().out
    for word in (
        "mine on ", "bits per weight", "peak memory", "unknown: no run on this machine yet",
        "gptq, 4 bits, groups of 32, symmetric", "block linears", "vLLM on CUDA",
    ):  # fmt: skip
        assert word in text
    assert run(["plan", mine, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["size"]["size_bytes"] > 0
    assert found["peak_memory_bytes"] > 0
    assert found["limits"]["batch_tokens"] == 2048


def test_a_budget_is_kept_or_refused(mine, capsys):
    assert run(["plan", mine, "--max-memory", "500MiB"]) == 0
    capsys.readouterr()
    assert run(["plan", mine, "--max-memory", "100MiB"]) == 2
    assert "--max-memory 100 MiB cannot be kept" in capsys.readouterr().err
    assert run(["plan", mine, "--max-memory", "lots"]) == 2
    assert "'lots' is no size" in capsys.readouterr().err


def test_all_mistakes_come_with_their_places(mine, capsys):
    sets = ["--set", "quantize.group_size=128", "--set", "calibration.seq_len=512"]
    assert run(["plan", mine, *sets]) == 2
    text = capsys.readouterr().err
    assert "--set quantize.group_size=128  stages[0].quantize.group_size: 128 does not" in text
    assert "--set calibration.seq_len=512  calibration.seq_len: 512 tokens, and" in text
    assert "2 mistakes; nothing was run" in text
