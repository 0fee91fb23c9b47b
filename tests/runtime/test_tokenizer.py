from __future__ import annotations

import json
import shutil
import threading

import pytest

from compress.errors import ArtifactError, RequestError
from compress.runtime.tokenizer import Tokenizer

MESSAGES = [{"role": "user", "content": "Grüße 👋"}]


@pytest.fixture
def folder(tiny_llama, tmp_path):
    """A copy of the tiny tokenizer, to be broken."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (tiny_llama / name).is_file():
            shutil.copy(tiny_llama / name, tmp_path / name)
    return tmp_path


def write_template(folder, template, **settings):
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    path = folder / "tokenizer_config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), **settings}
    path.write_text(json.dumps({**config, "chat_template": template}), encoding="utf-8")
    return Tokenizer.open(folder)


def test_ids_and_chats_equal_those_of_transformers(tiny_llama):
    from transformers import AutoTokenizer

    ours, theirs = Tokenizer.open(tiny_llama), AutoTokenizer.from_pretrained(tiny_llama)
    text = "naïve <|eos|> 日本"
    assert ours.encode(text) == theirs(text)["input_ids"]
    assert ours.decode(ours.encode(text)) == theirs.decode(
        theirs(text)["input_ids"], skip_special_tokens=True
    )
    expected = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert ours.has_chat
    assert ours.chat(MESSAGES) == expected


def test_a_template_gets_what_it_expects(folder):
    template = (
        "{{ bos_token }}{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}\n"
        "{% generation %}{{ m | tojson }}{% endgeneration %}{% endfor %}"
        "{{ strftime_now('%Y') | length }}{{ eos_token }}{{ add_generation_prompt }}"
    )
    tokenizer = write_template(folder, template, bos_token={"content": "<s>"})
    assert tokenizer.chat(MESSAGES * 2) == (
        '<s>{"role": "user", "content": "Grüße 👋"}4<|eos|>True'
    )


def test_of_several_templates_the_default_is_used(folder):
    entries = [{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}]
    assert write_template(folder, entries).chat(MESSAGES) == "D"


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('roles must alternate') }}", "{{ messages.append(1) }}"]
)
def test_a_refusing_template_is_a_request_error(folder, template):
    with pytest.raises(RequestError, match="chat template refuses"):
        write_template(folder, template).chat(MESSAGES)


@pytest.mark.parametrize("work", ["encode", "decode"])
def test_a_long_text_leaves_the_interpreter_to_other_threads(folder, work):
    tokenizer = Tokenizer.open(folder)
    text, ended = "the words of a text " * 20_000, threading.Event()
    given = text if work == "encode" else tokenizer.encode(text, special=False)

    def worked():
        getattr(tokenizer, work)(given)
        ended.set()

    thread, turns = threading.Thread(target=worked), 0
    thread.start()
    while not ended.wait(0.001):
        turns += 1
    thread.join()
    assert turns > 10


def test_long_and_short_texts_are_read_alike(folder):
    tokenizer, word = Tokenizer.open(folder), "Grüße 👋 "
    ids = tokenizer.encode(word, special=False)
    assert tokenizer.encode(word * 1000, special=False) == ids * 1000
    assert tokenizer.decode(ids * 1000) == word * 1000


def test_a_template_cannot_leave_its_sandbox(folder):
    escape = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(RequestError, match="unsafe"):
        write_template(folder, escape).chat(MESSAGES)


def test_without_a_template_messages_are_refused(folder):
    tokenizer = write_template(folder, None)
    assert not tokenizer.has_chat
    with pytest.raises(RequestError, match=r"no chat template\. Give the prompt as one plain text"):
        tokenizer.chat(MESSAGES)


def test_broken_files_are_named(folder):
    with pytest.raises(ArtifactError, match="its chat template cannot be read"):
        write_template(folder, "{% for %}")
    (folder / "tokenizer_config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"tokenizer_config\.json: holds a list"):
        Tokenizer.open(folder)
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: not a tokenizer"):
        Tokenizer.open(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match=r"holds no tokenizer\.json"):
        Tokenizer.open(folder)
