"""What a client is told when it gets no answer: OpenAI's shape of an error, and its status."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel
from starlette.responses import Response

from compress.errors import RequestError


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: Literal["invalid_request_error", "authentication_error", "server_error"]
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is no success."""

    error: ErrorDetail


class Refusal(Exception):  # noqa: N818 - an answer, said as one
    """A request that is not served."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_seconds: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})
        if retry_after_seconds is not None:
            self.headers["Retry-After"] = str(retry_after_seconds)

    @property
    def body(self) -> ErrorBody:
        """Itself in OpenAI's shape."""
        kind: Literal["invalid_request_error", "authentication_error", "server_error"]
        if self.status == 401:
            kind = "authentication_error"
        else:
            kind = "invalid_request_error" if self.status < 500 else "server_error"
        return ErrorBody(
            error=ErrorDetail(message=self.message, type=kind, param=self.param, code=self.code)
        )

    def response(self) -> Response:
        """Itself as an HTTP response."""
        return Response(
            self.body.model_dump_json(), self.status, self.headers, media_type="application/json"
        )


def of_request(error: RequestError) -> Refusal:
    """A wrong request: 400, naming the field that our message begins with."""
    message = str(error)
    named = re.match(r"([A-Za-z_][\w.\[\]]*):", message)
    return Refusal(400, message, param=named[1] if named else None)
