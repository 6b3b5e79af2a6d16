"""Sending answers: the status, the headers and the body of the first time, or of that time again."""

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec
from litestar import Response
from litestar.types import ASGIApp, Receive, Scope, Send

from app import telemetry

JSON = b"application/json"
#: Of every answer: what it tells is true now, for one reader, and is what its media type says.
SAFE_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_SAFE_RAW = [(name.lower().encode(), value.encode()) for name, value in SAFE_HEADERS.items()]
#: Of one with an ETag: who has it may keep it, and asks each time whether it is still so; one page's is not
#: another site's to read.
_KNOWN_RAW = [
    (b"cache-control", b"private, no-cache"),
    (b"vary", b"Origin"),
    *(pair for pair in _SAFE_RAW if pair[0] != b"cache-control"),
]


def always(public_url: str) -> list[tuple[bytes, bytes]]:
    """List what every answer has that says nothing else: it is shown nowhere, kept nowhere, and names us nowhere.
    Where we are reached over TLS, browsers never try without it.
    """
    told = {
        **SAFE_HEADERS,
        "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
        "Referrer-Policy": "no-referrer",
    }
    if public_url.startswith("https://"):
        told["Strict-Transport-Security"] = "max-age=31536000"
    return [(name.lower().encode(), value.encode()) for name, value in told.items()]


class Answer(Response[Any]):
    """A finished answer, which sends itself. A Response by name alone: Litestar's own would look at each header several
    times more, which is a tenth of what a refusal costs.
    """

    def __init__(self, status: int, body: bytes, media_type: bytes, headers: Mapping[str, str]) -> None:
        self.status_code, self.headers, self._media_type, self._body = status, dict(headers), media_type, body

    @property
    def body(self) -> bytes:
        return self._body

    def to_asgi_response(self, *_: Any, **__: Any) -> ASGIApp:  # type: ignore[override]
        return self._send

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.send(send)  # type: ignore[arg-type]

    async def send(self, send: telemetry.Send) -> None:
        headers = [
            *_SAFE_RAW,
            (b"content-type", self._media_type),
            (b"content-length", b"%d" % len(self._body)),
            *((name.lower().encode(), value.encode("latin-1")) for name, value in self.headers.items()),
        ]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": self._body, "more_body": False})


class Tagged(Answer):
    """An answer whose ETag was not asked about, or (304) was: then there is nothing else to say."""

    async def send(self, send: telemetry.Send) -> None:
        headers = [*_KNOWN_RAW, (b"etag", self.headers["ETag"].encode())]
        if self.status_code != 304:
            headers += [(b"content-type", self._media_type), (b"content-length", b"%d" % len(self._body))]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": self._body, "more_body": False})


def ok(body: Any) -> Answer:
    return _json(200, _bytes(body))


def unless_known(body: Any, known: str | None) -> Answer:
    """Answer with a strong ETag, or with 304 when `known` (If-None-Match) says that the caller has this very body."""
    encoded = _bytes(body)
    tag = f'"{base64.urlsafe_b64encode(hashlib.sha256(encoded).digest()[:18]).decode()}"'
    if matches(known, tag):
        return Tagged(304, b"", JSON, {"ETag": tag})
    return Tagged(200, encoded, JSON, {"ETag": tag})


def matches(known: str | None, tag: str) -> bool:
    """Compare an If-None-Match as RFC 9110 has it for reading: weakly, with any of the list, or with `*`."""
    given = [each.strip().removeprefix("W/") for each in (known or "").split(",")]
    return tag in given or given == ["*"]


def created(body: Any, *, location: str | None = None, replayed: bool = False) -> Answer:
    return _json(201, _bytes(body), location=location, replayed=replayed)


def again(body: bytes, *, replayed: bool) -> Answer:
    return _json(200, body, replayed=replayed)


def nothing() -> Response[None]:
    return Response(None, status_code=204, headers=SAFE_HEADERS)


def _bytes(body: Any) -> bytes:
    return body if isinstance(body, bytes) else msgspec.json.encode(body)


def _json(status: int, body: bytes, *, location: str | None = None, replayed: bool = False) -> Answer:
    headers = {}
    if location is not None:
        headers["Location"] = location
    if replayed:
        headers["Idempotency-Replayed"] = "true"
    return Answer(status, body, JSON, headers)
