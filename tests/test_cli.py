"""The commands, in this process and on real stores: what they print, what they change, and their exit codes."""

import asyncio
import itertools
import json
import logging
import os
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import msgspec
import psycopg
import pytest

from app import booking, holding, places
from app.booking import BookingRequest
from app.cli import doctor, events, home, stores, watch
from app.cli.holds import describe
from app.cli.home import Run, published
from app.cli.seed import seed
from app.domain import Caller, Customer, Event, Hold
from app.engine import Engine
from app.holds import slot_keys
from app.settings import Settings, SettingsError
from tests.redis_servers import RedisServer, running_redis
from tests.service import OPERATOR_KEY, SECRET, Postgres
from tests.terminal import holdfast

__all__ = ["holdfast"]

CUSTOMER = Caller("customer", None)
ADA = Customer("Ada Lovelace", "ada@example.com")
TOMORROW = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) + timedelta(days=1)


@dataclass
class Shop:
    """A venue with one tour of five places, in stores of its own."""

    settings: Settings
    redis: RedisServer
    slot_id: UUID
    resource_id: UUID

    def run(self, use: Callable[[Engine], Coroutine[Any, Any, Any]]) -> Any:
        """Do something to the stores as the service does it."""

        async def with_engine() -> Any:
            engine = Engine(self.settings)
            await engine.ledger.pool.open()
            try:
                result = await use(engine)
                await engine.drain()
                return result
            finally:
                await engine.ledger.pool.close()
                await engine.holds.client.aclose()

        return asyncio.run(with_engine())

    def hold(self, quantity: int = 1) -> UUID:
        held = self.run(lambda engine: holding.take_hold(engine, self.slot_id, quantity, key=None, caller=CUSTOMER))
        hold_id: UUID = held[0].id
        return hold_id

    def book(self, quantity: int = 1) -> UUID:
        request = BookingRequest(slot_id=self.slot_id, quantity=quantity, customer=ADA)
        booked = self.run(lambda engine: booking.book(engine, request, caller=CUSTOMER))
        booking_id: UUID = booked[0].id
        return booking_id

    def query(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.settings.database_url, autocommit=True) as connection:
            cursor = connection.execute(statement, values)
            return cursor.fetchall() if cursor.description else []


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    with running_redis("--maxmemory-policy", "noeviction", "--appendonly", "yes") as server:
        yield server


@pytest.fixture
def shop(postgres: Postgres, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: Any) -> Shop:
    database_url = postgres.fresh()
    with redis_server.admin() as client:
        client.flushall()
    settings = Settings(
        redis_url=redis_server.url, database_url=database_url, operator_key=OPERATOR_KEY, secrets=(SECRET,)
    )
    made = Shop(settings, redis_server, slot_id=uuid4(), resource_id=uuid4())
    venue_id = uuid4()
    made.query("INSERT INTO venues (id, slug, name, timezone) VALUES (%s, 'shop', 'Shop', 'Europe/Berlin')", venue_id)
    made.query(
        "INSERT INTO resources (id, venue_id, name, kind) VALUES (%s, %s, 'Tour', 'event')", made.resource_id, venue_id
    )
    made.query(
        "INSERT INTO slots (id, venue_id, resource_id, resource_no, one_at_a_time, starts_at, ends_at, capacity,"
        " available_count, exclusive) SELECT %s, venue_id, id, no, one_at_a_time, %s, %s, 5, 5, false FROM resources",
        made.slot_id, TOMORROW, TOMORROW + timedelta(hours=1),
    )  # fmt: skip
    monkeypatch.setenv("REDIS_URL", settings.redis_url)
    monkeypatch.setenv("DATABASE_URL", settings.database_url)
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path_factory.mktemp("no-demo")))
    monkeypatch.setenv("COLUMNS", "120")
    # Logging belongs to the process, which the tests share.
    monkeypatch.setattr(stores, "be_quiet", lambda: None)
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)
    return made


# -- holds ------------------------------------------------------------------------------------------------------------


def test_holds_are_listed_with_their_slot_and_what_is_left_of_them(shop, holdfast):
    asked_at = time.monotonic()
    hold_id = shop.hold(2)
    answer = holdfast("holds", "list", "--json")
    passed = time.monotonic() - asked_at
    assert answer.code == 0
    [held] = answer.json["data"]
    assert held["id"] == str(hold_id)
    assert (held["venue"], held["resource"], held["quantity"], held["store"]) == ("shop", "Tour", 2, "redis")
    assert 300 - passed - 1 < held["ttl_seconds"] < 300  # whole seconds, rounded down
    assert isinstance(held["ttl_seconds"], int)
    assert answer.json["next_cursor"] is None
    for narrowed in (("--venue", "shop"), ("--slot", shop.slot_id)):
        assert str(hold_id) in holdfast("holds", "list", *narrowed).out
    # Who mistypes is not told that nobody holds anything.
    for unknown in (("--venue", "elsewhere"), ("--slot", hold_id)):
        assert holdfast("holds", "list", *unknown, "--json").code == 3


def test_a_hold_is_shown_extended_and_released(shop, holdfast):
    hold_id = shop.hold(2)
    before = holdfast("holds", "show", hold_id, "--json").json
    extended = holdfast("holds", "extend", hold_id, "--seconds", 4000, "--json").json
    longer = datetime.fromisoformat(extended["expires_at"]) - datetime.fromisoformat(before["expires_at"])
    assert timedelta(seconds=3999) < longer < timedelta(seconds=4001)

    released = holdfast("holds", "release", hold_id, "--yes")
    assert (released.code, released.out.startswith("Released 2 places of Tour")) == (0, True)
    assert holdfast("holds", "show", hold_id).code == 3
    assert holdfast("holds", "release", hold_id, "--yes").code == 3


def test_a_released_hold_is_told_to_programs_as_it_was(shop, holdfast):
    hold_id = shop.hold(2)
    told = holdfast("holds", "release", hold_id, "--yes", "--json").json
    assert (told["id"], told["quantity"], told["status"]) == (str(hold_id), 2, "released")
    again = holdfast("holds", "release", hold_id, "--yes", "--json")
    assert (again.code, again.out) == (3, "")


def test_the_seconds_left_of_a_hold_are_whole_and_never_negative(shop):
    [slot] = shop.run(lambda engine: engine.ledger.slots([shop.slot_id]))
    now = datetime.now(UTC)
    for left, told in ((1.999, 1), (0.5, 0), (-0.5, 0)):
        hold = Hold(uuid4(), slot.id, 1, now, now + timedelta(seconds=left), now, degraded=False)
        assert describe(hold, slot)["ttl_seconds"] == told


def test_a_hold_is_not_released_without_being_asked(shop, holdfast):
    hold_id = shop.hold()
    answer = holdfast("holds", "release", hold_id)
    assert (answer.code, answer.out, answer.err) == (2, "", "Nobody can be asked here: say --yes\n")
    assert holdfast("holds", "show", hold_id).code == 0


def test_what_became_a_booking_is_not_released(shop, holdfast):
    booking_id = shop.book()
    answer = holdfast("holds", "release", booking_id, "--yes")
    assert answer.code == 4
    assert "became a booking, which is confirmed" in answer.err
    assert shop.query("SELECT status FROM bookings") == [("confirmed",)]


def test_why_explains_every_place(shop, holdfast):
    booking_id, hold_id = shop.book(2), shop.hold(1)
    answer = holdfast("holds", "why", shop.slot_id, "--json")
    assert answer.code == 0
    told = answer.json
    assert (told["capacity"], told["booked"], told["held"], told["free"]) == (5, 2, 1, 2)
    assert told["adds_up"]
    [booked, held] = told["taken"]
    assert (booked["kind"], booked["id"], booked["customer"]) == ("booking", str(booking_id), "Ada Lovelace")
    assert (booked["status"], booked["until"], booked["store"]) == ("confirmed", None, "postgres")
    assert (held["kind"], held["id"], held["customer"], held["store"]) == ("hold", str(hold_id), None, "redis")
    assert "5 places = 2 booked + 1 held + 2 free" in holdfast("holds", "why", shop.slot_id).out


def test_why_counts_a_row_that_is_only_held_as_held(shop, holdfast):
    """As while Redis was away, or for whoever waited."""
    shop.book(2)

    async def hold(engine: Engine) -> Hold:
        claim = places.Claim(await engine.mirror.facts(shop.slot_id), uuid4(), 2, None)
        return await holding._take_in_postgres(engine, claim, 60_000, None, CUSTOMER)

    held = shop.run(hold)
    told = holdfast("holds", "why", shop.slot_id, "--json").json
    assert (told["booked"], told["held"], told["free"], told["adds_up"]) == (2, 2, 1, True)
    [kind] = [(one["kind"], one["store"]) for one in told["taken"] if one["id"] == str(held.id)]
    assert kind == ("hold", "postgres")


def test_why_says_when_the_places_do_not_add_up(shop, holdfast):
    shop.book(2)
    with shop.redis.admin() as client:
        client.hset(slot_keys(shop.resource_id, shop.slot_id)["mirror"], "booked", 5)
    answer = holdfast("holds", "why", shop.slot_id, "--json")
    assert answer.code == 4
    assert not answer.json["adds_up"]
    [problem] = answer.json["problems"]
    assert "Redis believes in 5 of 5 places booked, Postgres says 2 of 5" in problem
    assert answer.err == "The places do not add up\n"


def test_why_of_an_unknown_slot(shop, holdfast):
    answer = holdfast("holds", "why", uuid4())
    assert (answer.code, answer.err) == (3, "Slot not found\n")


def test_watch_without_a_terminal_tells_each_change_as_a_line(shop, holdfast):
    hold_id = shop.hold(2)
    answer = holdfast("holds", "watch", "--for", 0.3, "--interval", 0.1)
    assert answer.code == 0
    [line] = answer.out.splitlines()
    assert f"held     {hold_id} 2 of Tour" in line
    [change] = holdfast("holds", "watch", "--jsonl", "--for", 0.3).lines
    assert (change["change"], change["hold"]["id"]) == ("held", str(hold_id))


def test_a_watch_is_no_single_object(holdfast):
    answer = holdfast("holds", "watch", "--json")
    assert (answer.code, answer.out, "--jsonl" in answer.err) == (2, "", True)


def test_watch_tells_how_a_hold_ended(shop, holdfast, monkeypatch):
    first, second = shop.hold(), shop.hold()
    read = watch.read_holds

    async def read_and_release(engine: Engine, *which: Any) -> Any:
        shown = await read(engine, *which)
        if len(shown) == 2:
            await holding.operator_release_hold(engine, first, caller=CUSTOMER)
        return shown

    monkeypatch.setattr(watch, "read_holds", read_and_release)
    # A second passes with each look, however long it takes: there is time for three.
    looks = itertools.count()
    monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=lambda: next(looks)))
    changes = holdfast("holds", "watch", "--jsonl", "--for", 3, "--interval", 0.1).lines
    told = {(change["change"], UUID(change["hold"]["id"])) for change in changes}
    assert told == {("held", first), ("held", second), ("released", first)}


# -- slots, bookings, events ------------------------------------------------------------------------------------------


def test_a_slot_is_created_listed_and_shown(shop, holdfast):
    made = holdfast(
        "slots", "create", "--venue", "shop", "--resource", "Tour", "--starts-at",
        f"{TOMORROW:%Y-%m-%d}T23:00", "--minutes", 90, "--capacity", 3, "--price", 1500, "--json",
    )  # fmt: skip
    assert made.code == 0
    slot = made.json
    assert (slot["capacity"], slot["available"], slot["status"]) == (3, 3, "available")
    assert slot["price"] == {"amount": 1500, "currency": "EUR"}
    # A time without an offset is the venue's: Berlin is one or two hours ahead of UTC.
    assert slot["starts_at"][11:13] in ("21", "22")
    listed = holdfast("slots", "list", "--venue", "shop", "--json").json["data"]
    assert {one["id"] for one in listed} == {slot["id"], str(shop.slot_id)}
    assert holdfast("slots", "show", slot["id"], "--json").json == slot
    assert shop.query("SELECT type, actor FROM events") == [("slot.created", "operator")]


def test_slots_of_nothing_are_not_created(shop, holdfast):
    wanted = ("--starts-at", "2030-01-01T10:00")
    assert holdfast("slots", "create", "--venue", "nowhere", "--resource", "Tour", *wanted).code == 3
    answer = holdfast("slots", "create", "--venue", "shop", "--resource", "Nobody", *wanted)
    assert (answer.code, "it has: Tour" in answer.err) == (3, True)
    assert holdfast("slots", "show", uuid4()).code == 3


def test_holds_count_in_what_slots_say(shop, holdfast):
    shop.book(1)
    shop.hold(4)
    slot = holdfast("slots", "show", shop.slot_id, "--json").json
    assert (slot["available"], slot["held"], slot["available_count"], slot["status"]) == (0, 4, 4, "held")


def test_a_booking_is_listed_shown_and_cancelled_once(shop, holdfast):
    booking_id = shop.book(2)
    [listed] = holdfast("bookings", "list", "--venue", "shop", "--status", "confirmed", "--json").json["data"]
    assert (listed["id"], listed["customer"]["name"], listed["resource"]) == (str(booking_id), "Ada Lovelace", "Tour")
    assert "Ada Lovelace" in holdfast("bookings", "show", booking_id).out
    assert holdfast("bookings", "cancel", booking_id).code == 2
    for told in ("Cancelled; 5 of the slot's 5 places are not booked now", "It was cancelled before; nothing changed"):
        answer = holdfast("bookings", "cancel", booking_id, "--yes", "--json")
        assert (answer.code, answer.json["status"], answer.json["available_count"]) == (0, "cancelled", 5)
        assert told in answer.err
    cancelled = shop.query("SELECT actor FROM events WHERE type = 'booking.cancelled'")
    assert cancelled == [("operator",)]
    assert holdfast("bookings", "show", uuid4()).code == 3


def test_a_list_that_was_cut_goes_on_at_its_cursor(shop, holdfast):
    wanted = ("slots", "create", "--venue", "shop", "--resource", "Tour", "--starts-at")
    holdfast(*wanted, f"{TOMORROW + timedelta(days=1):%Y-%m-%dT%H:%MZ}")
    shop.book()
    shop.book()
    for command in ("slots", "bookings"):
        whole = holdfast(command, "list", "--json").json
        assert (len(whole["data"]), whole["next_cursor"]) == (2, None)
        cut = holdfast(command, "list", "--limit", 1, "--json").json
        rest = holdfast(command, "list", "--limit", 1, "--cursor", cut["next_cursor"], "--json").json
        assert (cut["data"] + rest["data"], rest["next_cursor"]) == (whole["data"], None)
        assert holdfast(command, "list", "--cursor", "nonsense").code == 2


def test_the_tail_of_the_log_goes_on_where_it_was_left(shop, holdfast):
    booking_id = shop.book()
    shop.book()
    holdfast("bookings", "cancel", booking_id, "--yes")
    everything = holdfast("events", "tail", "--after", 0, "--jsonl").lines
    types = [event["type"] for event in everything]
    assert types == ["booking.confirmed", "booking.confirmed", "booking.cancelled"]
    assert holdfast("events", "tail", "--after", everything[0]["seq"], "--jsonl").lines == everything[1:]
    assert holdfast("events", "tail", "--count", 1, "--jsonl").lines == everything[2:]
    of_one = holdfast("events", "tail", "--booking", booking_id, "--follow", "--for", 0.2, "--jsonl").lines
    assert [event["type"] for event in of_one] == ["booking.confirmed", "booking.cancelled"]
    assert "booking.cancelled by operator" in holdfast("events", "tail", "--type", "booking.cancelled").out


def test_the_tail_of_the_log_is_one_object_too(shop, holdfast):
    shop.book()
    shop.book()
    lines = holdfast("events", "tail", "--jsonl").lines
    last = str(lines[1]["seq"])
    assert holdfast("events", "tail", "--json").json == {"data": lines, "next_cursor": last}
    assert holdfast("events", "tail", "--after", last, "--json").json == {"data": [], "next_cursor": None}
    for stream in ("--follow", "--jsonl"):
        answer = holdfast("events", "tail", "--json", stream)
        assert (answer.code, answer.out, "say --jsonl" in answer.err) == (2, "", True)


# -- reconcile and doctor ---------------------------------------------------------------------------------------------


def test_reconcile_finds_drift_once(shop, holdfast):
    shop.book(2)
    assert holdfast("reconcile", "--json").json == {"slots": 1, "mirrored": 1, "repaired": True, "drift": []}
    with shop.redis.admin() as client:
        client.hset(slot_keys(shop.resource_id, shop.slot_id)["mirror"], "booked", 0)
    for arguments in (("--dry-run",), ()):
        answer = holdfast("reconcile", "--json", *arguments)
        assert answer.code == 4
        drift = {"slot_id": str(shop.slot_id), "field": "booked", "mirrored": 0, "actual": 2}
        assert answer.json["drift"] == [drift]
    assert (holdfast("reconcile").code, holdfast("reconcile").out) == (
        0,
        "1 slot compared, 1 of them mirrored: no drift\n",
    )


@pytest.fixture
def served(shop, monkeypatch):
    """What `doctor` takes for the settings of a service."""
    monkeypatch.setenv("HOLDFAST_OPERATOR_KEY", OPERATOR_KEY)
    monkeypatch.setenv("HOLDFAST_SECRET", SECRET)
    monkeypatch.setenv("HOLDFAST_TRUSTED_PROXIES", "none")
    monkeypatch.setenv("HOLDFAST_PUBLIC_URL", "https://book.example")
    return shop


def test_doctor_finds_nothing_wrong(served, holdfast):
    served.book()
    answer = holdfast("doctor", "--json")
    assert answer.code == 0, answer.out
    assert answer.json["ok"]
    assert {check["verdict"] for check in answer.json["checks"]} == {"ok"}
    assert "✓" in holdfast("doctor").out


def test_doctor_warns_of_limits_that_take_many_for_one_and_of_an_address_without_tls(served, holdfast, monkeypatch):
    def warned() -> dict[str, str]:
        checks = holdfast("doctor", "--json").json["checks"]
        return {check["name"]: check["found"] for check in checks if check["verdict"] == "warning"}

    served.query("UPDATE venues SET holds_per_client = 5")
    assert warned() == {}
    monkeypatch.setenv("HOLDFAST_PUBLIC_URL", "http://book.example")
    assert warned() == {"Public address": "http://book.example"}
    monkeypatch.setenv("HOLDFAST_ENV", "development")
    monkeypatch.delenv("HOLDFAST_TRUSTED_PROXIES")
    assert warned().keys() == {"Limits of venues"}
    monkeypatch.setenv("HOLDFAST_RATE_LIMIT", "5/s")
    assert "all customers behind one are one client" in warned()["Limits"]


@pytest.mark.parametrize(
    ("after", "theirs", "verdict"),
    [(1000.1, 1002.0, "ok"), (1000.1, 1002.2, "failed"), (1000.1, 997.9, "failed"), (1010.0, 1000.1, "warning")],
    ids=["nearly right", "ahead", "behind", "stood still"],
)
def test_doctor_blames_no_clock_for_what_a_look_takes(monkeypatch, after, theirs, verdict):
    ours = itertools.cycle([1000.0, after])
    monkeypatch.setattr(doctor, "time", SimpleNamespace(time=lambda: next(ours)))
    assert doctor._clock("Clock", lambda: theirs).verdict == verdict


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        ("ALTER TABLE bookings DISABLE TRIGGER bookings_inserted", "Triggers"),
        ("DROP INDEX bookings_one_live_on_exclusive_slot", "Unique indexes"),
        ("ALTER TABLE slots DROP CONSTRAINT slots_available_count_range", "Constraints"),
        (
            "ALTER TABLE slots DISABLE TRIGGER slots_guard_changes; UPDATE slots SET available_count = 4",
            "available_count is capacity less live bookings",
        ),
    ],
)
def test_doctor_sees_a_broken_rule(served, holdfast, damage, name):
    served.query(damage)
    answer = holdfast("doctor", "--json")
    assert answer.code == 4
    assert name in {check["name"] for check in answer.json["checks"] if check["verdict"] == "violated"}


def test_doctor_sees_a_negative_count(served, holdfast):  # S0-11
    served.query(
        "ALTER TABLE slots DROP CONSTRAINT slots_available_count_range; ALTER TABLE slots DISABLE TRIGGER ALL;"
        " UPDATE slots SET available_count = -1"
    )
    violated = {one["name"] for one in holdfast("doctor", "--json").json["checks"] if one["verdict"] == "violated"}
    assert "No available_count is negative" in violated


def test_doctor_sees_two_things_at_once(served, holdfast):
    served.query(
        "ALTER TABLE occupied DROP CONSTRAINT occupied_one_thing_at_a_time;"
        " INSERT INTO resources (id, venue_id, name, kind) SELECT gen_random_uuid(), id, 'Eve', 'person' FROM venues;"
        " INSERT INTO slots (id, venue_id, resource_id, resource_no, one_at_a_time, starts_at, ends_at, capacity,"
        "   available_count, exclusive) SELECT gen_random_uuid(), venue_id, id, no, true, now() + n * interval '1 h',"
        "   now() + n * interval '1 h' + interval '2 h', 1, 1, true FROM resources, generate_series(1, 2) AS n"
        "   WHERE name = 'Eve';"
        " INSERT INTO bookings (id, venue_id, slot_id, exclusive, quantity, status, confirmed_at, available_after,"
        "   customer_name, customer_email) SELECT gen_random_uuid(), venue_id, id, true, 1, 'confirmed', now(), 0, 'A',"
        "   'a@example.com' FROM slots WHERE one_at_a_time"
    )
    violated = {one["name"] for one in holdfast("doctor", "--json").json["checks"] if one["verdict"] == "violated"}
    assert violated == {"Nobody is in two places at once", "Constraints"}


def test_doctor_without_an_evicting_or_any_redis(served, holdfast, monkeypatch):
    with served.redis.admin() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            assert holdfast("doctor").code == 1
        finally:
            client.config_set("maxmemory-policy", "noeviction")
    monkeypatch.setenv("REDIS_URL", "unix:///nowhere/redis.sock")
    answer = holdfast("doctor", "--json")
    assert answer.code == 5
    [away] = [check for check in answer.json["checks"] if check["verdict"] == "unreachable"]
    assert away["name"] == "Redis"


# -- stores that are away ---------------------------------------------------------------------------------------------


def test_without_redis_holds_in_postgres_are_told_and_the_rest_is_not_denied(shop, holdfast, monkeypatch):
    # Given a service whose Redis is away, If somebody holds, Expect the hold to be seen, and the gap to be named.
    monkeypatch.setenv("REDIS_URL", "unix:///nowhere/redis.sock")
    shop.settings = Settings(
        redis_url="unix:///nowhere/redis.sock",
        database_url=shop.settings.database_url,
        operator_key=OPERATOR_KEY,
        secrets=(SECRET,),
    )
    hold_id = shop.hold(2)
    answer = holdfast("holds", "list", "--json")
    assert answer.code == 5
    assert [(one["id"], one["store"]) for one in answer.json["data"]] == [(str(hold_id), "postgres")]
    assert answer.err == "Redis cannot be reached: holds that only it knows are not shown\n"
    assert holdfast("holds", "show", uuid4()).code == 5
    assert holdfast("reconcile").code == 5
    assert holdfast("holds", "extend", hold_id, "--seconds", 60, "--json").json["ttl_seconds"] > 300
    assert holdfast("holds", "release", hold_id, "--yes").code == 0
    assert shop.query("SELECT status FROM bookings") == [("cancelled",)]


@pytest.mark.parametrize("command", [("holds", "list"), ("slots", "list"), ("events", "tail"), ("db", "upgrade")])
def test_without_postgres_one_line_says_so(shop, holdfast, monkeypatch, command):
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing")
    answer = holdfast(*command)
    assert (answer.code, answer.out) == (5, "")
    assert answer.err.startswith("Postgres cannot be reached")
    assert answer.err.count("\n") == 1


def test_nobody_says_where_the_stores_are(holdfast, monkeypatch, tmp_path):
    for name in ("REDIS_URL", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path))
    for command in (("holds", "list"), ("db", "upgrade"), ("reconcile",)):
        answer = holdfast(*command)
        assert answer.code == 2
        assert f"no demo runs in {tmp_path}" in answer.err
    assert holdfast("doctor").code == 5
    assert holdfast("race").code == 2
    assert holdfast("holds", "show", "nonsense").code == 2
    assert holdfast("nonsense").code == 2


def test_half_of_one_service_is_not_mixed_with_half_of_another(shop, holdfast, monkeypatch, tmp_path):
    demo = Run("unix:///demo/redis.sock", "postgresql:///demo", "http://127.0.0.1:1", OPERATOR_KEY, os.getpid())
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path))
    monkeypatch.delenv("DATABASE_URL")
    with published(tmp_path, demo):
        assert (tmp_path / "run.json").stat().st_mode & 0o777 == 0o600
        answer = holdfast("reconcile")
        assert answer.code == 2
        assert answer.err.startswith("REDIS_URL is not the one of the demo")


# -- payments ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def failed_refund(shop: Shop) -> UUID:
    """A booking that was paid and cancelled, and whose refund came back."""
    payment_id = uuid4()
    shop.query(
        "INSERT INTO payments (id, venue_id, slot_id, booking_id, quantity, amount, currency, status, session_id,"
        " payment_intent, paid_amount, paid_at, refund_status, refund_reason)"
        " SELECT %s, venue_id, id, %s, 1, 2500, 'EUR', 'paid', 'cs_1', 'pi_1', 2500, now(), 'failed', 'by the venue'"
        " FROM slots",
        payment_id,
        uuid4(),
    )
    return payment_id


def test_a_failed_refund_is_found_and_tried_again_from_the_terminal(shop, holdfast, failed_refund):
    doctor = holdfast("doctor")
    assert (doctor.code, "1 payment, such as" in doctor.out) == (4, True)
    [listed] = holdfast("payments", "list", "--refund", "failed", "--json").json["data"]
    assert listed["id"] == str(failed_refund)
    assert "failed: by the venue" in holdfast("payments", "show", failed_refund).out
    assert holdfast("payments", "refund", failed_refund, "--yes").code == 0
    assert holdfast("payments", "show", failed_refund, "--json").json["refund_status"] == "due"
    assert holdfast("payments", "refund", failed_refund, "--yes").code == 4  # the worker is at it
    by_hand = holdfast("payments", "refund", failed_refund, "--by-hand", "--yes")
    assert (by_hand.code, "Stripe may be giving it back now" in by_hand.err) == (4, True)
    assert holdfast("doctor").code != 4


def test_what_was_given_back_by_hand_is_noted(shop, holdfast, failed_refund):
    assert holdfast("payments", "refund", failed_refund, "--by-hand", "--yes").code == 0
    shown = holdfast("payments", "show", failed_refund, "--json").json
    assert (shown["refund_status"], shown["refunded_amount"]) == ("done", 2500)
    assert holdfast("payments", "refund", failed_refund, "--by-hand", "--yes").code == 4
    assert holdfast("doctor").code != 4


# -- the demo venue ---------------------------------------------------------------------------------------------------


def test_seeding_again_adds_nothing(shop):
    first = seed(shop.settings.database_url)
    counted = "SELECT count(*), count(DISTINCT (resource_id, service_id, starts_at)) FROM slots"
    [(slots, distinct)] = shop.query(counted)
    assert 3_000 < slots == distinct < 10_000
    assert seed(shop.settings.database_url) == first
    assert shop.query(counted) == [(slots, distinct)]


def test_the_demo_is_a_salon_where_everybody_can_be_booked_tomorrow_at_ten(shop):
    seed(shop.settings.database_url)
    of_demo = "SELECT r.name, r.kind FROM resources AS r JOIN venues AS v ON v.id = r.venue_id WHERE v.slug = 'demo'"
    assert sorted(shop.query(of_demo)) == [
        ("Anna", "person"), ("Ben", "person"), ("City walk", "event"), ("Clara", "person"),
    ]  # fmt: skip
    [(services, offers)] = shop.query("SELECT (SELECT count(*) FROM services), count(*) FROM service_resources")
    assert (services, offers) == (4, 8)
    for zone in ("Europe/Berlin", "UTC"):
        at_ten = (
            "SELECT count(DISTINCT (service_id, resource_id)) FROM slots WHERE service_id IS NOT NULL"
            "  AND status = 'open' AND closes_at IS NULL"
            "  AND starts_at = (date_trunc('day', now() AT TIME ZONE %s) + interval '34 hours') AT TIME ZONE %s"
        )
        assert shop.query(at_ten, zone, zone) == [(8,)]
    [(tours,)] = shop.query("SELECT count(*) FROM slots WHERE capacity = 10 AND price_amount = 2500")
    assert tours > 30


def test_a_later_start_tops_the_horizon_up(shop):
    seed(shop.settings.database_url)
    shop.query("DELETE FROM slots WHERE starts_at > now() + interval '3 days'")
    [(few,)] = shop.query("SELECT count(*) FROM slots")
    seed(shop.settings.database_url)
    [(many,)] = shop.query("SELECT count(*) FROM slots WHERE starts_at > now() + interval '10 days'")
    assert many > few / 2


def test_a_bug_is_one_line_too(holdfast, monkeypatch):
    def broken() -> Settings:
        raise RuntimeError("with\nmany lines")

    monkeypatch.setattr(home, "store_settings", broken)
    answer = holdfast("holds", "list")
    assert (answer.code, answer.err.count("\n")) == (1, 1)
    assert "A bug: RuntimeError: with (HOLDFAST_TRACEBACK=1 shows where)" in answer.err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_demo_that_another_user_left_word_of_is_not_believed(tmp_path: Path) -> None:
    run = {
        "redis_url": "redis://127.0.0.1:1", "database_url": "postgresql://127.0.0.1:1/x",
        "api_url": "http://127.0.0.1:1", "operator_key": "k" * 16, "pid": os.getpid(),
    }  # fmt: skip
    planted = tmp_path / "run.json"
    planted.write_text(json.dumps(run))
    os.chown(planted, 65_534, 65_534)
    with pytest.raises(SettingsError, match="belongs to another user"):
        home.read_run(tmp_path)


def test_an_event_is_told_in_lines_that_a_terminal_need_not_break():
    ids = [UUID(int=n) for n in range(4)]
    data = {"quantity": 1, "delivery_id": str(ids[2]), "endpoint_id": str(ids[3]), "error": "x " * 60}
    event = Event(132, datetime.now(UTC), "webhook.dead", "system", ids[0], ids[1], data)
    narrow = events.lines(event, 80)
    assert max(len(line) for line in narrow) <= 80
    assert all(any(str(each) in line for line in narrow) for each in ids)
    assert len(events.lines(event, None)) == 1  # for `grep`
    assert events.lines(msgspec.structs.replace(event, booking_id=None, slot_id=None, data={}), 80) == [
        f"132 {event.at:%Y-%m-%d %H:%M:%S} webhook.dead by system"
    ]
