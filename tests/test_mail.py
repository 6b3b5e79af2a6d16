"""E-mail: rendered, sent to a real SMTP server over a socket, and read back with the standard library's parser."""

import asyncio
import shutil
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.message import EmailMessage
from typing import Any, get_args
from urllib.parse import quote
from uuid import UUID

import icalendar
import msgspec
import pytest
from aiosmtpd.smtp import SMTP, AuthResult

from app import written
from app.mail.delivery import connection, send
from app.mail.message import render
from app.mail.notice import Kind, MailRefused, MailServerAway, Money, Notice, NoticeVenue, Recipient, Refund
from app.mail.text import one_line
from app.simulator.mailbox import start_smtp
from tests.letters import BOOKING, FOR_EVER, SENDER, URL, notice, sent
from tests.test_imports import APP, imported

pytestmark = pytest.mark.anyio


def body(message: EmailMessage, kind: str) -> str:
    part = message.get_body((kind,))
    assert part
    return part.get_content().replace("\r\n", "\n")


def event(message: EmailMessage) -> icalendar.Event:
    (attached,) = message.iter_attachments()
    assert attached.get_content_type() == "text/calendar"
    assert attached.get_filename() == "booking.ics"
    calendar = icalendar.Calendar.from_ical(attached.get_content())
    assert calendar["METHOD"] == "PUBLISH"
    assert calendar["PRODID"] == "-//Holdfast//Bookings//EN"
    (one,) = calendar.walk("VEVENT")
    return one


# -- what is written --------------------------------------------------------------------------------------------------


async def test_a_confirmation_arrives_as_text_html_and_calendar_entry(tmp_path):
    message = await sent(tmp_path, render(notice(), SENDER, datetime(2026, 11, 21, 18, 0, 0, 5, tzinfo=UTC)))
    assert message["From"] == SENDER
    assert message["To"] == "ada@example.com"
    assert message["Subject"] == "Confirmed: City walk, Sat, Nov 28, 2026, 10:00 AM"
    assert message["Date"].datetime == datetime(2026, 11, 21, 18, 0, tzinfo=UTC)
    assert message["Auto-Submitted"] == "auto-generated"
    for kind in ("plain", "html"):
        text = body(message, kind)
        for said in (
            "Hello Ada Lovelace,",
            "Your 2 places are booked.",
            "City walk",
            "City Tours",
            "Saturday, November 28, 2026 at 10:00 AM \N{EN DASH} 11:30 AM CET (Europe/Berlin)",
            "€25.00",
            str(BOOKING),
        ):
            assert said in text
    assert URL in body(message, "plain")
    assert f'href="{URL.replace("&", "&amp;")}"' in body(message, "html")
    assert message.defects == []


async def test_the_calendar_entry_is_in_utc_and_named_by_the_booking(tmp_path):
    entry = event(await sent(tmp_path, render(notice(sequence=3), SENDER)))
    assert entry["UID"] == f"{BOOKING}@holdfast"
    assert entry["SEQUENCE"] == 3
    assert entry["STATUS"] == "CONFIRMED"
    assert entry["SUMMARY"] == "City walk · City Tours"
    assert (entry.start, entry.end) == (notice().starts_at, notice().ends_at)
    assert entry["DTSTART"].to_ical() == b"20261128T090000Z"
    # Calendars are shared: the customer's link is not.
    assert b"secret" not in entry.to_ical()


async def test_a_cancellation_ends_the_same_entry_and_tells_of_the_money(tmp_path):
    due = notice(kind="cancelled", sequence=1, refund=Refund("due", Money(2500, "EUR")))
    message = await sent(tmp_path, render(due, SENDER))
    entry = event(message)
    assert (entry["UID"], entry["STATUS"], entry["SEQUENCE"]) == (f"{BOOKING}@holdfast", "CANCELLED", 1)
    assert "You get €25.00 back" in body(message, "plain")
    waived = render(msgspec.structs.replace(due, refund=Refund("waived", Money(2500, "EUR"))), SENDER)
    assert "is not refunded" in body(waived, "plain")
    assert "back" not in body(waived, "plain")
    free = render(notice(kind="cancelled", price=None), SENDER)
    assert "€" not in body(free, "plain")
    assert "refund" not in body(free, "plain")


async def test_a_booking_that_moved_corrects_the_same_entry(tmp_path):
    message = await sent(tmp_path, render(notice(kind="moved", sequence=1), SENDER))
    entry = event(message)
    assert (entry["UID"], entry["STATUS"], entry["SEQUENCE"]) == (f"{BOOKING}@holdfast", "CONFIRMED", 1)
    assert message["Subject"].startswith("Changed: ")
    assert "what you have booked now" in body(message, "plain")


async def test_a_payment_that_came_too_late_has_no_calendar_entry(tmp_path):
    late = notice(kind="refunded", refund=Refund("due", Money(1200, "JPY")), link=None)
    message = await sent(tmp_path, render(late, SENDER))
    assert message["Subject"].startswith("Not booked, money returned: City walk")
    assert "You get ¥1,200 back" in body(message, "html")
    assert "Nothing is booked" in body(message, "plain")
    assert "href" not in body(message, "html")
    assert list(message.iter_attachments()) == []


@pytest.mark.parametrize(
    "name",
    [
        "Ada\r\nBcc: everybody@example.com",
        "Ada\nSubject: other",
        "Ada\u2028Bcc: everybody@example.com",
        "Ada\x00\x1b[31m\x85Bcc: everybody@example.com",
        "=?utf-8?q?Ada=0D=0ABcc:_everybody=40example.com?=",
        "=\u200b?utf-8?q?Ada=0D=0ABcc:_everybody=40example.com?=",
        "=?utf-8?b?QWRhDQpCY2M6IGV2ZXJ5Ym9keUBleGFtcGxlLmNvbQ==?= =?utf-8?q?=0A?=",
        "\u202eevil\u2066 \u200f",
        "Zoë, Søren \N{PILE OF POO} <x@y.example>; \"quoted\" 'too' \\",
        "👩‍👩‍👧‍👦" * 40,
        "\ud800 half a character",
        "עברית ועוד " * 15,
        "x" * 200,
        " ",
    ],
)
async def test_a_name_writes_no_header_and_turns_no_line_around(tmp_path, name):
    written = render(
        notice(resource_name=name, customer=Recipient(name, "ada@example.com"), venue=NoticeVenue("v", name, "UTC")),
        SENDER,
    )
    message = await sent(tmp_path, written)
    assert set(message.keys()) == {
        *("From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "Content-Language"),
        *("MIME-Version", "Content-Type"),
    }
    assert [address.addr_spec for address in message["To"].addresses] == ["ada@example.com"]
    assert message["Subject"].strip() == written["Subject"]
    assert message["Subject"].endswith(", Sat, Nov 28, 2026, 9:00 AM")
    assert event(message)["UID"] == f"{BOOKING}@holdfast"
    for text in (message["Subject"], body(message, "plain"), body(message, "html"), str(event(message)["SUMMARY"])):
        assert not set(text) & set("\u202e\u2066\u200f\u2028\x00\x1b\x85")
    assert f"Hello {one_line(name) or 'there'},\n" in body(message, "plain")


async def test_an_operators_name_writes_no_header_either(tmp_path):
    sender = '"=?utf-8?q?Tours=0D=0ABcc:_everybody=40example.com?=, Zoë" <hello@tours.example>'
    message = await sent(tmp_path, render(notice(), sender))
    assert "Bcc" not in message
    assert [address.addr_spec for address in message["From"].addresses] == ["hello@tours.example"]


async def test_markup_in_names_is_text(tmp_path):
    bad = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    many = notice(
        resource_name=bad,
        customer=Recipient(bad, "ada@example.com"),
        venue=NoticeVenue("v", bad, "UTC"),
        link='https://x.example/"><script>alert(2)</script>',
    )
    message = await sent(tmp_path, render(many, SENDER))
    html = body(message, "html")
    assert "<script" not in html
    assert "<img" not in html
    assert html.count("&lt;script&gt;alert(1)") >= 3
    assert bad in body(message, "plain")


@pytest.mark.parametrize(
    "address",
    ["", "ada", "@example.com", "ada@", "ada@example.com\r\nBcc: x@example.com", "ada@example.com, x@example.com",
     "Ada <ada@example.com>", "ada@example.com>", "adä@example.com", "a da@example.com", "ada@[",
     '"a\r\nb"@example.com'],
)  # fmt: skip
async def test_what_is_no_address_is_refused_without_repeating_it(address):
    with pytest.raises(MailRefused) as refused:
        render(notice(customer=Recipient("Ada", address)), SENDER)
    assert str(refused.value) == "the customer's e-mail address is none"
    assert refused.value.__context__ is None


@pytest.mark.parametrize(
    ("language", "subject", "told"),
    [
        ("de", "Bestätigt: City walk, Sa., 28. Nov. 2026, 10:00", ("Guten Tag Ada Lovelace,", "Ihre 2 Plätze sind")),
        ("es", "Confirmada: City walk, sáb, 28 nov 2026, 10:00", ("Hola, Ada Lovelace:", "Sus 2 plazas están")),
        ("fr", "Confirmée: City walk, sam. 28 nov. 2026, 10:00", ("Bonjour Ada Lovelace,", "Vos 2 places sont")),
    ],
)
async def test_it_is_written_in_the_language_of_the_booking(tmp_path, language, subject, told):
    message = await sent(tmp_path, render(notice(language=language), SENDER))
    assert message["Subject"] == subject
    assert message["Content-Language"] == language
    for kind in ("plain", "html"):
        text = body(message, kind)
        for said in (*told, "25,00\N{NO-BREAK SPACE}€", "City Tours"):
            assert said in text
        assert "Nobody reads answers" not in text
    assert f'<html lang="{language}">' in body(message, "html")


@pytest.mark.parametrize("language", written.LANGUAGES)
@pytest.mark.parametrize("kind", get_args(Kind))
async def test_every_kind_is_written_in_every_language(language, kind):
    for status in ("due", "waived"):
        for quantity in (1, 2):
            known = notice(language=language, kind=kind, quantity=quantity, refund=Refund(status, Money(2500, "EUR")))
            text = body(render(known, SENDER), "plain")
            assert "{" not in text


async def test_times_are_told_in_the_zone_of_the_venue(tmp_path):
    kathmandu = notice(venue=NoticeVenue("v", "V", "Asia/Kathmandu"))
    message = await sent(tmp_path, render(kathmandu, SENDER))
    assert "2:45 PM \N{EN DASH} 4:15 PM UTC+0545 (Asia/Kathmandu)" in body(message, "plain")
    assert (event(message).start, event(message).end) == (kathmandu.starts_at, kathmandu.ends_at)


async def test_the_same_notice_has_the_same_message_id_and_every_other_another():
    def message_id(**changes: Any) -> str:
        return render(notice(**changes), SENDER)["Message-ID"]

    again = message_id(quantity=1, resource_name="Renamed since")
    assert message_id() == again == f"<{BOOKING}.confirmed.0@tours.example>"
    ids = {message_id(), message_id(kind="cancelled"), message_id(sequence=1), message_id(booking_id=UUID(int=1))}
    assert len(ids) == 4


async def test_a_notice_can_wait_in_a_queue():
    due = notice(kind="cancelled", refund=Refund("due", Money(2500, "EUR")))
    assert msgspec.json.decode(msgspec.json.encode(due), type=Notice) == due


# -- how it leaves ----------------------------------------------------------------------------------------------------


class Handler:
    """A server that takes everything. Tests say what it answers instead."""

    def __init__(self, **answers: str) -> None:
        self.answers = answers
        self.taken: list[bytes] = []
        self.encrypted: list[bool] = []

    async def handle_MAIL(self, server, session, envelope, address, options):  # noqa: N802
        if "MAIL" not in self.answers:
            envelope.mail_from = address
        return self.answers.get("MAIL", "250 OK")

    async def handle_RCPT(self, server, session, envelope, address, options):  # noqa: N802
        if "RCPT" not in self.answers:
            envelope.rcpt_tos.append(address)
        return self.answers.get("RCPT", "250 OK")

    async def handle_DATA(self, server, session, envelope):  # noqa: N802
        self.taken.append(envelope.content)
        self.encrypted.append(session.ssl is not None)
        return self.answers.get("DATA", "250 OK")


@asynccontextmanager
async def serving(handler: Handler, **options: Any) -> AsyncIterator[int]:
    loop, conversations = asyncio.get_running_loop(), []

    def accept() -> SMTP:
        conversations.append(SMTP(handler, hostname="localhost", loop=loop, **options))
        return conversations[-1]

    async with listening(accept) as port:
        yield port
        for each in conversations:
            if each.transport:
                each.transport.close()
            each._handler_coroutine.cancel()
        await asyncio.gather(*(each._handler_coroutine for each in conversations), return_exceptions=True)


@asynccontextmanager
async def listening(accept: Callable[[], Any]) -> AsyncIterator[int]:
    server = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize(
    ("answers", "error", "said"),
    [
        ({"RCPT": "550 5.1.1 ada@example.com: no such user"}, MailRefused, "the recipient: 550"),
        ({"RCPT": "450 4.2.1 ada@example.com is busy"}, MailServerAway, "the recipient off: 450"),
        ({"MAIL": "553 hello@tours.example may not"}, MailRefused, "the sender: 553"),
        ({"MAIL": "451 later"}, MailServerAway, "the sender off: 451"),
        ({"DATA": "554 5.7.1 ada@example.com does not want this"}, MailRefused, "the message: 554"),
        ({"DATA": "452 4.3.1 no space"}, MailServerAway, "the message off: 452"),
        ({"DATA": "421 closing"}, MailServerAway, "the message off: 421"),
    ],
)
async def test_an_answer_tells_whether_to_try_again_and_names_nobody(answers, error, said):
    async with serving(Handler(**answers)) as port, asyncio.timeout(FOR_EVER):
        with pytest.raises(error, match=said) as failed:
            await send(f"smtp://127.0.0.1:{port}", render(notice(), SENDER))
    assert "@" not in str(failed.value)
    assert failed.value.__context__ is None


async def test_a_server_that_is_not_there_is_away(tmp_path):
    server = await start_smtp(tmp_path)
    await server.stop()
    with pytest.raises(MailServerAway, match="cannot be reached"):
        await send(f"smtp://127.0.0.1:{server.port}", render(notice(), SENDER))


@pytest.mark.parametrize("url", ["smtp://a..b", f"smtp://{'x' * 70}.example", "smtps://no-such-host.invalid"])
async def test_a_host_that_is_none_costs_no_message(url):
    with pytest.raises(MailServerAway):
        await send(url, render(notice(), SENDER))


class Silent(asyncio.Protocol):
    """A server that takes the connection and says at most its greeting."""

    def __init__(self, greeting: bytes = b"") -> None:
        self.greeting = greeting

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(self.greeting)

    def eof_received(self) -> bool:
        self.transport.close()
        return False


@pytest.mark.parametrize("greeting", [b"", b"220 hello\r\n", b"220-more follows\r\n"])
async def test_a_server_that_says_nothing_is_given_up(greeting):
    async with listening(lambda: Silent(greeting)) as port, asyncio.timeout(FOR_EVER):
        with pytest.raises(MailServerAway, match="too slow"):
            await send(f"smtp://127.0.0.1:{port}", render(notice(), SENDER), seconds=0.2)


class Dripping(asyncio.Protocol):
    """A server whose greeting never ends: no single wait is long."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.drip()

    def drip(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(b"220-wait\r\n")
            asyncio.get_running_loop().call_later(0.02, self.drip)


async def test_all_waits_together_are_bounded():
    async with listening(Dripping) as port, asyncio.timeout(FOR_EVER):
        with pytest.raises(MailServerAway, match="too slow"):
            await send(f"smtp://127.0.0.1:{port}", render(notice(), SENDER), seconds=0.2)


async def test_a_server_that_hangs_after_it_took_the_message_has_taken_it(monkeypatch):
    class NoGoodbye(SMTP):
        async def smtp_QUIT(self, arg: str | None) -> None:  # noqa: N802
            """Say nothing."""

    monkeypatch.setattr("app.mail.delivery.QUIT_SECONDS", 0.05)
    handler, conversations = Handler(), []

    def accept() -> SMTP:
        conversations.append(NoGoodbye(handler, hostname="localhost", loop=asyncio.get_running_loop()))
        return conversations[-1]

    async with listening(accept) as port, asyncio.timeout(FOR_EVER):
        await send(f"smtp://127.0.0.1:{port}", render(notice(), SENDER))
        await asyncio.gather(*(each._handler_coroutine for each in conversations), return_exceptions=True)
    assert len(handler.taken) == 1


async def test_a_login_with_a_quoted_password():
    seen = []

    def allow(server, session, envelope, mechanism, data):
        seen.append((data.login, data.password))
        return AuthResult(success=data.password == b"p@ss:/word", handled=False)

    options = {"authenticator": allow, "auth_require_tls": False}
    async with serving(handler := Handler(), **options) as port, asyncio.timeout(FOR_EVER):
        user = f"{quote('me@tours.example', '')}:{quote('p@ss:/word', '')}"
        await send(f"smtp://{user}@127.0.0.1:{port}", render(notice(), SENDER))
        # A wrong password is the operator's to put right: no message is given up for it.
        with pytest.raises(MailServerAway, match="does not let us in: 535"):
            await send(f"smtp://me:wrong@127.0.0.1:{port}", render(notice(), SENDER))
    assert seen[0] == (b"me@tours.example", b"p@ss:/word")
    assert len(handler.taken) == 1


async def test_a_password_leaves_the_machine_encrypted_or_not_at_all():
    assert connection("smtp://mail.example") == {
        **{"hostname": "mail.example", "port": 25, "username": None, "password": None},
        **{"use_tls": False, "start_tls": None, "validate_certs": True},
    }
    with_user = connection("smtp://me:pw@mail.example:587")
    assert (with_user["start_tls"], with_user["port"], with_user["validate_certs"]) == (True, 587, True)
    implicit = connection("smtps://me:pw@mail.example")
    assert (implicit["use_tls"], implicit["start_tls"], implicit["port"]) == (True, False, 465)
    assert connection("smtp://localhost")["validate_certs"] is False


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if not (openssl := shutil.which("openssl")):
        pytest.skip("openssl is not there to make a certificate")
    folder = tmp_path_factory.mktemp("certificate")
    key, made = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-keyout", key, "-out", made],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made, key)
    return context


async def test_starttls_is_used_when_it_is_offered(certificate):
    async with serving(handler := Handler(), tls_context=certificate) as port, asyncio.timeout(FOR_EVER):
        await send(f"smtp://localhost:{port}", render(notice(), SENDER))
    assert handler.encrypted == [True]


async def test_a_certificate_of_nobody_is_not_trusted_on_another_machine(certificate, monkeypatch):
    monkeypatch.setattr("app.mail.delivery.THIS_MACHINE", set())
    async with serving(handler := Handler(), tls_context=certificate) as port, asyncio.timeout(FOR_EVER):
        with pytest.raises(MailServerAway, match="cannot be reached"):
            await send(f"smtp://localhost:{port}", render(notice(), SENDER))
    assert handler.taken == []


# -- what it costs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", sorted((APP / "mail").glob("*.py")), ids=lambda path: path.stem)
def test_mail_knows_neither_store_nor_use_case(module):
    assert imported(module) <= {"mail", "written"}


def test_the_http_workers_pay_for_none_of_it():
    heavy = "{'jinja2', 'icalendar', 'aiosmtplib', 'aiosmtpd'}"
    code = f"import sys, app.main, app.cli, app.mail.notice; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
