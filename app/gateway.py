"""Stripe only: sessions, refunds and the signatures of webhooks, through the official SDK, each wait bounded.

Nothing is called inside a transaction. Whoever repeats a call gives the same key and the same parameters, which were
stored before the first one (reliability.md T-21). Three kinds of answer are told apart: done, refused for certain, and
unclear.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import msgspec

from app.settings import Settings

if TYPE_CHECKING:
    from stripe import StripeClient

T = TypeVar("T")

#: What a customer waits for Stripe at the longest, repetitions included; the SDK alone would wait 80 s, three times.
ANSWER_SECONDS = 8.0
#: … and for one try, so that a lost answer leaves time for another.
TRY_SECONDS = 3.5
RETRIES = 2
#: A webhook that was signed longer ago is a replay, and one from so far ahead is nobody's (docs.stripe.com/webhooks).
TOLERANCE_SECONDS = 300


class Refused(Exception):
    """Stripe said no: nothing was made or changed."""


class Unclear(Exception):
    """No answer, or one that says nothing: it may have been done."""


class InProgress(Unclear):
    """The same call, with the same key, is being answered to somebody else, or to our own try before."""


class NotOpen(Exception):
    """The session can no longer be expired: it was paid, or has expired before."""


class NoSuchSession(Exception):
    """Stripe does not know the session: it is of another account, or of a simulator that has forgotten it."""


class AlreadyRefunded(Exception):
    """All of the money went back before."""


class BadSignature(Exception):
    """Whoever sent this webhook cannot be shown to be Stripe."""


class Payer(msgspec.Struct, frozen=True):
    """Who paid, as Stripe's page asked: needed only for sessions that are not ours."""

    name: str | None = None
    email: str | None = None
    phone: str | None = None


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A Checkout Session, as far as anything depends on it. Amounts in minor units, the currency in capitals."""

    id: str
    url: str | None
    status: str
    payment_status: str
    amount: int
    currency: str
    payment_intent: str | None
    metadata: Mapping[str, str]
    payer: Payer

    @property
    def is_paid(self) -> bool:
        """`complete` alone does not mean paid: with delayed methods the money comes days later (T-25)."""
        return self.payment_status in ("paid", "no_payment_required")

    @property
    def payment_id(self) -> UUID | None:
        """Our own row, as we wrote it into the metadata; None in a session that is not ours."""
        try:
            return UUID(self.metadata.get("payment_id", ""))
        except ValueError:
            return None


class Refund(msgspec.Struct, frozen=True):
    """Money that goes back. It may fail weeks after it was made, and is the seller's again."""

    id: str
    amount: int
    failed: bool


def session_of(found: Mapping[str, Any]) -> Session:
    """Read a session as the API and the webhooks write it. What is missing is taken for nothing, never for an error."""
    payer = found.get("customer_details") or {}
    return Session(
        id=str(found.get("id") or ""),
        url=found.get("url"),
        status=str(found.get("status") or ""),
        payment_status=str(found.get("payment_status") or ""),
        amount=int(found.get("amount_total") or 0),
        currency=str(found.get("currency") or "").upper(),
        payment_intent=_id_of(found.get("payment_intent")),
        metadata={str(name): str(value) for name, value in (found.get("metadata") or {}).items()},
        payer=Payer(payer.get("name"), payer.get("email") or found.get("customer_email"), payer.get("phone")),
    )


def _id_of(found: Any) -> str | None:
    """Stripe writes an object's id, or the object itself where it was expanded."""
    return found.get("id") if isinstance(found, Mapping) else found


class Gateway:
    """One client for the life of the process. Importing the SDK costs a second and 30 MB: only who is paid pays it."""

    def __init__(self, api_key: str, api_base: str) -> None:
        import stripe  # noqa: PLC0415 see above

        self._stripe = stripe
        self._http = stripe.HTTPXClient(timeout=TRY_SECONDS)
        self._client: StripeClient = stripe.StripeClient(
            api_key,
            base_addresses={"api": api_base},
            http_client=self._http,
            max_network_retries=RETRIES,
        )

    async def close(self) -> None:
        """Close the connections to Stripe."""
        await self._http.close_async()  # type: ignore[no-untyped-call]

    async def create_session(self, params: Mapping[str, Any], key: str) -> Session:
        """Make a session, or find the one that this key made before.

        Raises:
            Refused, Unclear
        """
        sessions = self._client.v1.checkout.sessions
        made = await self._ask(lambda: sessions.create_async(params, {"idempotency_key": key}))  # type: ignore[arg-type]
        return session_of(made.to_dict())

    async def session(self, session_id: str) -> Session:
        """Read how a session stands now.

        Raises:
            NoSuchSession, Refused, Unclear
        """
        return session_of(
            (await self._ask(lambda: self._client.v1.checkout.sessions.retrieve_async(session_id))).to_dict()
        )

    async def session_of_intent(self, payment_intent: str) -> Session | None:
        """Find the session that a payment came from."""
        sessions = self._client.v1.checkout.sessions
        found = await self._ask(lambda: sessions.list_async({"payment_intent": payment_intent, "limit": 1}))
        return session_of(found.data[0].to_dict()) if found.data else None

    async def expire(self, session_id: str) -> Session:
        """Make sure that a session can never be paid any more.

        Raises:
            NotOpen: too late, or done before: read it. NoSuchSession, Unclear
        """
        sessions = self._client.v1.checkout.sessions
        try:
            return session_of((await self._ask(lambda: sessions.expire_async(session_id))).to_dict())
        except Refused as refused:
            raise NotOpen from refused

    async def refund(self, payment_intent: str, key: str) -> Refund:
        """Give back all that is left of a payment: once, however often this is called, and with whatever keys. Under
        one key Stripe repeats its first answer, also an error: who wants to try again takes another.

        Raises:
            AlreadyRefunded, Refused, Unclear
        """
        create = self._client.v1.refunds.create_async
        done = await self._ask(lambda: create({"payment_intent": payment_intent}, {"idempotency_key": key}))
        return _refund(done)

    async def refunds(self, payment_intent: str) -> list[Refund]:
        """Read what went back of a payment, whoever asked for it, and what became of that.

        Raises:
            NoSuchSession: another account's. Refused, Unclear
        """
        listed = self._client.v1.refunds.list_async
        found = await self._ask(lambda: listed({"payment_intent": payment_intent, "limit": 100}))
        return [_refund(one) for one in found.data]

    async def _ask(self, call: Callable[[], Awaitable[T]]) -> T:
        errors = self._stripe
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await call()
        except TimeoutError as error:
            raise Unclear("no answer in time") from error
        except (errors.APIConnectionError, errors.RateLimitError, errors.APIError) as error:
            raise Unclear(type(error).__name__) from error
        except errors.StripeError as error:
            if error.code == "charge_already_refunded":
                raise AlreadyRefunded from error
            if error.http_status == 404:
                raise NoSuchSession(error.code or "") from error
            if error.http_status == 409:
                raise InProgress(error.code or type(error).__name__) from error
            if error.http_status is None:
                raise Unclear(error.code or type(error).__name__) from error
            raise Refused(error.code or type(error).__name__) from error


def _refund(found: Any) -> Refund:
    return Refund(str(found.id), int(found.amount), failed=found.status in ("failed", "canceled"))


def gateway(settings: Settings) -> Gateway | None:
    return Gateway(settings.stripe_api_key, settings.stripe_api_base) if settings.stripe_api_key else None


# -- webhooks ---------------------------------------------------------------------------------------------------------


def verified(body: bytes, signature: str, secrets: tuple[str, ...]) -> dict[str, Any]:
    """Decode a webhook that Stripe has signed with one of our secrets, within the time window on both sides.

    Raises:
        BadSignature: also for a body that is no event; whatever else it holds is not looked at before.
    """
    import stripe  # noqa: PLC0415 a second and 30 MB: see `Gateway`

    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise BadSignature("the body is not UTF-8") from error
    for secret in secrets:
        try:
            # The library takes only "too old" for an error: from the future, anything passes.
            stripe.WebhookSignature.verify_header(text, signature, secret, TOLERANCE_SECONDS)
            break
        except (stripe.SignatureVerificationError, ValueError, TypeError):  # the last of what is not ASCII
            continue
    else:
        raise BadSignature("no secret of ours has signed this, or not within the last minutes")
    if _signed_at(signature) > time.time() + TOLERANCE_SECONDS:
        raise BadSignature("signed in the future")
    try:
        event = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadSignature("the body is not JSON") from error
    if not isinstance(event, dict) or not isinstance(event.get("id"), str) or not isinstance(event.get("type"), str):
        raise BadSignature("the body is not an event")
    return event


def _signed_at(signature: str) -> int:
    stamps = [part[2:] for part in signature.split(",") if part.startswith("t=")]
    return int(stamps[0]) if stamps and stamps[0].isdigit() else 0
