"""OpenAI's error envelope, and which error gets which status."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ..errors import AntiphonError, EngineDeadError, InputError, OverloadedError, PromptTooLongError
from ..store import StoreError

logger = logging.getLogger(__name__)

RETRY_AFTER = 1
CODES = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(AntiphonError):
    """An answer that is an error. ``param`` names the field, ``code`` says what for machines."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.code = status, code
        self.message, self.param = utf8(message), param and utf8(param)


def utf8(text: str) -> str:
    """``text`` without halves of surrogate pairs, which JSON can bring in and which cannot be sent."""
    return text.encode("utf-8", "replace").decode("utf-8")


def bad_request(message: str, param: str | None = None, code: str | None = "invalid_value") -> ApiError:
    """A 400."""
    return ApiError(400, message, param=param, code=code)


def as_api_error(error: Exception, param: str | None = None) -> ApiError:
    """Any error as one that can be answered; what is not the caller's fault keeps its details out of the answer."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, PromptTooLongError):
        return ApiError(400, str(error), param=param or "messages", code="context_length_exceeded")
    if isinstance(error, InputError):
        return ApiError(400, str(error), param=param, code="invalid_value")
    if isinstance(error, OverloadedError):
        return ApiError(429, str(error), code="rate_limit_exceeded")
    if isinstance(error, EngineDeadError):
        return ApiError(503, str(error), code="engine_unavailable")
    if isinstance(error, StoreError):
        return ApiError(503, "the conversation store does not answer", code="store_unavailable")
    if isinstance(error, TimeoutError) or type(error).__name__ == "TimeoutError":
        return ApiError(504, "the answer took longer than the server allows", code="timeout")
    if isinstance(error, AntiphonError):
        return ApiError(500, str(error), code="engine_error")
    return ApiError(500, "the server failed; its log says why", code="internal_error")


def envelope(error: ApiError) -> dict[str, Any]:
    """The body of an error answer."""
    kind = TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def response(error: ApiError) -> JSONResponse:
    """The error answer; 429 and 503 say when to come again."""
    headers = {"Retry-After": str(RETRY_AFTER)} if error.status in (429, 503) else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(envelope(error), error.status, headers)


def install(app: FastAPI) -> None:
    """Answer every error of ``app`` in the envelope."""

    async def known(_: Request, error: Exception) -> JSONResponse:
        return response(as_api_error(error))

    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return response(from_validation(error.errors()))

    async def http(_: Request, error: HTTPException) -> JSONResponse:
        answer = response(ApiError(error.status_code, str(error.detail), code=CODES.get(error.status_code)))
        answer.headers.update(error.headers or {})
        return answer

    async def unknown(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return response(as_api_error(error))

    app.add_exception_handler(AntiphonError, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unknown)


def from_validation(errors: list[dict[str, Any]]) -> ApiError:
    """The deepest of pydantic's complaints (of a union, every branch complains), with the field's path as OpenAI writes it."""
    first = max(errors, key=lambda error: len(error["loc"]))
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", first["msg"])
        return bad_request(f"the body is not valid JSON: {reason}", code="invalid_json")
    param = field_path(first["loc"])
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    code = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}.get(first["type"])
    message = first["msg"].removeprefix("Value error, ")
    if code == "unknown_parameter":
        message = "this parameter is not known"
    return bad_request(f"{param or 'body'}: {message}{more}", param or None, code or "invalid_value")


def field_path(location: tuple[Any, ...]) -> str:
    """``("body", "messages", 0, "user", "content")`` as ``messages[0].content``; tags of unions are left out."""
    parts = location[1:] if location and location[0] in ("body", "query", "path", "header") else location
    path, before = "", None
    for part in parts:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not (_is_kind(part) or (isinstance(before, int) and part in UNION_TAGS)):
            path += f".{part}" if path else str(part)
        before = part
    return path


UNION_TAGS = {"user", "assistant", "system", "developer", "text", "refusal", "input_audio", "audio_url"}


def _is_kind(part: str) -> bool:
    """Whether pydantic means a branch of a union by this."""
    return part in ("str", "int", "bool", "float") or part.startswith(("list[", "function-", "constrained-", "tagged-"))
