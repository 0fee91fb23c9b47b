"""The real engine behind the server: the same text as alone, and nothing left behind."""

import concurrent.futures
import json
import random

import httpx2
import openai
import pytest

from compress.runtime.engine import Engine, collect
from compress.runtime.request import Request, Sampling

PROMPTS = ["Hello", "The quick brown fox", "a", "Once upon a time there was"]


@pytest.fixture(scope="module")
def engine(tiny_llama):
    return Engine.open(tiny_llama, dtype="float32", threads=1, max_running=4)


@pytest.fixture(scope="module")
def alone(tiny_llama):
    return Engine.open(tiny_llama, dtype="float32", threads=1)


@pytest.fixture(scope="module")
def served(engine, serving):
    with serving(engine, max_queued=64) as served:
        yield served


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_text_is_that_of_the_engine_alone(client, alone):
    answer = client.completions.create(
        model="tiny", prompt=PROMPTS, max_tokens=20, temperature=0, n=2
    )
    for place, prompt in enumerate(PROMPTS):
        ids = alone.tokenizer.encode(prompt)
        expected = collect(alone.generate(ids, max_new_tokens=20)).text
        assert [one.text for one in answer.choices[2 * place : 2 * place + 2]] == [expected] * 2


def test_a_seed_gives_the_same_text_whatever_else_is_asked(client, alone):
    def ask(seed):
        answer = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "Hi"}], max_tokens=12, seed=seed,
            temperature=2, logit_bias={"5": -100}, presence_penalty=0.5, n=2,
        )  # fmt: skip
        return [one.message.content for one in answer.choices]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(ask, [1, 2, 3, 1, 2, 3]))
    assert together[:3] == together[3:]
    assert ask(1) == together[0]
    assert together[0][1] == together[1][0]  # seeds of one request's answers follow each other


def test_the_stream_is_the_whole_in_parts(client, engine):
    asked = {"model": "tiny", "prompt": "Hello", "max_tokens": 30, "temperature": 0, "logprobs": 2}
    whole = client.completions.create(**asked)
    parts = list(client.completions.create(**asked, stream=True))
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text
    told = [value for part in parts for value in part.choices[0].logprobs.token_logprobs]
    assert told == pytest.approx(whole.choices[0].logprobs.token_logprobs, abs=1e-4)
    assert len(told) == whole.usage.completion_tokens


def test_a_stop_text_ends_the_answer_and_is_left_out(client):
    asked = {"model": "tiny", "prompt": "Hello", "max_tokens": 30, "temperature": 0}
    text = client.completions.create(**asked).choices[0].text
    stop = text[len(text) // 2 :][:3]
    answer = client.completions.create(**asked, stop=[stop]).choices[0]
    assert (answer.text, answer.finish_reason) == (text[: text.index(stop)], "stop")
    parts = list(client.completions.create(**asked, stop=stop, stream=True))
    assert "".join(part.choices[0].text for part in parts) == answer.text


def test_a_prefix_is_found_again(client):
    prompt = "x" * 100
    first, again = (
        client.completions.create(model="tiny", prompt=prompt, max_tokens=2).usage for _ in range(2)
    )
    assert again.prompt_tokens_details.cached_tokens >= 64
    other = client.completions.create(
        model="tiny", prompt=prompt, max_tokens=2, extra_body={"cache_salt": "mine"}
    )
    assert other.usage.prompt_tokens_details.cached_tokens == 0
    assert first.prompt_tokens == again.prompt_tokens


def test_an_answer_follows_a_schema(client):
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    answer = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "Hi"}], seed=0,
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
    )  # fmt: skip
    assert json.loads(answer.choices[0].message.content)["a"] in (1, 2)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "Hi"}],
            response_format={
                "type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "nothing"}},
            },
        )  # fmt: skip


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"prompt": "a" * 400}, "256"),
        ({"prompt": [5, 100_000]}, "vocabulary"),
        ({"prompt": "a", "logit_bias": {"99999": 1}}, "logit_bias"),
    ],
    ids=["long", "token", "bias"],
)
def test_what_only_the_engine_can_refuse(served, body, words):
    with served.http() as http:
        answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_nothing_is_left_of_clients_that_come_and_go(served, engine, alone):
    chance = random.Random(0)
    expected = {seed: collect_request(alone, seed) for seed in range(6)}

    def ask(turn):
        seed, leaves, stream = turn % 6, chance.random() < 0.4, chance.random() < 0.5
        body = {"prompt": PROMPTS[seed % 4], "max_tokens": 24, "temperature": 1.5, "seed": seed,
                "stream": stream, "ignore_eos": True}  # fmt: skip
        with served.http() as http:
            if leaves:
                try:
                    http.post("/v1/completions", json=body, timeout=chance.uniform(0.001, 0.05))
                except httpx2.TimeoutException:
                    return None
            answer = http.post("/v1/completions", json={**body, "stream": False})
            return seed, answer.json()["choices"][0]["text"]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = [one for one in pool.map(ask, range(60)) if one]
    assert len(found) > 20
    assert all(text == expected[seed] for seed, text in found)
    served.until(lambda: engine.idle)
    assert engine.status().used_pages == 0
    assert served.loop._open == 0
    assert not served.loop._answers


def collect_request(engine, seed):
    """The answer of an engine that nobody else asks."""
    prompt = tuple(engine.tokenizer.encode(PROMPTS[seed % 4]))
    sampling = Sampling(temperature=1.5, seed=seed)
    engine.submit(Request(prompt, sampling, max_new_tokens=24, ignore_eos=True))
    pieces = []
    while not engine.idle:
        pieces += engine.step()
    return "".join(piece.text for _, piece in pieces)
