"""The official client against a real server."""

import openai
import pytest

CHAT = [{"role": "user", "content": "Hi"}]
TEXT = "Hello there, this is a script."


@pytest.fixture(scope="module")
def client(scripted):
    client = openai.OpenAI(base_url=f"{scripted.url}/v1", api_key="none", max_retries=0)
    with client:
        yield client


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_a_chat_whole(client):
    answer = client.chat.completions.create(model="tiny", messages=CHAT)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", TEXT)
    assert (choice.finish_reason, choice.logprobs) == ("stop", None)
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (5, len(TEXT))
    assert usage.total_tokens == 5 + len(TEXT)
    assert usage.prompt_tokens_details.cached_tokens == 1
    assert answer.id.startswith("chatcmpl-")


def test_a_chat_as_it_comes(client):
    options = {"include_usage": True}
    events = list(
        client.chat.completions.create(
            model="tiny", messages=CHAT, stream=True, stream_options=options
        )
    )
    *parts, last = events
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(part.choices[0].delta.content or "" for part in parts) == TEXT
    assert [part.choices[0].finish_reason for part in parts[-2:]] == [None, "stop"]
    assert all(part.usage is None for part in parts)
    assert (last.choices, last.usage.completion_tokens) == ([], len(TEXT))
    assert len({event.id for event in events}) == 1


def test_usage_is_told_only_when_asked_for(client, scripted):
    parts = list(client.chat.completions.create(model="tiny", messages=CHAT, stream=True))
    assert parts[-1].choices[0].finish_reason == "stop"
    with scripted.http() as http:
        raw = http.post("/v1/completions", json={"prompt": "a", "stream": True}).text
    assert "usage" not in raw
    assert raw.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("prompt", ["abcd", ["abcd", "ab"]])
def test_usage_of_a_stream_is_that_of_the_whole_answer(client, prompt):
    asked = {"model": "tiny", "prompt": prompt, "n": 2, "max_tokens": 3}
    whole = client.completions.create(**asked)
    *_, last = client.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    assert last.usage == whole.usage


def test_usage_in_every_part(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    parts = list(
        client.completions.create(
            model="tiny", prompt="ab", stream=True, stream_options=options, max_tokens=3
        )
    )
    assert [part.usage.completion_tokens for part in parts] == [1, 2, 3, 3]


def test_several_answers_whole_and_as_they_come(client):
    answer = client.completions.create(model="tiny", prompt=["ab", "abc"], n=2, max_tokens=5)
    assert [(one.index, one.text) for one in answer.choices] == [(i, "Hello") for i in range(4)]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3 + 4, 20)
    assert answer.choices[0].finish_reason == "length"

    texts = ["", ""]
    for part in client.chat.completions.create(
        model="tiny", messages=CHAT, n=2, stream=True, max_completion_tokens=5
    ):
        texts[part.choices[0].index] += part.choices[0].delta.content or ""
    assert texts == ["Hello", "Hello"]


def test_a_prompt_of_tokens(client):
    answer = client.completions.create(model="tiny", prompt=[97, 98], max_tokens=2)
    assert (answer.choices[0].text, answer.usage.prompt_tokens) == ("He", 2)


def test_logprobs_of_a_chat(client):
    answer = client.chat.completions.create(
        model="tiny", messages=CHAT, logprobs=True, top_logprobs=2, max_tokens=3
    )
    told = answer.choices[0].logprobs.content
    assert [(one.token, one.logprob, one.bytes) for one in told] == [
        (letter, -0.5, [ord(letter)]) for letter in "Hel"
    ]
    assert [(one.token, one.logprob) for one in told[0].top_logprobs] == [("a", -1.0), ("b", -2.0)]


def test_logprobs_of_a_completion(client):
    answer = client.completions.create(model="tiny", prompt="a", logprobs=2, max_tokens=3)
    told = answer.choices[0].logprobs
    assert (told.tokens, told.token_logprobs) == (["H", "e", "l"], [-0.5] * 3)
    assert told.top_logprobs == [{"a": -1.0, "b": -2.0}] * 3
    assert told.text_offset == [0, 1, 2]


def test_logprobs_as_they_come(client):
    chat = client.chat.completions.create(
        model="tiny", messages=CHAT, logprobs=True, max_tokens=3, stream=True
    )
    tokens = [one.token for part in chat for one in (part.choices[0].logprobs or Empty).content]
    assert tokens == ["H", "e", "l"]
    parts = client.completions.create(
        model="tiny", prompt="a", logprobs=0, max_tokens=3, stream=True
    )
    offsets = [part.choices[0].logprobs.text_offset for part in parts]
    assert offsets == [[0], [1], [2]]


class Empty:
    content = ()


def test_errors_are_those_of_the_client(client):
    with pytest.raises(openai.BadRequestError, match="not supported") as caught:
        client.chat.completions.create(model="tiny", messages=CHAT, user="me")
    assert caught.value.param == "user"
    with pytest.raises(openai.NotFoundError, match="Served: tiny"):
        client.chat.completions.create(model="gpt-7", messages=CHAT)


def test_a_wrong_key(script, serving):
    with serving(script(), keys=("secret",)) as served:
        client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="wrong", max_retries=0)
        with pytest.raises(openai.AuthenticationError, match="Bearer KEY"):
            client.models.list()
        assert client.with_options(api_key="secret").models.list().data
