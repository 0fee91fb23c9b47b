"""The OpenAPI document, made from the same list as the routes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from compress.runtime.server.limits import OPEN
from compress.runtime.server.refusals import ErrorBody

REFERENCES = "#/components/schemas/{model}"
JSON, EVENTS = "application/json", "text/event-stream"


@dataclass(frozen=True)
class Endpoint:
    """One path: what it takes, what it answers, and how it may refuse."""

    name: str  # of the method of `Api` that answers
    method: str
    path: str
    summary: str
    asks: type[BaseModel] | None = None
    answers: type[BaseModel] | str = "text/plain"  # a model, or the media type of something else
    streams: type[BaseModel] | None = None  # an event
    refuses: Sequence[int] = ()


def document(endpoints: Sequence[Endpoint], *, version: str, locked: bool) -> dict[str, Any]:
    """Describe a server.

    Args:
        endpoints: all of it.
        version: of this package.
        locked: a key is needed.
    """
    kinds = _models(endpoints)
    _, schemas = models_json_schema(
        [(kind, mode) for kind, mode in kinds.items()], ref_template=REFERENCES
    )
    paths: dict[str, Any] = {}
    for one in endpoints:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one, locked)
    components: dict[str, Any] = {"schemas": schemas["$defs"]}
    if locked:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "compress serve", "version": version},
        "paths": paths,
        "components": components,
    }


def _models(endpoints: Sequence[Endpoint]) -> dict[type[BaseModel], Any]:
    asked = {one.asks: "validation" for one in endpoints if one.asks}
    told = [kind for one in endpoints for kind in (one.answers, one.streams)]
    return {
        **asked,
        **{kind: "serialization" for kind in told if isinstance(kind, type)},
        ErrorBody: "serialization",
    }


def _operation(one: Endpoint, locked: bool) -> dict[str, Any]:
    refuses = {*one.refuses, *((401,) if locked and one.path not in OPEN else ())}
    found: dict[str, Any] = {
        "summary": one.summary,
        "operationId": one.name,
        "responses": {
            "200": {"description": "OK", "content": _content(one)},
            **{str(status): _refusal(status) for status in sorted(refuses)},
        },
    }
    if one.asks:
        schema = {"$ref": REFERENCES.format(model=one.asks.__name__)}
        found["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
    if locked and one.path not in OPEN:
        found["security"] = [{"key": []}]
    return found


def _content(one: Endpoint) -> dict[str, Any]:
    if isinstance(one.answers, str):
        return {one.answers: {"schema": {"type": "string"}}}
    content: dict[str, Any] = {
        JSON: {"schema": {"$ref": REFERENCES.format(model=one.answers.__name__)}}
    }
    if one.streams:
        content[EVENTS] = {
            "schema": {"type": "string"},
            "itemSchema": {"$ref": REFERENCES.format(model=one.streams.__name__)},
        }
    return content


def _refusal(status: int) -> dict[str, Any]:
    schema = {"$ref": REFERENCES.format(model=ErrorBody.__name__)}
    return {"description": HTTPStatus(status).phrase, "content": {JSON: {"schema": schema}}}
