"""Where a webhook must not go: addresses inside, names that lead there, and servers that are not who they should be."""

import asyncio
import shutil
import socket
import ssl
import subprocess
from collections.abc import Sequence
from typing import Any

import pytest

from app.errors import InvalidRequest
from app.webhooks import Outcome, endpoints, sending, target
from app.webhooks.endpoints import NewEndpoint
from tests.receiver import Receiver, Venue, receiver, receiving, venue

__all__ = ["receiver", "venue"]

pytestmark = pytest.mark.anyio


# -- where it must not go ---------------------------------------------------------------------------------------------

INSIDE = [
    "0.0.0.0", "10.1.2.3", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.9.9.9", "168.63.129.16",  # noqa: S104
    "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.1.1",
    "198.18.0.1", "198.51.100.7", "203.0.113.7", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "100::1",
    "2001::1", "2001:db8::1", "2002:7f00:1::", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1",
    "fe80::1%eth0", "fec0::1", "ff02::1",
]  # fmt: skip
OUTSIDE = ["1.1.1.1", "8.8.8.8", "93.184.215.14", "172.32.0.1", "2606:4700:4700::1111", "2a00:1450:4001:82a::200e"]


def to(*addresses: str) -> target.Resolver:
    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return addresses

    return resolve


@pytest.mark.parametrize("address", INSIDE)
async def test_a_name_that_leads_inside_is_refused(venue: Venue, receiver: Receiver, address: str) -> None:
    await venue.endpoint(f"https://hooks.example:{receiver.port}/")
    delivery_id = await venue.queued()
    # Also when a public address is among them, before or after.
    for addresses in ((address,), ("8.8.8.8", address), (address, "2606:4700:4700::1111")):
        assert (await venue.deliver(delivery_id, allow_private=False, resolve=to(*addresses))).word == "retry"
        assert venue.row(delivery_id)[2:] == (None, "the host has an address that is not public")
        venue.pass_time()
    assert receiver.connections == 0


@pytest.mark.parametrize("address", OUTSIDE)
async def test_a_name_that_leads_outside_is_not(address: str) -> None:
    found = await target.resolved(target.parse("https://hooks.example/"), to(address), allow_private=False)
    assert [str(each) for each in found] == [address]


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1", "2130706433", "0177.0.0.1", "0x7f000001", "0x7f.0.0.1", "017700000001", "0", "[::1]",
        "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:127.0.0.1]", "169.254.169.254", "2852039166",
        "0xA9FEA9FE", "[::ffff:169.254.169.254]", "localhost", "LOCALHOST", "localhost.",
    ],
)  # fmt: skip
async def test_however_an_address_inside_is_written(venue: Venue, receiver: Receiver, host: str) -> None:
    """Asked of the system's own resolver, which understands them all."""
    endpoint = await venue.endpoint("https://hooks.example/")
    url = f"https://{host}:{receiver.port}/"
    venue.query("UPDATE webhook_endpoints SET url = %s WHERE id = %s", url, endpoint.id)
    delivery_id = await venue.queued()
    assert (await venue.deliver(delivery_id, allow_private=False)).word == "retry"
    error = venue.row(delivery_id)[3]
    assert error in ("the host has an address that is not public", "the name of the host leads nowhere")
    assert receiver.connections == 0
    new = NewEndpoint(venue="salon", url=url)
    with pytest.raises(InvalidRequest):
        await endpoints.create(venue.ledger, new, None, None, allow_private=False)


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example/", "ftp://hooks.example/", "https://", "https:///path", "https://me@hooks.example/",
        "https://hooks.example\\@8.8.8.8/", "https://hooks.example/#there", "https://hooks.example:0/",
        "https://hooks.example:65536/", "https://hooks.example:/", "https://hooks example/", "https://höks.example/",
        "https://[::1/", "https://[hooks.example]/", "https://hooks.example/\r\nX: y", "https://hooks.example/\n",
        "https://hooks.example/ä", "//hooks.example/", "javascript:alert(1)", "https://hooks.example/" + "x" * 2_000,
        "https://intranet/",
    ],
)  # fmt: skip
async def test_what_is_no_plain_url_is_refused_when_it_is_given(venue: Venue, url: str) -> None:
    with pytest.raises(InvalidRequest):
        await endpoints.create(venue.ledger, NewEndpoint(venue="salon", url=url), None, None, allow_private=False)


async def test_http_is_for_development_only(venue: Venue, receiver: Receiver) -> None:
    await venue.endpoint(receiver.url)
    delivery_id = await venue.queued()
    assert (await venue.deliver(delivery_id, allow_private=False, resolve=to("8.8.8.8"))).word == "retry"
    assert venue.row(delivery_id)[3] == "the URL must begin with https://"
    assert receiver.connections == 0


async def test_a_name_is_asked_for_once_and_only_that_answer_is_used(venue: Venue, receiver: Receiver) -> None:
    """DNS rebinding: the second answer, which would lead elsewhere, is never asked for."""
    async with receiving() as elsewhere:
        asked: list[tuple[str, int]] = []

        async def rebinding(host: str, port: int) -> Sequence[str]:
            asked.append((host, port))
            return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

        await venue.endpoint(f"http://Hooks.Example.:{receiver.port}/a?b=c")
        assert await venue.deliver(await venue.queued(), resolve=rebinding) == Outcome("delivered")
        assert asked == [("hooks.example", receiver.port)]
        assert receiver.received[0].headers["host"] == f"hooks.example:{receiver.port}"
        assert elsewhere.connections == 0


async def test_what_is_connected_to_is_what_was_checked(
    venue: Venue, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Public when it was checked, private when anybody asks again: nobody does, and nothing arrives inside."""
    connected: list[tuple[Any, ...]] = []

    async def refused(self: Any, _protocol: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        connected.append((host, port))
        raise ConnectionRefusedError

    loop = asyncio.get_running_loop()
    await venue.endpoint(f"https://hooks.example:{receiver.port}/")
    delivery_id = await venue.queued()
    answers = iter([["93.184.215.14"], ["127.0.0.1"]])

    async def rebinding(_host: str, _port: int) -> Sequence[str]:
        return next(answers)

    monkeypatch.setattr(type(loop), "create_connection", refused)
    outcome = await venue.deliver(delivery_id, allow_private=False, resolve=rebinding)
    monkeypatch.undo()
    assert outcome.word == "retry"
    assert connected == [("93.184.215.14", receiver.port)]
    assert venue.row(delivery_id)[3] == "no connection"
    assert receiver.connections == 0


async def test_another_address_of_the_name_is_tried_when_one_is_down(venue: Venue, receiver: Receiver) -> None:
    await venue.endpoint(f"http://hooks.example:{receiver.port}/")
    # Nobody listens on the first one.
    outcome = await venue.deliver(await venue.queued(), resolve=to("127.0.0.9", "127.0.0.1"))
    assert outcome == Outcome("delivered")
    assert len(receiver.received) == 1


async def test_a_name_that_leads_nowhere(venue: Venue) -> None:
    async def unknown(_host: str, _port: int) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    await venue.endpoint("https://hooks.example/")
    for resolve in (unknown, to()):
        delivery_id = await venue.queued()
        assert (await venue.deliver(delivery_id, resolve=resolve)).word == "retry"
        assert venue.row(delivery_id)[3] == "the name of the host leads nowhere"


# -- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ssl.SSLContext]:
    """A certificate for hooks.example that is its own authority: its file, and the server's side."""
    if not (openssl := shutil.which("openssl")):
        pytest.skip("openssl is not there to make a certificate")
    folder = tmp_path_factory.mktemp("certificate")
    key, made = str(folder / "key.pem"), str(folder / "certificate.pem")
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=hooks.example", "-addext", "subjectAltName=DNS:hooks.example", "-keyout", key, "-out", made],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made, key)
    return made, context


@pytest.mark.parametrize(
    ("host", "trusted", "expected"),
    [
        ("hooks.example", True, ("delivered", 1, 200, None)),
        ("other.example", True, ("pending", 1, None, "TLS failed: the certificate may not be right")),
        ("hooks.example", False, ("pending", 1, None, "TLS failed: the certificate may not be right")),
    ],
)
async def test_the_certificate_must_be_for_the_name_and_not_for_the_address(
    venue: Venue,
    authority: tuple[str, ssl.SSLContext],
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    trusted: bool,
    expected: tuple[Any, ...],
) -> None:
    trusted_file, context = authority
    if trusted:
        monkeypatch.setattr(sending, "_tls", lambda: ssl.create_default_context(cafile=trusted_file))
    asked_for: list[str | None] = []
    monkeypatch.setattr(context, "sni_callback", lambda _socket, name, _context: asked_for.append(name))
    async with receiving(context) as receiver:
        await venue.endpoint(f"https://{host}:{receiver.port}/")
        delivery_id = await venue.queued()
        await venue.deliver(delivery_id, resolve=to("127.0.0.1"))
        assert venue.row(delivery_id) == expected
        assert asked_for == [host]
        assert len(receiver.received) == (expected[0] == "delivered")
