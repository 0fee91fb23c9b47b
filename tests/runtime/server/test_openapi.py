"""The server does what its own OpenAPI document says, asked at random; streams are its events."""

import json

import hypothesis
import pytest
import schemathesis
from pydantic import TypeAdapter

from compress.runtime.server.answers import ChatChunk, Completion
from compress.runtime.server.app import ENDPOINTS

EXAMPLES = 5
CHECKS = [
    getattr(schemathesis.checks, name)
    for name in (
        "not_a_server_error", "status_code_conformance", "content_type_conformance",
        "response_schema_conformance", "negative_data_rejection", "unsupported_method",
    )
]  # fmt: skip


@pytest.fixture(scope="module")
def served(script, serving):
    with serving(script(), max_queued=100) as served:
        yield served


@pytest.mark.parametrize("path", [one.path for one in ENDPOINTS if one.path != "/openapi.json"])
def test_every_path_does_as_documented(served, path):
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    schema.config.output.sanitization.update(enabled=False)
    (operation,) = [one.ok() for one in schema.get_all_operations() if one.ok().path == path]
    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
    for mode in modes if operation.body else modes[:1]:

        @hypothesis.settings(
            max_examples=EXAMPLES, deadline=None, database=None, derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        )  # fmt: skip
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def check(case):
            case.call_and_validate(checks=CHECKS, timeout=10)

        check()
    assert served.loop.state == "ready"


@pytest.mark.parametrize(
    ("path", "kind", "body"),
    [
        ("/v1/completions", Completion, {"prompt": "a", "logprobs": 1}),
        (
            "/v1/chat/completions",
            ChatChunk,
            {"messages": [{"role": "user", "content": "a"}], "logprobs": True},
        ),
    ],
)
def test_events_are_as_documented(scripted, path, kind, body):
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    with scripted.http() as http:
        *events, done = http.post(path, json=body).text.strip().split("\n\n")
    assert done == "data: [DONE]"
    for event in events:
        TypeAdapter(kind).validate_json(event.removeprefix("data: "), strict=True, extra="forbid")
    assert "usage" in json.loads(events[-1].removeprefix("data: "))


def test_a_key_is_part_of_the_document(script, serving):
    with serving(script(), keys=("secret",)) as served, served.http() as http:
        paths = http.get("/openapi.json").json()["paths"]
    locked = {path for path, found in paths.items() for one in found.values() if "security" in one}
    assert locked == {
        "/v1/chat/completions", "/v1/completions", "/v1/models", "/tokenize", "/detokenize",
    }  # fmt: skip
