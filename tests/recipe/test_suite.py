from __future__ import annotations

import pytest

from compress import library
from compress.errors import RecipeError
from compress.recipe.suite import load_suite

TEXT = "{set: ./held.txt, seq_len: 64, windows: 2}"


@pytest.mark.parametrize("name", library.names("eval"))
def test_every_shipped_suite_loads(name):
    suite = load_suite(name)
    assert suite.tasks or name == "short"
    assert suite.description


def test_texts_lie_beside_the_suite_that_names_them(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"version: 1\nperplexity: {TEXT}\ndivergence: {TEXT}\n")
    assert load_suite(str(path)).perplexity.set == str(tmp_path / "held.txt")


def test_all_mistakes_in_a_suite_are_named_with_their_lines(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"version: 1\nperplexity: {TEXT}\ndivergense: {TEXT}\ntasks: cloze\n")
    with pytest.raises(RecipeError) as caught:
        load_suite(str(path))
    assert caught.value.mistakes == (
        f"{path}:3  divergense: unknown field. Did you mean divergence?",
        f'{path}:4  tasks: "cloze" is not a list. Put it in brackets: [ … ].',
    )


def test_an_empty_prompt_is_a_mistake(tmp_path):
    path = tmp_path / "mine.yaml"
    samples = 'samples: {prompts: ["Once", ""], max_new_tokens: 8}'
    path.write_text(f"version: 1\nperplexity: {TEXT}\ndivergence: {TEXT}\n{samples}\n")
    with pytest.raises(RecipeError) as caught:
        load_suite(str(path))
    [mistake] = caught.value.mistakes
    assert mistake == f'{path}:4  samples.prompts[1]: "" is empty. Write text.'


def test_an_unknown_suite_is_told_with_the_nearest():
    with pytest.raises(RecipeError, match=r"evaluate\.suite: 'quik': no .* Did you mean quick\?"):
        load_suite("quik")
