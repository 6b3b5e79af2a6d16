"""`holdfast payments`: what was paid, what is owed back, and what only a person can decide."""

from typing import TYPE_CHECKING, Any, get_args
from uuid import UUID

import rich_click as click

from app.cli.failing import CONFLICT, NOT_FOUND, Failed
from app.cli.holds import confirm
from app.cli.show import emit, facts, out, print_table, say
from app.domain import PaymentStatus, RefundStatus

if TYPE_CHECKING:
    from app.domain import Payment
    from app.engine import Engine


@click.group()
def payments() -> None:
    """Payments by Stripe, and their refunds."""


@payments.command("list")
@click.option("--status", type=click.Choice(get_args(PaymentStatus)), help="Only these.")
@click.option("--refund", type=click.Choice(get_args(RefundStatus)), help="Only those whose refund is this.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One object for programs.")
def list_command(status: str | None, refund: str | None, limit: int, as_json: bool) -> None:
    """List payments, the newest first. What `--status mismatched` and `--refund failed` list waits for a person."""
    from app.cli.stores import with_engine

    found = with_engine(lambda engine: engine.payments.listed(status, refund, limit))
    if as_json:
        emit({"data": [describe(each) for each in found], "next_cursor": None})
        return
    rows = [
        (f"{each.id}\n{each.rebooked_id or each.booking_id or ''}", amount(each), each.status, each.refund_status)
        for each in found
    ]
    print_table(("#Payment, booking", ">Amount", "Status", "Refund"), rows, empty="No payments")


@payments.command()
@click.argument("payment_id", type=click.UUID, metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="One object for programs.")
def show(payment_id: UUID, as_json: bool) -> None:
    """Show a payment."""
    from app.cli.stores import with_engine

    payment = with_engine(lambda engine: _read(engine, payment_id))
    if as_json:
        emit(describe(payment))
        return
    out().print(facts(("Payment", str(payment.id)), *lines(payment)))


@payments.command()
@click.argument("payment_id", type=click.UUID, metavar="ID")
@click.option("--by-hand", is_flag=True, help="It was given back in another way: only note it. Stripe is not asked.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def refund(payment_id: UUID, by_hand: bool, yes: bool) -> None:
    """Give a payment back, all that is left of it, also after a refund that failed. The worker does it; whoever has it
    back has no booking any more.
    """
    from app.cli.stores import with_engine
    from app.settlement import note_by_hand

    async def give_back(engine: "Engine") -> "Payment":
        payment = await _read(engine, payment_id)
        settled = ("done",) if by_hand else ("due", "done")
        if payment.paid_at is None or payment.refund_status in settled:
            raise Failed(f"The payment is {payment.status}, its refund {payment.refund_status}", code=CONFLICT)
        confirm(f"Note that {amount(payment)} went back by hand?" if by_hand else f"Give {amount(payment)} back?", yes)
        if by_hand:
            if not await note_by_hand(engine, payment_id):
                raise Failed(
                    "Stripe may be giving it back now: note it by hand when it is still owed after an hour",
                    code=CONFLICT,
                )
        else:
            await engine.payments.owe_refund(payment_id, "by an operator")
        return await _read(engine, payment_id)

    payment = with_engine(give_back)
    say(f"{amount(payment)} went back" if by_hand else f"{amount(payment)} goes back: {payment.refund_status}")


async def _read(engine: "Engine", payment_id: UUID) -> "Payment":
    payment = await engine.payments.payment(payment_id)
    if payment is None:
        raise Failed("Payment not found", code=NOT_FOUND)
    return payment


def describe(payment: "Payment") -> dict[str, Any]:
    """What programs are told of a payment."""
    return {
        "id": payment.id,
        "booking_id": payment.booking_id,
        "rebooked_as": payment.rebooked_id,
        "slot_id": payment.slot_id,
        "quantity": payment.quantity,
        "amount": {"amount": payment.amount, "currency": payment.currency},
        "status": payment.status,
        "session_id": payment.session_id,
        "checkout_url": payment.session_url,
        "paid_at": payment.paid_at,
        "refund_status": payment.refund_status,
        "refund_reason": payment.refund_reason,
        "refunded_amount": payment.refunded_amount,
        "created_at": payment.created_at,
    }


def lines(payment: "Payment") -> list[tuple[str, str]]:
    """What people are told of a payment."""
    told = [("Amount", amount(payment)), ("Paid", payment.status)]
    if payment.session_id:
        told.append(("Session", payment.session_id))
    if payment.refund_status != "none":
        told.append(("Refund", f"{payment.refund_status}: {payment.refund_reason}"))
    if payment.rebooked_id:
        told.append(("Booked again", str(payment.rebooked_id)))
    return told


def amount(payment: "Payment") -> str:
    from app import written

    return written.money("en", payment.amount, payment.currency)
