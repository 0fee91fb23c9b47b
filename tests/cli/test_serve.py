import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import httpx2
import pytest

from compress.artifact import manifest
from compress.cli import serve
from compress.machine import computing_with
from compress.runtime.engine import Engine
from compress.runtime.request import Sampling


def test_generate_streams_text_and_ends_the_line(run, tiny_llama):
    code, out, err = run("generate", tiny_llama, "Hello", "--max-new-tokens", "4", "--threads", "1")
    assert (code, err) == (0, "")
    assert out.endswith("\n")


def test_generate_as_json(run, tiny_llama):
    code, out, err = run("generate", tiny_llama, "Hello", "--max-new-tokens", "4", "--json")
    found = json.loads(out)
    assert (code, err, found["new_tokens"]) == (0, "", 4)
    assert found["finish_reason"] == "length"
    assert found["decode_tokens_per_second"] > 0


def test_generate_is_repeatable_with_a_seed(run, tiny_llama):
    sampled = (
        "--max-new-tokens",
        "8",
        "--temperature",
        "1.5",
        "--top-k",
        "50",
        "--top-p",
        "0.95",
        "--seed",
        "3",
    )
    first = run("generate", tiny_llama, "Hello", *sampled)
    assert first == run("generate", tiny_llama, "Hello", *sampled)


def test_raw_leaves_the_chat_template_out(run, tiny_llama, monkeypatch):
    from compress.runtime.engine import Engine

    prompts = []
    monkeypatch.setattr(
        Engine, "answer", lambda self, request: prompts.append(request.prompt) or iter(())
    )
    run("generate", tiny_llama, "Hi", "--raw")
    run("generate", tiny_llama, "Hi")
    assert len(prompts[0]) == 2
    assert len(prompts[1]) > 2


def test_settings_out_of_range_are_a_wrong_request(run, tiny_llama):
    code, out, err = run("generate", tiny_llama, "Hi", "--top-p", "2", "--max-new-tokens", "4")
    assert (code, out) == (2, "")
    assert "top_p: 2.0 must be in (0, 1]" in err


def test_generate_asks_as_the_server_does(run, tiny_llama, tmp_path, monkeypatch):
    from compress.runtime.engine import Engine

    asked, schema = [], tmp_path / "schema.json"
    monkeypatch.setattr(Engine, "answer", lambda self, request: asked.append(request) or iter(()))
    schema.write_text('{"type": "object"}')
    code, *_ = run(
        "generate", tiny_llama, "Hi", "--temperature", "0.5", "--min-p", "0.1", "--stop", "a",
        "--stop", "b", "--repetition-penalty", "1.1", "--presence-penalty", "1",
        "--frequency-penalty", "-1", "--logit-bias", "3=-2.5", "--seed", "7",
        "--json-schema", schema,
    )  # fmt: skip
    assert code == 0
    assert asked[0].sampling == Sampling(
        0.5, min_p=0.1, repetition_penalty=1.1, seed=7, presence_penalty=1.0,
        frequency_penalty=-1.0, logit_bias={3: -2.5},
    )  # fmt: skip
    assert (asked[0].stop, asked[0].grammar) == (("a", "b"), '{"type": "object"}')


def test_a_bias_that_is_none_is_a_wrong_request(run, tiny_llama):
    code, _, err = run("generate", tiny_llama, "Hi", "--logit-bias", "x")
    assert code == 2
    assert "--logit-bias: 'x' is not the number of a token" in err


def test_generate_from_nothing(run, tmp_path):
    code, _, err = run("generate", tmp_path / "nothing", "Hi")
    assert code == 2
    assert "config.json" in err


def served(folder, *options, **environment):
    """`compress serve` in a process of its own, with the address that it told."""
    command = [sys.executable, "-m", "compress", "serve", folder, "--port", "0", "--threads", "1"]
    process = subprocess.Popen(
        [*command, *options],
        stderr=subprocess.PIPE, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    line = process.stderr.readline()
    assert "Serving" in line, line + process.stderr.read()
    return process, next(word for word in line.split() if word.startswith("http://"))


def test_serve_answers_over_http_and_ends_when_told(tiny_llama, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("# mine\nsecret-1\n\n")
    process, url = served(tiny_llama, "--api-key-file", keys, "--name", "small")
    with process, httpx2.Client(base_url=url, verify=False, timeout=20) as http:
        assert http.get("/v1/models").status_code == 401
        headers = {"Authorization": "Bearer secret-1"}
        body = {"prompt": "Hello", "max_tokens": 100, "model": "small", "ignore_eos": True}
        started = time.monotonic()
        with http.stream(
            "POST", "/v1/completions", json={**body, "stream": True}, headers=headers
        ) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            assert list(lines)[-2:] == ["data: [DONE]", ""]
        assert process.wait(timeout=20) == 0
        assert time.monotonic() - started < 20
        assert "Traceback" not in process.stderr.read()


def test_an_artifact_that_cannot_be_served_is_a_wrong_request(run, tmp_path):
    code, _, err = run("serve", tmp_path, "--port", "0")
    assert code == 2
    assert "config.json" in err
    assert "Traceback" not in err


def test_an_artifact_that_its_manifest_does_not_know_is_not_served(run, tiny_llama, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    manifest.write_manifest(folder, {})
    (folder / "beside.txt").write_text("let be")
    manifest.refuse_changed(folder)
    with (folder / "config.json").open("a") as config:
        config.write(" ")
    code, _, err = run("serve", folder, "--port", "0")
    assert code == 2
    assert "file config.json: changed" in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--port", "99999"], "65535"),
        (["--host", "192.0.2.1"], "cannot be listened on"),
        (["--api-key-file", "missing"], "--api-key-file: missing cannot be read"),
        (["--api-key-file", "empty"], "holds no key"),
        (["--api-key-file", "odd"], "not ASCII"),
        (["--name", "teacher", "--teacher", "x"], "the name of --teacher"),
        (["--kv-cache", "int4"], "'auto', 'int8'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_of_serve_that_cannot_be(run, tmp_path, options, words):
    (tmp_path / "empty").write_text("# none\n")
    (tmp_path / "odd").write_text("ke y\n")
    code, out, err = run("serve", tmp_path, "--port", "0", *options)
    assert (code, out) == (2, "")
    assert words in err


def test_a_taken_port(run, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = run("serve", tmp_path, "--port", taken.getsockname()[1])
    assert code == 2
    assert "Address already in use" in err


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux has it")
def test_the_system_closes_a_connection_whose_other_side_does_not_read(monkeypatch):
    monkeypatch.setattr(serve, "UNREAD_SECONDS", 0.3)
    with serve._listen("127.0.0.1", 0) as listening:
        silent = socket.create_connection(listening.getsockname())
        taken, _ = listening.accept()
        taken.settimeout(10)
        with silent, taken, pytest.raises(TimeoutError, match=r"\[Errno"):  # not Python's own
            taken.sendall(bytes(2**26))


def test_both_models_are_served_on_as_many_threads(tiny_llama, run, monkeypatch):
    """Torch's number is that of the moment: an engine at work turns it down."""
    told = []
    monkeypatch.setattr(Engine, "open", lambda *_, threads, **__: told.append(threads))
    monkeypatch.setattr(serve, "_run", lambda server, listening, loops: open_all(loops))

    def open_all(loops):
        for each in loops.values():
            with computing_with(1), contextlib.suppress(AttributeError):  # there is no engine
                each._opener()

    with computing_with(3):
        code, _, err = run("serve", tiny_llama, "--teacher", tiny_llama, "--port", 0)
    assert (code, told) == (0, [3, 3]), err


def test_bench_times_an_artifact(run, tiny_llama):
    sizes = ["--prompt-tokens", 64, "--context-tokens", 32, "--new-tokens", 8, "--runs", 1]
    code, out, err = run("bench", tiny_llama, *sizes, "--batch", 2, "--json", "--threads", "1")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["batch"], found["prompt_tokens"], found["new_tokens"]) == (2, 64, 8)
    assert found["decode_tokens_per_second"] > 0
    assert found["prefill_tokens_per_second"] > 0
    assert found["startup_seconds"] > 0
    assert 0 < found["itl_seconds"]["p50"] <= found["itl_seconds"]["p99"]
    assert found["roof_share"] == pytest.approx(
        found["bytes_per_second"] / found["roof_bytes_per_second"]
    )
    code, out, _ = run("bench", tiny_llama, *sizes, "--threads", "1")
    assert code == 0
    for words in ("decode", "prefill", "first token", "P99", "of the roof", "process start"):
        assert words in out
