import dataclasses
import json

import pytest

from compress.cli.verify import sentence
from compress.results import Check, Verification
from compress.verify import run as verifying


@pytest.fixture
def asked(monkeypatch, verified):
    asked = {"found": verified}

    def verify(folder, **options):
        asked.update(options, folder=folder)
        return asked["found"]

    monkeypatch.setattr(verifying, "verify", verify)
    return asked


def fail(asked):
    found = asked["found"]
    failed = Check("weights", "failed", "a: other weights")
    asked["found"] = dataclasses.replace(found, checks=(*found.checks, failed))


def test_verify_shows_every_check_and_consumer(run, asked, tmp_path):
    code, out, err = run("verify", tmp_path, "--quiet")
    assert (code, out, err) == (0, "", "")
    code, out, err = run("verify", tmp_path)
    assert (code, err) == (0, "")
    rows = [" ".join(line.split()) for line in out.splitlines()]
    assert "layout passed packed, 2 tensors [1]" in rows
    told = "63 of 64 tokens the likeliest, largest margin 0.12, KL 2.0e-04 nats"
    assert f"compress 0.1.0 bfloat16 passed {told}" in rows
    assert "Verified: 1 of 2 checks passed; loads and answers" in out
    assert "vllm not installed to name the interpreter that has it: --vllm-python" in rows


def test_a_failure_is_exit_1_and_named(run, asked, tmp_path):
    fail(asked)
    code, out, err = run("verify", tmp_path)
    assert code == 1
    assert "other weights" in out
    assert "Verified" not in out
    assert f"{tmp_path}: not what it should be." in err
    assert err.endswith("weights: a: other weights   docs/errors.md#verify\n")
    assert err.count("docs/errors.md") == 1


def test_verify_as_json(run, asked, tmp_path):
    fail(asked)
    code, out, _ = run("verify", tmp_path, "--json", "--no-consumers", "--vllm-python", "python9")
    told = json.loads(out)
    assert (code, told["passed"], told["checks"][-1]["outcome"]) == (1, False, "failed")
    assert (tuple(asked["consumers"]), str(asked["pythons"].vllm)) == ((), "python9")


def test_verify_loads_in_every_consumer_unless_told_not_to(run, asked, tmp_path):
    run("verify", tmp_path)
    assert tuple(asked["consumers"]) == ("compress", "transformers", "vllm", "llama.cpp")


def test_verify_of_no_folder_is_a_wrong_request(run, tmp_path):
    code, out, err = run("verify", tmp_path / "none")
    assert (code, out) == (2, "")
    assert "no such folder" in err


def test_a_verification_without_engines_says_so():
    told = sentence(Verification("packed", (Check("layout", "passed"),)))
    assert told == "Verified: 1 of 1 checks passed; loaded in no engine."
