"""The view of a day or week in a terminal: what an agenda tells, and `holdfast calendar` of it."""

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import httpx
import msgspec
import psycopg
import pytest
from rich.console import Console

from app.calendars import agenda
from app.calendars.agenda import Line, Look, Named, Slot, Taken
from app.cli import calendar as calendar_command
from app.cli import cli, stores
from app.cli.failing import DONE, NOT_FOUND, USAGE, guarded
from tests import factories
from tests.calendars import crowded, everyone, named, operator, path_of, read, store_booking
from tests.service import Service, store_environ
from tests.terminal import Answer

__all__ = ["crowded", "everyone", "operator"]


# -- what an agenda tells ---------------------------------------------------------------------------------------------

NINE = datetime(2026, 11, 23, 9, tzinfo=UTC)
ANNA, WALK = Named(uuid4(), "Anna"), Named(uuid4(), "City walk")


def start(minutes: int, lasting: int = 30, *, buffer: int = 0, taken: int = 0, **changes: Any) -> Slot:
    """Describe a slot of a person that begins so many minutes after nine."""
    begin = NINE + timedelta(minutes=minutes)
    end = begin + timedelta(minutes=lasting)
    facts: dict[str, Any] = {
        "id": uuid4(), "resource": ANNA, "service": None, "starts_at": begin, "ends_at": end,
        "occupied_until": end + timedelta(minutes=buffer), "bookable_until": begin, "capacity": 1,
        "available_count": changes.get("capacity", 1) - taken, "open": True, "unwanted": False, "one_at_a_time": True,
    }  # fmt: skip
    return Slot(**{**facts, **changes})


def booked(slot: Slot, quantity: int = 1, **changes: Any) -> Taken:
    facts: dict[str, Any] = {
        "kind": "booking", "id": uuid4(), "slot_id": slot.id, "quantity": quantity, "status": "confirmed",
        "customer": "Ben",
    }  # fmt: skip
    return Taken(**{**facts, **changes})


def held(slot: Slot, quantity: int = 1) -> Taken:
    return booked(slot, quantity, kind="hold", status="held", customer=None, only_in_redis=True)


def told(slots: list[Slot], *taken: Taken, now: datetime = NINE - timedelta(hours=1)) -> list[Line]:
    seen = Look(slots, list(taken), True)
    return agenda.lines(seen, NINE - timedelta(hours=9), NINE + timedelta(hours=15), now)


def spans(lines: list[Line], kind: str) -> list[tuple[int, int]]:
    """Tell from when to when, in minutes after nine."""
    minute = timedelta(minutes=1)
    return [((x.starts_at - NINE) // minute, (x.ends_at - NINE) // minute) for x in lines if x.kind == kind]


def test_a_grid_of_starts_is_told_as_free_time() -> None:
    grid = [start(minutes, lasting) for minutes in range(0, 480, 15) for lasting in (30, 90)]
    assert spans(told(grid), "free") == [(0, 465 + 90)]
    busy = start(120, 60, buffer=15, taken=1)
    lines = told([*grid, busy], booked(busy))
    assert spans(lines, "booking") == [(120, 180)]
    assert spans(lines, "free") == [(0, 120), (195, 555)]


def test_what_a_hold_keeps_is_not_free() -> None:
    grid = [start(minutes) for minutes in range(0, 180, 30)]
    lines = told(grid, held(grid[2]))
    assert spans(lines, "hold") == [(60, 90)]
    assert spans(lines, "free") == [(0, 60), (90, 180)]
    # One that Postgres keeps is in its count already.
    [free] = [line for line in told([start(0, capacity=5, one_at_a_time=False, taken=2)]) if line.kind == "free"]
    assert free.quantity == 3


def test_times_at_most_a_buffer_apart_are_one() -> None:
    assert spans(told([start(0, buffer=15), start(45, buffer=15), start(91)]), "free") == [(0, 75), (91, 121)]


def test_places_of_a_class_are_told_one_by_one() -> None:
    tours = [start(minutes, 60, capacity=10, one_at_a_time=False, resource=WALK) for minutes in (0, 0, 60)]
    tours[0] = msgspec.structs.replace(tours[0], available_count=8)
    lines = told(tours, booked(tours[0], 2), held(tours[0], 3))
    assert [(line.kind, line.quantity) for line in lines if line.slot_id == tours[0].id] == [
        ("booking", 2), ("hold", 3), ("free", 5),
    ]  # fmt: skip
    assert [line.quantity for line in lines if line.slot_id != tours[0].id] == [10, 10]


def test_what_is_full_past_or_closed_is_not_free() -> None:
    full = start(0, taken=1)
    late = start(60, bookable_until=NINE - timedelta(hours=2))
    closed = [start(120, open=False), start(150, open=False), start(150, 90, open=False), start(180)]
    unwanted = start(300, open=False, unwanted=True)
    lines = told([full, late, *closed, unwanted], booked(full))
    assert spans(lines, "booking") == [(0, 30)]
    assert spans(lines, "free") == [(180, 210)]
    assert spans(lines, "closed") == [(120, 180), (210, 240)]
    assert spans(told([start(0), start(30), start(60)], now=NINE + timedelta(minutes=30)), "free") == [(60, 90)]


# -- holdfast calendar ------------------------------------------------------------------------------------------------

BERLIN = ZoneInfo("Europe/Berlin")
#: A Monday on which nothing is past, in weeks without a change of the clocks in most years.
MONDAY = datetime.now(BERLIN).date() + timedelta(days=14 - datetime.now(BERLIN).weekday())


@pytest.fixture
def holdfast(
    with_redis: Service, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Answer]:
    """Run a command in this process, beside the service whose stores it reads."""
    assert with_redis.redis is not None
    for name, value in store_environ(with_redis.database_url, with_redis.redis.url).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path))
    monkeypatch.setattr(stores, "be_quiet", lambda: None)
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)

    def run(*arguments: str, columns: int = 100, command: str = "calendar") -> Answer:
        monkeypatch.setattr(calendar_command, "out", lambda: Console(highlight=False, width=columns))
        capfd.readouterr()
        code = guarded(lambda: cli.main([command, *arguments], standalone_mode=False))
        return Answer(code, *capfd.readouterr())

    return run


@dataclass
class Salon:
    """A person with appointments from nine to five, and a tour of ten; on a Monday."""

    slug: str
    anna: dict[str, Any]
    walk: dict[str, Any]
    slots: list[dict[str, Any]]
    tour: dict[str, Any]


@pytest.fixture
def salon(operator: httpx.Client) -> Salon:
    slug = factories.venue(operator, name="Salon")["slug"]
    anna = factories.resource(operator, slug, name=factories.unique("Anna"), kind="person")
    walk = factories.resource(operator, slug, name="City walk")

    def slot(of: dict[str, Any], hour: int, minutes: int, capacity: int) -> dict[str, Any]:
        begin = datetime(MONDAY.year, MONDAY.month, MONDAY.day, hour, tzinfo=BERLIN)
        times = {"starts_at": begin.isoformat(), "ends_at": (begin + timedelta(minutes=minutes)).isoformat()}
        return {**factories.slot_body(of), **times, "capacity": capacity}

    wanted = [*(slot(anna, hour, 60, 1) for hour in range(9, 17)), slot(walk, 14, 120, 10)]
    made = factories.made(operator.post("/v1/slots", json={"slots": wanted}))["data"]
    return Salon(slug, anna, walk, made[:-1], made[-1])


def test_a_day_in_the_terminal(
    holdfast: Callable[..., Answer], salon: Salon, operator: httpx.Client, everyone: httpx.Client
) -> None:
    factories.made(everyone.post("/v1/bookings", json=named(salon.slots[1]["id"], "[bold]Ada[/bold]\n<&> \x1b[31m")))
    factories.booking(everyone, salon.tour["id"], 3)
    factories.hold(everyone, salon.slots[4]["id"])
    operator.patch(f"/v1/slots/{salon.slots[7]['id']}", json={"status": "closed"}).raise_for_status()
    answer = holdfast("--venue", salon.slug, "--day", str(MONDAY))
    assert answer.code == DONE, answer.err
    told = [re.sub(r"\s{2,}", "|", line.strip()) for line in answer.out.splitlines()]
    name = salon.anna["name"]
    assert told[0] == f"Salon, {MONDAY:%A %d %B %Y}|Europe/Berlin"
    dash = "\N{EN DASH}"
    expected = [
        f"09:00{dash}10:00|{name}|free",
        f"10:00{dash}11:00|{name}|[bold]Ada[/bold] <&> [31m|1|confirmed",
        f"11:00{dash}13:00|{name}|free",
        f"14:00{dash}16:00|{name}|free",
        f"14:00{dash}16:00|City walk|Ada Lovelace|3|confirmed",
        f"14:00{dash}16:00|City walk|7 of 10|free",
        f"16:00{dash}17:00|{name}|closed",
        "2 bookings (4 places), 1 hold (1 place)",
    ]
    assert [line for line in told if line in expected] == expected, answer.out
    assert any(re.fullmatch(rf"13:00{dash}14:00\|{name}\|1\|held, \dm \d\ds left", line) for line in told)
    assert "\x1b" not in answer.out


def test_a_day_for_programs(holdfast: Callable[..., Answer], salon: Salon, everyone: httpx.Client) -> None:
    booking = factories.booking(everyone, salon.slots[1]["id"])
    hold = factories.hold(everyone, salon.tour["id"], 2)
    answer = holdfast("--venue", salon.slug, "--day", str(MONDAY), "--json")
    whole = answer.json
    midnight = datetime(MONDAY.year, MONDAY.month, MONDAY.day, tzinfo=BERLIN).astimezone(UTC)
    assert whole["from"] == midnight.isoformat().replace("+00:00", "Z")
    assert (whole["venue"], whole["timezone"], whole["resource"]) == (salon.slug, "Europe/Berlin", None)
    assert (whole["degraded"], whole["next_cursor"]) == (False, None)
    short = [(one["kind"], one["resource"]["name"], one["quantity"], one["slot_id"]) for one in answer.json["data"]]
    name = salon.anna["name"]
    assert short == [
        ("free", name, None, None),
        ("booking", name, 1, salon.slots[1]["id"]),
        ("free", name, None, None),
        ("hold", "City walk", 2, salon.tour["id"]),
        ("free", "City walk", 8, salon.tour["id"]),
    ]
    assert [one["id"] for one in answer.json["data"]] == [None, booking["id"], None, hold["id"], None]
    assert answer.json["data"][1]["customer"] == "Ada Lovelace"
    assert 0 < answer.json["data"][3]["ttl_seconds"] <= hold["ttl_seconds"]


def test_one_person_by_name_or_id(holdfast: Callable[..., Answer], salon: Salon) -> None:
    for asked in (salon.anna["name"].upper(), salon.anna["id"]):
        answer = holdfast("--resource", asked, "--day", str(MONDAY), "--json")
        assert [one["kind"] for one in answer.json["data"]] == ["free"]
        assert answer.json["resource"] == {"id": salon.anna["id"], "name": salon.anna["name"]}
    assert holdfast("--resource", "Nobody").code == NOT_FOUND
    assert holdfast("--venue", "nowhere").code == NOT_FOUND


def test_a_week_is_seven_columns_where_there_is_room(
    holdfast: Callable[..., Answer], salon: Salon, everyone: httpx.Client
) -> None:
    factories.booking(everyone, salon.tour["id"], 3)
    factories.hold(everyone, salon.tour["id"])
    thursday = str(MONDAY + timedelta(days=3))
    wide = holdfast("--venue", salon.slug, "--week", thursday, columns=140)
    header = next(line for line in wide.out.splitlines() if f"{MONDAY:%a %d %b}" in line)
    assert [header.find(day) >= 0 for day in ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")] == [True] * 7
    assert "3/10 booked +1 h" in wide.out
    assert max(len(line) for line in wide.out.splitlines()) <= 140

    narrow = holdfast("--venue", salon.slug, "--week", thursday, columns=80)
    assert f"{MONDAY:%A %d %B}" in narrow.out
    assert f"{MONDAY + timedelta(days=1):%A %d %B}: nothing" in narrow.out
    assert max(len(line) for line in narrow.out.splitlines()) <= 80


def test_a_salon_with_a_fine_grid_is_told_in_few_lines(
    holdfast: Callable[..., Answer], operator: httpx.Client, everyone: httpx.Client
) -> None:
    slug = factories.venue(operator)["slug"]
    anna = factories.resource(operator, slug, kind="person")
    begin = datetime(MONDAY.year, MONDAY.month, MONDAY.day, 9, tzinfo=BERLIN).astimezone(UTC)
    starts = [begin + timedelta(minutes=15 * n) for n in range(32)]
    wanted = [
        {**factories.slot_body(anna), "starts_at": at.isoformat(), "ends_at": (at + timedelta(minutes=45)).isoformat()}
        for at in starts
    ]
    made = factories.made(operator.post("/v1/slots", json={"slots": wanted}))["data"]
    factories.booking(everyone, made[8]["id"])
    answer = holdfast("--venue", slug, "--day", str(MONDAY), "--json")
    at = [(one["kind"], datetime.fromisoformat(one["starts_at"]), one["ends_at"]) for one in answer.json["data"]]
    assert [(kind, (when - begin) // timedelta(minutes=1)) for kind, when, _ in at] == [
        ("free", 0), ("booking", 120), ("free", 165),
    ]  # fmt: skip


def test_without_redis_it_says_so(
    holdfast: Callable[..., Answer], salon: Salon, everyone: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    factories.booking(everyone, salon.slots[1]["id"])
    monkeypatch.setenv("REDIS_URL", "unix:///nowhere/redis.sock")
    answer = holdfast("--venue", salon.slug, "--day", str(MONDAY), "--json")
    assert answer.code == DONE
    assert "Redis cannot be reached" in answer.err
    assert answer.json["degraded"] is True
    assert [one["kind"] for one in answer.json["data"]] == ["free", "booking", "free", "free"]


@pytest.mark.parametrize(
    "arguments", [("--day", "soon"), ("--day", "1200-01-01"), ("--day", "today", "--week", "today")]
)
def test_what_makes_no_sense_is_refused(
    holdfast: Callable[..., Answer], salon: Salon, arguments: tuple[str, ...]
) -> None:
    assert holdfast("--venue", salon.slug, *arguments).code == USAGE


def test_a_name_that_several_have_is_asked_back(holdfast: Callable[..., Answer], operator: httpx.Client) -> None:
    name = factories.unique("Twin")
    slugs = [factories.resource(operator, factories.venue(operator)["slug"], name=name)["venue"] for _ in range(2)]
    answer = holdfast("--resource", name)
    assert answer.code == NOT_FOUND
    assert all(slug in answer.err for slug in slugs)
    assert holdfast("--resource", name, "--venue", slugs[0]).code == DONE
    which = holdfast()  # there are several venues by now
    assert (which.code, "Say --venue and one of" in which.err) == (NOT_FOUND, True)


def test_an_empty_day_says_so(holdfast: Callable[..., Answer], salon: Salon) -> None:
    answer = holdfast("--venue", salon.slug, "--day", str(MONDAY - timedelta(days=1)))
    assert "Nothing: no bookings" in answer.out
    assert holdfast("--venue", salon.slug, "--day", "tomorrow").code == DONE
    assert holdfast("--venue", salon.slug, "--week").code == DONE


def test_a_day_on_which_the_clocks_change_tells_the_zone(
    with_redis: Service, holdfast: Callable[..., Answer], operator: httpx.Client
) -> None:
    of = factories.resource(operator, factories.venue(operator)["slug"])
    for hour in (0, 1):  # 02:30 twice
        store_booking(with_redis.database_url, of["id"], datetime(2026, 10, 25, hour, 30, tzinfo=UTC))
    answer = holdfast("--venue", of["venue"], "--day", "2026-10-25")
    dash = "\N{EN DASH}"
    assert f"02:30 CEST{dash}02:30 CET" in answer.out
    assert f"02:30 CET{dash}03:30 CET" in answer.out
    assert "The clocks change" in answer.out
    whole = json.loads(holdfast("--venue", of["venue"], "--day", "2026-10-25", "--json").out)
    assert datetime.fromisoformat(whole["to"]) - datetime.fromisoformat(whole["from"]) == timedelta(hours=25)


def test_a_day_is_read_along_indexes(crowded: str) -> None:
    now = datetime.now(UTC)
    with psycopg.connect(crowded, autocommit=True) as connection:
        [(venue,)] = connection.execute("SELECT min(id::text)::uuid FROM venues").fetchall()
        values = {
            "whose": venue, "from": now, "to": now + timedelta(days=1), "longest": agenda.LONGEST_SLOT, "most": 1_000,
        }  # fmt: skip
        for statement in (agenda._SLOTS, agenda._BOOKINGS):
            rows = connection.execute(f"EXPLAIN {statement.format(whose='venue_id')}", values).fetchall()
            plan = "\n".join(row[0] for row in rows)
            assert "slots_by_venue_time" in plan, plan
            assert "Seq Scan on bookings" not in plan
            assert "Seq Scan on slots" not in plan


def test_feeds_are_made_rotated_and_closed_in_the_terminal(
    holdfast: Callable[..., Answer], everyone: httpx.Client, salon: Salon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_PUBLIC_URL", "https://book.example.com")

    def feeds(*arguments: str) -> dict[str, Any]:
        answer = holdfast(*arguments, "--json", command="feeds")
        assert answer.code == 0, answer.err
        told: dict[str, Any] = answer.json
        return told

    made = feeds("add", salon.slug, "--resource", salon.anna["id"])
    assert made["url"].startswith("https://book.example.com/v1/calendars/")
    assert "secret" not in made
    read(everyone, made)
    assert [feed["id"] for feed in feeds("list", "--venue", salon.slug)["data"]] == [made["id"]]
    rotated = feeds("rotate", made["id"])
    assert [everyone.get(path_of(one)).status_code for one in (made, rotated)] == [404, 200]
    assert holdfast("remove", made["id"], "--yes", command="feeds").code == 0
    assert everyone.get(path_of(rotated)).status_code == 404
    assert holdfast("add", "nowhere", command="feeds").code == 3
    # For people: the whole address in one line, to be copied.
    shown = holdfast("add", salon.slug, command="feeds").out
    assert any(line.startswith("https://book.example.com/v1/calendars/") for line in shown.splitlines())
