def test_generate_streams_text_and_ends_the_line(run, tiny_llama):
    code, out, err = run("generate", tiny_llama, "Hello", "--max-new-tokens", "4", "--threads", "1")
    assert (code, err) == (0, "")
    assert out.endswith("\n")


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
        Engine, "generate", lambda self, prompt, **_: prompts.append(prompt) or iter(())
    )
    run("generate", tiny_llama, "Hi", "--raw")
    run("generate", tiny_llama, "Hi")
    assert prompts[1] == "Hi"
    assert isinstance(prompts[0], list)
    assert len(prompts[0]) == 2


def test_settings_out_of_range_are_a_wrong_request(run, tiny_llama):
    code, out, err = run("generate", tiny_llama, "Hi", "--top-p", "2", "--max-new-tokens", "4")
    assert (code, out) == (2, "")
    assert "top_p: 2.0 must be in (0, 1]" in err


def test_generate_from_nothing(run, tmp_path):
    code, _, err = run("generate", tmp_path / "nothing", "Hi")
    assert code == 2
    assert "config.json" in err
