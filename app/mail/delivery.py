"""How an e-mail leaves: one SMTP conversation, bounded as a whole, and an answer that tells whether to try again."""

import asyncio
from email.message import EmailMessage
from typing import Any
from urllib.parse import unquote, urlsplit

from aiosmtplib import (
    SMTP,
    SMTPDataError,
    SMTPException,
    SMTPNotSupported,
    SMTPRecipientsRefused,
    SMTPResponseException,
    SMTPSenderRefused,
)

from app.mail.notice import MailError, MailRefused, MailServerAway

#: From the first packet to the server's word that it has the message. A worker has other things to do.
SEND_SECONDS = 10.0
#: To say goodbye, after the message has been accepted.
QUIT_SECONDS = 1.0
THIS_MACHINE = {"localhost", "127.0.0.1", "::1"}


async def send(smtp_url: str, message: EmailMessage, *, seconds: float = SEND_SECONDS) -> None:
    """Hand a message to the server and return when the server has taken it.

    A repeat after `MailServerAway` may deliver a second copy, when the server took the first and its answer was lost:
    both have the same Message-ID.

    Raises:
        MailRefused: it will never work.
        MailServerAway: try again later.
    """
    failure: MailError
    client = SMTP(**connection(smtp_url), timeout=seconds)
    try:
        async with asyncio.timeout(seconds):
            await client.connect()
            await client.send_message(message)
    except (SMTPException, OSError, ValueError) as error:  # TimeoutError and those of TLS are OSErrors
        failure = _translated(error)
    else:
        await _part(client)
        return
    finally:
        client.close()
    # Outside of the handler: what a server says repeats the address, and a traceback would show it.
    raise failure


def connection(smtp_url: str) -> dict[str, Any]:
    """Tell how to connect: where, as whom, and how it is encrypted.

    A password leaves this machine encrypted or not at all: `smtp://` with a user insists on STARTTLS, because whoever
    sits in between can strike it from what the server offers. A relay on this machine has nobody in between, and mostly
    a certificate that it made itself.
    """
    url = urlsplit(smtp_url)
    implicit, local = url.scheme == "smtps", url.hostname in THIS_MACHINE
    user = unquote(url.username) if url.username else None
    return {
        "hostname": url.hostname,
        "port": url.port or (465 if implicit else 25),
        "username": user,
        "password": unquote(url.password or "") if user else None,
        "use_tls": implicit,
        "start_tls": False if implicit else True if user and not local else None,
        "validate_certs": not local,
    }


async def _part(client: SMTP) -> None:
    """Say goodbye. The message has been taken: whatever goes wrong now changes nothing."""
    try:
        async with asyncio.timeout(QUIT_SECONDS):
            await client.quit()
    except (SMTPException, OSError):
        pass


def _translated(error: Exception) -> MailError:
    """Tell what a failure means. Only codes are repeated: the words of a server hold the address."""
    match error:
        case SMTPRecipientsRefused():
            return _answered("the recipient", max(refused.code for refused in error.recipients))
        case SMTPSenderRefused():
            return _answered("the sender", error.code)
        case SMTPDataError():
            return _answered("the message", error.code)
        case SMTPResponseException():
            # Of the greeting, of TLS or of the login. An operator can put it right, and meanwhile no message is lost.
            return MailServerAway(f"the mail server does not let us in: {error.code}")
        case TimeoutError():
            return MailServerAway("the mail server is too slow")
        case SMTPNotSupported():
            return MailRefused("the mail server takes no such address")
        case ValueError() if not isinstance(error, OSError | UnicodeError):
            # Those two are of certificates and host names, and nothing is wrong with the message.
            return MailRefused("the message has an address that no server takes")
    return MailServerAway(f"the mail server cannot be reached: {type(error).__name__}")


def _answered(about: str, code: int) -> MailError:
    if code >= 500:
        return MailRefused(f"the mail server refused {about}: {code}")
    return MailServerAway(f"the mail server put {about} off: {code}")
