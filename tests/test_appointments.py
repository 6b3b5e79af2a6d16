"""The salon's page: POST /api/v1/public/{slug}/book, in its own words (S4-1 to S4-5)."""

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psycopg
import pytest

from tests.service import CUSTOMER, Service, all_at_once, assert_slot_holds, eventually

pytestmark = pytest.mark.anyio

GUEST = {"firstName": "Ada", "lastName": "Lovelace", "email": "ada@example.com"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Salon:
    """Two people who offer one service at the same times, and another service of one of them in between."""

    service: Service
    slug: str
    service_id: str
    staff: list[str]
    starts: list[datetime]
    #: by person and start
    slots: dict[tuple[str, datetime], str]

    def body(self, staff: int = 0, start: int = 0, **fields: Any) -> dict[str, Any]:
        wanted = {"serviceId": self.service_id, "staffId": self.staff[staff]}
        return {**wanted, "startTime": self.starts[start].isoformat(), **GUEST, **fields}

    @property
    def path(self) -> str:
        return f"/api/v1/public/{self.slug}/book"


def make_salon(service: Service, *, times: int = 4, price: int | None = None, payment: str = "on_site") -> Salon:
    """Write a salon straight into the tables: what makes slots from opening hours has tests of its own."""
    slug = f"s-{uuid.uuid4().hex[:12]}"
    venue, cut, staff = uuid.uuid4(), uuid.uuid4(), [uuid.uuid4(), uuid.uuid4()]
    first = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) + timedelta(days=1)
    starts = [first + timedelta(hours=n) for n in range(times)]
    slots = {(str(person), start): str(uuid.uuid4()) for person in staff for start in starts}
    with psycopg.connect(service.database_url, autocommit=True) as db:
        db.execute(
            "INSERT INTO venues (id, slug, name, timezone, payment) VALUES (%s, %s, 'Salon', 'Europe/Berlin', %s)",
            (venue, slug, payment),
        )
        db.execute(
            "INSERT INTO services (id, venue_id, name, duration_minutes) VALUES (%s, %s, 'Cut', 60)", (cut, venue)
        )
        for person in staff:
            db.execute(
                "INSERT INTO resources (id, venue_id, name, kind) VALUES (%s, %s, 'Somebody', 'person')",
                (person, venue),
            )
            db.execute("INSERT INTO service_resources VALUES (%s, %s, %s)", (cut, person, venue))
        for (person_id, start), slot_id in slots.items():
            db.execute(
                "INSERT INTO slots (id, venue_id, resource_id, resource_no, one_at_a_time, service_id, starts_at,"
                "   ends_at, capacity, available_count, exclusive, price_amount, price_currency)"
                " SELECT %s, venue_id, id, no, one_at_a_time, %s, %s, %s, 1, 1, true, %s::bigint,"
                "   CASE WHEN %s::bigint IS NOT NULL THEN 'EUR' END FROM resources WHERE id = %s",
                (slot_id, cut, start, start + timedelta(hours=1), price, price, person_id),
            )
    return Salon(service, slug, str(cut), [str(person) for person in staff], starts, slots)


async def test_s4_5_a_taken_slot_offers_no_other_service(service: Service) -> None:
    """The same person also does something else, at a nearer time: whoever wants a cut is not offered that."""
    salon = make_salon(service, times=3)
    wanted, later = salon.slots[salon.staff[0], salon.starts[0]], salon.slots[salon.staff[0], salon.starts[2]]
    nearer = salon.slots[salon.staff[0], salon.starts[1]]
    shave = uuid.uuid4()
    with psycopg.connect(service.database_url, autocommit=True) as db:
        db.execute(
            "INSERT INTO services (id, venue_id, name, duration_minutes) SELECT %s, id, 'Shave', 60 FROM venues"
            " WHERE slug = %s",
            (shave, salon.slug),
        )
        db.execute(
            "INSERT INTO service_resources SELECT %s, %s, id FROM venues WHERE slug = %s",
            (shave, salon.staff[0], salon.slug),
        )
        db.execute(
            "WITH gone AS (DELETE FROM slots WHERE id = %s RETURNING *)"
            " INSERT INTO slots (id, venue_id, resource_id, resource_no, one_at_a_time, service_id, starts_at, ends_at,"
            "   capacity, available_count, exclusive) SELECT gen_random_uuid(), venue_id, resource_id, resource_no,"
            "   one_at_a_time, %s, starts_at, ends_at, 1, 1, true FROM gone",
            (nearer, shave),
        )
    async with service.client() as client:
        await client.post("/v1/bookings", json={"slot_id": wanted, "quantity": 1, "customer": CUSTOMER})
        for path, body in (
            ("/v1/bookings", {"slot_id": wanted, "quantity": 1, "customer": CUSTOMER}),
            ("/v1/holds", {"slot_id": wanted}),
        ):
            refused = await client.post(path, json=body)
            assert refused.status_code == 409
            assert [slot["id"] for slot in refused.json()["alternatives"]] == [later]


async def test_s4_1_an_appointment_is_booked(service: Service) -> None:
    salon = make_salon(service)
    async with service.client() as client:
        answer = await client.post(salon.path, json=salon.body(phone="+49 30 1"))
        assert answer.status_code == 201, answer.text
        made = answer.json()
        slot = salon.slots[salon.staff[0], salon.starts[0]]
        told = (made["status"], made["serviceId"], made["staffId"], made["slotId"])
        assert told == ("confirmed", salon.service_id, salon.staff[0], slot)
        assert datetime.fromisoformat(made["startTime"]) == salon.starts[0]
        assert datetime.fromisoformat(made["endTime"]) == salon.starts[0] + timedelta(hours=1)
        read = await client.get(f"/v1/bookings/{made['id']}", headers={"Manage-Token": made["manageToken"]})
        assert read.json()["customer"] == {"name": "Ada Lovelace", "email": "ada@example.com", "phone": "+49 30 1"}
        assert_slot_holds(service, slot, 1, 1)


async def test_the_time_may_be_told_in_any_zone(service: Service) -> None:
    salon = make_salon(service)
    from zoneinfo import ZoneInfo  # noqa: PLC0415

    there = salon.starts[1].astimezone(ZoneInfo("America/New_York")).isoformat()
    async with service.client() as client:
        answer = await client.post(salon.path, json=salon.body(startTime=there))
        assert (answer.status_code, answer.json()["slotId"]) == (201, salon.slots[salon.staff[0], salon.starts[1]])


@pytest.mark.parametrize("rivals", [20, 100])
async def test_s4_3_of_many_at_once_one_has_it_and_the_others_a_conflict(service: Service, rivals: int) -> None:
    salon = make_salon(service)
    async with service.client() as client:
        requests = [client.build_request("POST", salon.path, json=salon.body()) for _ in range(rivals)]
        answers = await all_at_once(client, requests)
        assert sorted(answer.status_code for answer in answers) == [201] + [400] * (rivals - 1)
        for answer in answers:
            if answer.status_code == 400:
                told = answer.json()
                assert told["error"]["code"] == "TIME_CONFLICT"
                assert told["alternatives"]
    slot = salon.slots[salon.staff[0], salon.starts[0]]
    live = "status IN ('held', 'pending_payment', 'confirmed')"
    assert service.query(f"SELECT count(*) FROM bookings WHERE slot_id = %s AND {live}", slot) == [(1,)]
    assert_slot_holds(service, slot, 1, 1)


async def test_s4_2_s4_5_a_taken_time_offers_the_same_person_first_and_then_colleagues(service: Service) -> None:
    salon = make_salon(service, times=4)
    async with service.client() as client:
        assert (await client.post(salon.path, json=salon.body(start=1))).status_code == 201
        answer = await client.post(salon.path, json=salon.body(start=1))
        assert answer.status_code == 400
        told = answer.json()
        assert told["error"]["code"] == "TIME_CONFLICT"
        own, other = salon.staff
        offered = [(each["staffId"], datetime.fromisoformat(each["startTime"])) for each in told["alternatives"]]
        assert offered == [
            (own, salon.starts[0]),
            (own, salon.starts[2]),
            (own, salon.starts[3]),
            (other, salon.starts[1]),
            (other, salon.starts[0]),
        ]
        for each in told["alternatives"]:  # each of them can be booked
            body = salon.body(staffId=each["staffId"], startTime=each["startTime"])
            assert (await client.post(salon.path, json=body)).status_code == 201


async def test_a_held_time_is_a_conflict(with_redis: Service) -> None:
    salon = make_salon(with_redis)
    async with with_redis.client() as client:
        slot = salon.slots[salon.staff[0], salon.starts[0]]
        assert (await client.post("/v1/holds", json={"slot_id": slot})).status_code == 201
        answer = await client.post(salon.path, json=salon.body())
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "TIME_CONFLICT")


@pytest.mark.parametrize(
    ("fields", "status", "code", "field"),
    [
        ({"startTime": "2020-01-01T10:00:00Z"}, 400, "VALIDATION_ERROR", "startTime"),
        ({"startTime": "tomorrow"}, 400, "VALIDATION_ERROR", "startTime"),
        ({"startTime": "2030-01-01T10:00:00"}, 400, "VALIDATION_ERROR", "startTime"),
        ({"startTime": "9999-01-01T10:00:00Z"}, 400, "VALIDATION_ERROR", "startTime"),
        ({"startTime": "2199-01-01T10:00:00Z"}, 400, "VALIDATION_ERROR", "startTime"),
        ({"email": "nobody"}, 400, "VALIDATION_ERROR", "email"),
        ({"firstName": ""}, 400, "VALIDATION_ERROR", "firstName"),
        ({"lastName": 7}, 400, "VALIDATION_ERROR", "lastName"),
        ({"serviceId": "cut"}, 400, "VALIDATION_ERROR", "serviceId"),
        ({"service_id": str(uuid.uuid4())}, 400, "VALIDATION_ERROR", "service_id"),
        ({"serviceId": str(uuid.uuid4())}, 404, "NOT_FOUND", None),
        ({"staffId": str(uuid.uuid4())}, 404, "NOT_FOUND", None),
    ],
)
async def test_what_cannot_be_booked_says_so_in_the_form_of_this_route(
    with_redis: Service, fields: dict[str, Any], status: int, code: str, field: str | None
) -> None:
    salon = make_salon(with_redis)
    async with with_redis.client() as client:
        answer = await client.post(salon.path, json=salon.body(**fields))
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/json"
        error = answer.json()["error"]
        assert (error["code"], error.get("field")) == (code, field)


async def test_times_beside_the_grid_and_beyond_the_horizon_are_no_conflicts(with_redis: Service) -> None:
    salon = make_salon(with_redis)
    async with with_redis.client() as client:
        for start, word in (
            (salon.starts[0] + timedelta(minutes=7), "begins"),
            (salon.starts[-1] + timedelta(days=400), "far ahead"),
        ):
            answer = await client.post(salon.path, json=salon.body(startTime=start.isoformat()))
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "VALIDATION_ERROR")
            assert word in answer.json()["error"]["message"]


async def test_other_refusals_have_this_form_too(with_redis: Service) -> None:
    salon = make_salon(with_redis)
    async with with_redis.client() as client:
        unknown = await client.post("/api/v1/public/nobody/book", json=salon.body())
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "NOT_FOUND")
        media = await client.post(salon.path, content="{}", headers={"Content-Type": "text/plain"})
        assert (media.status_code, media.json()["error"]["code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")
        large = await client.post(salon.path, json=salon.body(firstName="x" * 20_000))
        assert (large.status_code, large.json()["error"]["code"]) == (413, "TOO_LARGE")
        broken = await client.post(salon.path, content="{", headers={"Content-Type": "application/json"})
        assert (broken.status_code, broken.json()["error"]["code"]) == (400, "VALIDATION_ERROR")


async def test_a_venue_that_is_paid_first_says_so(service: Service) -> None:
    salon = make_salon(service, price=4000, payment="required")
    async with service.client() as client:
        answer = await client.post(salon.path, json=salon.body())
        assert (answer.status_code, answer.json()["error"]["code"]) == (402, "PAYMENT_REQUIRED")
        assert_slot_holds(service, salon.slots[salon.staff[0], salon.starts[0]], 1, 0)


async def test_a_repeated_request_gets_its_first_answer(service: Service) -> None:
    salon = make_salon(service)
    async with service.client() as client:
        key = {"Idempotency-Key": uuid.uuid4().hex}
        first, second = [await client.post(salon.path, json=salon.body(), headers=key) for _ in range(2)]
        assert (first.status_code, second.status_code) == (201, 201)
        assert first.content == second.content
        other = await client.post(salon.path, json=salon.body(firstName="Grace"), headers=key)
        assert (other.status_code, other.json()["error"]["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")


async def test_postgres_away_is_unavailable_in_this_form(service: Service) -> None:
    """Simulated by a lock: the statement that looks the time up waits longer than it may."""
    salon = make_salon(service)
    with psycopg.connect(service.database_url) as locked:
        locked.execute("LOCK TABLE services IN ACCESS EXCLUSIVE MODE")
        async with service.client() as client:
            answer = await client.post(salon.path, json=salon.body())
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "UNAVAILABLE")
            assert "retry-after" in answer.headers
        locked.rollback()
    async with service.client() as client:
        assert (await client.post(salon.path, json=salon.body())).status_code == 201
    eventually(lambda: bool(httpx.get(f"{service.url}/readyz").status_code == 200), "the service to be ready")


async def test_within_the_notice_customers_hold_nothing_and_are_offered_none_of_it(service: Service) -> None:
    salon = make_salon(service)
    near, other = salon.slots[salon.staff[0], salon.starts[0]], salon.slots[salon.staff[0], salon.starts[1]]
    service.query("UPDATE slots SET closes_at = now() - interval '1 second' WHERE id = %s RETURNING 1", near)
    async with service.client() as client:
        for body in ({"slot_id": near}, {"items": [{"slot_id": near}, {"slot_id": other}]}):
            refused = await client.post("/v1/holds", json=body)
            assert (refused.status_code, refused.json()["reason"]) == (409, "past")
            assert near not in [slot["id"] for slot in refused.json()["alternatives"]]
        by_venue = await client.post("/v1/holds", json={"slot_id": near}, headers=service.operator)
        assert by_venue.status_code == 201, by_venue.text
        taken = await client.post("/v1/bookings", json={"slot_id": other, "customer": CUSTOMER})
        again = await client.post("/v1/bookings", json={"slot_id": other, "customer": CUSTOMER})
        assert (taken.status_code, again.status_code) == (201, 409)
        assert near not in [slot["id"] for slot in again.json()["alternatives"]]


async def test_within_the_notice_only_the_venue_books(service: Service) -> None:
    """Whichever way customers come: by the salon's page, with or without a hold."""
    salon = make_salon(service)
    slot = salon.slots[salon.staff[0], salon.starts[0]]
    async with service.client() as client:
        hold = await client.post("/v1/holds", json={"slot_id": slot})
        service.query("UPDATE slots SET closes_at = now() - interval '1 second' WHERE id = %s RETURNING 1", slot)
        customer = {"customer": {"name": "Ada Lovelace", "email": "ada@example.com"}}
        confirmed = await client.post("/v1/bookings", json={"hold_token": hold.json()["token"], **customer})
        assert (confirmed.status_code, confirmed.json()["reason"]) == (409, "past")
        direct = await client.post("/v1/bookings", json={"slot_id": slot, **customer})
        assert (direct.status_code, direct.json()["reason"]) == (409, "past")
        page = await client.post(salon.path, json=salon.body())
        assert (page.status_code, page.json()["error"]["code"]) == (400, "VALIDATION_ERROR")
        await client.delete(f"/v1/holds/{hold.json()['id']}", headers={"Hold-Token": hold.json()["token"]})
        assert_slot_holds(service, slot, 1, 0)
        by_venue = await client.post("/v1/bookings", json={"slot_id": slot, **customer}, headers=service.operator)
        assert by_venue.status_code == 201, by_venue.text
