"""`make bench` measures what it says: its routes answer, its reports are read rightly, and its books notice a lie.

Nothing here is about speed.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from tests.bench import judge, load, raw
from tests.bench.books import Books
from tests.bench.load import Load, LoadFailed, Shot
from tests.bench.measure import sell_out
from tests.bench.rows import BOOKING, GROUPS, HOLD, Goal, Row, chosen
from tests.bench.seed import SMALL, Seeder, Slots
from tests.bench.stack import BenchFailed, Server, Stores, serving
from tests.bench.textbook import TABLES
from tests.redis_servers import RedisServer
from tests.service import Postgres

NOOP = Row(name="noop", title="no-op", path="/bench/noop", slots="spread")
ROWS = {row.name: row for group in GROUPS for row in group.rows if isinstance(row, Row)}


@pytest.fixture(scope="module")
def server(
    postgres: Postgres, bundled_redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    stores = Stores(bundled_redis_server.url, postgres.fresh())
    with psycopg.connect(stores.database_url, autocommit=True) as connection:
        connection.execute(TABLES)
    with serving(stores, 1, tmp_path_factory.mktemp("bench")) as server:
        yield server


@pytest.fixture
def seeder(server: Server, tmp_path: Path) -> Seeder:
    return Seeder(server.stores.database_url, tmp_path)


def ask(server: Server, path: str, slot_id: object, body: str = BOOKING) -> tuple[int, dict[str, object]]:
    status, answer = server.post(path, body.replace("%s", str(slot_id)).encode())
    return status, json.loads(answer)


def one(server: Server, query: str, *values: object) -> object:
    with psycopg.connect(server.stores.database_url, autocommit=True) as connection:
        [row] = connection.execute(query, values).fetchall()
    return row[0]


# -- routes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "body"), [("/bench/noop", BOOKING), ("/bench/noop-hold", HOLD)])
def test_the_noop_decodes_and_answers_and_does_nothing(server: Server, path: str, body: str) -> None:
    status, answer = ask(server, path, slot := uuid4(), body)
    assert (status, answer["slot_id"], answer["quantity"]) == (201, str(slot), 1)
    refused, problem = ask(server, path, slot, body.replace('"quantity":1', '"quantity":"1"'))
    assert (refused, problem["code"]) == (400, "invalid_request")  # as strictly as the real one
    assert one(server, "SELECT count(*) FROM bookings WHERE slot_id = %s", slot) == 0


def test_the_textbook_books_until_the_slot_is_full(server: Server, seeder: Seeder) -> None:
    [slot] = seeder.slots("textbook", 1, 2, textbook=True).ids
    answers = [ask(server, "/bench/textbook", slot) for _ in range(3)]
    assert [status for status, _ in answers] == [201, 201, 409]
    assert [answer.get("available_count") for _, answer in answers] == [1, 0, None]
    assert one(server, "SELECT available_count FROM slots_textbook WHERE id = %s", slot) == 0
    assert one(server, "SELECT sum(quantity) FROM bookings_textbook WHERE slot_id = %s", slot) == 2
    assert ask(server, "/bench/textbook", uuid4())[0] == 404


def test_the_slot_that_is_sold_out_is_refused_with_alternatives(server: Server, seeder: Seeder) -> None:
    slots = seeder.neighbours("sold-out")
    sell_out(server, slots)
    status, problem = ask(server, "/v1/bookings", slots.file.read_text().strip())
    assert (status, problem["reason"]) == (409, "booked")
    told = problem["alternatives"]
    assert isinstance(told, list)
    assert len(told) == 5
    assert all(slot["available"] == SMALL for slot in told)


# -- the stores alone -------------------------------------------------------------------------------------------------


def test_holds_that_are_filled_in_are_holds_to_the_service(server: Server, seeder: Seeder) -> None:
    """The commands are written down in raw.py: here is noticed when the scripts want others."""
    slots = seeder.slots("held", 1, SMALL)
    url = server.stores.redis_url
    raw.mirror(url, server.stores.database_url, slots.ids)
    with raw.connected(url) as connection:
        hold = raw.holding(slots.resources[0], slots.ids[0])
        assert [reply[0] for reply in raw.run(connection, [hold(), hold()])] == [b"held", b"held"]
    slot = json.loads(server.get(f"/v1/slots/{slots.ids[0]}")[1])
    assert (slot["held"], slot["available"]) == (2, SMALL - 2)
    driven = raw.hold(url, slots.resources[0], slots.ids[0], 0.01)
    assert driven.calls > 0
    assert json.loads(server.get(f"/v1/slots/{slots.ids[0]}")[1])["available"] == 0


def test_pgbench_books_with_the_services_own_function(server: Server, seeder: Seeder) -> None:
    slots = seeder.slots("pgbench", 1, 100_000)
    driven = raw.pgbench(server.stores.database_url, slots.ids[0], seeder.venue, 1)
    query = "SELECT sum(quantity) FROM bookings WHERE slot_id = %s AND status = 'confirmed'"
    assert driven.calls == one(server, query, slots.ids[0]) > 0


# -- books ------------------------------------------------------------------------------------------------------------


def test_the_books_balance_or_say_why_not(server: Server, seeder: Seeder) -> None:
    slots = seeder.slots("books", 1, SMALL, textbook=True)
    books = Books(server)
    assert ask(server, "/v1/bookings", slots.ids[0])[0] == 201
    books.remember(slots.ids[0])
    books.close()
    assert books.wrongs == []
    _book_past_the_service(server, slots)
    books.close()
    assert books.wrongs[0] == "1 bookings were promised, Postgres has 2"


def _book_past_the_service(server: Server, slots: Slots) -> None:
    with psycopg.connect(server.stores.database_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO bookings (id, venue_id, slot_id, exclusive, quantity, status, customer_name, customer_email,"
            " available_after, confirmed_at)"
            " SELECT %s, venue_id, id, false, 1, 'confirmed', 'Eve', 'eve@example.com', 0, now() FROM slots"
            " WHERE id = %s",
            (uuid4(), slots.ids[0]),
        )


def test_an_answer_of_another_kind_is_noticed(server: Server) -> None:
    books = Books(server)
    got = Load(requests=10, per_second=10, p50_ms=1, p99_ms=1, not_2xx=0, broken=0)
    books.check(NOOP, got, {("/bench/noop", "201"): 10 + NOOP.connections})  # some were left behind when time was up
    assert books.wrongs == []
    books.check(NOOP, got, {("/bench/noop", "201"): 9, ("/bench/noop", "503"): 1})
    assert len(books.wrongs) == 2
    books.check(ROWS["refuse"], got, {("/v1/bookings", "409"): 10})
    assert books.wrongs[2:] == ["refuse, slot sold out: 0 of 10 answers were no success"]


# -- drivers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["wrk", "k6"])
def test_the_driver_sends_what_it_is_told(server: Server, seeder: Seeder, driver: str) -> None:
    if driver == "wrk" and shutil.which("wrk") is None:
        pytest.skip("wrk is not installed")
    slots = seeder.slots("driver", 3, 100_000)
    shot = Shot("/v1/bookings", BOOKING, slots.file, keyed=True, connections=4)
    before = server.settled_answers()
    got = load.send(driver, server.url, shot, 1)
    given = server.settled_answers() - before
    assert (got.not_2xx, got.broken) == (0, 0)
    assert 0 < got.requests <= given["/v1/bookings", "201"] <= got.requests + shot.connections
    assert 0 < got.p50_ms <= got.p99_ms
    query = "SELECT count(*) - count(DISTINCT idempotency_key) FROM bookings WHERE slot_id = ANY (%s)"
    assert one(server, query, slots.ids) == 0  # no key twice: each was a booking of its own


WRK = """Running 2s test @ http://127.0.0.1:8000
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency    20.61ms    9.33ms 129.04ms   88.17%
    Req/Sec     2.95k   301.11     3.41k    70.00%
  Latency Distribution
     50%  812.00us
     75%   22.10ms
     90%   25.71ms
     99%    1.29s
  5903 requests in 2.00s, 1.51MB read
  Socket errors: connect 0, read 3, write 0, timeout 2
  Non-2xx or 3xx responses: 41
Requests/sec:   2949.31
Transfer/sec:    772.58KB
"""


def test_reports_of_wrk_are_read() -> None:
    assert load.parse_wrk(WRK) == Load(
        requests=5903, per_second=2951.5, p50_ms=0.812, p99_ms=1290, not_2xx=41, broken=5
    )
    assert load.parse_wrk(WRK, lead_seconds=1.0).per_second == 5903
    quiet = [line for line in WRK.splitlines() if "errors" not in line and "Non-2xx" not in line]
    assert (load.parse_wrk("\n".join(quiet)).not_2xx, load.parse_wrk("\n".join(quiet)).broken) == (0, 0)
    with pytest.raises(LoadFailed, match="unable to connect"):
        load.parse_wrk("unable to connect to 127.0.0.1:8000 Connection refused")


def test_reports_of_pgbench_are_read() -> None:
    said = (
        "number of transactions actually processed: 870\nnumber of failed transactions: {} (0.000%)\n"
        "latency average = 55.103 ms\ninitial connection time = 20.1 ms\n"
        "tps = 290.36 (without initial connection time)\n"
    )
    assert raw.parse_pgbench(said.format(0)) == raw.Driven(870, 290.36, 55.103)
    with pytest.raises(BenchFailed):
        raw.parse_pgbench(said.format(3))


# -- judging ----------------------------------------------------------------------------------------------------------


def test_a_goal_is_judged_by_medians_and_shows_its_spread() -> None:
    ours = [judge.Sample(speed, p99_ms=9) for speed in (40.0, 50.0, 90.0)]
    theirs = [judge.Sample(100.0, p99_ms=3) for _ in ours]
    speed = judge.verdict(Goal(row="a", against="b", bound=0.5), ours, theirs)
    assert (speed.ratio, speed.lowest, speed.highest, speed.hit) == (0.5, 0.4, 0.9, True)
    slowness = judge.verdict(Goal(row="a", against="b", bound=2.0, figure="p99_ms"), ours, theirs)
    assert (slowness.ratio, slowness.hit) == (3.0, False)


def test_rows_are_chosen_with_what_they_are_compared_with() -> None:
    [group] = chosen(frozenset({"book_hot"}))
    assert [row.name for row in group.rows] == ["noop_hot", "book_hot"]
    assert [goal.against for goal in group.goals] == ["noop_hot"]
    assert chosen(frozenset()) == list(GROUPS)
    with pytest.raises(KeyError, match="no row is called fastest"):
        chosen(frozenset({"fastest"}))


def test_every_goal_names_rows_of_its_group() -> None:
    for group in GROUPS:
        assert {name for goal in group.goals for name in (goal.row, goal.against)} <= {row.name for row in group.rows}
