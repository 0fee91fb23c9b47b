"""The benchmarks of serving: what they ask, what they make of what they hear, what they find."""

from __future__ import annotations

import json
import math
import sys

import pytest


def lines(*events):
    """Server-sent events, a second apart."""
    told = [(float(at), f"data: {json.dumps(event)}") for at, event in enumerate(events, 1)]
    return [part for at, line in told for part in ((at, line), (at, ""))] + [(9.0, "data: [DONE]")]


def part(text, reason=None, **more):
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
    return {"choices": [choice], **more}


def counted(tokens, **more):
    return {"usage": {"completion_tokens": tokens, "prompt_tokens": 5, **more}}


@pytest.fixture
def heard(bench):
    """`heard(times, counts, …)`: an answer that was asked for at 0."""
    return lambda times, counts, text="", **more: bench("clients").Heard(
        0.0, tuple(times), tuple(counts), text, **more
    )


def test_prompts_are_words_of_so_many_tokens_and_follow_from_the_seed(bench, tiny_llama):
    clients = bench("clients")
    prompts, count = clients.Prompts(tiny_llama), clients.Prompts(tiny_llama)._tokenizer
    for tokens in (1, 7, 40):
        drawn = prompts.draw(tokens, "a")
        assert drawn == prompts.draw(tokens, "a") != prompts.draw(tokens, "b")
        assert set(drawn.split(" ")) <= set(clients.words())
        longest = max(len(count.encode(word).ids) for word in drawn.split(" "))
        assert tokens <= len(count.encode(drawn).ids) < tokens + longest + 1
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json: missing"):
        clients.Prompts(tiny_llama / "nowhere")


def test_tokens_are_what_the_server_counts(bench):
    clients = bench("clients")
    ours = clients.heard(
        0.5,
        lines(
            part("one", **counted(1)),
            part(" two three", "length", **counted(3)),
            {"choices": [], **counted(3, prompt_tokens_details={"cached_tokens": 4})},
        ),
    )
    assert (ours.times, ours.counts, ours.text) == ((1.0, 2.0), (1, 3), "one two three")
    assert (ours.ttft, ours.gaps, ours.cached_tokens) == (0.5, [1.0], 4)
    assert [ours.count_at(at) for at in (0.9, 1.0, 1.9, 2.0, 5.0)] == [0, 1, 1, 3, 3]
    llamacpp = clients.heard(
        0.0,
        lines(part("a", timings={"predicted_n": 1}), part("b", "stop", timings={"predicted_n": 4})),
    )
    assert llamacpp.counts == (1, 4)
    assert clients.heard(0.0, lines(part("a"), part(""), part("b", "stop"))).times == (1.0, 3.0)


def test_a_whole_answer_is_heard_like_a_stream_of_one_event(bench):
    logprobs = {"tokens": ["a", "b"], "top_logprobs": [{"a": -0.1}, {"b": -0.2, "c": -0.3}]}
    told = {"choices": [{"text": "ab", "logprobs": logprobs, "finish_reason": "stop"}]}
    found = bench("clients").heard(0.0, [(1.0, json.dumps(told | counted(2)))])
    assert (found.text, found.tokens, found.counts) == ("ab", ("a", "b"), (2,))
    assert found.likeliest[1] == {"b": -0.2, "c": -0.3}


def test_an_answer_may_end_before_it_begins(bench):
    found = bench("clients").heard(0.0, lines(part("", "stop", **counted(0))))
    assert (found.count, found.times, found.text) == (0, (), "")


@pytest.mark.parametrize("events", [[], [{"error": {"message": "broken"}}], [part("a")]])
def test_an_answer_that_breaks_off_is_none(bench, events):
    clients = bench("clients")
    with pytest.raises(clients.AnswerError):
        clients.heard(0.0, lines(*events))


def test_percentiles_are_values_that_were_measured(bench):
    percentiles = bench("clients").percentiles
    assert percentiles([*range(100, 0, -1)]) == {"p50": 50, "p95": 95, "p99": 99}
    assert percentiles([7.0]) == {"p50": 7.0, "p95": 7.0, "p99": 7.0}
    assert percentiles([1.0, 2.0, 3.0]) == {"p50": 2.0, "p95": 3.0, "p99": 3.0}


def test_decode_is_of_the_time_in_which_all_get_tokens(bench, heard):
    clients = bench("clients")
    early = heard([1.0, 2.0, 3.0, 4.0], [1, 2, 3, 4])
    late = heard([2.0, 3.0, 4.0, 5.0], [1, 2, 3, 4])
    assert clients.together([early, late]) == 2.0  # two tokens of each in the two seconds from 2
    assert clients.overall([early, late]) == 8 / 5
    assert clients.together([early, heard([4.5, 5.0], [1, 4])]) is None
    found = clients.figures([[early, late], [early, heard([4.5, 5.0], [1, 4])]], 4)
    assert found["decode_tokens_per_second"] == 2.0
    assert found["itl_seconds"] == {"p50": 1.0, "p95": 1.0, "p99": 1.0}
    assert found["itl_p99_over_p50"] == 1.0
    with pytest.raises(clients.AnswerError, match="4 tokens; 5 were asked for"):
        clients.figures([[early]], 5)


def test_medians_are_taken_place_by_place(bench):
    median = bench("serving").median
    runs = [{"a": 1.0, "b": {"c": 5.0}}, {"a": 9.0, "b": {"c": None}}, {"a": 2.0, "b": {"c": 6.0}}]
    assert median(runs) == {"a": 2.0, "b": {"c": None}}


def test_a_page_of_serving_names_every_side_and_what_ours_is_worth(bench):
    serving = bench("serving")
    times = {"p50": 0.01, "p95": 0.02, "p99": 0.025}
    level = {
        "decode_tokens_per_second": 300.0, "overall_tokens_per_second": 200.0, "kept_share": 0.1,
        "ttft_seconds": times, "itl_seconds": times, "itl_p99_over_p50": 2.5,
        "client_cpu_share": 0.1,
    }  # fmt: skip
    prefix = {"cold_seconds": 0.2, "hit_seconds": 0.01, "ratio": 0.05, "hit_cached_tokens": 992}
    side = {"startup_seconds": 1.25, "resident_bytes": 2**28, "versions": {"torch": "2"}}
    slower = {**level, "decode_tokens_per_second": 150.0}
    sides = {
        "ours, a": {**side, "levels": {"1": level, "8": level}, "prefix": prefix},
        "vLLM, b": {
            **side, "levels": {"1": slower, "8": {**slower, "decode_tokens_per_second": None}},
        },
    }  # fmt: skip
    about = {name: name for name in ("date", "commit", "command", "hardware", "dtype")}
    page = serving.page(
        {**about, "threads": 2, "rounds": 3, "waves": 2, "prompt_tokens": 64, "tokens": 128,
         "sides": sides}
    )  # fmt: skip
    assert "| ours, a | 1 | 300.0 | 200.0 | 10% | 10.0 | 20.0 | 25.0 | 10.0 |" in page
    assert "| vLLM, b | 8 | – |" in page
    assert "- ours, a: 1.25 s from process start to first token, 256 MiB resident; torch 2." in page
    assert "0.050× (992 tokens cached)" in page
    assert "- Decode of ours, a over vLLM, b: 2.00× at 1, – at 8." in page


def test_serving_starts_every_server_that_is_named(bench, tmp_path, capsys, monkeypatch):
    serving, servers = bench("serving"), bench("servers")
    monkeypatch.setattr(servers, "versions", lambda python, packages: dict.fromkeys(packages, "1"))
    out = ["--out", str(tmp_path / "x.json"), "--clients", "1", "4", "--threads", "2"]
    words = [
        "--artifact",
        "a",
        "--vllm",
        "b",
        "--vllm-python",
        "v/bin/python",
        "--vllm-bind",
        "auto",
    ]
    words += ["--gguf", "c.gguf", "--llamacpp-python", "l/bin/python"]
    ours, vllm, llamacpp = serving.sides(serving.arguments([*words, *out]))
    assert ours.command[:5] == [sys.executable, "-m", "compress", "serve", str(ours.command[4])]
    assert vllm.env["VLLM_CPU_OMP_THREADS_BIND"] == "auto"
    assert llamacpp.command[-2:] == ["--ctx-size", str(4 * (64 + 128 + serving.CONTEXT_BESIDE))]
    for server in (ours, vllm, llamacpp):
        assert server.command.count(servers.PORT) == 1
        assert server.fields["ignore_eos"] is True
    for missing in ([], ["--vllm", "b"], ["--gguf", "c"], [*words[-4:-2], *words[-2:]]):
        with pytest.raises(SystemExit):
            serving.arguments([*missing, *out])
    assert "nothing to measure" in capsys.readouterr().err


def test_a_server_that_ends_is_told_and_leaves_nothing(bench, tmp_path):
    servers = bench("servers")
    broken = servers.Server("x", [sys.executable, "-c", "raise SystemExit(3)", servers.PORT], {})
    with (
        pytest.raises(servers.ServerError, match="x: ended with 3"),
        servers.started(broken, tmp_path / "log") as running,
    ):
        running.wait(30)
    assert running.process.returncode == 3


def test_answers_part_by_how_much_less_likely_the_other_token_was(bench, heard):
    soak = bench("deeds")
    likeliest = ({"a": -0.1, "c": -2.1}, {"b": -0.3, "c": -0.4})
    alone = heard([1.0], [2], "ab", tokens=("a", "b"), likeliest=likeliest)
    other = lambda text, *tokens: heard([1.0], [2], text, tokens=tokens)  # noqa: E731
    assert soak.parting(alone, other("ab", "a", "b")) is None
    assert soak.parting(alone, other("ac", "a", "c")) == pytest.approx(0.1)
    assert soak.parting(alone, other("cb", "c", "b")) == pytest.approx(2.0)
    assert soak.parting(alone, other("ax", "a", "x")) == math.inf
    assert soak.parting(alone, other("a", "a")) == math.inf
    drawn = heard([1.0], [1], "z", tokens=("z",), likeliest=likeliest[:1])
    assert soak.parting(drawn, other("a", "a")) == math.inf, "a seed drew what was not likely"

    seen = soak.Seen()
    greedy, seeded = (soak.Known({"temperature": at}, alone) for at in (0, 0.8))
    for known, text, tokens in (
        (greedy, "ab", "ab"), (greedy, "ac", "ac"), (greedy, "cb", "cb"), (seeded, "ac", "ac"),
    ):  # fmt: skip
        seen.compare(known, other(text, *tokens), tie=0.5)
    assert (seen.compared, len(seen.parted), len(seen.wrong)) == (4, 1, 2)
    assert [one.body["temperature"] for one in soak.comparable([greedy, seeded], "bfloat16")] == [0]
    assert len(soak.comparable([greedy, seeded], "float32")) == 2


def test_memory_is_compared_by_its_first_and_last_minute(bench):
    growth = bench("soak").growth
    assert growth([100] * 60 + [500] * 480 + [101] * 60)["growth"] == pytest.approx(0.01)
    assert growth([100, 7, 7, 110]) == {
        "first_bytes": 100, "last_bytes": 110, "growth": pytest.approx(0.1),
    }  # fmt: skip
    assert growth([100])["growth"] == 0


def test_a_soak_names_what_it_found(bench):
    soak = bench("soak")
    clean = {
        **{name: name for name in ("date", "commit", "command", "hardware", "dtype", "artifact")},
        "threads": 2, "clients": 16, "seconds": 600.0, "requests": 5000, "deeds": {"known": 5000},
        "tokens": 10**6, "compared": 4000, "wrong": [], "parted": 2, "parted_nats": 0.04,
        "errors": [], "left_requests": 0, "leaked_pages": 0, "first_bytes": 2**30,
        "last_bytes": 2**30, "growth": 0.0, "queried_tokens": 10.0, "cached_tokens": 5.0,
    }  # fmt: skip
    assert soak.faults(clean) == []
    page = soak.page(clean)
    assert "nothing wrong" in page
    assert "| 10.0 | 16 | 5,000 | 1,000,000 | 4,000 | 0 | 2 (≤ 0.04 nats) | 50% | 0 | 0 |" in page
    worse = {**clean, "wrong": ["x"], "errors": ["y"], "leaked_pages": 3, "growth": 0.05}
    assert soak.faults(worse) == [
        "1 wrong answers", "1 errors", "3 leaked pages", "memory grew by 5.0%",
    ]  # fmt: skip


def test_requests_of_a_soak_follow_from_the_seed(bench, tiny_llama, tmp_path):
    clients, deeds, soak = (bench(name) for name in ("clients", "deeds", "soak"))
    given = soak.arguments(["--artifact", "a", "--out", str(tmp_path / "x"), "--tokens", "9"])
    assert given.tie == soak.TIES["float32"]
    prompts = clients.Prompts(tiny_llama)
    one, same, other = (deeds.Asker(prompts, given, name) for name in ("1", "1", "2"))
    drawn = [one.body(seeded=True) for _ in range(20)]
    assert drawn == [same.body(seeded=True) for _ in range(20)]
    assert drawn != [other.body(seeded=True) for _ in range(20)]
    assert {body["max_tokens"] for body in drawn} <= set(range(1, 10))
    assert one.body(seeded=False)["temperature"] == 0


@pytest.mark.slow
def test_a_short_soak_of_a_tiny_model_finds_nothing(bench, tiny_llama, tmp_path, capsys):
    words = ["--artifact", str(tiny_llama), "--minutes", "0.05", "--clients", "8", "--known", "4"]
    words += ["--prompt-tokens", "48", "--tokens", "12", "--threads", "1", "--no-fill"]
    bench("soak").main([*words, "--out", str(tmp_path / "soak.json")])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["compared"] >= 4
    faults = bench("soak").faults({**found, "growth": 0})  # three seconds tell nothing of memory
    assert faults == [], found


@pytest.mark.slow
def test_our_server_is_measured_as_peers_are(bench, tiny_llama, tmp_path, capsys):
    serving = bench("serving")
    serving.PREFIX_TOKENS = 64
    words = ["--artifact", str(tiny_llama), "--clients", "1", "2", "--rounds", "1", "--waves", "1"]
    words += ["--prompt-tokens", "8", "--tokens", "6", "--prefixes", "1", "--threads", "1"]
    assert serving.main([*words, "--out", str(tmp_path / "serving.json")]) == 0
    side = json.loads((tmp_path / "serving.json").read_text())["sides"][f"ours, {tiny_llama.name}"]
    assert side["prefix"]["hit_cached_tokens"] > side["prefix"]["cold_cached_tokens"] == 0
    assert "| 2 |" in capsys.readouterr().out
