from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import imported_by

from compress.artifact.write import companions, write
from compress.errors import ArtifactError, ModelError, RequestError
from compress.runtime.batch import alone
from compress.runtime.engine import NO_CHAT, Engine, collect
from compress.runtime.model import Model

IDS = [72, 101, 108, 108, 111]
TRAINED = os.environ.get("COMPRESS_TEST_MODEL")  # a folder of a trained model, such as stories260K


@pytest.fixture(scope="module")
def engine(tiny_llama):
    return Engine.open(tiny_llama, dtype="float32")


@pytest.fixture
def folder(tiny_llama, tmp_path):
    """A copy to be changed."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "copy"))


def change(folder, name, **values):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}), encoding="utf-8")


def generated(folder, ids, count):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    given = torch.tensor([ids])
    found = model.generate(given, max_new_tokens=count, do_sample=False)
    return found[0, len(ids) :].tolist()


def test_an_answer_streams_what_transformers_generates(engine, tiny_llama):
    expected = generated(tiny_llama, IDS, 40)
    pieces = list(engine.generate(IDS, max_new_tokens=40))
    assert "".join(piece.text for piece in pieces) == engine.tokenizer.decode(expected)
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    ended = expected[-1] == 258
    assert pieces[-1].finish_reason == ("stop" if ended else "length")


def test_timings_come_with_the_last_piece(engine):
    last = list(engine.generate(IDS, max_new_tokens=5, temperature=1.0, seed=0))[-1]
    assert last.timings is not None
    assert (last.timings.prompt_tokens, last.timings.new_tokens) == (5, 5)
    assert last.timings.prefill_tokens_per_second == pytest.approx(5 / last.timings.ttft_seconds)
    assert last.timings.decode_tokens_per_second > 0
    one = collect(engine.generate(IDS, max_new_tokens=1)).timings
    assert one is not None
    assert one.decode_tokens_per_second is None


def test_a_seed_repeats_an_answer(engine):
    def answer(seed):
        pieces = engine.generate(IDS, max_new_tokens=20, temperature=2.0, seed=seed)
        return collect(pieces).text

    assert answer(7) == answer(7)
    assert answer(7) != answer(8)


def test_top_k_of_one_is_greedy(engine):
    greedy = collect(engine.generate(IDS, max_new_tokens=20)).text
    drawn = collect(engine.generate(IDS, max_new_tokens=20, temperature=1.0, top_k=1)).text
    assert drawn == greedy


def test_a_stop_string_ends_the_answer(engine):
    whole = collect(engine.generate(IDS, max_new_tokens=30, temperature=1.5, seed=3)).text
    stop = whole[10:13]
    cut = collect(engine.generate(IDS, max_new_tokens=30, temperature=1.5, seed=3, stop=[stop]))
    assert cut.text == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"


def test_end_tokens_are_those_of_the_generation_config(folder):
    first, second = generated(folder, IDS, 2)
    change(folder, "generation_config.json", eos_token_id=[first, 9999])
    last = collect(Engine.open(folder, dtype="float32").generate(IDS))
    assert (last.text, last.finish_reason) == ("", "stop")
    (folder / "generation_config.json").unlink()
    change(folder, "config.json", eos_token_id=second)
    last = collect(Engine.open(folder, dtype="float32").generate(IDS))
    assert last.finish_reason == "stop"
    assert last.timings is not None
    assert last.timings.new_tokens == 2


def test_a_text_is_a_user_message_where_there_is_a_template(engine):
    messages = [{"role": "user", "content": "Hi"}]
    assert engine.encode("Hi") == engine.encode(messages) == [259, 39, 72, 258, 260]
    assert engine.describe().notes == ()


def test_without_a_template_a_text_is_continued_and_the_engine_says_so(folder):
    (folder / "chat_template.jinja").unlink()
    engine = Engine.open(folder)
    assert engine.encode("Hi") == [39, 72]
    assert engine.describe().notes == (NO_CHAT,)
    with pytest.raises(RequestError, match="no chat template"):
        engine.encode([{"role": "user", "content": "Hi"}])


def test_a_full_context_ends_an_answer(folder):
    change(folder, "config.json", max_position_embeddings=16)
    change(folder, "config.json", eos_token_id=None)
    change(folder, "generation_config.json", eos_token_id=None)
    last = collect(Engine.open(folder, dtype="float32").generate(IDS, max_new_tokens=100))
    assert last.finish_reason == "length"
    assert last.timings is not None
    assert last.timings.new_tokens == 12  # the twelfth is never read


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        ([], {}, "prompt: empty"),
        ([1] * 257, {}, r"prompt: 257 tokens, at most 256 are read here .*Shorten it"),
        ([1, 400], {}, r"token ids from 1 to 400; the vocabulary is 0 to 319"),
        ([1, "a"], {}, "not a mixture"),
        ([1], {"max_new_tokens": 0}, "max_new_tokens: 0 must be 1 or more"),
        ([1], {"temperature": -1.0}, "temperature: -1.0 must be 0 or more"),
        ([1], {"stop": "END"}, r"stop: 'END' must be a list of texts"),
        ([1], {"stop": [""]}, "must hold no empty text"),
    ],
)
def test_a_wrong_request_is_refused_before_the_first_piece(engine, prompt, settings, message):
    with pytest.raises(RequestError, match=message):
        engine.generate(prompt, **settings)


def test_a_wrong_opening_is_refused(tiny_llama, tiny_model, tmp_path):
    with pytest.raises(RequestError, match="dtype: 'int4' is not run here"):
        Engine.open(tiny_llama, dtype="int4")
    with pytest.raises(RequestError, match="threads: 0 must be 1 or more"):
        Engine.open(tiny_llama, threads=0)
    with pytest.raises(ArtifactError, match="cannot be read"):
        Engine.open(tmp_path)
    with pytest.raises(ModelError, match="do_layer_norm_before False is not run here"):
        Engine.open(tiny_model("opt", do_layer_norm_before=False))


def test_threads_are_set_only_when_given(tiny_llama):
    before = torch.get_num_threads()
    Engine.open(tiny_llama)
    assert torch.get_num_threads() == before
    try:
        assert Engine.open(tiny_llama, threads=before + 1).describe().threads == before + 1
    finally:
        torch.set_num_threads(before)


def test_opening_and_generating_imports_no_transformers(tiny_llama):
    program = (
        "import sys; from compress.runtime.engine import Engine, collect\n"
        "collect(Engine.open(sys.argv[1]).generate('Hi', max_new_tokens=2))"
    )
    assert "transformers" not in imported_by(program, tiny_llama)


@pytest.mark.skipif(TRAINED is None, reason="COMPRESS_TEST_MODEL names no trained model")
def test_a_trained_model_tells_the_story_that_transformers_tells():
    folder = Path(str(TRAINED))
    engine = Engine.open(folder, dtype="float32")
    prompt = engine.tokenizer.encode("Once upon a time")
    expected = engine.tokenizer.decode([*prompt, *generated(folder, prompt, 60)])
    told = collect(engine.generate(prompt, max_new_tokens=60)).text
    assert engine.tokenizer.decode(prompt) + told == expected


@pytest.mark.parametrize("form", ["packed", "compressed-tensors"])
def test_both_formats_answer_as_the_codes_in_memory_do(tiny_tied, memory, tmp_path, form):
    stored = memory(tiny_tied, bits=4, group_size=32)
    plain = [
        (n, t) for n, t in stored.tensors.items() if n.removesuffix(".weight") not in stored.codes
    ]
    write(
        tmp_path / "out", [*plain, *stored.codes.items()], anatomy=stored.anatomy,
        config=stored.config, tokenizer_files=companions(tiny_tied), format=form,
    )  # fmt: skip
    for dtype, path in (("float32", "expanded"), ("bfloat16", "packed")):
        engine = Engine.open(tmp_path / "out", dtype=dtype)
        assert engine.describe().paths["model.layers.0.mlp.down_proj"] == path
        assert engine.describe().format == form
        models = engine.model, Model(stored, engine.model.dtype)
        ours, expected = (m.logits(m.forward(alone(IDS), m.pages(len(IDS)))) for m in models)
        torch.testing.assert_close(ours, expected)
