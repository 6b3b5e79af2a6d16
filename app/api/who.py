"""Who asks: an operator, by the key or by a session that the key began; or anybody.

A session is a cookie on our own pages. It is no key: it is signed, ends by itself and with the operator key, and no
script can read it. It counts only beside a header that our own pages add and that another origin's page cannot add
without being asked by CORS first: SameSite alone would let a neighbouring subdomain's page act.
"""

import hmac
import ipaddress
import time
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from typing import Any

import structlog

from app.settings import Settings
from app.tokens import client_name, read_session

log = structlog.get_logger()

COOKIE = "holdfast_session"
#: What our pages send with each call; its value says nothing.
PAGE_HEADER = "holdfast-page"


def is_operator(settings: Settings, headers: Mapping[str, str]) -> bool:
    """Tell whether a call may do what operators may."""
    if "authorization" in headers:  # then that is what the caller means to be judged by
        scheme, _, given = headers["authorization"].partition(" ")
        return scheme.lower() == "bearer" and is_key(settings, given.strip())
    return PAGE_HEADER in headers and is_signed_in(settings, headers)


def is_key(settings: Settings, given: str) -> bool:
    # Both sides as bytes: compare_digest takes no text beyond ASCII, and a header may hold anything.
    return hmac.compare_digest(given.encode(), settings.operator_key.encode())


def is_signed_in(settings: Settings, headers: Mapping[str, str]) -> bool:
    """Tell whether a session's cookie came along, whoever made the browser send it: enough to show a page."""
    now = time.time()
    return any(
        read_session(settings.secrets, settings.operator_key, session) > now
        for session in _sessions(headers.get("cookie", ""))
    )


def _sessions(cookies: str) -> Iterator[str]:
    """Read the sessions among cookies. There may be several, set for other paths or domains, and whatever others have
    set beside them: the standard library's reader drops all when it does not understand one.
    """
    for cookie in cookies.split(";"):
        name, _, value = cookie.strip().partition("=")
        if name == COOKIE:
            yield value


def client(settings: Settings, scope: Mapping[str, Any]) -> str:
    """Name the client that a request comes from. The server has put its address there: the peer's, or what a proxy
    that is trusted says (`HOLDFAST_TRUSTED_PROXIES`).
    """
    if settings.trusted_proxies is None and any(name == b"x-forwarded-for" for name, _ in scope["headers"]):
        _tell_of_a_proxy()
    peer = scope.get("client")
    return _client(settings.secrets[0], peer[0] if peer else "")


@cache
def _tell_of_a_proxy() -> None:
    """Say once that somebody stands before us, for whom all customers would be taken wherever clients are limited."""
    log.warning("proxy_not_named", hint="set HOLDFAST_TRUSTED_PROXIES: until then its customers are one client")


@lru_cache(maxsize=10_000)
def _client(secret: str, address: str) -> str:
    """Name an address, from which a name cannot be told. Of IPv6 it is the /64, which is what one household has."""
    try:
        known = ipaddress.ip_address(address)
    except ValueError:
        return client_name(secret, address)
    if isinstance(known, ipaddress.IPv6Address):
        known = known.ipv4_mapped or ipaddress.IPv6Address(int(known) >> 64 << 64)
    return client_name(secret, str(known))
