"""The way of a crowd: holds, bookings and appointments, without the framework between the socket and their handlers.

What Litestar does for any route there could be is a third of what a refusal costs. Here the handlers of `public` are
called by themselves: the same functions, on what the same decoder reads, and their answers send themselves. A request
that is in any way unusual goes to Litestar, as all others do, so that every oddity is decided in one place.
"""

import re
from collections.abc import Awaitable, Mapping
from typing import Any

from litestar import Litestar

from app.api import appointments, problems, public, strict, wire_appointments
from app.api.answers import Answer
from app.engine import Engine
from app.errors import Problem
from app.telemetry import Receive, Scope, Send

#: What nearly every Host is; Litestar knows more, and refuses what is none.
_HOST = re.compile(rb"[A-Za-z0-9.:-]*")
_PATHS = {path.encode(): path for path in public.CROWDED}
APPOINTMENTS = "/api/v1/public/{slug}/book"
_APPOINTMENT = re.compile(rb"/api/v1/public/([a-z0-9-]+)/book")


class Direct:
    """The ASGI layer in front of Litestar."""

    def __init__(self, app: Litestar, max_body: int) -> None:
        self.app = app
        self._max_body = max_body

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # No coroutine of its own for what only passes through.
        if scope["type"] == "http" and scope["method"] == "POST":
            raw: bytes = scope["raw_path"]
            path, slug = _PATHS.get(raw), ""
            if path is None and (match := _APPOINTMENT.fullmatch(raw)):
                path, slug = APPOINTMENTS, match[1].decode()
            if path is not None:
                headers = dict(scope["headers"])
                if len(headers) == len(scope["headers"]) and self._is_usual(headers):
                    scope["path_template"] = path
                    return self._serve(scope, slug, headers, receive, send)
        return self.app(scope, receive, send)  # type: ignore[arg-type]

    def _is_usual(self, headers: Mapping[bytes, bytes]) -> bool:
        length = headers.get(b"content-length", b"")
        return (
            length.isdigit()
            and 0 < int(length) <= self._max_body
            and b"transfer-encoding" not in headers
            and b"cookie" not in headers  # an operator's page
            and _HOST.fullmatch(headers.get(b"host", b"")) is not None
        )

    async def _serve(
        self, scope: Scope, slug: str, headers: Mapping[bytes, bytes], receive: Receive, send: Send
    ) -> None:
        said: Any = appointments if scope["path_template"] == APPOINTMENTS else problems
        try:
            answer = await self._answer(scope, slug, headers, await _body(receive))
        except Problem as problem:
            answer = said.render(None, problem)
        except Exception as error:
            answer = said.render_bug(None, error)
        await answer.send(send)

    async def _answer(self, scope: Scope, slug: str, headers: Mapping[bytes, bytes], body: bytes) -> Answer:
        path, state = scope["path_template"], self.app.state
        engine: Engine = state.engine
        strict.refuse_other_media(
            headers.get(b"content-type", b"").decode("latin-1"),
            headers.get(b"content-encoding", b"identity").decode("latin-1"),
        )
        shown = headers.get(b"authorization")
        caller = strict.caller(engine, scope, {} if shown is None else {"authorization": shown.decode("latin-1")})
        key = headers.get(b"idempotency-key")
        key_text = None if key is None else key.decode("latin-1")
        if path == APPOINTMENTS:
            wanted = strict.decode(body, wire_appointments.AppointmentWanted)
            return await appointments.book_time(state.appointments, caller, slug, wanted, key_text)
        handle, body_type = public.CROWDED[path]
        return await handle(engine, caller, strict.decode(body, body_type), key_text)


async def _body(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise strict.cut_off()
        body += message["body"]
        more = message["more_body"]
    return body
