"""What a finished artifact is timed by."""

from compress.evaluate import speed


def test_a_prompt_is_read_whole_and_every_token_computed(tiny_llama):
    found = speed.timings(tiny_llama)
    assert (found.prompt_tokens, found.cached_tokens) == (128, 0)
    assert found.new_tokens == 64
