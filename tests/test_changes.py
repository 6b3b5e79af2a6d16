"""Several places in one request: bookings that move, and bookings and holds that are made together or not at all."""

import asyncio
import uuid
from typing import Any

import httpx
import psycopg
import pytest

from app.domain import Caller
from app.ledger import Moved
from app.reschedule import Wish, reschedule
from tests.service import (
    CUSTOMER,
    Service,
    all_at_once,
    assert_slot_holds,
    booking_body,
    engine_on,
    eventually,
    make_slots,
    mirrored,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def booked(client: httpx.AsyncClient, slot_id: str, quantity: int = 1) -> dict[str, Any]:
    answer = await client.post("/v1/bookings", json=booking_body(slot_id, quantity))
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def move(client: httpx.AsyncClient, booking: dict[str, Any], slot_id: str, **fields: Any) -> httpx.Response:
    return await client.post(
        f"/v1/bookings/{booking['id']}/reschedule",
        json={"slot_id": slot_id, **fields},
        headers={"Manage-Token": booking["manage_token"]},
    )


def assert_places(service: Service, slot_id: str, capacity: int, sold: int) -> None:
    """Check both stores and the API, but not the log, whose sums by slot do not know of moves."""
    [(count, booked_places)] = service.query(
        "SELECT s.available_count, (SELECT coalesce(sum(quantity), 0) FROM bookings AS b WHERE b.slot_id = s.id"
        " AND status IN ('held', 'pending_payment', 'confirmed')) FROM slots AS s WHERE s.id = %s",
        slot_id,
    )
    assert (count, booked_places) == (capacity - sold, sold)
    if service.redis is not None:
        eventually(lambda: mirrored(service, slot_id) == (capacity, sold, 0), f"the mirror to say {capacity, sold, 0}")


# -- moving -----------------------------------------------------------------------------------------------------------


async def test_a_booking_moves_with_its_id_and_tokens(service: Service) -> None:
    async with service.client() as client:
        old, new = await make_slots(service, client, 3, 4)
        made = await booked(client, old, 2)
        answer = await move(client, made, new, version=1)
        assert answer.status_code == 200, answer.text
        moved = answer.json()
        assert (moved["id"], moved["slot_id"], moved["quantity"], moved["version"]) == (made["id"], new, 2, 2)
        assert moved["available_count"] == 2
        assert_places(service, old, 3, 0)
        assert_places(service, new, 4, 2)
        events = await client.get("/v1/events", params={"booking_id": made["id"]}, headers=service.operator)
        assert {"booking.rescheduled", "booking.moved_away"} <= {event["type"] for event in events.json()["data"]}


async def test_a_second_time_it_is_there_already(service: Service) -> None:
    async with service.client() as client:
        old, new = await make_slots(service, client, 1, 1)
        made = await booked(client, old)
        first, second = await move(client, made, new), await move(client, made, new)
        assert (first.status_code, second.status_code) == (200, 200)
        assert first.json()["version"] == second.json()["version"] == 2
        assert_places(service, old, 1, 0)
        assert_places(service, new, 1, 1)


async def test_a_refused_move_keeps_the_old_place(service: Service) -> None:
    async with service.client() as client:
        old, full, free = await make_slots(service, client, 1, 1, 1)
        made, _ = await booked(client, old), await booked(client, full)
        answer = await move(client, made, full)
        assert answer.status_code == 409, answer.text
        problem = answer.json()
        assert (problem["code"], problem["reason"], problem["available"]) == ("slot_unavailable", "booked", 0)
        assert [slot["id"] for slot in problem["alternatives"]] == [free]
        assert_places(service, old, 1, 1)
        assert_places(service, full, 1, 1)


async def test_the_first_answer_of_a_keyed_booking_is_the_same_after_it_moved(service: Service) -> None:
    async with service.client() as client:
        old, new = await make_slots(service, client, 1, 1)
        key = {"Idempotency-Key": uuid.uuid4().hex}
        first = await client.post("/v1/bookings", json=booking_body(old), headers=key)
        assert (await move(client, first.json(), new)).status_code == 200
        again = await client.post("/v1/bookings", json=booking_body(old), headers=key)
        assert (again.status_code, again.json()) == (201, first.json())
        assert again.headers["Idempotency-Replayed"] == "true"


async def test_an_old_view_of_a_booking_moves_nothing(service: Service) -> None:
    async with service.client() as client:
        first, second, third = await make_slots(service, client, 1, 1, 1)
        made = await booked(client, first)
        assert (await move(client, made, second, version=1)).status_code == 200
        stale = await move(client, made, third, version=1)
        assert (stale.status_code, stale.json()["code"]) == (409, "conflict")
        assert_places(service, second, 1, 1)
        assert_places(service, third, 1, 0)


async def test_what_cannot_be_moved_says_why(service: Service) -> None:
    async with service.client() as client:
        old, new = await make_slots(service, client, 2, 2)
        [elsewhere] = await make_slots(service, client, 2)
        made = await booked(client, old)
        assert (await move(client, made, elsewhere)).json()["code"] == "slot_not_found"
        assert (await move(client, made, str(uuid.uuid4()))).json()["code"] == "slot_not_found"
        assert (await move(client, {**made, "manage_token": "x" * 32}, new)).json()["code"] == "booking_not_found"
        assert (await move(client, made, new, quantity=3)).json()["code"] == "invalid_request"
        assert (await move(client, made, new, quantity=0)).status_code == 400
        await client.patch(f"/v1/slots/{new}", json={"status": "closed"}, headers=service.operator)
        assert (await move(client, made, new)).json()["reason"] == "closed"
        await client.post(f"/v1/bookings/{made['id']}/cancel", headers=service.operator)
        assert (await move(client, made, old)).json()["code"] == "already_resolved"


async def test_a_party_changes_its_size_in_place(service: Service) -> None:
    async with service.client() as client:
        [slot] = await make_slots(service, client, 5)
        made = await booked(client, slot, 2)
        assert (await move(client, made, slot, quantity=5)).json()["quantity"] == 5
        assert_places(service, slot, 5, 5)
        assert (await move(client, made, slot, quantity=1)).json()["version"] == 3
        assert_places(service, slot, 5, 1)


async def test_a_person_can_move_to_a_time_that_overlaps_the_own_one(service: Service) -> None:
    async with service.client() as client:
        old, new, other = await make_slots(service, client, 1, 1, 1, kind="person", hours_apart=0.5)
        made = await booked(client, old)
        assert (await move(client, made, new)).status_code == 200
        assert_places(service, old, 1, 0)
        assert_places(service, new, 1, 1)
        taken = await client.post("/v1/bookings", json=booking_body(other))
        assert taken.status_code == 409  # overlaps the new time


async def test_swaps_racing_for_one_place_leave_one_there_and_the_others_where_they_were(service: Service) -> None:
    rivals = 8
    async with service.client() as client:
        target, *homes = await make_slots(service, client, 1, *[1] * rivals)
        made = [await booked(client, home) for home in homes]
        requests = [
            client.build_request(
                "POST",
                f"/v1/bookings/{each['id']}/reschedule",
                json={"slot_id": target},
                headers={"Manage-Token": each["manage_token"]},
            )
            for each in made
        ]
        answers = await all_at_once(client, requests)
        assert sorted(answer.status_code for answer in answers) == [200] + [409] * (rivals - 1)
        assert_places(service, target, 1, 1)
        left = [answer.status_code == 200 for answer in answers]
        for home, has_left in zip(homes, left, strict=True):
            assert_places(service, home, 1, 0 if has_left else 1)


async def test_a_swap_that_only_the_exclusion_constraint_refuses_is_a_refusal(service: Service) -> None:
    """Different slots of one person, so different locks: neither look can see what the other has not committed."""
    async with service.client() as client:
        one, _, other, _, _, target, overlapping = await make_slots(
            service, client, *[1] * 7, kind="person", hours_apart=0.5
        )
        first, second = await booked(client, one), await booked(client, other)
        with psycopg.connect(service.database_url) as rival:
            moved = "SELECT word FROM move_booking(%s, %s, NULL, NULL, 'customer', NULL) LIMIT 1"
            assert rival.execute(moved, (first["id"], target)).fetchone() == ("moved",)
            moving = asyncio.create_task(move(client, second, overlapping))
            await asyncio.to_thread(eventually, lambda: waits_for_another(service), "the second to wait for the first")
            rival.commit()
        refused = await moving
        assert (refused.status_code, refused.json()["code"]) == (409, "slot_unavailable")
        assert_places(service, other, 1, 1)
        assert_places(service, overlapping, 1, 0)


def waits_for_another(service: Service) -> bool:
    [(waiting,)] = service.query(
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype IN ('transactionid', 'advisory') AND pid IN"
        " (SELECT pid FROM pg_stat_activity WHERE datname = current_database())"
    )
    return bool(waiting)


async def test_a_swap_against_a_cancellation_ends_in_one_of_both(service: Service) -> None:
    async with service.client() as client:
        for _ in range(5):
            old, new = await make_slots(service, client, 1, 1)
            made = await booked(client, old)
            token = {"Manage-Token": made["manage_token"]}
            path = f"/v1/bookings/{made['id']}"
            swap, cancelled = await all_at_once(
                client,
                [
                    client.build_request("POST", f"{path}/reschedule", json={"slot_id": new}, headers=token),
                    client.build_request("POST", f"{path}/cancel", headers=token),
                ],
            )
            assert cancelled.status_code == 200, cancelled.text
            assert swap.status_code in (200, 409), swap.text
            assert_places(service, old, 1, 0)
            assert_places(service, new, 1, 0)


async def test_a_move_tells_what_it_did_whatever_happens_a_moment_later(with_redis: Service) -> None:
    async with with_redis.client() as client, engine_on(with_redis.database_url, with_redis.redis.url) as engine:
        old, new = await make_slots(with_redis, client, 2, 2)
        made = await booked(client, old, 2)
        move, cancelled = engine.ledger.move, []

        async def move_and_cancel(*values: Any, **more: Any) -> Moved:
            moved = await move(*values, **more)
            cancelled.append(await client.post(f"/v1/bookings/{made['id']}/cancel", headers=with_redis.operator))
            return moved

        engine.ledger.move = move_and_cancel  # type: ignore[method-assign]
        wish, customer = Wish(uuid.UUID(new), quantity=1), Caller("customer", None)
        told = await reschedule(engine, uuid.UUID(made["id"]), made["manage_token"], wish, caller=customer)
        assert (str(told.slot_id), told.quantity, told.version, told.status) == (new, 1, 2, "confirmed")
        assert (told.cancelled_at, told.available_count) == (None, 1)
        assert cancelled[0].json()["status"] == "cancelled"
        assert_places(with_redis, new, 2, 0)


async def test_a_cancellation_tells_the_place_that_it_gave_back(service: Service) -> None:
    """Also when the booking moved away from where it was when somebody asked for its end."""
    async with service.client() as client:
        old, new = await make_slots(service, client, 2, 2)
        made = await booked(client, old)
        with psycopg.connect(service.database_url) as rival:
            moved = "SELECT word FROM move_booking(%s, %s, 2, NULL, 'operator', NULL) LIMIT 1"
            assert rival.execute(moved, (made["id"], new)).fetchone() == ("moved",)
            cancel = client.post(f"/v1/bookings/{made['id']}/cancel", headers={"Manage-Token": made["manage_token"]})
            cancelling = asyncio.create_task(cancel)
            await asyncio.to_thread(eventually, lambda: waits_for_another(service), "the end to wait for the move")
            rival.commit()
        told = (await cancelling).json()
        assert (told["status"], told["slot_id"], told["quantity"], told["version"]) == ("cancelled", new, 2, 2)
        assert told["available_count"] == 2


async def test_a_crowd_swapping_in_a_ring_never_oversells(service: Service) -> None:
    """Everybody wants the next one's place: opposite orders of locks, and no deadlock that anybody hears of."""
    async with service.client() as client:
        slots = await make_slots(service, client, *[2] * 6)
        made = [await booked(client, slot) for slot in slots]
        requests = [
            client.build_request(
                "POST",
                f"/v1/bookings/{each['id']}/reschedule",
                json={"slot_id": slots[(number + step) % len(slots)]},
                headers={"Manage-Token": each["manage_token"]},
            )
            for number, each in enumerate(made)
            for step in (1, 5)
        ]
        answers = await all_at_once(client, requests)
        assert {answer.status_code for answer in answers} <= {200, 409}
        [(total, least)] = service.query(
            "SELECT sum(capacity - available_count), min(available_count) FROM slots WHERE id = ANY (%s::uuid[])", slots
        )
        assert total == len(slots)
        assert least >= 0


# -- several at once --------------------------------------------------------------------------------------------------


def several(*items: tuple[str, int]) -> dict[str, Any]:
    return {"items": [{"slot_id": slot, "quantity": quantity} for slot, quantity in items], "customer": CUSTOMER}


async def test_all_of_an_order_are_booked(service: Service) -> None:
    async with service.client() as client:
        one, two = await make_slots(service, client, 2, 5)
        answer = await client.post("/v1/bookings", json=several((one, 1), (two, 3), (one, 1)))
        assert answer.status_code == 201, answer.text
        made = answer.json()["data"]
        assert [(each["slot_id"], each["quantity"], each["status"]) for each in made] == [
            (one, 2, "confirmed"),
            (two, 3, "confirmed"),
        ]
        read = await client.get(f"/v1/bookings/{made[1]['id']}", headers={"Manage-Token": made[1]["manage_token"]})
        assert read.json()["quantity"] == 3
        assert_slot_holds(service, one, 2, 2)
        assert_slot_holds(service, two, 5, 3)


async def test_one_that_is_full_keeps_all_of_them_from_being_booked(service: Service) -> None:
    async with service.client() as client:
        one, full, closed = await make_slots(service, client, 2, 1, 1)
        await booked(client, full)
        await client.patch(f"/v1/slots/{closed}", json={"status": "closed"}, headers=service.operator)
        answer = await client.post("/v1/bookings", json=several((one, 2), (full, 1), (closed, 1)))
        assert answer.status_code == 409, answer.text
        problem = answer.json()
        assert problem["code"] == "slot_unavailable"
        assert problem["items"] == [
            {"slot_id": full, "reason": "booked", "requested": 1, "available": 0},
            {"slot_id": closed, "reason": "closed", "requested": 1, "available": 0},
        ]
        assert_slot_holds(service, one, 2, 0)
        assert_slot_holds(service, full, 1, 1)


async def test_a_repeated_order_gets_its_first_answer(service: Service) -> None:
    async with service.client() as client:
        one, two, free = await make_slots(service, client, 1, 1, 1)
        key = {"Idempotency-Key": uuid.uuid4().hex}
        body = several((one, 1), (two, 1))
        answers = await all_at_once(
            client, [client.build_request("POST", "/v1/bookings", json=body, headers=key) for _ in range(5)]
        )
        assert {answer.status_code for answer in answers} == {201}
        assert len({answer.content for answer in answers}) == 1
        other = await client.post("/v1/bookings", json=several((one, 1)), headers=key)
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
        single = await client.post("/v1/bookings", json=booking_body(free), headers=key)
        assert (single.status_code, single.json()["code"]) == (422, "idempotency_key_reused")
        assert_slot_holds(service, one, 1, 1)
        assert_slot_holds(service, two, 1, 1)


async def test_opposite_orders_racing_never_wait_for_each_other_in_a_circle(service: Service) -> None:
    async with service.client() as client:
        slots = await make_slots(service, client, *[1] * 6)
        orders = [slots, slots[::-1], slots[3:] + slots[:3], slots[2::-1] + slots[:2:-1]]
        requests = [
            client.build_request("POST", "/v1/bookings", json=several(*((slot, 1) for slot in order)))
            for order in orders * 5
        ]
        answers = await all_at_once(client, requests)
        assert sorted({answer.status_code for answer in answers}) in ([201, 409], [201, 409, 503], [409])
        won = sum(answer.status_code == 201 for answer in answers)
        sold = service.query("SELECT DISTINCT capacity - available_count FROM slots WHERE id = ANY (%s::uuid[])", slots)
        assert won <= 1
        assert sold == [(won,)]


@pytest.mark.parametrize(
    "body",
    [
        {"items": [], "customer": CUSTOMER},
        {"items": [{"slot_id": str(uuid.uuid4()), "quantity": 0}], "customer": CUSTOMER},
        {"items": [{"slot_id": str(uuid.uuid4())}] * 21, "customer": CUSTOMER},
        {"items": [{"slot_id": str(uuid.uuid4())}], "slot_id": str(uuid.uuid4()), "customer": CUSTOMER},
    ],
)
async def test_odd_orders_are_refused(with_redis: Service, body: dict[str, Any]) -> None:
    async with with_redis.client() as client:
        answer = await client.post("/v1/bookings", json=body)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


async def test_an_order_is_of_one_venue(with_redis: Service) -> None:
    async with with_redis.client() as client:
        [one], [other] = await make_slots(with_redis, client, 1), await make_slots(with_redis, client, 1)
        answer = await client.post("/v1/bookings", json=several((one, 1), (other, 1)))
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "items")


async def test_one_person_is_not_booked_twice_by_one_order(service: Service) -> None:
    """Both are free, so a 409 would not be true: it is the order that nobody could keep."""
    async with service.client() as client:
        one, overlapping = await make_slots(service, client, 1, 1, kind="person", hours_apart=0.5)
        for path, body in (
            ("/v1/bookings", several((one, 1), (overlapping, 1))),
            ("/v1/holds", {"items": [{"slot_id": one}, {"slot_id": overlapping}]}),
        ):
            answer = await client.post(path, json=body)
            assert answer.status_code == 400, answer.text
            [error] = answer.json()["errors"]
            assert error["field"] == "items"
            assert all(slot_id in error["message"] for slot_id in (one, overlapping))
        assert_slot_holds(service, one, 1, 0)
        assert_slot_holds(service, overlapping, 1, 0)


async def test_places_are_held_together_or_not_at_all(service: Service) -> None:
    async with service.client() as client:
        one, two = await make_slots(service, client, 2, 1)
        items = {"items": [{"slot_id": one, "quantity": 2}, {"slot_id": two}]}
        first = await client.post("/v1/holds", json=items)
        assert first.status_code == 201, first.text
        assert [hold["slot_id"] for hold in first.json()["data"]] == [one, two]
        second = await client.post("/v1/holds", json={"items": [{"slot_id": two}, {"slot_id": one}]})
        assert second.status_code == 409
        assert {item["slot_id"] for item in second.json()["items"]} == {one, two}
        for hold in first.json()["data"]:
            booked_now = await client.post("/v1/bookings", json={"hold_token": hold["token"], "customer": CUSTOMER})
            assert booked_now.status_code == 201, booked_now.text
        assert_slot_holds(service, one, 2, 2)
        assert_slot_holds(service, two, 1, 1)


async def test_a_refused_hold_of_several_gives_back_what_it_took(service: Service) -> None:
    async with service.client() as client:
        free, full = await make_slots(service, client, 1, 1)
        await booked(client, full)
        refused = await client.post("/v1/holds", json={"items": [{"slot_id": free}, {"slot_id": full}]})
        assert refused.status_code == 409
        assert [item["slot_id"] for item in refused.json()["items"]] == [full]
        assert_slot_holds(service, free, 1, 0)


async def test_the_key_of_several_holds_is_for_those_alone(service: Service) -> None:
    async with service.client() as client:
        one, two, other = await make_slots(service, client, 1, 1, 1)
        key = {"Idempotency-Key": uuid.uuid4().hex}
        items = {"items": [{"slot_id": one}, {"slot_id": two}]}
        first, again = [await client.post("/v1/holds", json=items, headers=key) for _ in range(2)]
        assert (first.status_code, again.status_code, again.headers["idempotency-replayed"]) == (201, 201, "true")
        assert [hold["id"] for hold in again.json()["data"]] == [hold["id"] for hold in first.json()["data"]]
        turned = await client.post("/v1/holds", json={"items": items["items"][::-1]}, headers=key)
        assert {hold["id"] for hold in turned.json()["data"]} == {hold["id"] for hold in first.json()["data"]}
        for body in (
            {"items": [{"slot_id": one}, {"slot_id": other}]},
            {"items": [{"slot_id": two}, {"slot_id": other}]},
            {"items": [{"slot_id": one}]},
        ):
            reused = await client.post("/v1/holds", json=body, headers=key)
            assert (reused.status_code, reused.json()["code"]) == (422, "idempotency_key_reused")
        for slot_id, left in ((one, 0), (two, 0), (other, 1)):
            assert (await client.get(f"/v1/slots/{slot_id}")).json()["available"] == left
        free = await client.post("/v1/holds", json={"slot_id": other})
        assert free.status_code == 201, free.text


async def test_mixed_crowds_end_exactly(service: Service) -> None:
    """Orders, single bookings, swaps and cancellations at once: what is promised is what is stored."""
    async with service.client() as client:
        slots = await make_slots(service, client, *[3] * 5)
        seeds = [await booked(client, slot) for slot in slots]
        requests = []
        for number, slot in enumerate(slots):
            after = slots[(number + 1) % len(slots)]
            headers = {"Manage-Token": seeds[number]["manage_token"]}
            path = f"/v1/bookings/{seeds[number]['id']}"
            requests += [
                client.build_request("POST", "/v1/bookings", json=several((slot, 1), (after, 1))),
                client.build_request("POST", "/v1/bookings", json=booking_body(slot)),
                client.build_request("POST", "/v1/bookings", json=booking_body(after, 2)),
                client.build_request("POST", f"{path}/reschedule", json={"slot_id": after}, headers=headers),
            ]
            if number % 2:
                requests.append(client.build_request("POST", f"{path}/cancel", headers=headers))
        answers = await all_at_once(client, requests)
        assert {answer.status_code for answer in answers} <= {200, 201, 409, 503}
        [(negative, wrong)] = service.query(
            "SELECT count(*) FILTER (WHERE available_count < 0), count(*) FILTER (WHERE capacity - available_count <> ("
            "  SELECT coalesce(sum(quantity), 0) FROM bookings AS b WHERE b.slot_id = s.id"
            "  AND b.status IN ('held', 'pending_payment', 'confirmed'))) FROM slots AS s WHERE id = ANY (%s::uuid[])",
            slots,
        )
        assert (negative, wrong) == (0, 0)
        promised = sum(
            sum(each["quantity"] for each in answer.json().get("data", [answer.json()]))
            for answer in answers
            if answer.status_code == 201
        )
        cancelled = sum(answer.json().get("status") == "cancelled" for answer in answers if answer.status_code == 200)
        [(sold,)] = service.query(
            "SELECT sum(capacity - available_count) FROM slots WHERE id = ANY (%s::uuid[])", slots
        )
        assert sold == len(seeds) - cancelled + promised
        await asyncio.sleep(0)
        for slot in slots:
            if service.redis is not None:
                [(taken,)] = service.query("SELECT capacity - available_count FROM slots WHERE id = %s", slot)
                eventually(lambda: mirrored(service, slot) == (3, taken, 0), "the mirror to agree")  # noqa: B023


OVERLAPS = """
    SELECT count(*) FROM slots AS a JOIN slots AS b ON b.resource_id = a.resource_id AND b.id > a.id
        AND tstzrange(a.starts_at, a.occupied_until) && tstzrange(b.starts_at, b.occupied_until)
    WHERE a.id = ANY (%s::uuid[]) AND EXISTS (SELECT FROM bookings AS x WHERE x.slot_id = a.id AND x.status = ANY (%s))
        AND EXISTS (SELECT FROM bookings AS y WHERE y.slot_id = b.id AND y.status = ANY (%s))
"""


async def test_a_mixed_crowd_for_one_person_never_overlaps(service: Service) -> None:
    """Bookings, holds, orders, swaps and a cancellation for times half an hour apart that take an hour each."""
    live = ["held", "pending_payment", "confirmed"]
    async with service.client() as client:
        slots = await make_slots(service, client, *[1] * 8, kind="person", hours_apart=0.5)
        first, last = await booked(client, slots[0]), await booked(client, slots[-1])
        swap = {"headers": {"Manage-Token": first["manage_token"]}}
        requests = [client.build_request("POST", "/v1/bookings", json=booking_body(slot)) for slot in slots]
        requests += [client.build_request("POST", "/v1/holds", json={"slot_id": slot}) for slot in slots[2:5]]
        requests += [
            client.build_request("POST", "/v1/bookings", json=several((slots[2], 1), (slots[4], 1))),
            client.build_request("POST", "/v1/bookings", json=several((slots[3], 1), (slots[5], 1))),
            client.build_request("POST", f"/v1/bookings/{first['id']}/reschedule", json={"slot_id": slots[1]}, **swap),
            client.build_request(
                "POST", f"/v1/bookings/{last['id']}/cancel", headers={"Manage-Token": last["manage_token"]}
            ),
        ]
        answers = await all_at_once(client, requests)
        assert {answer.status_code for answer in answers} <= {200, 201, 409, 503}
        assert service.query(OVERLAPS, slots, live, live) == [(0,)]
        for slot in slots:
            [(taken,)] = service.query("SELECT capacity - available_count FROM slots WHERE id = %s", slot)
            rows = "SELECT coalesce(sum(quantity), 0) FROM bookings WHERE slot_id = %s AND status = ANY (%s)"
            assert service.query(rows, slot, live) == [(taken,)]
            if service.redis is not None:
                eventually(lambda: (mirrored(service, slot) or (1, 0, 0))[:2] == (1, taken), "the mirror to agree")  # noqa: B023
