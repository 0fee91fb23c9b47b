"""What a finished artifact is timed by."""

import pytest

from compress.errors import EvaluationError
from compress.evaluate import speed


def test_a_prompt_is_read_whole_and_every_token_computed(tiny_llama):
    found = speed.timings(tiny_llama)
    assert (found.prompt_tokens, found.cached_tokens) == (128, 0)
    assert found.new_tokens == 64


def test_of_several_answers_none_finds_what_another_left(tiny_llama):
    found = list(speed._answered(tiny_llama, 1, answers=speed.ANSWERS))
    assert [one.cached_tokens for one in found] == [0] * 5
    assert {one.new_tokens for one in found} == {64}


@pytest.mark.slow
def test_the_memory_of_answering_is_that_of_a_process_that_does_nothing_else(tiny_llama):
    held = bytearray(b"x" * 1024**3)  # here, and so not there
    found = speed.timed_alone(tiny_llama, threads=1)
    assert len(held) > found.memory_bytes > 50 * 1024**2  # Python and torch, too
    assert min(found.decode_tokens_per_second, found.ttft_seconds) > 0
    assert (found.threads, found.answers, "torch" in found.versions) == (1, 5, True)


@pytest.mark.slow
def test_a_folder_that_is_not_run_says_why(tmp_path):
    with pytest.raises(EvaluationError, match="cannot be read"):
        speed.timed_alone(tmp_path, threads=1)
