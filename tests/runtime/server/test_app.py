"""Everything that a client may get wrong: a status, a message that says what is right, and on."""

import json
import socket

import pytest

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


def refused(answer, status: int) -> str:
    """The message of an error in OpenAI's shape."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error["message"]


@pytest.fixture
def http(scripted):
    scripted.engine.asked.clear()
    with scripted.http() as client:
        yield client
        assert client.get("/health").status_code == 200  # it goes on


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "prompt: missing"),
        ({"prompt": "a", "tools": []}, "tools: not supported by this server"),
        ({"prompt": "a", "suffix": None}, "suffix: not supported"),
        ({"prompt": "a", "echo": True, "best_of": 2}, "best_of: not supported"),
        ({"prompt": "a", "max_tokens": -1}, "max_tokens: Input should be greater than or equal"),
        ({"prompt": "a", "max_tokens": "5"}, "max_tokens: Input should be a valid integer"),
        ({"prompt": "a", "max_tokens": True}, "max_tokens: Input should be a valid integer"),
        ({"prompt": "a", "temperature": -1}, "(found -1)"),
        ({"prompt": "a", "n": 33}, "n: Input should be less than or equal to 32"),
        ({"prompt": ["a"] * 20, "n": 20}, "400; 32 may be asked for at once"),
        ({"prompt": "a", "n": 5}, "n: 5 answers; this server takes on 4 at most"),
        ({"prompt": "a", "stop": ["x", ""]}, "stop[1]: String should have at least 1"),
        ({"prompt": "a", "stream_options": {"include_usage": True}}, "Set stream to true"),
        ({"prompt": "a", "logit_bias": {"hello": 1}}, "logit_bias.hello: String should match"),
        ({"prompt": "a", "logit_bias": {"5": 101}}, "logit_bias.5: Input should be less"),
        ({"prompt": "a", "seed": 2**64}, "seed: Input should be less"),
        ({"prompt": "a", "response_format": {"type": "xml"}}, "response_format: Input tag 'xml'"),
        (
            {"prompt": "a", "response_format": {"type": "json_schema"}},
            "response_format.json_schema",
        ),
        ({"prompt": []}, "prompt: List should have at least 1 item"),
        ({"prompt": [[1], [2, "x"]]}, "prompt[1][1]: Input should be a valid integer (found 'x')"),
        ({"prompt": [-1]}, "prompt[0]: Input should be greater than or equal to 0"),
        ({"prompt": [1, 1000]}, "prompt: token id 1000; the vocabulary is 0 to 999"),
        ({"prompt": ""}, None),  # a first token is put in front: it can be continued
        ({"prompt": "a" * 64}, "prompt: 65 tokens, the model reads at most 64"),
        ({"prompt": "a", "max_tokens": 65}, "max_tokens: 65 behind a prompt of 2 tokens"),
    ],
    ids=lambda value: json.dumps(value)[:50] if isinstance(value, dict) else "",
)
def test_fields_of_a_completion(http, body, words):
    answer = http.post("/v1/completions", json=body)
    if words is None:
        assert answer.status_code == 200
    else:
        assert words in refused(answer, 400)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "messages: missing"),
        ({"messages": []}, "messages: List should have at least 1 item"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role: Input should be"),
        ({"messages": [{"role": "user"}]}, "messages[0].content: missing"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type: Input should be 'text'",
        ),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "chat template refuses them"),
        ({**CHAT, "top_logprobs": 2}, "Set logprobs to true"),
        ({**CHAT, "logprobs": True, "top_logprobs": 21}, "top_logprobs: Input should be less"),
        ({**CHAT, "max_tokens": 4, "max_completion_tokens": 4}, "the old name of"),
        ({**CHAT, "functions": [], "store": True, "user": "me"}, "user: not supported"),
    ],
    ids=lambda value: json.dumps(value)[-50:] if isinstance(value, dict) else "",
)
def test_fields_of_a_chat(http, body, words):
    assert words in refused(http.post("/v1/chat/completions", json=body), 400)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"prompt": "\\ud800"}', b"[" * 50_000, b"1" * 9_000],
    ids=lambda body: repr(body[:12]),
)
def test_a_body_that_is_no_json_object(http, body):
    headers = {"Content-Type": "application/json"}
    assert refused(http.post("/v1/completions", content=body, headers=headers), 400)


def test_every_mistake_is_named_and_the_first_is_the_param(http):
    answer = http.post("/v1/completions", json={"prompt": "a", "top_p": 2, "logprobs": -1})
    assert refused(answer, 400).count("\n") == 1
    assert answer.json()["error"]["param"] == "top_p"


def test_a_body_that_is_too_large_is_refused_before_it_is_read(http, scripted):
    message = refused(http.post("/v1/completions", json={"prompt": "a" * 100_000}), 413)
    assert "more than 100,000 bytes" in message

    def parts():
        yield b'{"prompt": "'
        yield from [b"a" * 60_000] * 2

    headers = {"Content-Type": "application/json"}
    assert refused(http.post("/v1/completions", content=parts(), headers=headers), 413)
    assert not scripted.engine.asked


def test_a_body_that_does_not_come_is_given_up(scripted):
    with socket.create_connection(("127.0.0.1", int(scripted.url.rsplit(":")[-1]))) as line:
        line.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        )
        line.settimeout(5)
        assert line.recv(1000).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_form_of_another_page_is_no_request(http, kind):
    headers = {"Content-Type": kind} if kind else {}
    answer = http.post("/v1/completions", content=b'{"prompt": "a"}', headers=headers)
    assert "application/json" in refused(answer, 415)


def test_an_unknown_model(http):
    answer = http.post("/v1/completions", json={"prompt": "a", "model": "gpt-7"})
    assert "Served: tiny" in refused(answer, 404)
    assert answer.json()["error"]["code"] == "model_not_found"


def test_unknown_paths_and_methods(http):
    assert refused(http.get("/v2/completions"), 404)
    assert refused(http.get("/v1/completions"), 405)


def test_keys(script, serving):
    wrong = [None, "Bearer wrong", "Bearer", "Basic secret-1", "Bearer \xfcnicode"]
    with serving(script(), keys=("secret-1", "secret-2")) as served, served.http() as http:
        for given in wrong:
            headers = {"Authorization": given.encode()} if given else {}
            answer = http.get("/v1/models", headers=headers)
            assert "Bearer KEY" in refused(answer, 401)
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            asked = http.post("/v1/completions", json={"prompt": "a"}, headers=headers)
            assert asked.status_code == 401
            for path in ("/", "/health", "/metrics", "/openapi.json"):
                assert http.get(path, headers=headers).status_code == 200
        for key in ("secret-1", "secret-2"):
            headers = {"Authorization": f"Bearer {key}"}
            assert http.get("/v1/models", headers=headers).status_code == 200


def test_a_name_that_was_made_to_point_here_is_refused(script, serving):
    from compress.cli.serve import LOOPBACK

    with serving(script(), hosts=LOOPBACK) as served, served.http() as http:
        for host in ("localhost:8000", "127.0.0.1", "[::1]:80", "LOCALHOST"):
            assert http.get("/v1/models", headers={"Host": host}).status_code == 200
        for host in ("evil.example", "", "localhost.evil.example", "127.0.0.1.evil"):
            assert "--host" in refused(http.get("/v1/models", headers={"Host": host}), 421)


def test_what_is_served(http):
    (model,) = http.get("/v1/models").json()["data"]
    assert (model["id"], model["max_model_len"]) == ("tiny", 64)


def test_tokens_there_and_back(http):
    told = http.post("/tokenize", json={"prompt": "abc"}).json()
    assert told == {"count": 4, "max_model_len": 64, "tokens": [1, 97, 98, 99]}
    bare = http.post("/tokenize", json={"prompt": "abc", "add_special_tokens": False}).json()
    assert bare["tokens"] == [97, 98, 99]
    assert http.post("/detokenize", json={"tokens": told["tokens"]}).json() == {"prompt": "abc"}
    chat = http.post("/tokenize", json=CHAT).json()
    assert http.post("/detokenize", json={"tokens": chat["tokens"]}).json() == {"prompt": "u:Hi\n"}
    assert "either prompt or messages" in refused(http.post("/tokenize", json={}), 400)
    assert refused(http.post("/detokenize", json={"tokens": [2**31]}), 400)


def test_parts_of_a_message_are_joined(http, scripted):
    parts = [{"type": "text", "text": "He"}, {"type": "text", "text": "llo"}]
    body = {"messages": [{"role": "user", "content": parts}]}
    assert http.post("/v1/chat/completions", json=body).status_code == 200
    assert bytes(scripted.engine.asked[0].prompt) == b"u:Hello\n"


def test_what_is_asked_reaches_the_engine(http, scripted):
    http.post(
        "/v1/completions",
        json={
            "prompt": [5, 6], "n": 2, "seed": 7, "max_tokens": 3, "temperature": 0.5, "top_p": 0.9,
            "top_k": -1, "min_p": 0.1, "presence_penalty": 1, "frequency_penalty": -1,
            "repetition_penalty": 1.5, "logit_bias": {"5": -100}, "stop": "x",
            "logprobs": 2, "cache_salt": "mine",
            "response_format": {
                "type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "integer"}},
            },
        },
    )  # fmt: skip
    first, second = scripted.engine.asked
    assert (first.prompt, first.max_new_tokens, first.stop) == ((5, 6), 3, ("x",))
    assert (first.logprobs, first.salt) == (2, "mine")
    assert json.loads(first.grammar) == {"type": "integer"}
    sampling = first.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, None)
    assert (sampling.min_p, sampling.repetition_penalty) == (0.1, 1.5)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1, -1)
    assert sampling.logit_bias == {5: -100}
    assert (sampling.seed, second.sampling.seed) == (7, 8)


def test_a_reader_that_does_not_read_is_left(script, serving):
    from compress.runtime.server.limits import Limits

    engine = script()
    engine.width, engine.seconds = 200_000, 0.03
    with serving(engine, limits=Limits(send_seconds=0.2)) as served:
        line = socket.socket()
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        line.connect(("127.0.0.1", int(served.url.rsplit(":")[-1])))
        body = json.dumps({"prompt": "a", "stream": True, "max_tokens": 60, "ignore_eos": True})
        line.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\n"
            + f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        served.until(lambda: bool(engine.asked))
        served.until(lambda: engine.cancelled == [1])
        line.close()
        engine.width, engine.seconds = 1, 0
        with served.http() as http:
            assert http.post("/v1/completions", json={"prompt": "a"}).status_code == 200
