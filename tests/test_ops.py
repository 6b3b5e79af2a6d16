"""The operator's console, as one sees it: holds, figures, the stores' state, what failed, and the audit log.

A service of its own, whose Redis may be taken away. The figures are compared with /metrics, from which they come.
"""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, Literal, cast

import httpx
import psycopg
import pytest
from playwright.sync_api import Page, expect

from app import jobs
from app.engine import Engine
from app.pages import assets
from tests import factories
from tests.browser import DESKTOP, PHONE, Window, Windows, assert_accessible, chromium, windows
from tests.redis_servers import running_redis
from tests.service import CUSTOMER, OPERATOR_KEY, Postgres, Service, booking_body, eventually, serving
from tests.visitor import detain, first_of

__all__ = ["chromium", "windows"]

#: What people type, and what must never become anything but text.
XSS = "<img src=x onerror=\"throw Error('run')\"><script>throw 1</script>{{7*7}}"


@pytest.fixture(scope="module")
def shown(postgres: Postgres) -> Iterator[Service]:
    with (
        running_redis("--maxmemory-policy", "noeviction") as redis,
        serving(postgres.fresh(), redis.url, redis=redis) as service,
    ):
        yield service


@pytest.fixture
def operator(shown: Service) -> Iterator[httpx.Client]:
    with factories.client(shown, operator=True) as client:
        yield client


@pytest.fixture
def everyone(shown: Service) -> Iterator[httpx.Client]:
    with factories.client(shown) as client:
        yield client


def console(service: Service, window: Window) -> Page:
    """Open the console, signed in, and wait until it has told something."""
    window.context.request.post(f"{service.url}/session", data={"key": OPERATOR_KEY})
    page = window.page(f"{service.url}/ops")
    expect(page.locator("#pulse")).to_have_text("Live")
    return page


def named_slot(operator: httpx.Client, name: str, **fields: Any) -> dict[str, Any]:
    venue = factories.venue(operator, name=f"Venue of {name}")
    return factories.slot(operator, factories.resource(operator, venue["slug"], name=name), **fields)


# -- holds ------------------------------------------------------------------------------------------------------------


def test_holds_appear_with_what_they_are_of_and_are_released_from_the_page(
    shown: Service, windows: Windows, operator: httpx.Client, everyone: httpx.Client
) -> None:
    page = console(shown, windows())
    slot, other = named_slot(operator, "City walk", capacity=5), named_slot(operator, XSS, capacity=5)
    factories.hold(everyone, slot["id"], 2)
    factories.hold(everyone, other["id"])
    rows = page.locator("#holds li")
    expect(rows).to_have_count(2)
    expect(rows.nth(0)).to_contain_text(XSS)
    expect(rows.nth(1)).to_contain_text(re.compile(rf"City walk.*{slot['venue']}.*2 places.*held \d+s.*\d:\d\d left"))
    page.get_by_role("combobox", name="Order").select_option("oldest")
    expect(rows.nth(0)).to_contain_text("City walk")

    page.reload()  # the venues of the filter are asked for now and then
    page.get_by_role("combobox", name="Venue").select_option(slot["venue"])
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("City walk")

    release = page.get_by_role("button", name=re.compile("^Release City walk"))
    release.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_contain_text("Release 2 places of City walk?")
    page.keyboard.press("Escape")
    expect(rows).to_have_count(1)
    expect(release).to_be_focused()  # the list was told anew meanwhile, and its elements stayed
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#told")).to_have_text("Released 2 places of City walk.")
    expect(rows).to_have_count(0)
    assert everyone.get(f"/v1/slots/{slot['id']}").json()["available"] == 5


# -- figures ----------------------------------------------------------------------------------------------------------


def totals(page: Page) -> dict[str, float]:
    """Read what the tables say has happened since the start, to the last digit."""
    told: dict[str, str] = page.evaluate(
        "() => Object.fromEntries([...document.querySelectorAll('.figure tbody tr')].map((row) => ["
        "  row.closest('.figure').dataset.figure + ': ' + row.querySelector('th').textContent,"
        "  row.lastElementChild.dataset.total]))"
    )
    return {name: float(value) for name, value in told.items() if value}


def counted(service: Service) -> dict[str, float]:
    """The same, straight from /metrics."""
    outcome, seconds = "holdfast_outcomes_total", "holdfast_http_request_seconds_count"
    sums = {
        "sales: Bookings": [(outcome, {"operation": each, "outcome": "booked"}) for each in ("book", "book_several")],
        "conflicts: By Redis": [(outcome, {"outcome": "refused_early"})],
        "conflicts: By Postgres": [
            (outcome, {"outcome": word}) for word in ("full", "occupied", "closed", "past", "refused")
        ],
        "booking-time: p50": [(seconds, {"method": "POST", "route": "/v1/bookings"})],
        "gathered: Postgres": [("holdfast_gathered_calls_sum", {"store": "postgres"})],
        "doubts: Backstop conflicts": [("holdfast_backstop_conflicts_total", {})],
        "doubts: Commits in doubt": [("holdfast_in_doubt_total", {})],
        "errors: Try again (503)": [(seconds, {"status": "503"})],
    }
    return {name: sum(service.metric(metric, **labels) for metric, labels in each) for name, each in sums.items()}


def test_a_race_is_told_in_the_figures_of_metrics(
    shown: Service, windows: Windows, operator: httpx.Client, everyone: httpx.Client
) -> None:
    page = console(shown, windows())
    before = counted(shown)
    slot = factories.slot(operator, capacity=1)
    with ThreadPoolExecutor(20) as crowd:
        answers = list(crowd.map(lambda _: everyone.post("/v1/bookings", json=booking_body(slot["id"])), range(40)))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 39
    several = {"items": [{"slot_id": slot["id"]}]}
    for path, body in (("/v1/holds", several), ("/v1/bookings", {**several, "customer": CUSTOMER})):
        assert everyone.post(path, json=body).status_code == 409

    def agree() -> bool:
        said, true = totals(page), counted(shown)
        return {name: said.get(name) for name in true} == true

    eventually(agree, "the page to say what /metrics says")
    now = counted(shown)
    assert now["sales: Bookings"] - before["sales: Bookings"] == 1
    refused = sum(now[name] - before[name] for name in now if name.startswith("conflicts: "))
    assert refused == 39 + 2
    label = page.get_by_role("img", name=re.compile("^Conflicts, per second, the last ten minutes. Now: By Redis"))
    expect(label).to_have_count(1)


def test_a_plot_says_that_it_only_begins(shown: Service, windows: Windows) -> None:
    window = windows()
    window.context.clock.install()
    page = console(shown, window)
    begins = page.locator("#figures").get_by_text("Fills from now on")
    expect(begins).to_have_count(8)
    expect(begins.first).to_be_visible()
    page.clock.fast_forward(61_000)
    expect(begins.first).to_be_hidden()


def test_figures_are_worked_out_as_prometheus_does(shown: Service, windows: Windows) -> None:
    """Counters that begin anew, and quantiles of the requests between two readings only."""
    page = console(shown, windows())
    address = page.locator("script[type=module][src*='ops/console.js']").get_attribute("src")
    module = str(address).replace("console.js", "metrics.js")
    found = page.evaluate(
        """async (module) => {
          const { parse, increase, quantile, total } = await import(module);
          const reading = (text) => ({ at: 0, samples: parse(text) });
          const before = reading('holdfast_x_total{a="1",b="p q"} 90\\nholdfast_x_total{a="2",b="\\\\"}"} 5\\n'
            + 'holdfast_h_bucket{le="0.1"} 50\\nholdfast_h_bucket{le="1.0"} 50\\nholdfast_h_bucket{le="+Inf"} 50\\n');
          const now = reading('# TYPE holdfast_x_total counter\\nholdfast_x_total{a="1",b="p q"} 7\\n'
            + 'holdfast_x_total{a="2",b="\\\\"}"} 8\\nholdfast_x_total{a="3",b="new"} 1\\nother_x 1\\n'
            + 'holdfast_h_bucket{le="0.1"} 54\\nholdfast_h_bucket{le="1.0"} 60\\nholdfast_h_bucket{le="+Inf"} 61\\n');
          const x = { name: "holdfast_x_total" };
          const h = { name: "holdfast_h" };
          return [
            increase(before, now, x), increase(before, now, { ...x, a: ["1", "3"] }), total(now, { ...x, b: '\\\\"}' }),
            quantile(before, now, h, 0.5), quantile(before, now, h, 0.99), quantile(now, now, h, 0.5),
          ];
        }""",
        module,
    )
    assert found[:3] == [7 + 3 + 1, 7 + 1, 8]
    assert found[3] == pytest.approx(0.1 + 0.9 * (5.5 - 4) / 6)
    assert found[4:] == [1.0, None]


# -- the stores -------------------------------------------------------------------------------------------------------


def test_redis_that_goes_and_comes_is_told(
    shown: Service, windows: Windows, operator: httpx.Client, everyone: httpx.Client
) -> None:
    slot = named_slot(operator, "Night tour", capacity=5)
    page = console(shown, windows())
    banner = page.get_by_text("Redis is away: the service is degraded")
    expect(page.locator("[data-state=redis] .word")).to_have_text("Working")
    assert shown.redis is not None
    shown.redis.kill()
    try:
        expect(banner).to_be_visible()
        expect(page.locator("[data-state=redis] .word")).to_have_text("Degraded")
        held = factories.hold(everyone, slot["id"])
        assert held["degraded"]
        row = page.locator("#holds li", has_text="Night tour")
        expect(row).to_contain_text("in Postgres")
        assert_accessible(page)
    finally:
        shown.redis.start()
    expect(banner).to_have_count(0)
    expect(page.locator("[data-state=redis] .word")).to_have_text("Working")
    operator.delete(f"/v1/holds/{held['id']}")


def test_a_service_that_does_not_answer_is_told_and_asked_again(shown: Service, windows: Windows) -> None:
    window = windows()
    window.expects("ERR_FAILED")
    page = console(shown, window)
    page.route("**/metrics", lambda route: route.abort())
    expect(page.locator("#pulse")).to_contain_text("No answer since")
    page.unroute("**/metrics")
    expect(page.locator("#pulse")).to_have_text("Live")


def test_nothing_is_asked_while_nobody_looks(shown: Service, windows: Windows) -> None:
    """And what was asked just before, and is answered afterwards, makes nothing live again."""
    page = console(shown, windows())
    look = first_of(page, detain(page, "**/metrics", "GET"))
    page.evaluate(
        "() => { window.isHidden = true;"
        " Object.defineProperty(document, 'hidden', { get: () => window.isHidden });"
        " document.dispatchEvent(new Event('visibilitychange')); }"
    )
    expect(page.locator("#pulse")).to_have_text("Paused")
    with page.expect_response("**/metrics"):
        look.continue_()
    page.unroute("**/metrics")
    page.wait_for_load_state("networkidle")  # what was under way has ended
    expect(page.locator("#pulse")).to_have_text("Paused")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(6_000)  # longer than any list waits
    assert asked == []
    with page.expect_request("**/metrics"):
        page.evaluate("() => { window.isHidden = false; document.dispatchEvent(new Event('visibilitychange')); }")
    expect(page.locator("#pulse")).to_have_text("Live")


# -- what failed ------------------------------------------------------------------------------------------------------


def fail_something(service: Service, operator: httpx.Client, everyone: httpx.Client) -> tuple[str, int]:
    """Leave a webhook that nobody took and a job that failed, as a worker would have; returns their ids."""
    slot = factories.slot(operator, capacity=9)
    endpoint = operator.post("/v1/webhook-endpoints", json={"venue": slot["venue"], "url": "http://127.0.0.1:9/hook"})
    assert endpoint.status_code == 201, endpoint.text
    booking = factories.booking(everyone, slot["id"])
    options = "-c search_path=public,jobs"  # the triggers of the queue name its types without their schema
    with psycopg.connect(service.database_url, autocommit=True, options=options) as connection:
        [delivery_id] = connection.execute(
            "INSERT INTO webhook_deliveries (id, endpoint_id, event_seq, status, attempts, next_at, error)"
            " SELECT gen_random_uuid(), %s, seq, 'dead', 10, NULL, %s FROM events WHERE booking_id = %s RETURNING id",
            (endpoint.json()["id"], XSS, booking["id"]),
        ).fetchone() or [None]
        [job_id] = connection.execute(
            "INSERT INTO procrastinate_jobs (queue_name, task_name, args, status, attempts)"
            " VALUES ('default', 'send_mail', %s, 'failed', 1) RETURNING id",
            (json.dumps({"kind": XSS, "booking_id": booking["id"], "failed_with": "SMTPRecipientsRefused"}),),
        ).fetchone() or [None]
    return str(delivery_id), int(job_id or 0)


def test_what_failed_is_shown_and_tried_again(
    shown: Service, windows: Windows, operator: httpx.Client, everyone: httpx.Client
) -> None:
    delivery_id, job_id = fail_something(shown, operator, everyone)
    page = console(shown, windows())

    webhook = page.locator("#dead-webhooks li", has_text=delivery_id)
    expect(webhook).to_contain_text("booking.confirmed")
    expect(webhook).to_contain_text(XSS)
    webhook.get_by_role("button", name=re.compile("Redeliver")).click()
    expect(page.locator("#told")).to_have_text("It is sent again.")
    expect(webhook).to_have_count(0)
    assert shown.query("SELECT status, attempts FROM webhook_deliveries WHERE id = %s", delivery_id) == [("pending", 0)]

    job = page.locator("#failed-jobs li", has_text="Send an e-mail")
    expect(job).to_contain_text("SMTPRecipientsRefused · 1 attempt")
    expect(job).to_contain_text(XSS)
    job.get_by_role("button", name=re.compile("Retry")).click()
    expect(page.locator("#told")).to_have_text("The worker tries it again.")
    expect(job).to_have_count(0)
    assert shown.query("SELECT status::text FROM jobs.procrastinate_jobs WHERE id = %s", job_id) == [("todo",)]


def test_every_job_says_what_it_is_there_for(shown: Service) -> None:
    engine = SimpleNamespace(settings=SimpleNamespace(database_url=shown.database_url))
    tasks = {name for name in jobs.queue(cast(Engine, engine)).tasks if "procrastinate." not in name}
    [said] = re.findall(rb"^const TASKS = \{\n(.*?)^\};", assets.all_assets()["ops/trouble.js"].body, re.M | re.S)
    assert set(re.findall(r"^  (\w+):", said.decode(), re.M)) == tasks


def test_a_refund_that_failed_is_shown_until_somebody_acts(
    shown: Service, windows: Windows, operator: httpx.Client
) -> None:
    slot = factories.slot(operator)
    [(payment_id,)] = shown.query(
        "INSERT INTO payments (id, venue_id, slot_id, quantity, amount, currency, status, session_id, paid_amount,"
        " paid_at, refund_status, refund_reason) SELECT gen_random_uuid(), venue_id, id, 1, 2500, 'EUR', 'paid', 'cs',"
        " 2500, now(), 'failed', 'by the venue' FROM slots WHERE id = %s RETURNING id",
        slot["id"],
    )
    page = console(shown, windows())
    refund = page.locator("#failed-refunds li", has_text=str(payment_id))
    expect(refund).to_contain_text("€25.00, paid")
    shown.query("UPDATE payments SET refund_status = 'waived' WHERE id = %s RETURNING 1", payment_id)
    expect(refund).to_have_count(0)


# -- the audit log ----------------------------------------------------------------------------------------------------


def test_the_audit_log_grows_on_the_page(
    shown: Service, windows: Windows, operator: httpx.Client, everyone: httpx.Client
) -> None:
    page = console(shown, windows())
    log = page.locator("#events")
    booking = factories.booking(everyone, factories.slot(operator)["id"])
    expect(log.locator("li").first).to_contain_text(booking["id"])
    log.get_by_role("combobox", name="Type").select_option("slot.created")
    expect(log.locator("li strong").first).to_have_text("slot.created")
    slot = factories.slot(operator, capacity=7)
    expect(log.locator("li").first).to_contain_text(f"slot {slot['id']}, capacity 7")
    assert set(log.locator("li strong").all_inner_texts()) == {"slot.created"}


# -- for everybody's eyes and hands -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")], ids=["desktop, light", "phone, dark"]
)
def test_it_is_readable_with_all_that_may_be_on_it(
    shown: Service,
    windows: Windows,
    operator: httpx.Client,
    everyone: httpx.Client,
    size: dict[str, int],
    scheme: Literal["light", "dark"],
) -> None:
    fail_something(shown, operator, everyone)
    hold = factories.hold(everyone, named_slot(operator, "x" * 120)["id"])
    page = console(shown, windows(size=size, scheme=scheme))
    expect(page.locator("#holds li", has_text="x" * 120)).to_be_visible()
    expect(page.locator("#failed-jobs li").first).to_be_visible()
    expect(page.locator("#dead-webhooks li").first).to_be_visible()
    assert_accessible(page)
    other: Literal["light", "dark"] = "light" if scheme == "dark" else "dark"
    page.emulate_media(color_scheme=other)
    assert_accessible(page)
    # Nothing is wider than the window: no row of a phone has to be pushed sideways.
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    page.get_by_role("button", name=re.compile("^Release x")).click()
    assert_accessible(page)
    page.keyboard.press("Escape")
    operator.delete(f"/v1/holds/{hold['id']}")
