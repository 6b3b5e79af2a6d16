"""Signing in to the operators' pages: the key is shown once, and a cookie stands for it afterwards (see `who`)."""

import time
from typing import Any

import msgspec
from litestar import Response, delete, post
from litestar.connection import ASGIConnection
from litestar.handlers import HTTPRouteHandler
from litestar.handlers.base import BaseRouteHandler
from litestar.params import JSONBody

from app.api import who
from app.api.answers import SAFE_HEADERS
from app.api.strict import ApiRequest
from app.engine import Engine
from app.errors import Unauthorized
from app.limits import SIGN_IN
from app.settings import Settings
from app.tokens import sign_session

#: A working day. Who works longer signs in again.
LIFE_SECONDS = 12 * 3600


class SignIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    key: str


async def _not_guessing(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Let nobody try one key after the other: decided before the key is looked at, or a right guess would tell."""
    engine: Engine = connection.app.state.engine
    await engine.limits.ask(SIGN_IN, who.client(engine.settings, connection.scope))


@post("/session", include_in_schema=False, status_code=204, guards=[_not_guessing])
async def sign_in(request: ApiRequest, data: JSONBody[SignIn]) -> Response[None]:
    """Exchange the operator key for a cookie."""
    settings = request.engine.settings
    if not who.is_key(settings, data.key):
        raise Unauthorized
    await request.engine.limits.give_back(SIGN_IN, who.client(settings, request.scope))
    ends_at = int(time.time()) + LIFE_SECONDS
    return _with_cookie(settings, sign_session(settings.secrets, settings.operator_key, ends_at), LIFE_SECONDS)


@delete("/session", include_in_schema=False, status_code=204)
async def sign_out(request: ApiRequest) -> Response[None]:
    """Forget the cookie in this browser."""
    return _with_cookie(request.engine.settings, "", 0)


def _with_cookie(settings: Settings, value: str, seconds: int) -> Response[None]:
    secure = "; Secure" if settings.public_url.startswith("https://") else ""
    cookie = f"{who.COOKIE}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}"
    return Response(None, status_code=204, headers={**SAFE_HEADERS, "Set-Cookie": cookie})


ROUTES: list[HTTPRouteHandler] = [sign_in, sign_out]
