"""Stripe's official client and a simulator for it, one for each module of tests. The fixtures are imported by name."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import stripe

from tests.stripe_simulator import CLIENT_SECONDS, Receiver, Simulator, running_receiver, running_simulator

COMPLETED = "checkout.session.completed"
SOON = [0.05] * 20


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Simulator, Receiver]]:
    with running_receiver() as receiver, running_simulator(receiver.url) as simulator:
        yield simulator, receiver


@pytest.fixture
def simulator(running: tuple[Simulator, Receiver]) -> Simulator:
    simulator, receiver = running
    simulator.no_faults()
    simulator.clock(0)
    simulator.delivery("normal", retry_seconds=SOON)
    receiver.answers.clear()
    return simulator


@pytest.fixture
def receiver(running: tuple[Simulator, Receiver]) -> Receiver:
    return running[1]


@asynccontextmanager
async def sdk(
    simulator: Simulator, *, key: str | None = None, patience: float = CLIENT_SECONDS, retries: int = 0
) -> AsyncIterator[stripe.StripeClient]:
    """The official client, as our service makes it."""
    http = stripe.HTTPXClient(timeout=patience, verify_ssl_certs=False)
    try:
        yield stripe.StripeClient(
            key or simulator.key,
            base_addresses={"api": simulator.url},
            http_client=http,
            max_network_retries=retries,
        )
    finally:
        await http.close_async()


@pytest.fixture
async def client(simulator: Simulator) -> AsyncIterator[stripe.StripeClient]:
    async with sdk(simulator) as client:
        yield client


def params(amount: int = 1250, quantity: int = 2, **more: Any) -> Any:
    price = {"currency": "eur", "unit_amount": amount, "product_data": {"name": "City walk"}}
    return {
        "mode": "payment",
        "line_items": [{"price_data": price, "quantity": quantity}],
        "success_url": "https://shop.example/done?session={CHECKOUT_SESSION_ID}",
        "cancel_url": "https://shop.example/cancelled",
        **more,
    }


async def create(client: stripe.StripeClient, *arguments: Any, **more: Any) -> stripe.checkout.Session:
    return await client.v1.checkout.sessions.create_async(params(**more), *arguments)
