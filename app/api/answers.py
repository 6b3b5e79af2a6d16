"""Sending answers: the status, the headers and the body of the first time, or of that time again."""

from typing import Any

import msgspec
from litestar import Response

from app.api.problems import SAFE_HEADERS

JSON = "application/json"


def ok(body: Any) -> Response[Any]:
    return _json(200, _bytes(body))


def created(body: Any, *, location: str | None = None, replayed: bool = False) -> Response[Any]:
    return _json(201, _bytes(body), location=location, replayed=replayed)


def again(body: bytes, *, replayed: bool) -> Response[Any]:
    return _json(200, body, replayed=replayed)


def nothing() -> Response[None]:
    return Response(None, status_code=204, headers=SAFE_HEADERS)


def _bytes(body: Any) -> bytes:
    return body if isinstance(body, bytes) else msgspec.json.encode(body)


def _json(status: int, body: bytes, *, location: str | None = None, replayed: bool = False) -> Response[Any]:
    headers = dict(SAFE_HEADERS)
    if location is not None:
        headers["Location"] = location
    if replayed:
        headers["Idempotency-Replayed"] = "true"
    return Response(body, status_code=status, media_type=JSON, headers=headers)
