"""Templates run apart: the same words as transformers, within bounds, and again after a fall."""

from __future__ import annotations

import threading
import time

import pytest
from conftest import CHAT_TEMPLATE

from compress.apart import Apart
from compress.chat import render

MESSAGES = [
    {"role": "user", "content": "Grüße 👋\n"},
    {"role": "assistant", "content": "<b>&</b>", "tool_calls": None},
]
TEMPLATES = [
    CHAT_TEMPLATE,
    "{{ bos_token }}{% for m in messages -%} {{ m | tojson(indent=2) }}{% endfor %}",
    "{% set s = namespace(n=0) %}{% for m in messages %}{% set s.n = s.n + 1 %}{% endfor %}{{s.n}}",
    "{% if tools is defined %}{{ tools }}{% endif %}{{ documents is none }}",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "{{ messages[1].tool_calls is defined }} {{ dict(a=1)['a'] }} {{ eos_token | upper }}",
    "{% for m in messages %}\n  {{ m['content'].strip() | replace('&', '+') }}\n{% endfor %}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_words_equal_those_of_transformers(template, tiny_llama):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tiny_llama)
    for answering in (False, True):
        expected = theirs.apply_chat_template(
            MESSAGES, chat_template=template, tokenize=False, add_generation_prompt=answering
        )
        found = render.render(
            template, MESSAGES, answering=answering, special=theirs.special_tokens_map
        )
        assert found == expected


def rendered(template):
    return render.render(template, MESSAGES, answering=False, special={})


def test_after_a_template_that_had_to_be_ended_the_next_is_rendered(monkeypatch):
    monkeypatch.setattr(render, "MAX_SECONDS", 1)
    begun = time.monotonic()
    with pytest.raises(ValueError, match="did not end within 1 seconds"):
        rendered("{{ 10**(10**10) }}")
    assert time.monotonic() - begun < 3
    assert rendered("{{ messages | length }}") == "2"


def test_threads_get_their_own_answers():
    found = {}
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: rendered(f"{{{{ {n} }}}}")}))
        for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: str(n) for n in range(20)}


def test_a_namespace_takes_no_names_of_pythons_own():
    with pytest.raises(ValueError, match="is unsafe"):
        rendered("{% set ns = namespace(__class__=1) %}")


def test_checking_runs_nothing():
    begun = time.monotonic()
    render.check("{{ 10**(10**10) }}{{ 'x' * 10**12 }}")
    assert time.monotonic() - begun < 1
    with pytest.raises(ValueError, match="unknown tag"):
        render.check("{% evil %}")


def test_the_working_folder_is_no_place_to_import_from(tmp_path, monkeypatch):
    (tmp_path / "jinja2.py").write_text("raise SystemExit('ran')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(render, "_worker", Apart("compress.chat.worker"))
    assert rendered("ok") == "ok"
