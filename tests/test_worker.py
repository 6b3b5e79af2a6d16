"""What survives when something dies or goes away: HTTP workers, job workers, Stripe, Redis, Postgres, the mail server.

Real processes, killed with SIGKILL at a known step, and started again. Afterwards nothing is lost and nothing doubled:
the money query is empty, Stripe's books say the same as ours, and each letter came once.
"""

import asyncio
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import procrastinate
import psycopg
import pytest
from procrastinate import exceptions, manager
from procrastinate import jobs as queued

from app import embedded, ending, jobs, worker
from app import engine as engine_module
from app.engine import Engine
from app.errors import DatabaseUnavailable
from app.gateway import Refused, Unclear
from app.mail.notice import MailServerAway
from app.migrate import upgrade
from app.settings import from_env
from tests.redis_servers import RedisServer, running_redis
from tests.service import START_SECONDS, Postgres, all_at_once, eventually
from tests.shop import PRICE, Shop, running_shop, wait_stoppable
from tests.stripe_simulator import SDK_WARNING

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings(SDK_WARNING)]


class OwnPostgres:
    """A server that a test may stop and start again, with the same data and address."""

    def __init__(self, home: Path) -> None:
        self._home, self._running = home, ExitStack()

    def start(self) -> str:
        servers = self._running.enter_context(embedded.running(self._home, redis=False, fsync=False))
        assert servers.database_url is not None
        return servers.database_url

    def stop(self) -> None:
        self._running.close()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Stop it until the block ends, whatever happens there."""
        self.stop()
        try:
            yield
        finally:
            self.start()


@pytest.fixture(scope="module")
def own_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnPostgres]:
    server = OwnPostgres(tmp_path_factory.mktemp("own"))
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def own_redis() -> Iterator[RedisServer]:
    with running_redis("--maxmemory-policy", "noeviction") as server:
        yield server


@pytest.fixture(scope="module")
def whole_shop(
    own_postgres: OwnPostgres, own_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shop]:
    database_url = own_postgres.start()
    upgrade(database_url)
    with running_shop(database_url, own_redis, tmp_path_factory.mktemp("shop"), workers=1) as shop:
        yield shop


@pytest.fixture
def shop(whole_shop: Shop) -> Iterator[Shop]:
    """No job worker runs, unless a test starts one. Whatever it did, nothing is left undone."""
    yield whole_shop
    left = "SELECT 1 FROM webhook_inbox WHERE applied_at IS NULL"
    if whole_shop.jobs() or whole_shop.service.query(left):
        with whole_shop.with_worker():
            whole_shop.hurry()
            whole_shop.settle()
            eventually(lambda: whole_shop.jobs() == [], "all jobs to be done")
    whole_shop.settle()


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def asked(shop: Shop, operation: str) -> int:
    return int(shop.stripe.ledger()["requests"].get(operation, 0))


def reach(shop: Shop, operation: str, before: int) -> None:
    eventually(lambda: asked(shop, operation) > before, f"{operation} to be asked")


# -- an HTTP worker dies ----------------------------------------------------------------------------------------------


def sessions_of(shop: Shop, slot_id: str) -> list[dict[str, Any]]:
    return [s for s in shop.stripe.ledger()["sessions"] if s["metadata"].get("slot_id") == slot_id]


def test_http_workers_killed_at_stripe_leave_checkouts_that_are_found_again(shop):
    """Each booking is committed; its session is made, or not yet. The customers do not know."""
    slots, keys = [shop.slot(2) for _ in range(3)], [uuid.uuid4().hex for _ in range(3)]
    cut_off: list[str] = []

    def ask(slot_id: str, key: str) -> None:
        try:
            shop.check_out(slot_id, key=key)
        except httpx.TransportError:
            cut_off.append(slot_id)

    def at_stripe() -> int:
        """Count the checkouts that Stripe has heard of: one that is asked for again has the same key."""
        return len(shop.stripe.ledger()["idempotency_keys"])

    asking = [threading.Thread(target=ask, args=each) for each in zip(slots, keys, strict=True)]
    before = at_stripe()
    for fault in ("timeout", "late_reply", "late_reply"):  # whomever it falls upon
        shop.stripe.fault("sessions.create", fault, seconds=600)
    for each in asking:  # at once: none is to be told that Stripe did not answer before all have asked
        each.start()
    eventually(lambda: at_stripe() == before + len(asking), "all three to be asked for")
    shop.kill_http_workers()
    for each in asking:
        each.join()
    assert sorted(cut_off) == sorted(slots)
    shop.stripe.no_faults()
    shop.wait_ready()
    for slot_id in slots:
        shop.assert_places(slot_id, 2, 1)

    for slot_id, key in list(zip(slots, keys, strict=True))[:2]:  # two of them come back
        again = shop.check_out(slot_id, key=key)
        assert (again.status_code, again.headers["idempotency-replayed"]) == (201, "true")
        assert [session["id"] for session in sessions_of(shop, slot_id)] == [again.json()["session_id"]]
        shop.assert_places(slot_id, 2, 1)
    [(lost,)] = shop.service.query("SELECT id::text FROM bookings WHERE slot_id = %s", uuid.UUID(slots[2]))
    with shop.with_worker():
        shop.stripe.pay(again.json()["session_id"])
        shop.wait_for(again.json()["booking"]["id"], "confirmed")
        shop.look_now(lost)
        eventually(lambda: shop.payment(lost, "status") == ("open",), "the worker to find the session")
        shop.lapse(lost)
        shop.wait_for(lost, "expired")
    assert [session["status"] for session in sessions_of(shop, slots[2])] == ["expired"]
    shop.assert_places(slots[2], 2, 0)


def test_http_workers_killed_under_webhooks_lose_none_of_them(shop):
    slot_id = shop.slot(10)
    started = [shop.checked_out(slot_id) for _ in range(10)]
    shop.stripe.delivery(retry_seconds=[0.2] * 300, duplicates=1)
    for number, each in enumerate(started):
        shop.stripe.pay(each["session_id"])
        if number == 5:
            shop.kill_http_workers()
    shop.wait_ready()
    with shop.with_worker():
        for each in started:
            shop.wait_for(each["booking"]["id"], "confirmed")
    shop.assert_places(slot_id, 10, 10)
    assert len(shop.events(slot_id=slot_id, type="checkout.completed")) == 10


WORKERS = "SELECT 1 FROM jobs.procrastinate_workers WHERE last_heartbeat > now() - interval '10 minutes'"


# -- a job worker dies ------------------------------------------------------------------------------------------------


def refunds(shop: Shop, started: dict[str, Any]) -> list[int]:
    intent = shop.stripe.session(started["session_id"])["payment_intent"]
    return [refund["amount"] for refund in shop.stripe.ledger()["refunds"] if refund["payment_intent"] == intent]


def test_a_worker_killed_in_the_middle_of_everything_has_it_done_by_the_next_one(shop):
    """Between a refund and its record, with its webhook lost or not; between the end of a session and that of its
    booking; while it asks Stripe; while it sends letters.
    """
    slot_id = shop.slot(5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(30)
        with shop.with_worker(HOLDFAST_SMTP_URL=f"smtp://127.0.0.1:{silent.getsockname()[1]}") as dying:
            told_of, untold = shop.paid(slot_id), shop.paid(slot_id)
            lapsing, unclear = shop.checked_out(slot_id), shop.checked_out(slot_id)
            for operation in ("refunds.create", "sessions.expire", "sessions.retrieve"):
                shop.stripe.fault(operation, "late_reply", times=100, seconds=600)
            shop.cancel(told_of)
            eventually(lambda: refunds(shop, told_of) == [PRICE], "the first refund to be made")
            shop.stripe.delivery("drop")
            shop.cancel(untold)
            eventually(lambda: refunds(shop, untold) == [PRICE], "the second refund to be made")
            before = asked(shop, "sessions.expire"), asked(shop, "sessions.retrieve")
            session = shop.stripe.session(unclear["session_id"])
            shop.stripe.pay(unclear["session_id"])
            news = shop.tell("checkout.session.completed", {**session, "status": "complete"})  # unpaid: look again
            shop.lapse(lapsing["booking"]["id"])
            reach(shop, "sessions.expire", before[0])
            reach(shop, "sessions.retrieve", before[1])
            connection, _ = silent.accept()  # and says nothing
            kill(dying)
            connection.close()
    # All was done at Stripe, and nothing of it is known here.
    assert {status for _, status in shop.jobs()} >= {"doing"}
    assert shop.payment(untold["booking"]["id"], "refund_status") == ("due",)
    assert shop.stripe.session(lapsing["session_id"])["status"] == "expired"
    assert [shop.booking(each["booking"]["id"])["status"] for each in (lapsing, unclear)] == ["pending_payment"] * 2
    assert shop.inbox(news) == [(None,)]
    shop.assert_places(slot_id, 5, 2)
    shop.stripe.no_faults()
    shop.forget_dead_workers()
    with shop.with_worker():
        shop.hurry()
        for each in (told_of, untold):
            shop.wait_for(each["booking"]["id"], "cancelled", "done")
        shop.wait_for(lapsing["booking"]["id"], "expired")
        shop.wait_applied([news])
        shop.wait_for(unclear["booking"]["id"], "confirmed")
        for each, count in ((told_of, 2), (untold, 2), (unclear, 1)):
            shop.letters(each["booking"]["id"], count)
        eventually(lambda: shop.jobs() == [], "all jobs to be done")
    assert [refunds(shop, each) for each in (told_of, untold)] == [[PRICE], [PRICE]]
    assert [len(shop.letters(each["booking"]["id"])) for each in (told_of, untold, unclear)] == [2, 2, 1]
    for kind, count in (("payment.refunded", 2), ("booking.expired", 1), ("checkout.completed", 3)):
        assert len(shop.events(slot_id=slot_id, type=kind)) == count, kind
    shop.assert_places(slot_id, 5, 1)


def test_workers_killed_again_and_again_do_everything_once(shop):
    slot_id = shop.slot(12)
    started = [shop.checked_out(slot_id) for _ in range(12)]
    for each in started:
        shop.stripe.pay(each["session_id"])
    for pause in (0.0, 0.4):
        with shop.with_worker() as dying:
            eventually(lambda: shop.service.query(WORKERS) != [], "the worker to be there")
            time.sleep(pause)  # to die at another step each time
            kill(dying)
        shop.forget_dead_workers()
    with shop.with_worker():
        for each in started:
            shop.wait_for(each["booking"]["id"], "confirmed")
        for each in started[:6]:
            shop.cancel(each)
        for each in started[:6]:
            shop.wait_for(each["booking"]["id"], "cancelled", "done")
    shop.assert_places(slot_id, 12, 6)
    assert [refunds(shop, each) for each in started] == [[PRICE]] * 6 + [[]] * 6
    assert len(shop.events(slot_id=slot_id, type="checkout.completed")) == 12


# -- workers side by side, and their stop -----------------------------------------------------------------------------


def test_a_booking_that_moved_on_meanwhile_gets_one_letter_of_it(shop):
    slot_id = shop.slot(5, price=None)
    booking = shop.checked_out(slot_id)["booking"]  # it costs nothing, and is confirmed
    for quantity in (2, 3):
        answer = httpx.post(
            f"{shop.service.url}/v1/bookings/{booking['id']}/reschedule",
            json={"slot_id": slot_id, "quantity": quantity},
            headers={"Manage-Token": booking["manage_token"]},
            timeout=30,
        )
        assert answer.status_code == 200, answer.text
    with shop.with_worker():
        shop.letters(booking["id"], 2)
        eventually(lambda: shop.jobs() == [], "all jobs to be done")
    subjects = [letter.partition("Subject: ")[2].split(":")[0] for letter in shop.letters(booking["id"], 2)]
    assert sorted(subjects) == ["Changed", "Confirmed"]


def test_two_workers_do_each_job_once(shop):
    slot_id = shop.slot(20)
    started = [shop.checked_out(slot_id) for _ in range(20)]
    shop.stripe.delivery(duplicates=2)
    with shop.with_worker(), shop.with_worker():
        for each in started:
            shop.stripe.pay(each["session_id"])
        for each in started:
            shop.wait_for(each["booking"]["id"], "confirmed")
        for each in started[:10]:
            assert shop.cancel(each).status_code == 200
        for each in started[:10]:
            shop.wait_for(each["booking"]["id"], "cancelled", "done")
        shop.wait_applied()
        letters = {each["booking"]["id"]: shop.letters(each["booking"]["id"], 2) for each in started[:10]}
        letters |= {each["booking"]["id"]: shop.letters(each["booking"]["id"]) for each in started[10:]}
        eventually(lambda: shop.jobs() == [], "all jobs to be done")
    assert [len(letters[each["booking"]["id"]]) for each in started] == [2] * 10 + [1] * 10
    assert [refunds(shop, each) for each in started] == [[PRICE]] * 10 + [[]] * 10
    for kind, count in (("checkout.completed", 20), ("refund.due", 10), ("payment.refunded", 10)):
        assert len(shop.events(slot_id=slot_id, type=kind)) == count, kind
    shop.assert_places(slot_id, 20, 10)


def test_a_worker_that_is_told_to_stop_ends_what_it_is_at(shop):
    slot_id = shop.slot(1)
    with shop.with_worker() as stopping:
        started = shop.paid(slot_id)
        before = asked(shop, "refunds.create")
        shop.stripe.fault("refunds.create", "late_reply", seconds=600)
        shop.cancel(started)
        reach(shop, "refunds.create", before)
        stopping.terminate()
        shop.stripe.no_faults()
        assert stopping.wait(timeout=START_SECONDS) == 0
    assert shop.payment(started["booking"]["id"], "refund_status") == ("done",)
    assert refunds(shop, started) == [PRICE]


def test_a_worker_without_postgres_waits_for_it_and_can_be_stopped(shop, own_postgres):
    slot_id = shop.slot(2)
    started = shop.checked_out(slot_id)
    shop.stripe.delivery(retry_seconds=[0.3] * 300)
    with ExitStack() as stack:
        with own_postgres.away():
            one, other = stack.enter_context(shop.with_worker()), stack.enter_context(shop.with_worker())
            shop.stripe.pay(started["session_id"])
            [event] = [e["id"] for e in shop.stripe.events() if e["object"]["id"] == started["session_id"]]

            def refused() -> bool:
                [told] = [e for e in shop.stripe.events() if e["id"] == event]
                return any(attempt["status"] == 503 for attempt in told["attempts"])

            eventually(refused, "the webhook to be refused for now")
            assert shop.check_out(slot_id).status_code == 503
            wait_stoppable(one)
            wait_stoppable(other)
            other.terminate()
            assert other.wait(timeout=START_SECONDS) == 0
        shop.wait_ready()
        shop.wait_for(started["booking"]["id"], "confirmed")  # Stripe told again
        shop.letters(started["booking"]["id"])
        with own_postgres.away():  # now the worker loses a Postgres that it had
            pass
        shop.wait_ready()
        shop.paid(slot_id)
        assert one.poll() is None
    shop.assert_places(slot_id, 2, 2)


# -- others go away ---------------------------------------------------------------------------------------------------


def test_while_stripe_is_away_nothing_is_freed_or_sold_and_all_is_made_up_for(shop):
    slot_id = shop.slot(4)
    lapsing, cancelled, paid = [shop.checked_out(slot_id) for _ in range(3)]
    with shop.with_worker():
        owed = shop.paid(slot_id)
        shop.to_stripe.arm("refuse")
        assert shop.check_out(shop.slot(1)).status_code == 502
        shop.lapse(lapsing["booking"]["id"])
        assert shop.cancel(cancelled).json()["status"] == "cancelled"
        assert shop.cancel(owed).json()["status"] == "cancelled"
        shop.stripe.pay(paid["session_id"])
        shop.wait_for(paid["booking"]["id"], "confirmed")  # what is paid is paid: nobody need be asked
        hits = shop.to_stripe.hits
        eventually(lambda: shop.to_stripe.hits > hits + 5, "the worker to ask Stripe in vain")
        shop.assert_places(slot_id, 4, 2)  # the one that lapsed can still be paid, for all that is known
        assert shop.booking(owed["booking"]["id"])["payment"]["refund_status"] == "due"
        shop.to_stripe.heal()

        def made_up() -> bool:
            for each in (lapsing, cancelled, owed):
                shop.look_now(each["booking"]["id"])
            left = "slot_id = %s AND (status IN ('open', 'closing') OR refund_status = 'due')"
            return shop.service.query(f"SELECT 1 FROM payments WHERE {left}", uuid.UUID(slot_id)) == []

        eventually(made_up, "all to be made up for")
        shop.wait_for(lapsing["booking"]["id"], "expired")
    shop.assert_places(slot_id, 4, 1)
    assert refunds(shop, owed) == [PRICE]
    statuses = [shop.stripe.session(each["session_id"])["status"] for each in (lapsing, cancelled, paid)]
    assert statuses == ["expired", "expired", "complete"]


async def test_without_redis_postgres_decides_who_may_pay(shop, own_redis):
    slot_id = shop.slot(3)
    own_redis.kill()
    try:
        async with shop.service.client() as client:
            body = {"slot_id": slot_id, "quantity": 1, "customer": {"name": "Ada", "email": "ada@example.com"}}
            answers = await all_at_once(
                client, [client.build_request("POST", "/v1/checkout", json=body) for _ in range(10)]
            )
        assert sorted(answer.status_code for answer in answers) == [201] * 3 + [409] * 7
        assert len(sessions_of(shop, slot_id)) == 3
        shop.assert_places(slot_id, 3, 3)
        one, other, last = [answer.json() for answer in answers if answer.status_code == 201]
        with shop.with_worker():
            shop.stripe.pay(one["session_id"])
            shop.wait_for(one["booking"]["id"], "confirmed")
            shop.lapse(other["booking"]["id"])
            shop.wait_for(other["booking"]["id"], "expired")
            assert shop.cancel(last).status_code == 200
        shop.assert_places(slot_id, 3, 1)
        shop.stripe.fault("sessions.create", "402")
        assert shop.check_out(slot_id).status_code == 502
        shop.assert_places(slot_id, 3, 1)
    finally:
        own_redis.start()
    metric = "holdfast_degraded"
    eventually(lambda: shop.service.metric(metric) == 0, "Redis to be trusted again")
    shop.assert_places(slot_id, 3, 1)


# -- the queue, step by step ------------------------------------------------------------------------------------------


@pytest.fixture
async def engine(postgres: Postgres, bundled_redis_server: RedisServer, whole_shop: Shop) -> AsyncIterator[Engine]:
    """An engine of the test's own, on a database of its own."""
    environ = {**whole_shop.environ, "DATABASE_URL": postgres.fresh(), "REDIS_URL": bundled_redis_server.url}
    async with engine_module.running(from_env(environ)) as running:
        yield running


@asynccontextmanager
async def opened(engine: Engine) -> AsyncIterator[procrastinate.App]:
    async with worker._queue(engine) as waiting:
        yield waiting


def rows(engine: Engine, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    options = "-c search_path=public,jobs"  # the triggers of the queue name its types without their schema
    with psycopg.connect(engine.settings.database_url, autocommit=True, options=options) as connection:
        return connection.execute(statement, values).fetchall()


def queued_jobs(engine: Engine) -> list[tuple[Any, ...]]:
    return rows(engine, "SELECT task_name, status::text, attempts FROM jobs.procrastinate_jobs ORDER BY id")


async def test_the_log_is_followed_without_skipping_what_is_committed_late(engine):
    event = "INSERT INTO events (type, actor, data) VALUES ('refund.due', 'system', %s) RETURNING seq"
    async with opened(engine) as waiting, waiting.connector.pool.connection() as connection:
        relay = jobs.Relay(engine, waiting)
        with psycopg.connect(engine.settings.database_url) as late:
            [(first,)] = late.execute(event, ('{"payment_id": "first"}',)).fetchall()
            [(second,)] = rows(engine, event, '{"payment_id": "second"}')
            assert first < second
            assert await relay.turn(connection) == 0  # the first one may still come
            late.commit()
        turns = [await relay.turn(connection)]
        while sum(turns) < 2:  # another database's transaction may be older than ours
            turns.append(await relay.turn(connection))
        assert [await relay.turn(connection) for _ in range(3)] == [0, 0, 0]
    found = rows(engine, "SELECT args ->> 'payment_id' FROM jobs.procrastinate_jobs ORDER BY id")
    assert found == [("first",), ("second",)]


async def test_two_relays_at_the_same_moment_queue_each_thing_once(engine):
    rows(
        engine,
        "INSERT INTO events (type, actor, data) SELECT 'refund.due', 'system', jsonb_build_object('payment_id', n)"
        " FROM generate_series(1, 50) AS n RETURNING 1",
    )
    rows(
        engine,
        "INSERT INTO webhook_inbox (event_id, type, object)"
        " SELECT 'evt_' || n, 'checkout.session.expired', '{}' FROM generate_series(1, 50) AS n RETURNING 1",
    )

    async def turns(waiting: procrastinate.App) -> None:
        async with waiting.connector.pool.connection() as connection:
            for _ in range(5):
                await jobs.Relay(engine, waiting).turn(connection)

    async with opened(engine) as waiting:
        while len(queued_jobs(engine)) < 100:
            await asyncio.gather(*(turns(waiting) for _ in range(4)))
    assert len(queued_jobs(engine)) == 100


async def test_a_relay_that_dies_in_its_turn_has_queued_nothing(engine, monkeypatch):
    rows(engine, "INSERT INTO webhook_inbox (event_id, type, object) VALUES ('evt_1', 'a.b', '{}') RETURNING 1")
    async with opened(engine) as waiting, waiting.connector.pool.connection() as connection:
        relay = jobs.Relay(engine, waiting)
        defer = relay._defer

        async def dies(*asked: Any) -> None:
            await defer(*asked)
            raise ConnectionError

        monkeypatch.setattr(relay, "_defer", dies)
        with pytest.raises(ConnectionError):
            await relay.turn(connection)
        assert queued_jobs(engine) == []
        monkeypatch.undo()
        assert await relay.turn(connection) == 1
    assert queued_jobs(engine) == [("apply_stripe_event", "todo", 0)]


async def test_a_job_of_a_dead_worker_does_not_stand_in_the_way_of_its_next_turn(engine):
    """A deadline is queued again while the job before it is still under way, and then its worker dies."""
    lock = {"queueing_lock": "close_payment:1", "lock": "close_payment:1"}
    other = {"lock": "stripe:1"}
    async with opened(engine) as waiting:
        await waiting.configure_task("close_payment", **lock).defer_async(payment_id=str(uuid.uuid4()))
        await waiting.configure_task("apply_stripe_event", **other).defer_async(event_id="evt_1")
        rows(engine, "UPDATE jobs.procrastinate_jobs SET status = 'doing' RETURNING 1")  # by nobody who lives
        await waiting.configure_task("close_payment", **lock).defer_async(payment_id=str(uuid.uuid4()))
        await jobs._free_stalled(engine, waiting)
    assert queued_jobs(engine) == [("apply_stripe_event", "todo", 1), ("close_payment", "todo", 0)]


async def test_what_stripe_cannot_be_asked_now_is_left_to_the_next_time(engine, monkeypatch):
    async def unclear(*_: Any) -> str:
        raise Unclear("away")

    async def refused(*_: Any) -> str:
        raise Refused("a person must look")

    assert await jobs._or_later(unclear()) == "postponed"
    with pytest.raises(Refused):
        await jobs._or_later(refused())


async def test_however_many_old_deliveries_there_are_all_of_them_are_forgotten(engine, monkeypatch):
    pieces = [1_000, 1_000, 3, 0]

    async def forget_ended(_: Any) -> int:
        return pieces.pop(0)

    monkeypatch.setattr(jobs.deliveries, "forget_ended", forget_ended)
    await jobs._forget(engine, jobs.queue(engine))
    assert pieces == []


def job(attempts: int) -> queued.Job:
    return queued.Job(id=1, queue="default", lock=None, queueing_lock=None, task_name="task", attempts=attempts)


def test_only_what_may_pass_is_tried_again_ever_more_slowly():
    patience = jobs.Patience()
    for error in (Unclear(""), MailServerAway(""), DatabaseUnavailable(effect_none=True), ConnectionError()):
        waits = []
        for attempts in range(jobs.MAX_TRIES):
            decision = patience.get_retry_decision(exception=error, job=job(attempts))
            assert decision is not None
            waits.append(decision.retry_at - datetime.now(UTC))
        assert waits[0] < timedelta(seconds=2)
        assert timedelta(minutes=40) < waits[-1] < timedelta(minutes=75)
        assert sum(waits, timedelta()) > timedelta(days=2)
        assert patience.get_retry_decision(exception=error, job=job(jobs.MAX_TRIES)) is None
    assert patience.get_retry_decision(exception=Refused(""), job=job(0)) is None
    assert patience.get_retry_decision(exception=KeyError(""), job=job(0)) is None


@pytest.mark.parametrize("stopped", [asyncio.CancelledError(), exceptions.JobAborted()])
def test_a_job_that_a_stop_interrupts_is_for_the_next_worker(stopped):
    decision = jobs.Patience().get_retry_decision(exception=stopped, job=job(jobs.MAX_TRIES))
    assert decision is not None
    assert decision.retry_at <= datetime.now(UTC)


async def test_a_job_that_outlasts_the_grace_of_a_stop_is_done_by_the_next_worker(engine, monkeypatch):
    monkeypatch.setattr(worker, "GRACE_SECONDS", 0.1)
    begun, stop, done = asyncio.Event(), asyncio.Event(), []

    async def slow(_: Engine, event_id: str) -> str:
        begun.set()
        if not done and not stop.is_set():
            await asyncio.sleep(600)
        done.append(event_id)
        return "done"

    monkeypatch.setattr(jobs.settlement, "apply_event", slow)
    rows(engine, "INSERT INTO webhook_inbox (event_id, type, object) VALUES ('evt_1', 'a.b', '{}') RETURNING 1")
    async with opened(engine) as waiting:
        working = asyncio.create_task(worker._until(stop, engine, waiting, 3))
        await begun.wait()
        stop.set()
        await working
    assert (done, queued_jobs(engine)) == ([], [("apply_stripe_event", "todo", 1)])
    again = asyncio.Event()
    async with opened(engine) as waiting:
        working = asyncio.create_task(worker._until(again, engine, waiting, 3))
        await asyncio.to_thread(eventually, lambda: queued_jobs(engine) == [], "the job to be done")
        again.set()
        await working
    assert done == ["evt_1"]


@pytest.mark.parametrize("where", ["prune_stalled_workers", "register_worker", "fetch_job", "get_stalled_jobs"])
async def test_a_stop_while_the_worker_starts_is_not_lost(engine, monkeypatch, where):
    """However the wait for a connection ends that was under way: Python 3.11 may forget a cancellation there."""
    stop, was_here = asyncio.Event(), asyncio.Event()
    original = getattr(manager.JobManager, where)

    async def deaf(self: manager.JobManager, *asked: Any, **named: Any) -> Any:
        if not was_here.is_set():
            was_here.set()
            stop.set()
            with suppress(asyncio.CancelledError, TimeoutError):
                async with asyncio.timeout(0.5):
                    await asyncio.Event().wait()
        return await original(self, *asked, **named)

    monkeypatch.setattr(manager.JobManager, where, deaf)
    monkeypatch.setattr(ending, "TRY_SECONDS", 0.2)
    async with opened(engine) as waiting, asyncio.timeout(30):
        await worker._until(stop, engine, waiting, 3)
    assert was_here.is_set()
    assert rows(engine, "SELECT count(*) FROM jobs.procrastinate_workers") == [(0,)]
