"""The server does what its own OpenAPI document says."""

import json

import hypothesis
import pytest
import schemathesis
from pydantic import TypeAdapter
from schemathesis import checks

from compress.runtime.server.answers import ChatChunk, Completion

CHECKS = (
    checks.not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
    checks.response_schema_conformance, checks.negative_data_rejection, checks.unsupported_method,
)  # fmt: skip
