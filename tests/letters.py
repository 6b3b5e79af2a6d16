"""A notice to a customer, and the way it takes through the development mailbox."""

from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from app.mail import maildir
from app.mail.delivery import send
from app.mail.notice import Money, Notice, NoticeVenue, Recipient
from app.simulator.mailbox import start_smtp

SENDER = "City Tours <hello@tours.example>"
BOOKING = UUID("01a1fc57-7a9e-7375-85a7-3e80348c053e")
URL = "https://tours.example/booking/01a1fc57#token=secret&x=1"
#: Patience that a right program never needs: a test that would wait for ever fails instead.
FOR_EVER = 60


def notice(**changes: Any) -> Notice:
    known = Notice(
        kind="confirmed",
        booking_id=BOOKING,
        venue=NoticeVenue("demo", "City Tours", "Europe/Berlin"),
        resource_name="City walk",
        starts_at=datetime(2026, 11, 28, 9, 0, tzinfo=UTC),
        ends_at=datetime(2026, 11, 28, 10, 30, tzinfo=UTC),
        quantity=2,
        customer=Recipient("Ada Lovelace", "ada@example.com"),
        price=Money(2500, "EUR"),
        link=URL,
    )
    return msgspec.structs.replace(known, **changes)


async def sent(mail_dir: Path, message: EmailMessage) -> EmailMessage:
    """Send a message to the development mailbox, and read what arrived."""
    server = await start_smtp(mail_dir)
    try:
        await send(f"smtp://127.0.0.1:{server.port}", message)
    finally:
        await server.stop()
    opened = maildir.open_letter(mail_dir, maildir.letters(mail_dir)[0].id)
    assert opened
    return message_from_bytes(opened.source, policy=policy.default)
