"""What can happen to sessions and money. Each step is whole: it is done and told in an event, or refused.

Everything here runs in one event loop and awaits nothing, so that `expire` and `pay` of one session have one winner.
"""

import re
import secrets
from collections.abc import Iterator
from typing import Any, Literal

from app.simulator import objects
from app.simulator.forms import StripeError, missing
from app.simulator.params import RefundParams, SessionParams
from app.simulator.state import Books, Event, LineItem, Payment, PaymentStatus, Refund, Session

Method = Literal["card", "delayed"]

MIN_LIFE_SECONDS = 30 * 60
MAX_LIFE_SECONDS = 24 * 3600
#: Stripe's smallest charges, in minor units, of some currencies; of others the simulator knows none.
SMALLEST = {"usd": 50, "eur": 50, "gbp": 30, "chf": 50, "cad": 50, "aud": 50, "jpy": 50}
#: Methods whose money arrives, or not, long after the customer is done.
DELAYED = {"sepa_debit", "us_bank_account", "bacs_debit", "au_becs_debit", "acss_debit", "boleto", "konbini", "oxxo"}
#: A host, a port, and then whatever is printable ASCII.
_URL = re.compile(r"https?://(?:[A-Za-z0-9.-]+|\[[0-9a-f:]+\])(?::[0-9]{1,5})?(?:[/?#][!-~]*)?")
#: Methods of a session that names none: Stripe then takes those of the Dashboard.
DEFAULT_METHODS = ["card", "sepa_debit"]


class Ledger:
    """Sessions, payments and refunds of one simulator."""

    def __init__(self, books: Books, public_url: str) -> None:
        self.books = books
        self.state = books.state
        self.public_url = public_url

    # -- sessions -----------------------------------------------------------------------------------------------------

    def check(self, params: SessionParams) -> None:
        """Refuse what Stripe refuses before it does anything.

        Raises:
            StripeError
        """
        if not params.line_items:
            raise StripeError(400, "Missing required param: line_items.", code="parameter_missing", param="line_items")
        currencies = {item.price_data.currency for item in params.line_items}
        if len(currencies) > 1:
            raise StripeError(400, "All prices of a Checkout Session must have the same currency.", param="line_items")
        for name in ("success_url", "cancel_url"):
            check_url(getattr(params, name), name)
        if params.customer_email is not None and "@" not in params.customer_email.strip("@"):
            raise StripeError(400, "Invalid email address", code="email_invalid", param="customer_email")
        self._check_life(params.expires_at)
        total, currency = _total(params), currencies.pop()
        if 0 < total < SMALLEST.get(currency, 0):
            told = f"The Checkout Session's total amount must be at least {SMALLEST[currency]} {currency} minor units."
            raise StripeError(400, told, code="amount_too_small", param="line_items")

    def _check_life(self, expires_at: int | None) -> None:
        if expires_at is None:
            return
        ahead = expires_at - int(self.books.now())
        if ahead < MIN_LIFE_SECONDS:
            told = "The `expires_at` timestamp must be at least 30 minutes from Checkout Session creation."
            raise StripeError(400, told, param="expires_at")
        if ahead > MAX_LIFE_SECONDS:
            told = "The `expires_at` timestamp must be less than 24 hours from Checkout Session creation."
            raise StripeError(400, told, param="expires_at")

    def create_session(self, params: SessionParams) -> Session:
        """Make a session from checked parameters."""
        now = int(self.books.now())
        items = [
            LineItem(
                name=item.price_data.product_data.name,
                description=item.price_data.product_data.description,
                quantity=item.quantity,
                unit_amount=item.price_data.unit_amount,
            )
            for item in params.line_items
        ]
        session = Session(
            id=f"cs_test_{secrets.token_hex(28)}",
            created=now,
            expires_at=params.expires_at or now + MAX_LIFE_SECONDS,
            amount_total=_total(params),
            currency=params.line_items[0].price_data.currency,
            line_items=items,
            payment_method_types=params.payment_method_types or DEFAULT_METHODS,
            client_reference_id=params.client_reference_id,
            metadata=params.metadata,
            payment_metadata=params.payment_intent_data.metadata,
            success_url=params.success_url,
            cancel_url=params.cancel_url,
            customer_email=params.customer_email,
        )
        self.add(session)
        return session

    def add(self, session: Session) -> None:
        """Put a session into the books, however it was made."""
        self.state.sessions[session.id] = session
        self.books.changed()
        self.books.moved.set()

    def session(self, session_id: str) -> Session:
        """Find a session.

        Raises:
            StripeError
        """
        try:
            return self.state.sessions[session_id]
        except KeyError:
            raise missing("checkout.session", session_id, "session") from None

    def expire(self, session_id: str) -> Session:
        """End an open session before its time.

        Raises:
            StripeError: it is not open.
        """
        session = self.session(session_id)
        if session.status != "open":
            told = 'Only Checkout Sessions with a status in ["open"] can be expired.'
            raise StripeError(400, f"{told} This Checkout Session has a status of `{session.status}`.", param="session")
        self._expired(session)
        return session

    def expire_due(self) -> None:
        """End the sessions whose time has come."""
        now = self.books.now()
        for session in list(self._open()):
            if session.expires_at <= now:
                self._expired(session)

    def next_expiry(self) -> float | None:
        """Tell when the next session expires by itself."""
        return min((session.expires_at for session in self._open()), default=None)

    def _open(self) -> Iterator[Session]:
        return (session for session in self.state.sessions.values() if session.status == "open")

    def _expired(self, session: Session) -> None:
        session.status = "expired"
        self._tell("checkout.session.expired", objects.session(session, self.public_url))

    # -- payments -----------------------------------------------------------------------------------------------------

    def pay(
        self,
        session_id: str,
        method: Method,
        *,
        name: str | None = None,
        email: str | None = None,
        phone: str | None = None,
    ) -> Session:
        """Complete an open session. With a delayed method it stays unpaid until `settle`.

        Raises:
            StripeError: it is not open, or does not take that method.
        """
        session = self.session(session_id)
        if session.status != "open":
            raise StripeError(400, f"This Checkout Session is no longer active: its status is `{session.status}`.")
        if method not in methods(session):
            raise StripeError(400, f"This Checkout Session does not take a {method} payment method.")
        session.name, session.phone = name or session.name, phone or session.phone
        session.email = session.customer_email or email  # Stripe lets nobody change the one it was given
        session.status = "complete"
        if session.amount_total == 0:
            session.paid = "no_payment_required"
        else:
            payment = self._charge(session, "succeeded" if method == "card" else "processing")
            session.payment_intent = payment.id
            session.paid = "paid" if method == "card" else "unpaid"
        self._tell("checkout.session.completed", objects.session(session, self.public_url))
        return session

    def settle(self, session_id: str, *, succeed: bool) -> Session:
        """Have the money of a delayed method arrive, or not.

        Raises:
            StripeError: nothing is on its way.
        """
        session = self.session(session_id)
        payment = self.state.payments.get(session.payment_intent or "")
        if payment is None or payment.status != "processing":
            raise StripeError(400, "This Checkout Session has no payment that is still processing.")
        payment.status = "succeeded" if succeed else "requires_payment_method"
        session.paid = "paid" if succeed else "unpaid"
        kind = "succeeded" if succeed else "failed"
        self._tell(f"checkout.session.async_payment_{kind}", objects.session(session, self.public_url))
        return session

    def _charge(self, session: Session, status: PaymentStatus) -> Payment:
        payment = Payment(
            id=f"pi_{secrets.token_hex(12)}",
            charge=f"ch_{secrets.token_hex(12)}",
            session=session.id,
            created=int(self.books.now()),
            amount=session.amount_total,
            currency=session.currency,
            status=status,
            metadata=dict(session.payment_metadata),
            name=session.name,
            email=session.email,
            phone=session.phone,
        )
        self.state.payments[payment.id] = payment
        return payment

    def payment(self, payment_intent: str, status: int = 404) -> Payment:
        """Find a payment.

        Raises:
            StripeError
        """
        try:
            return self.state.payments[payment_intent]
        except KeyError:
            raise missing("payment_intent", payment_intent, "payment_intent", status) from None

    def refund(self, params: RefundParams) -> Refund:
        """Give money back, all that is left unless an amount is named.

        Raises:
            StripeError: that much is not left.
        """
        payment = self._refundable(params)
        left = payment.amount - payment.refunded
        if left == 0:
            told = f"Charge {payment.charge} has already been refunded."
            raise StripeError(400, told, code="charge_already_refunded")
        amount = left if params.amount is None else params.amount
        if amount > left:
            # Stripe gives this one no code.
            asked, rest = money(amount, payment.currency), money(left, payment.currency)
            told = f"Refund amount ({asked}) is greater than unrefunded amount on charge ({rest})"
            raise StripeError(400, told, param="amount")
        refund = Refund(
            id=f"re_{secrets.token_hex(12)}",
            payment_intent=payment.id,
            charge=payment.charge,
            created=int(self.books.now()),
            amount=amount,
            currency=payment.currency,
            reason=params.reason,
            metadata=params.metadata,
        )
        payment.refunded += amount
        self.state.refunds[refund.id] = refund
        self._tell("charge.refunded", objects.charge(payment))
        return refund

    def fail_refund(self, refund_id: str, status: Literal["failed", "canceled"]) -> Refund:
        """Have a refund come back, as when the customer's account was closed: the seller has the money again.

        Raises:
            StripeError: there is none that could.
        """
        refund = self.state.refunds.get(refund_id)
        if refund is None:
            raise missing("refund", refund_id, "refund")
        if refund.status != "succeeded":
            raise StripeError(400, f"This refund has a status of `{refund.status}`.", param="refund")
        refund.status = status
        self.state.payments[refund.payment_intent].refunded -= refund.amount
        for kind in ("charge.refund.updated", "refund.updated", "refund.failed")[: 3 if status == "failed" else 2]:
            self._tell(kind, objects.refund(refund))
        return refund

    def _refundable(self, params: RefundParams) -> Payment:
        if params.payment_intent:
            payment = self.payment(params.payment_intent, 400)
        else:
            found = [one for one in self.state.payments.values() if one.charge == params.charge]
            if not found:
                raise missing("charge", params.charge or "", "charge", 400)
            payment = found[0]
        if payment.status != "succeeded":
            told = f"This PaymentIntent ({payment.id}) does not have a successful charge to refund."
            raise StripeError(400, told, param="payment_intent")
        return payment

    # -- events -------------------------------------------------------------------------------------------------------

    def _tell(self, kind: str, shown: dict[str, Any]) -> None:
        event = Event(
            id=f"evt_{secrets.token_hex(12)}",
            type=kind,
            created=int(self.books.now()),
            object=shown,
            delivery="none",
        )
        self.state.events[event.id] = event
        self.books.changed()
        self.books.listener(event)


def methods(session: Session) -> list[Method]:
    """Tell how a session can be paid here."""
    offered: list[Method] = []
    if set(session.payment_method_types) - DELAYED:
        offered.append("card")
    if set(session.payment_method_types) & DELAYED:
        offered.append("delayed")
    return offered


#: Currencies whose smallest unit is the whole one, or a thousandth of it.
_NO_DECIMALS = {
    "bif",
    "clp",
    "djf",
    "gnf",
    "jpy",
    "kmf",
    "krw",
    "mga",
    "pyg",
    "rwf",
    "ugx",
    "vnd",
    "vuv",
    "xaf",
    "xof",
    "xpf",
}
_THREE_DECIMALS = {"bhd", "jod", "kwd", "omr", "tnd"}


def money(amount: int, currency: str) -> str:
    """Write an amount for people: `12.50 EUR`."""
    decimals = 0 if currency in _NO_DECIMALS else 3 if currency in _THREE_DECIMALS else 2
    return f"{amount / 10**decimals:,.{decimals}f} {currency.upper()}"


def _total(params: SessionParams) -> int:
    return sum(item.quantity * item.price_data.unit_amount for item in params.line_items)


def check_url(url: str | None, name: str) -> None:
    """Refuse what is no address for a browser. What passes is safe in a header, and its host in a policy.

    Raises:
        StripeError
    """
    if url is not None and not _URL.fullmatch(url):
        raise StripeError(400, "Not a valid URL", code="url_invalid", param=name)
