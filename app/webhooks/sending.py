"""One webhook over the wire: what it says, how it is signed, and a single request that is bounded in every way.

Signed by Standard Webhooks (https://www.standardwebhooks.com), so that receivers verify it with a library of theirs.
Knows nothing of the database.
"""

import asyncio
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from app.webhooks.target import Address, NotAllowed, Resolver, Target, parse, resolved

if TYPE_CHECKING:
    import httpx

#: From the question for the name to the end of the answer. Receivers are asked to answer first and work later.
SEND_SECONDS = 5.0
#: For one address; so there is time for another one when a machine of several is down.
CONNECT_SECONDS = 2.0
MAX_ADDRESSES = 3
#: Of the time in all, for the body of an answer whose status has been told.
DRAIN_SECONDS = 0.5
#: Nobody reads the answer. It is taken in only so that the receiver can finish in peace.
MAX_ANSWER_BYTES = 64 * 1024
USER_AGENT = "Holdfast-Webhooks/1"


class WebhookMessage(msgspec.Struct, frozen=True):
    """An event as the receiver gets it, in the form of CloudEvents 1.0.

    `id` is the event's `seq`, the same for every endpoint and every repetition; what happens to one booking
    has rising ones. `source` is the path of the venue, `subject` that of the booking or slot.
    """

    type: str
    source: str
    id: str
    time: datetime
    subject: str
    data: Mapping[str, Any]
    specversion: Literal["1.0"] = "1.0"
    datacontenttype: Literal["application/json"] = "application/json"


class Answer(msgspec.Struct, frozen=True):
    """What came back: a status, or why there is none."""

    status: int | None
    error: str | None = None

    @property
    def is_success(self) -> bool:
        return self.status is not None and 200 <= self.status <= 299


def headers(webhook_id: str, body: bytes, secrets: Sequence[str], at: datetime) -> dict[str, str]:
    """Make the headers of Standard Webhooks. One signature for each secret: any of them will do for the receiver."""
    from standardwebhooks import Webhook  # noqa: PLC0415 only the worker signs

    signatures = [Webhook(secret).sign(webhook_id, at.astimezone(UTC), body.decode()) for secret in secrets]
    return {
        "Webhook-Id": webhook_id,
        "Webhook-Timestamp": str(int(at.timestamp())),
        "Webhook-Signature": " ".join(signatures),
    }


async def send(url: str, body: bytes, signed: Mapping[str, str], *, allow_private: bool, resolve: Resolver) -> Answer:
    """Post a body once, within `SEND_SECONDS`; never raises for anything that the other side can do.

    No redirect is followed, no proxy of the environment is used, and the name is resolved exactly once.
    """
    import httpx  # noqa: PLC0415 only the worker sends

    try:
        target = parse(url)
        async with _client() as client:
            async with asyncio.timeout(SEND_SECONDS - DRAIN_SECONDS):
                addresses = await resolved(target, resolve, allow_private=allow_private)
                answer = await _post_to_one_of(client, target, addresses[:MAX_ADDRESSES], body, signed)
            await _drain(answer)
            return Answer(answer.status_code)
    except NotAllowed as refused:
        return Answer(None, str(refused))
    except (TimeoutError, httpx.TimeoutException):
        return Answer(None, "no answer in time")
    except httpx.ConnectError as error:
        tls = "SSL" in str(error) or "certificate" in str(error)
        return Answer(None, "TLS failed: the certificate may not be right" if tls else "no connection")
    except (httpx.HTTPError, httpx.InvalidURL, OSError):
        return Answer(None, "no HTTP answer")


def _client() -> "httpx.AsyncClient":
    import httpx  # noqa: PLC0415

    return httpx.AsyncClient(
        verify=_tls(),
        trust_env=False,
        follow_redirects=False,
        timeout=httpx.Timeout(SEND_SECONDS, connect=CONNECT_SECONDS),
        limits=httpx.Limits(max_connections=1, max_keepalive_connections=0),
    )


async def _post_to_one_of(
    client: "httpx.AsyncClient", target: Target, addresses: Sequence[Address], body: bytes, signed: Mapping[str, str]
) -> "httpx.Response":
    """Post to the first address that takes the connection. Where it was taken, nothing is sent a second time."""
    import httpx  # noqa: PLC0415

    for address in addresses[:-1]:
        with suppress(httpx.ConnectError, httpx.ConnectTimeout):
            return await _post(client, target, address, body, signed)
    return await _post(client, target, addresses[-1], body, signed)


async def _post(
    client: "httpx.AsyncClient", target: Target, address: Address, body: bytes, signed: Mapping[str, str]
) -> "httpx.Response":
    # The address stands in the URL, so nothing is resolved any more; the name is in the Host header, and is what the
    # certificate must be for.
    request = client.build_request(
        "POST",
        target.at(address),
        content=body,
        headers={
            "Host": target.authority,
            "Content-Type": "application/json",
            "User-Agent": USER_AGENT,
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            "Connection": "close",
            **signed,
        },
        extensions={"sni_hostname": target.host},
    )
    return await client.send(request, stream=True)


async def _drain(answer: "httpx.Response") -> None:
    """Take in the beginning of the body. The status has been told: what goes wrong now changes nothing."""
    import httpx  # noqa: PLC0415

    taken = 0
    with suppress(httpx.HTTPError, TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            async for piece in answer.aiter_raw():
                taken += len(piece)
                if taken >= MAX_ANSWER_BYTES:
                    break
    await answer.aclose()


@cache
def _tls() -> ssl.SSLContext:
    """Make the context once: reading the authorities takes longer than a request. SSL_CERT_FILE adds a private one."""
    import httpx  # noqa: PLC0415

    return httpx.create_ssl_context()
