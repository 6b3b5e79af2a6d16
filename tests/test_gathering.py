"""Many requests, few round trips: those who go together are told apart (design 6), on real stores, counted exactly.

Over sockets against workers where crowds matter. Where it matters who goes together with whom, the application runs in
the test's own loop: requests of one turn are one pipeline and one commit, and each test insists that they were. Every
test ends with what both stores hold, told by another process that shares them.
"""

import asyncio
import contextlib
import resource
import threading
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import msgspec
import psycopg
import pytest

import app.commits
import app.ledger
import app.postgres
from app.coalesce import Coalescer
from app.commits import Commits
from app.engine import Engine
from app.errors import Busy
from app.ledger import CommitRequest, Outcome
from app.main import create_app
from app.pipelines import Call
from app.settings import Settings
from app.tokens import new_id
from tests.faults import FaultProxy
from tests.redis_servers import RedisServer, running_redis
from tests.service import (
    OPERATOR_KEY,
    SECRET,
    Postgres,
    Service,
    all_at_once,
    assert_slot_holds,
    booking_body,
    eventually,
    make_slot,
    make_slots,
    race,
    resource_of,
    serving,
    sold_places,
)

pytestmark = pytest.mark.anyio

#: How the execution of a statement with parameters looks on the wire, also of one that was prepared before.
EXECUTE = b"E\x00\x00\x00\x09\x00\x00\x00\x00\x00"


@pytest.fixture(scope="module", autouse=True)
def _many_sockets() -> None:
    """Allow this process, and the services that it starts, a thousand connections and some files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


# -- one worker, whose words to Postgres are counted ------------------------------------------------------------------


@dataclass
class OneWorker:
    """A service of one process; `wire` is its way to Postgres."""

    service: Service
    wire: FaultProxy

    def statements(self) -> int:
        """Count the statements that it has sent because of requests. One of its loop may count for a moment."""
        [(swept,)] = self.service.query("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM sweeps")
        return self.wire.commands(EXECUTE) - int(swept)

    def commits(self) -> tuple[int, int]:
        """Tell how many commits there were, and of how many requests."""
        name = "holdfast_gathered_calls"
        return tuple(int(self.service.metric(f"{name}_{what}", store="postgres")) for what in ("count", "sum"))

    def outcomes(self, outcome: str) -> int:
        return int(self.service.metric("holdfast_outcomes_total", operation="book", outcome=outcome))

    def loads(self) -> int:
        return int(self.service.metric("holdfast_mirror_loads_total"))


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture(scope="module")
def one(postgres: Postgres, redis: RedisServer) -> Iterator[OneWorker]:
    database_url = postgres.fresh()
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            """
            CREATE SEQUENCE sweeps;
            ALTER FUNCTION sweep_lapsed_holds(integer) RENAME TO sweep_counted;
            CREATE FUNCTION sweep_lapsed_holds(batch integer) RETURNS SETOF uuid LANGUAGE sql AS $$
                SELECT nextval('sweeps');
                SELECT sweep_counted(batch)
            $$
            """
        )
    with (
        FaultProxy(server_of(database_url)) as wire,
        serving(through(wire, database_url), redis.url, workers=1) as service,
    ):
        direct = Service(service.url, database_url, redis, service.process)
        swept = "SELECT last_value > 1 FROM sweeps"  # what a starting service forgets, it forgets after the first
        eventually(lambda: direct.query(swept) == [(True,)], "its loops to have run")
        yield OneWorker(direct, wire)


def server_of(database_url: str) -> Path:
    return Path(httpx.URL(database_url).params["host"]) / ".s.PGSQL.5432"


def through(proxy: FaultProxy, database_url: str) -> str:
    name = database_url.partition("@/")[2].partition("?")[0]
    return f"postgresql://postgres@127.0.0.1:{proxy.port}/{name}?sslmode=disable"


# -- the application in this loop -------------------------------------------------------------------------------------


@dataclass
class Inside:
    """The application, a client of it, and its ways to the stores. It shares them with `service`."""

    service: Service
    client: httpx.AsyncClient
    engine: Engine
    to_redis: FaultProxy
    to_postgres: FaultProxy
    #: The lists that were committed together, and the scripts that went in one pipeline.
    commits: list[list[CommitRequest]]
    pipelines: list[list[Call]]

    async def slots(self, *capacities: int, **more: Any) -> list[str]:
        """Make slots and look at each once, so that what follows is about booking them only."""
        slots = await make_slots(self.service, self.client, *capacities, **more)
        for slot_id in slots:
            await self.engine.mirror.facts(uuid.UUID(slot_id))
        await self.engine.holds.pipelines.drain()
        return slots

    async def book(self, asked: Sequence[dict[str, Any]]) -> list[httpx.Response]:
        """Send all requests in one turn of the loop."""
        return await asyncio.gather(*(self.client.post("/v1/bookings", json=body) for body in asked))

    async def assert_holds(self, slot_id: str, capacity: int, sold: int) -> None:
        await asyncio.to_thread(assert_slot_holds, self.service, slot_id, capacity, sold)

    async def all_connections_back(self) -> None:
        """Wait until nobody waits for Postgres any more, also in the background."""
        pool = self.engine.ledger.pool

        def back() -> bool:
            stats = pool.get_stats()
            return stats["pool_available"] == stats["pool_size"]

        await asyncio.to_thread(eventually, back, "every connection to be free")


@asynccontextmanager
async def running(service: Service) -> AsyncIterator[Inside]:
    """Run the application here, behind proxies of its own, on the stores of `service`."""
    assert service.redis is not None
    with contextlib.ExitStack() as proxies:
        to_redis = proxies.enter_context(FaultProxy(service.redis.path))
        to_postgres = proxies.enter_context(FaultProxy(server_of(service.database_url)))
        observed = create_app(
            Settings(
                redis_url=f"redis://127.0.0.1:{to_redis.port}",
                database_url=through(to_postgres, service.database_url),
                operator_key=OPERATOR_KEY,
                secrets=(SECRET,),
            )
        )
        litestar: Any = observed.app.app.app  # type: ignore[attr-defined]
        async with (
            litestar.lifespan(),
            httpx.AsyncClient(transport=httpx.ASGITransport(observed), base_url="http://inside") as client,  # type: ignore[arg-type]
        ):
            engine: Engine = litestar.state.engine
            commits = watched(engine.commits._lane)
            pipelines = watched(engine.holds.pipelines._lane(Call("room", ("any",), ())))
            yield Inside(service, client, engine, to_redis, to_postgres, commits, pipelines)
            proxies.close()  # what waits for a swallowed reply ends here


def watched(lane: Coalescer[Any, Any]) -> list[list[Any]]:
    """Keep what a lane sends together from now on."""
    flights: list[list[Any]] = []
    together = lane._together

    async def noted(calls: Sequence[Any]) -> Sequence[Any]:
        flights.append(list(calls))
        return await together(calls)

    lane._together = noted
    return flights


@pytest.fixture
async def inside(one: OneWorker) -> AsyncIterator[Inside]:
    async with running(one.service) as application:
        yield application


def party(slot_id: str, quantity: int = 1) -> dict[str, Any]:
    """Ask for places under a name that nobody else has: its row can be told from all others."""
    name = uuid.uuid4().hex
    return booking_body(slot_id, quantity) | {"customer": {"name": name, "email": f"{name}@example.com"}}


def email(body: dict[str, Any]) -> bytes:
    return str(body["customer"]["email"]).encode()


def assert_each_was_told_its_own(
    service: Service, asked: Sequence[dict[str, Any]], answers: Sequence[httpx.Response]
) -> None:
    """Compare every answer with the row of the one who asked: all of it, and no row for those who were refused."""
    for body, answer in zip(asked, answers, strict=True):
        rows = service.query(
            "SELECT id::text, slot_id::text, quantity, status, available_after, customer_name FROM bookings"
            " WHERE customer_email = %s",
            body["customer"]["email"],
        )
        told = []
        if answer.status_code == 201:
            said = answer.json()
            told = [
                (
                    said["id"], body["slot_id"], body["quantity"], "confirmed", said["available_count"],
                    body["customer"]["name"],
                )
            ]  # fmt: skip
            assert (said["slot_id"], said["quantity"], said["customer"]) == (
                body["slot_id"], body["quantity"], body["customer"] | {"phone": None},
            )  # fmt: skip
        assert rows == told, answer.text


def statuses(answers: Sequence[httpx.Response]) -> list[int]:
    return [answer.status_code for answer in answers]


# -- 1: the crowd -----------------------------------------------------------------------------------------------------


async def test_of_a_thousand_requests_for_three_hundred_places_exactly_three_hundred_win(service: Service):
    async with service.client() as client:
        slot_id = await make_slot(service, client, 300)
        early = service.metric("holdfast_outcomes_total", operation="book", outcome="refused_early")
        answers = await race(client, slot_id, [1] * 1000)
        assert sold_places(answers) == 300
        assert (statuses(answers).count(201), statuses(answers).count(409)) == (300, 700)
        won = [answer.json() for answer in answers if answer.status_code == 201]
        assert len({booking["id"] for booking in won}) == 300
        assert sorted(booking["available_count"] for booking in won) == list(range(300))
        assert_slot_holds(service, slot_id, 300, 300)
        if service.redis is not None:
            after = service.metric("holdfast_outcomes_total", operation="book", outcome="refused_early")
            assert after - early == 700


async def test_a_race_costs_far_fewer_commits_than_bookings(one: OneWorker):
    service = one.service
    async with service.client() as client:
        slot_id = await make_slot(service, client, 300)
        commits, requests = one.commits()
        early, late = one.outcomes("refused_early"), one.outcomes("full")
        answers = await race(client, slot_id, [1] * 400)
        assert sold_places(answers) == 300
        commits, requests = (now - before for now, before in zip(one.commits(), (commits, requests), strict=True))
        early, late = one.outcomes("refused_early") - early, one.outcomes("full") - late
        assert early + late == 100
        assert requests == 300 + late
        assert commits * 4 <= requests
        assert_slot_holds(service, slot_id, 300, 300)


# -- 2: sold out ------------------------------------------------------------------------------------------------------


async def test_a_refusal_with_its_alternatives_costs_postgres_nothing(one: OneWorker):
    service = one.service
    async with service.client() as client:
        slot_id, *neighbours = await make_slots(service, client, 20, 5, 5, 5)
        assert sold_places(await race(client, slot_id, [1] * 20)) == 20
        assert_slot_holds(service, slot_id, 20, 20)
        for _ in range(3):
            before, early = one.statements(), one.outcomes("refused_early")
            commits, loads = one.commits(), one.loads()
            requests = [
                client.build_request(
                    "POST",
                    "/v1/bookings",
                    json=booking_body(slot_id),
                    headers={"Idempotency-Key": uuid.uuid4().hex} if number % 2 else {},
                )
                for number in range(400)
            ]
            answers = await all_at_once(client, requests)
            if one.outcomes("refused_early") - early == 400:
                break
        else:  # once or twice, this machine had no time for Redis, and Postgres decided
            pytest.fail("not all were refused by Redis, three times")
        asked = "one statement in a hundred refusals, or fewer"
        eventually(lambda: one.statements() - before <= len(requests) // 100, asked)
        assert one.loads() - loads <= 1  # what was last told five seconds ago is looked up once
        assert sold_places(answers) == 0
        assert statuses(answers) == [409] * 400
        for answer in answers:
            assert {slot["id"] for slot in answer.json()["alternatives"]} == set(neighbours)
        assert one.commits() == commits
        assert_slot_holds(service, slot_id, 20, 20)
        for neighbour in neighbours:
            assert_slot_holds(service, neighbour, 5, 0)


# -- 3: cold start ----------------------------------------------------------------------------------------------------


def unseen_slot(service: Service, like: str, capacity: int) -> str:
    """Make a slot past the service: neither it nor Redis has ever heard of it."""
    [(slot_id,)] = service.query(
        "INSERT INTO slots (id, venue_id, resource_id, resource_no, one_at_a_time, starts_at, ends_at, capacity)"
        " SELECT gen_random_uuid(), venue_id, resource_id, resource_no, one_at_a_time, starts_at + %s, ends_at + %s, %s"
        " FROM slots WHERE id = %s RETURNING id",
        *[timedelta(days=1)] * 2,
        capacity,
        like,
    )
    return str(slot_id)


async def test_a_crowd_before_a_slot_that_nobody_knows_looks_at_it_once(one: OneWorker):
    service = one.service
    async with service.client() as client:
        slot_id = unseen_slot(service, await make_slot(service, client, 1), 300)
        before, (commits, _), loads = one.statements(), one.commits(), one.loads()
        answers = await race(client, slot_id, [1] * 300)
        commits = one.commits()[0] - commits
        # All are booked, so that nothing else is asked of Postgres: nobody needs alternatives.
        assert statuses(answers) == [201] * 300
        eventually(lambda: one.statements() - before == 1 + commits, "one look, and the commits")
        assert one.loads() == loads
        assert_slot_holds(service, slot_id, 300, 300)


@pytest.mark.parametrize(("crowd", "is_too_large"), [(20, True), (3, False)])
async def test_what_is_near_is_looked_up_while_it_is_decided_who_of_too_many_is_refused(
    inside: Inside, monkeypatch: pytest.MonkeyPatch, crowd: int, is_too_large: bool
):
    order = []

    def noted(what: str, original: Any) -> Any:
        async def note(*asked: Any, **named: Any) -> Any:
            order.append(f"{what}?")
            try:
                return await original(*asked, **named)
            finally:
                order.append(f"{what}.")

        return note

    engine = inside.engine
    monkeypatch.setattr(engine.ledger, "slots_near", noted("near", engine.ledger.slots_near))
    monkeypatch.setattr(engine.holds, "take", noted("take", engine.holds.take))
    like, neighbour = await make_slots(inside.service, inside.client, 1, 5)
    slot_id = unseen_slot(inside.service, like, 3)
    answers = await inside.book([party(slot_id) for _ in range(crowd)])
    assert ("near?" in order[: order.index("take.")]) == is_too_large
    assert order.count("near?") == is_too_large
    assert sold_places(answers) == 3
    for answer in answers:
        if answer.status_code == 409:
            assert {slot["id"] for slot in answer.json()["alternatives"]} == {like, neighbour}
    await inside.assert_holds(slot_id, 3, 3)


async def test_an_emptied_redis_is_told_once_of_a_slot_that_a_crowd_wants(one: OneWorker, redis: RedisServer):
    service = one.service
    async with service.client() as client:
        slot_id = await make_slot(service, client, 100)
        assert sold_places(await race(client, slot_id, [1] * 20)) == 20
        assert_slot_holds(service, slot_id, 100, 20)
        with redis.admin() as admin:
            admin.flushall()
        loads = one.loads()
        answers = await race(client, slot_id, [1] * 300)
        assert sold_places(answers) == 80
        assert one.loads() - loads == 1
        assert service.metric("holdfast_degraded") == 0
        assert_slot_holds(service, slot_id, 100, 100)


# -- 5: poison --------------------------------------------------------------------------------------------------------


async def book_with_poison(inside: Inside) -> None:
    """Two appointments of one person that overlap, among bookings of others: one of the two is refused, nobody else."""
    with patch.object(app.ledger, "_occupied_until", lambda row: None):  # or layer 1 would refuse one of them before
        person = await inside.slots(1, 1, kind="person", hours_apart=0.5)
    others = await inside.slots(5, 1, 3)
    wanted = [others[0], person[0], others[1], others[0], person[1], others[2], others[0]]
    asked = [party(slot_id) for slot_id in wanted]
    answers = await inside.book(asked)
    assert len(inside.commits[0]) == len(asked)
    assert_each_was_told_its_own(inside.service, asked, answers)
    appointments = [answers[1], answers[4]]
    assert sorted(statuses(appointments)) == [201, 409]
    [refused] = [answer.json() for answer in appointments if answer.status_code == 409]
    assert (refused["code"], refused["available"]) == ("slot_unavailable", 0)
    assert statuses([answer for answer in answers if answer not in appointments]) == [201] * 5
    for slot_id, capacity, sold in zip(others, (5, 1, 3), (3, 1, 1), strict=True):
        await inside.assert_holds(slot_id, capacity, sold)
    for slot_id, answer in zip(person, appointments, strict=True):
        [(live,)] = inside.service.query("SELECT count(*) FROM bookings WHERE slot_id = %s", slot_id)
        assert live == (answer.status_code == 201)


async def test_overlapping_appointments_of_one_person_do_not_spoil_the_commit_they_are_in(inside: Inside):
    await book_with_poison(inside)


async def test_a_locked_slot_is_busy_for_its_own_request_only(inside: Inside):
    slots = await inside.slots(2, 2, 2)
    asked = [party(slot_id) for slot_id in [*slots, slots[0], slots[2]]]
    with psycopg.connect(inside.service.database_url) as rival:
        rival.execute("SELECT FROM slots WHERE id = %s FOR NO KEY UPDATE", (slots[1],))
        answers = await inside.book(asked)
        rival.rollback()
    assert len(inside.commits[0]) == len(asked)
    assert statuses(answers) == [201, 503, 201, 201, 201]
    busy = answers[1]
    assert (busy.json()["code"], busy.json()["effect"]) == ("busy", "none")
    assert "Retry-After" in busy.headers
    assert_each_was_told_its_own(inside.service, asked, answers)
    for slot_id, sold in zip(slots, (2, 0, 2), strict=True):
        await inside.assert_holds(slot_id, 2, sold)  # the place of the busy one was given back


def commit_request(body: dict[str, Any], venue_id: uuid.UUID, **more: Any) -> CommitRequest:
    fields = {"id": new_id(), "status": "confirmed", "actor": "customer", "fingerprint": "00", **more}
    slot_id, quantity = uuid.UUID(body["slot_id"]), body["quantity"]
    fields = {"slot_id": slot_id, "quantity": quantity, **body["customer"], **fields}
    return CommitRequest(venue_id=venue_id, **fields)


async def commit_all(commits: Commits, requests: Sequence[CommitRequest]) -> list[Outcome | BaseException]:
    return await asyncio.gather(*(commits.commit_one(request) for request in requests), return_exceptions=True)


@pytest.mark.parametrize(
    "poison",
    [
        {"metadata": "{"},
        {"name": "\x00"},
        {"fingerprint": "zz"},
        {"quantity": 2**31},
        {"manage_hash": "0"},
    ],
    ids=lambda poison: next(iter(poison)),
)
async def test_a_value_that_postgres_cannot_take_fails_its_own_request_only(inside: Inside, poison: dict[str, Any]):
    slots = await inside.slots(3, 3)
    venue_id = (await inside.engine.mirror.facts(uuid.UUID(slots[0]))).venue_id
    requests = [commit_request(party(slots[n % 2]), venue_id, **poison if n == 2 else {}) for n in range(5)]
    outcomes = await commit_all(inside.engine.commits, requests)
    assert [len(commit) for commit in inside.commits] == [5]
    assert isinstance(outcomes[2], psycopg.DataError)
    words = [outcome.word for outcome in outcomes if isinstance(outcome, Outcome)]
    assert words == ["booked"] * 4
    stored = inside.service.query("SELECT id FROM bookings WHERE slot_id::text = ANY (%s)", slots)
    assert {booking_id for (booking_id,) in stored} == {request.id for n, request in enumerate(requests) if n != 2}
    for slot_id, sold in zip(slots, (2, 2), strict=True):
        await inside.engine.mirror.load(uuid.UUID(slot_id))  # this time nobody settled
        await inside.assert_holds(slot_id, 3, sold)


async def test_one_key_under_two_ids_is_one_booking_and_the_neighbours_are_booked(inside: Inside):
    [slot_id] = await inside.slots(9)
    venue_id = (await inside.engine.mirror.facts(uuid.UUID(slot_id))).venue_id
    keys = [None, "one", None, "one", None, "two", "two", "one"]
    requests = [commit_request(party(slot_id), venue_id, key=key) for key in keys]
    outcomes = await commit_all(inside.engine.commits, requests)
    assert len(inside.commits[0]) == len(keys)
    words = {key: [] for key in keys}
    for key, outcome in zip(keys, outcomes, strict=True):
        assert isinstance(outcome, Outcome), outcome
        words[key].append(outcome.word)
    assert words[None] == ["booked"] * 3
    assert sorted(words["one"]) == ["booked", "mismatch", "mismatch"]
    assert sorted(words["two"]) == ["booked", "mismatch"]
    await inside.engine.mirror.load(uuid.UUID(slot_id))
    await inside.assert_holds(slot_id, 9, 5)


async def test_copies_of_one_request_never_go_together_and_are_one_booking(inside: Inside):
    [slot_id] = await inside.slots(9)
    venue_id = (await inside.engine.mirror.facts(uuid.UUID(slot_id))).venue_id
    copied = commit_request(party(slot_id), venue_id, key="copied")
    others = [commit_request(party(slot_id), venue_id) for _ in range(4)]
    outcomes = await commit_all(inside.engine.commits, [copied, copied, *others, copied])
    assert len(inside.commits[0]) == 5
    for commit in inside.commits:
        assert len({request.id for request in commit}) == len(commit)
    words = [outcome.word if isinstance(outcome, Outcome) else outcome for outcome in outcomes]
    assert words[2:6] == ["booked"] * 4
    assert sorted(words[:2] + words[6:]) == ["booked", "replayed", "replayed"]
    await inside.engine.mirror.load(uuid.UUID(slot_id))
    await inside.assert_holds(slot_id, 9, 5)


DECIDE = "decided := CASE WHEN r.quantity <= room THEN 'book' ELSE 'full' END;"


async def test_what_only_layer_3_refuses_is_refused_alone(postgres: Postgres, redis: RedisServer):
    database_url = postgres.fresh()
    with psycopg.connect(database_url, autocommit=True) as connection:
        [[source]] = connection.execute("SELECT pg_get_functiondef('commit_bookings'::regproc)")
        assert source.count(DECIDE) == 1, "the function changed: change this test with it"
        connection.execute(source.replace(DECIDE, "decided := 'book';").encode())
    with serving(database_url, redis.url, redis=redis, workers=1) as service:
        async with running(service) as inside:
            full, *others = await inside.slots(2, 2, 2)
            assert statuses(await inside.book([party(full)])) == [201]
            await inside.assert_holds(full, 2, 1)
            venue_id = (await inside.engine.mirror.facts(uuid.UUID(full))).venue_id
            wanted = [others[0], full, others[1], others[0]]
            requests = [commit_request(party(slot_id, 1 + (slot_id == full)), venue_id) for slot_id in wanted]
            outcomes = await commit_all(inside.engine.commits, requests)
            assert len(inside.commits[1]) == len(requests)
            words = [outcome.word if isinstance(outcome, Outcome) else outcome for outcome in outcomes]
            assert words == ["booked", "full", "booked", "booked"]
            for slot_id, sold in ((full, 1), (others[0], 2), (others[1], 1)):
                await inside.engine.mirror.load(uuid.UUID(slot_id))
                await inside.assert_holds(slot_id, 2, sold)


# -- 6: in doubt ------------------------------------------------------------------------------------------------------


async def book_in_doubt(inside: Inside, how: Any, **fault: Any) -> None:
    """Lose the reply of a commit of twelve, one of which is refused in it: each is told the truth about itself."""
    slots = await inside.slots(6, 2, 9)
    full = slots[1]
    key = f"hf:{{{resource_of(inside.service, full)}}}:{full}:mirror"
    assert inside.service.redis is not None
    with inside.service.redis.admin() as admin:
        old = admin.hgetall(key)
        assert statuses(await inside.book([party(full, 2)])) == [201]
        await inside.assert_holds(full, 2, 2)
        admin.hset(key, mapping=old)  # Redis lets one through that Postgres refuses
    wanted = [slots[0], slots[2], slots[0], slots[2], full, *[slots[0], slots[2]] * 3, slots[2]]
    asked = [party(slot_id) for slot_id in wanted]
    inside.commits.clear()
    inside.to_postgres.arm(how, email(asked[7]), times=1, **fault)
    answers = await inside.book(asked)
    assert inside.to_postgres.hits == 1
    assert [len(commit) for commit in inside.commits] == [len(asked)]
    if how == "delay":
        await inside.to_postgres.let_go()
    await inside.all_connections_back()  # what came late has come
    assert_each_was_told_its_own(inside.service, asked, answers)
    assert statuses(answers) == [409 if slot_id == full else 201 for slot_id in wanted]
    for slot_id, capacity, sold in zip(slots, (6, 2, 9), (5, 2, 6), strict=True):
        await inside.assert_holds(slot_id, capacity, sold)


@pytest.mark.parametrize("cut", ["cut_before", "cut_after"])
async def test_the_lost_reply_of_a_commit_of_many_is_settled_for_each(inside: Inside, cut: str):
    await book_in_doubt(inside, cut)


async def test_a_commit_of_many_that_arrives_after_it_was_given_up_books_nobody(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(app.postgres, "REPLY_TIMEOUT_SECONDS", 0.8)
    [(before,)] = inside.service.query("SELECT count(*) FROM abandoned_attempts")
    await book_in_doubt(inside, "delay", delay=60)
    assert inside.service.query("SELECT count(*) FROM abandoned_attempts") == [(before + 1,)]


async def test_the_last_places_in_doubt_are_sold_once(inside: Inside):
    """Fifteen for ten places, and the reply lost that told which ten: refused are five, and not those who have one."""
    [slot_id] = await inside.slots(10)
    venue_id = (await inside.engine.mirror.facts(uuid.UUID(slot_id))).venue_id
    for cut, words in (("cut_after", {"replayed": 4, "full": 3}), ("cut_before", {"booked": 6, "full": 2})):
        asked = [party(slot_id) for _ in range(sum(words.values()))]
        requests = [commit_request(body, venue_id) for body in asked]
        if cut == "cut_after":  # six places are left for the second round
            requests[4:] = [msgspec.structs.replace(request, quantity=7) for request in requests[4:]]
        inside.to_postgres.arm(cut, email(asked[2]))  # type: ignore[arg-type]
        outcomes = await commit_all(inside.engine.commits, requests)
        told = [outcome.word for outcome in outcomes if isinstance(outcome, Outcome)]
        assert {word: told.count(word) for word in told} == words, outcomes
        for request, outcome in zip(requests, outcomes, strict=True):
            stored = inside.service.query("SELECT quantity FROM bookings WHERE id = %s", request.id)
            assert stored == ([] if outcome.word == "full" else [(1,)])  # type: ignore[union-attr]
    await inside.engine.mirror.load(uuid.UUID(slot_id))
    await inside.assert_holds(slot_id, 10, 10)


# -- 7: faults of Redis -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", ["cut_before", "cut_after"])
async def test_a_pipeline_whose_reply_is_lost_is_asked_again_and_holds_everybody_once(inside: Inside, cut: Any):
    slots = await inside.slots(10, 3)
    asked = [party(slot_id) for slot_id in [slots[0]] * 15 + [slots[1]] * 5]
    inside.pipelines.clear()
    inside.to_redis.arm(cut, f"{slots[0]}:mirror".encode())  # a script, not the live feed, which names slots too
    answers = await inside.book(asked)
    assert inside.to_redis.hits == 1
    assert [call.script for call in inside.pipelines[0]] == ["hold"] * 20
    assert inside.engine.redis_ok
    assert_each_was_told_its_own(inside.service, asked, answers)
    assert (statuses(answers[:15]).count(201), statuses(answers[15:]).count(201)) == (10, 3)
    assert sold_places(answers) == 13
    await inside.assert_holds(slots[0], 10, 10)
    await inside.assert_holds(slots[1], 3, 3)


async def test_a_crowd_whose_pipeline_a_paused_redis_keeps_goes_on_through_postgres(inside: Inside, redis: RedisServer):
    [slot_id] = await inside.slots(10)
    asked = [party(slot_id) for _ in range(25)]
    inside.pipelines.clear()
    redis.pause()
    try:
        answers = await inside.book(asked)
        assert not inside.engine.redis_ok
        assert [call.script for call in inside.pipelines[0]] == ["hold"] * 25
        assert sum(len(commit) for commit in inside.commits) == 25
    finally:
        redis.resume()
    assert sold_places(answers) == 10
    assert_each_was_told_its_own(inside.service, asked, answers)
    await asyncio.to_thread(eventually, lambda: inside.engine.redis_ok, "Redis to be trusted again")
    await inside.assert_holds(slot_id, 10, 10)


async def test_one_slots_broken_keys_are_the_concern_of_its_own_requests_only(inside: Inside, redis: RedisServer):
    slots = await inside.slots(4, 2, 4)
    broken = slots[1]
    key = f"hf:{{{resource_of(inside.service, broken)}}}:{broken}:holds"
    asked = [party(slot_id) for slot_id in [*slots * 5]]
    inside.pipelines.clear()
    with redis.admin() as admin:
        admin.set(key, "not a sorted set")
        answers = await inside.book(asked)
        admin.delete(key)
    assert [call.script for call in inside.pipelines[0]] == ["hold"] * 15
    assert inside.engine.redis_ok
    assert_each_was_told_its_own(inside.service, asked, answers)
    assert sold_places(answers) == 10
    # The neighbours were refused by Redis, only those of the broken slot went to Postgres in vain.
    assert [request.slot_id for commit in inside.commits for request in commit].count(uuid.UUID(broken)) == 5
    assert sum(len(commit) for commit in inside.commits) == 4 + 5 + 4
    await inside.assert_holds(slots[0], 4, 4)
    await inside.assert_holds(slots[2], 4, 4)
    await inside.engine.mirror.reconcile()
    await inside.assert_holds(broken, 2, 2)


async def test_scripts_that_are_flushed_again_and_again_are_sent_again(inside: Inside, redis: RedisServer):
    slots = await inside.slots(30, 20)
    stop = threading.Event()

    def flush() -> None:
        with redis.admin() as admin:
            while not stop.wait(0.001):
                admin.script_flush()

    asked: list[dict[str, Any]] = []
    answers: list[httpx.Response] = []
    flusher = threading.Thread(target=flush)
    flusher.start()
    try:
        for _ in range(10):
            wave = [party(slot_id) for slot_id in slots * 4]
            asked += wave
            answers += await inside.book(wave)
    finally:
        stop.set()
        flusher.join()
    assert inside.engine.redis_ok
    assert_each_was_told_its_own(inside.service, asked, answers)
    assert sold_places(answers) == 50
    await inside.assert_holds(slots[0], 30, 30)
    await inside.assert_holds(slots[1], 20, 20)


# -- 8: bounds --------------------------------------------------------------------------------------------------------


async def test_who_finds_the_queue_full_is_told_so_and_leaves_nothing_behind(
    one: OneWorker, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(app.commits, "MAX_WAITING", 20)
    monkeypatch.setattr(app.commits, "MOST_TOGETHER", 5)
    monkeypatch.setattr(app.postgres, "REPLY_TIMEOUT_SECONDS", 0.5)
    async with running(one.service) as inside:
        [slot_id] = await inside.slots(100)
        asked = [party(slot_id) for _ in range(60)]
        inside.to_postgres.arm("blackhole")
        answers = await inside.book(asked)
        inside.to_postgres.heal()
        assert statuses(answers) == [503] * 60
        overloaded = [answer for answer in answers if answer.json()["code"] == "overloaded"]
        assert [answer.json()["code"] == "overloaded" for answer in answers] == [False] * 20 + [True] * 40
        assert {answer.json().get("effect") for answer in overloaded} == {"none"}
        assert all("Retry-After" in answer.headers for answer in answers)
        # Nothing of them was sent to Postgres at all.
        sent = bytes(inside.to_postgres.received)
        assert email(asked[0]) in sent
        assert not any(email(body) in sent for body in asked[20:])
        assert_each_was_told_its_own(inside.service, asked, answers)
    unknown = sum("effect" not in answer.json() for answer in answers)
    assert 5 <= unknown <= 20
    await asyncio.to_thread(eventually, lambda: held(one.service, slot_id) == unknown, "the places of the others back")


def held(service: Service, slot_id: str) -> int:
    """Count what Redis keeps: those of whom it is not known whether they are booked have theirs for some seconds."""
    assert service.redis is not None
    with service.redis.admin() as admin:
        return int(admin.zcard(f"hf:{{{resource_of(service, slot_id)}}}:{slot_id}:holds"))


# -- that these can fail ----------------------------------------------------------------------------------------------


async def test_answers_in_the_wrong_order_are_noticed(one: OneWorker, monkeypatch: pytest.MonkeyPatch):
    async def mixed_up(commits: Commits, requests: Sequence[CommitRequest]) -> list[Outcome]:
        return (await commits.commit(requests))[::-1]

    monkeypatch.setattr(Commits, "_commit_together", mixed_up)
    async with running(one.service) as inside:
        slots = await inside.slots(7, 9)
        asked = [party(slot_id) for slot_id in slots * 2]
        answers = await inside.book(asked)
        assert statuses(answers) == [201] * 4
        with pytest.raises(AssertionError):
            assert_each_was_told_its_own(one.service, asked, answers)


async def test_that_one_fails_all_is_noticed(one: OneWorker, monkeypatch: pytest.MonkeyPatch):
    async def shared(_: Commits, __: CommitRequest, error: Exception) -> Outcome:
        raise Busy from error

    monkeypatch.setattr(Commits, "_commit_alone", shared)
    async with running(one.service) as inside:
        with pytest.raises(AssertionError, match="503"):
            await book_with_poison(inside)


async def test_a_doubt_that_is_not_settled_is_noticed(one: OneWorker, monkeypatch: pytest.MonkeyPatch):
    async def simply_again(commits: Commits, _: uuid.UUID, request: CommitRequest) -> Outcome:
        return (await commits._commit_bookings(new_id(), [request]))[0]

    monkeypatch.setattr(Commits, "_resolve", simply_again)
    async with running(one.service) as inside:
        # By their own row; or that nothing was done, when the machine is slow and they wait for each other.
        with pytest.raises(AssertionError, match=r'already_resolved|"effect":"none"'):
            await book_in_doubt(inside, "cut_after")
