"""The development mailbox: what it keeps, its pages, and the command that reads it."""

import asyncio
import smtplib

import msgspec
import pytest
from litestar import Litestar
from litestar.testing import AsyncTestClient

from app.cli import cli
from app.cli.failing import guarded
from app.mail import maildir
from app.mail.delivery import send
from app.mail.message import render
from app.mail.notice import MailRefused
from app.simulator.mailbox import MAX_BYTES, routes, start_smtp
from tests.letters import FOR_EVER, SENDER, URL, notice, sent

pytestmark = pytest.mark.anyio


# -- the development mailbox ------------------------------------------------------------------------------------------


async def test_the_mailbox_keeps_the_newest_and_marks_repeats(tmp_path):
    box = tmp_path / "home" / "mail"
    for number in (1, 2, 1, 3):
        maildir.keep(box, f"Message-ID: <{number}@x>\nSubject: {number}\n\nbody".encode(), kept=3)
    found = maildir.letters(box)
    assert [(letter.subject, letter.duplicate) for letter in found] == [("3", False), ("1", False), ("2", False)]
    maildir.keep(box, b"Message-ID: <3@x>\nSubject: 3 again\n\nbody", kept=3)
    assert [(letter.subject, letter.duplicate) for letter in maildir.letters(box)] == [
        ("3 again", True),
        ("3", False),
        ("1", False),
    ]
    # It holds links that open bookings.
    assert box.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in (box / "new").iterdir())
    assert list((box / "tmp").iterdir()) == []


async def test_a_mail_program_may_read_the_mailbox_too(tmp_path):
    id_ = maildir.keep(tmp_path, b"Subject: hello\n\nbody")
    (tmp_path / "new" / f"{id_}.eml").rename(tmp_path / "cur" / f"{id_}.eml:2,S")
    assert [letter.id for letter in maildir.letters(tmp_path)] == [id_]
    opened = maildir.open_letter(tmp_path, id_)
    assert opened
    assert opened.text == "body"


@pytest.mark.parametrize(
    "source",
    [
        b"",
        b"no header at all",
        b"Subject: \xff\xfe\r\nFrom: <<<>>>,,\r\nTo: \"\r\nMessage-ID: [\r\n\r\n\xff",
        b"Content-Type: text/plain; charset=no-such-charset\n\n\xe4",
        b"Content-Type: multipart/mixed; boundary=x\n\n--x\nContent-Type: text/html; charset=utf-8\n\n<p>\xff",
        b"Content-Type: multipart/mixed; boundary=x\n\n--x\nContent-Type: message/rfc822\n"
        b"Content-Disposition: attachment; filename=\"../../etc/passwd\r\n\"\n\nSubject: inner\n\nhello\n--x--",
        b"Content-Type: multipart/alternative\n\nwithout a boundary",
        b"Content-Type: text/plain\nContent-Transfer-Encoding: base64\n\n####",
    ],
)  # fmt: skip
async def test_broken_messages_are_shown_as_far_as_they_go(tmp_path, source):
    id_ = maildir.keep(tmp_path, source)
    async with AsyncTestClient(Litestar(routes(tmp_path), openapi_config=None)) as client:
        for path in ("/mailbox", "/mailbox.json", f"/mailbox/{id_}", f"/mailbox/{id_}/source"):
            assert (await client.get(path)).status_code == 200
        opened = maildir.open_letter(tmp_path, id_)
        assert opened
        for number, file in enumerate(opened.attachments, 1):
            answer = await client.get(f"/mailbox/{id_}/attachments/{number}")
            assert answer.status_code == 200
            assert "/" not in file.name
            assert file.name in answer.headers["content-disposition"]


async def test_the_pages_show_text_html_and_attachments(tmp_path):
    await sent(tmp_path, render(notice(resource_name="<script>alert(1)</script>"), SENDER))
    async with AsyncTestClient(Litestar(routes(tmp_path), openapi_config=None)) as client:
        listed = (await client.get("/mailbox.json")).json()["data"]
        assert [(letter["to"], letter["duplicate"]) for letter in listed] == [("ada@example.com", False)]
        path = f"/mailbox/{listed[0]['id']}"
        page = await client.get("/mailbox")
        assert "Development mailbox" in page.text
        assert f'href="{path}"' in page.text
        shown = await client.get(path)
        assert "Hello Ada Lovelace," in shown.text
        assert f'<iframe src="{path}/html"' in shown.text
        assert 'sandbox="allow-popups' in shown.text
        for answer in (page, shown):
            assert "<script" not in answer.text
            assert "default-src 'none'; style-src 'sha256-" in answer.headers["content-security-policy"]
        html = await client.get(f"{path}/html")
        assert "<!doctype html>" in html.text
        assert "default-src 'none'; style-src 'unsafe-inline'" in html.headers["content-security-policy"]
        assert "script" not in html.headers["content-security-policy"]
        assert "sandbox" in html.headers["content-security-policy"]
        entry = await client.get(f"{path}/attachments/1")
        assert entry.content.startswith(b"BEGIN:VCALENDAR")
        assert entry.headers["content-disposition"] == 'attachment; filename="booking.ics"'
        assert (await client.get(f"{path}/source")).content.startswith(b"From: City Tours")


@pytest.mark.parametrize("path", ["x", "..%2F..%2Fetc%2Fpasswd", "20261121-000000-000000-000000"])
async def test_what_is_not_in_the_mailbox_is_not_found(tmp_path, path):
    maildir.keep(tmp_path, b"Subject: one\n\nbody")
    async with AsyncTestClient(Litestar(routes(tmp_path), openapi_config=None)) as client:
        for rest in ("", "/html", "/source", "/attachments/1"):
            assert (await client.get(f"/mailbox/{path}{rest}")).status_code == 404
        id_ = maildir.letters(tmp_path)[0].id
        for rest in ("/html", "/attachments/1", "/attachments/0", "/attachments/-1"):
            assert (await client.get(f"/mailbox/{id_}{rest}")).status_code == 404


async def test_an_empty_mailbox_says_so(tmp_path):
    async with AsyncTestClient(Litestar(routes(tmp_path / "none"), openapi_config=None)) as client:
        assert "No e-mail yet" in (await client.get("/mailbox")).text
        assert (await client.get("/mailbox.json")).json() == {"data": []}


async def test_many_at_once_and_one_that_is_too_large(tmp_path):
    server = await start_smtp(tmp_path)
    url = f"smtp://127.0.0.1:{server.port}"
    try:
        await asyncio.gather(*(send(url, render(notice(sequence=number), SENDER)) for number in range(20)))
        large = render(notice(), SENDER)
        large.add_attachment(bytes(MAX_BYTES), maintype="application", subtype="octet-stream")
        with pytest.raises(MailRefused, match="552"):
            await send(url, large)
    finally:
        await server.stop()
    assert len({letter.message_id for letter in maildir.letters(tmp_path)}) == 20


async def test_stopping_ends_a_conversation_that_is_under_way(tmp_path):
    server = await start_smtp(tmp_path)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    async with asyncio.timeout(FOR_EVER):
        assert (await reader.readline()).startswith(b"220 ")
        await server.stop()
        assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


async def test_any_smtp_client_will_do(tmp_path):
    server = await start_smtp(tmp_path)

    def talk() -> None:
        with smtplib.SMTP("127.0.0.1", server.port) as client:
            client.sendmail("a@example.com", ["b@example.com"], b"Subject: plain\r\n\r\n.dots\r\n..more")

    try:
        await asyncio.to_thread(talk)
    finally:
        await server.stop()
    (letter,) = maildir.letters(tmp_path)
    opened = maildir.open_letter(tmp_path, letter.id)
    assert opened
    assert opened.text.splitlines() == [".dots", "..more"]


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def holdfast(tmp_path, monkeypatch, capsys):
    def run(*args: str) -> tuple[int, str, str]:
        monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path))
        code = guarded(lambda: cli.main(["mail", *args], standalone_mode=False))
        return code, *capsys.readouterr()

    return run


def test_where_no_demo_kept_anything_the_command_says_why(holdfast):
    for args in (["list"], ["show"]):
        code, out, err = holdfast(*args)
        assert (code, out) == (3, "")
        assert "No mailbox in" in err
        assert "HOLDFAST_SMTP_URL" in err


def test_an_empty_mailbox_is_no_failure_to_list(holdfast, tmp_path):
    maildir.create(tmp_path / "mail")
    assert holdfast("list") == (0, "", "No e-mail yet\n")
    assert holdfast("show")[0] == 3


def test_the_command_lists_and_shows(holdfast, tmp_path):
    first = maildir.keep(tmp_path / "mail", render(notice(), SENDER).as_bytes())
    second = maildir.keep(tmp_path / "mail", render(notice(), SENDER).as_bytes())
    code, out, _ = holdfast("list", "--json")
    listed = msgspec.json.decode(out)["data"]
    assert (code, [(letter["id"], letter["duplicate"]) for letter in listed]) == (0, [(second, True), (first, False)])
    code, out, _ = holdfast("list")
    assert code == 0
    assert "sent again" in out
    code, out, _ = holdfast("show")
    assert code == 0
    assert "What:    City walk" in out
    assert URL in out
    assert "booking.ics (text/calendar," in out
    code, out, _ = holdfast("show", first, "--json")
    shown = msgspec.json.decode(out)
    assert (shown["id"], shown["duplicate"], shown["attachments"][0]["name"]) == (first, False, "booking.ics")
    code, out, _ = holdfast("show", "latest", "--ics")
    assert code == 0
    assert out.replace("\r", "").startswith("BEGIN:VCALENDAR\n")
    assert holdfast("show", "no-such-id")[0] == 3


def test_the_command_gives_a_terminal_no_orders(holdfast, tmp_path):
    maildir.keep(
        tmp_path / "mail", b"Subject: [red]x[/red] \x1b[2J\nTo: a@example.com\n\nhello \x1b]0;title\x07 \xc2\x9b there"
    )
    for args in (["list"], ["show"]):
        code, out, _ = holdfast(*args)
        assert code == 0
        assert "[red]x[/red]" in out
        assert not set(out) & {"\x1b", "\x07", "\x9b"}
    assert holdfast("show", "--ics")[0] == 3
