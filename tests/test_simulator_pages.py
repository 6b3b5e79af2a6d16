"""The pages of the Stripe simulator, as a person's browser sees them: paying, declining, leaving, paying later."""

import html
import re

import httpx
import pytest

from tests.stripe_client import client, create, running, simulator
from tests.stripe_simulator import CLIENT_SECONDS, SDK_WARNING, see

__all__ = ["client", "running", "simulator"]

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings(SDK_WARNING)]


class Browser:
    """A person with the pay page: reads it, and sends its form with one of its buttons."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answer = see(url)
        self.text = html.unescape(self.answer.text)

    @property
    def buttons(self) -> list[str]:
        return re.findall(r'name="action" value="(\w+)"', self.text)

    def press(self, action: str, **fields: str) -> str:
        """Returns where the browser is sent."""
        assert action in self.buttons
        return press(self.url, action, **fields)


def press(url: str, action: str, **fields: str) -> str:
    sent = httpx.post(url, data={"action": action, **fields}, timeout=CLIENT_SECONDS, verify=False)  # noqa: S501 not https
    assert sent.status_code == 303, sent.text
    return sent.headers["location"]


async def test_a_person_pays_and_is_sent_back_to_the_shop(simulator, client):
    session = await create(client, customer_email="ada@example.com")
    page = Browser(session.url)
    assert "No money moves" in page.text
    assert "City walk" in page.text
    assert "25.00 EUR" in page.text
    assert page.buttons == ["pay", "later", "decline", "abandon"]
    done = f"https://shop.example/done?session={session.id}"
    assert page.press("pay", name="Ada", email="ada@example.com") == done
    assert simulator.session(session.id)["customer_details"]["name"] == "Ada"
    # A second click, in a page that is still open, pays nothing more.
    assert press(page.url, "pay", email="ada@example.com") == done
    assert len([one for one in simulator.ledger()["payments"] if one["session"] == session.id]) == 1
    assert Browser(page.url).buttons == []


async def test_who_pays_is_whom_the_session_was_made_for(simulator, client):
    session = await create(client, customer_email="ada@example.com")
    assert "readonly" in Browser(session.url).text
    press(session.url, "pay", email="another@example.com")
    assert simulator.session(session.id)["customer_details"]["email"] == "ada@example.com"


async def test_a_declined_card_leaves_the_session_open(simulator, client):
    session = await create(client)
    page = Browser(session.url)
    declined = Browser(simulator.url + page.press("decline"))
    assert 'role="alert"' in declined.text
    assert "pay" in declined.buttons
    assert simulator.session(session.id)["status"] == "open"


async def test_who_leaves_goes_to_the_cancel_url(simulator, client):
    session = await create(client)
    assert Browser(session.url).press("abandon") == "https://shop.example/cancelled"
    assert simulator.session(session.id)["status"] == "open"
    without = await create(client, cancel_url="")
    assert Browser(without.url).buttons == ["pay", "later", "decline"]


@pytest.mark.parametrize(("action", "status"), [("arrive", "paid"), ("fail", "unpaid")])
async def test_a_person_pays_later_and_chooses_whether_the_money_comes(simulator, client, action, status):
    session = await create(client)
    Browser(session.url).press("later", email="ada@example.com")
    page = Browser(session.url)
    assert page.buttons == ["arrive", "fail"]
    page.press(action)
    assert simulator.session(session.id)["payment_status"] == status


async def test_the_page_of_an_ended_session_sells_nothing(simulator, client):
    session = await create(client)
    page = Browser(session.url)
    await client.v1.checkout.sessions.expire_async(session.id)
    assert page.press("pay", email="ada@example.com") == f"/pay/{session.id}"
    assert "expired" in Browser(session.url).text
    assert simulator.session(session.id)["payment_intent"] is None
    assert see(f"{simulator.url}/pay/cs_test_none").status_code == 404


async def test_the_page_runs_and_loads_nothing_of_others(simulator, client):
    price = {"currency": "jpy", "unit_amount": 1234, "product_data": {"name": "<script>alert(1)</script>"}}
    session = await create(client, line_items=[{"price_data": price, "quantity": 1}])
    answer = see(session.url)
    assert "<script" not in answer.text
    assert "&lt;script&gt;" in answer.text
    assert "1,234 JPY" in answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    # Browsers hold the redirect after a form against this, too.
    assert "form-action 'self' https://shop.example;" in policy
    assert re.findall(r'(?:src|href)="([^"]+)"', answer.text) == ["/pay.css", "data:,"]
    assert "color-scheme: light dark" in see(f"{simulator.url}/pay.css").text


def test_only_its_own_names_lead_to_it(simulator):
    for host, status in (
        ("localhost", 200),
        ("127.0.0.1:80", 200),
        ("shop.example", 421),
        ("[", 421),
        ("127.0.0.1.example", 421),
    ):
        assert simulator.http.get(f"{simulator.url}/", headers={"Host": host}).status_code == status


async def test_every_answer_says_that_it_is_simulated(simulator, client):
    session = await create(client)
    assert "no money moves" in session.last_response.headers["x-simulator"]
    for path in ("/", "/livez", "/pay/none", "/v1/none", f"/pay/{session.id}", "/_control/ledger"):
        assert "no money moves" in see(simulator.url + path).headers["x-simulator"]
    assert "no money moves" in simulator.ledger()["simulator"]
