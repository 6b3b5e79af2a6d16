"""Races over HTTP against two worker processes, counted exactly, with Redis and without (S0, S1, S2).

Every test ends with the same question to both stores, the audit log and the API: how many places are sold? The tests
that show that these bite are in test_negative_controls.py.
"""

import asyncio
import random
import uuid

import pytest

from tests.service import (
    CUSTOMER,
    Service,
    all_at_once,
    assert_slot_holds,
    booking_body,
    make_slot,
    make_slots,
    race,
    sold_places,
)

pytestmark = pytest.mark.anyio


async def assert_race(service: Service, capacity: int, parties: list[int], winners: int) -> None:
    async with service.client() as client:
        slot_id = await make_slot(service, client, capacity)
        answers = await race(client, slot_id, parties)
        assert sum(answer.status_code == 201 for answer in answers) == winners
        assert sum(answer.status_code == 409 for answer in answers) == len(parties) - winners
        assert_slot_holds(service, slot_id, capacity, sold_places(answers))


async def test_s0_1_two_requests_for_the_last_place(service: Service):
    async with service.client() as client:
        slot_id = await make_slot(service, client, 1)
        answers = await race(client, slot_id, [1, 1])
        assert sorted(answer.status_code for answer in answers) == [201, 409]
        [refused] = [answer.json() for answer in answers if answer.status_code == 409]
        assert "no longer available for 1 guest" in refused["detail"]
        assert_slot_holds(service, slot_id, 1, 1)


async def test_s0_2_three_requests_for_two_places(service: Service):
    await assert_race(service, 2, [1] * 3, winners=2)


async def test_s0_3_ten_requests_for_five_spots(service: Service):
    await assert_race(service, 5, [1] * 10, winners=5)


async def test_s0_4_three_parties_of_two_for_five_places(service: Service):
    async with service.client() as client:
        slot_id = await make_slot(service, client, 5)
        answers = await race(client, slot_id, [2, 2, 2])
        assert sorted(answer.status_code for answer in answers) == [201, 201, 409]
        [refused] = [answer.json() for answer in answers if answer.status_code == 409]
        assert "no longer available for 2 guests" in refused["detail"]
        assert_slot_holds(service, slot_id, 5, 4)


async def test_s0_6_fifty_requests_for_one_place(service: Service):
    await assert_race(service, 1, [1] * 50, winners=1)


@pytest.mark.parametrize("rivals", [2, 3, 10, 20, 50, 100])
async def test_s1_1_exactly_one_of_n_gets_the_slot(service: Service, rivals: int):
    for _ in range(3):
        await assert_race(service, 1, [1] * rivals, winners=1)


async def test_s2_1_ten_requests_no_overbooking_and_the_losers_are_told_so(service: Service):
    async with service.client() as client:
        slot_id = await make_slot(service, client, 1)
        answers = await race(client, slot_id, [1] * 10)
        refused = [answer.json()["detail"] for answer in answers if answer.status_code == 409]
        assert len(refused) == 9
        assert all(detail.startswith("Slot no longer available") for detail in refused)


async def test_s2_2_the_updated_count_is_returned(service: Service):
    async with service.client() as client:
        slot_id = await make_slot(service, client, 10)
        answers = await race(client, slot_id, [1] * 10)
        assert sorted(answer.json()["available_count"] for answer in answers) == list(range(10))


@pytest.mark.parametrize("capacity", [1, 30])
async def test_three_hundred_at_one_instant(service: Service, capacity: int):
    await assert_race(service, capacity, [1] * 300, winners=capacity)


@pytest.mark.parametrize("seed", range(6))
async def test_parties_of_all_sizes_fill_slots_of_all_sizes(service: Service, seed: int):
    dice = random.Random(seed)
    capacity = dice.randint(1, 50)
    parties = [dice.randint(1, min(10, capacity)) for _ in range(dice.choice([20, 50, 100]))]
    async with service.client() as client:
        slot_id = await make_slot(service, client, capacity)
        answers = await race(client, slot_id, parties)
        sold = sold_places(answers)
        assert sold <= capacity
        # Places only went down: whoever was refused would not fit now either. A refusal was true.
        refused = [answer.json()["requested"] for answer in answers if answer.status_code == 409]
        assert all(party > capacity - sold for party in refused)
        assert_slot_holds(service, slot_id, capacity, sold)


async def test_s2_4_bookings_of_different_slots_never_disturb_each_other(service: Service):
    async with service.client() as client:
        slots = await make_slots(service, client, *[1] * 20)
        requests = [
            client.build_request("POST", "/v1/bookings", json=booking_body(slot_id)) for slot_id in slots for _ in "123"
        ]
        answers = await all_at_once(client, requests)
        for number, slot_id in enumerate(slots):
            mine = answers[3 * number : 3 * number + 3]
            assert sorted(answer.status_code for answer in mine) == [201, 409, 409]
            assert_slot_holds(service, slot_id, 1, 1)


async def test_holds_race_as_bookings_do_and_become_exactly_that_many(service: Service):
    async with service.client() as client:
        slot_id = await make_slot(service, client, 7)
        requests = [client.build_request("POST", "/v1/holds", json={"slot_id": slot_id}) for _ in range(40)]
        answers = await all_at_once(client, requests)
        tokens = [answer.json()["token"] for answer in answers if answer.status_code == 201]
        assert len(tokens) == 7
        assert sold_places([answer for answer in answers if answer.status_code == 409]) == 0
        # Each token is used twice at the same instant, against newcomers.
        requests = [
            client.build_request("POST", "/v1/bookings", json={"hold_token": token, "customer": CUSTOMER})
            for token in tokens * 2
        ]
        requests += [client.build_request("POST", "/v1/bookings", json=booking_body(slot_id)) for _ in range(20)]
        answers = await all_at_once(client, requests)
        assert sum(answer.status_code == 201 for answer in answers) == 7
        codes = {answer.json()["code"] for answer in answers if answer.status_code != 201}
        assert codes == {"already_resolved", "slot_unavailable"}
        assert_slot_holds(service, slot_id, 7, 7)


async def test_fifty_copies_of_one_keyed_request_are_one_booking(service: Service):
    async with service.client() as client:
        slot_id = await make_slot(service, client, 1)
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        requests = [
            client.build_request("POST", "/v1/bookings", json=booking_body(slot_id), headers=headers) for _ in range(50)
        ]
        answers = await all_at_once(client, requests)
        assert {answer.status_code for answer in answers} == {201}
        assert len({answer.content for answer in answers}) == 1  # word for word the same
        assert sum("Idempotency-Replayed" not in answer.headers for answer in answers) == 1
        assert_slot_holds(service, slot_id, 1, 1)


async def test_a_key_used_for_different_requests_at_once_books_one_of_them(service: Service):
    async with service.client() as client:
        slots = await make_slots(service, client, *[5] * 10)
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        requests = [
            client.build_request("POST", "/v1/bookings", json=booking_body(slot_id), headers=headers)
            for slot_id in slots
        ]
        answers = await all_at_once(client, requests)
        assert sorted(answer.status_code for answer in answers) == [201] + [422] * 9
        sold = [answer.status_code == 201 for answer in answers]
        for slot_id, winner in zip(slots, sold, strict=True):
            assert_slot_holds(service, slot_id, 5, int(winner))


async def test_twenty_cancellations_at_once_give_the_places_back_once(service: Service):
    async with service.client() as client:
        slot_id = await make_slot(service, client, 4)
        booked = [(await client.post("/v1/bookings", json=booking_body(slot_id, 2))).json() for _ in "12"]
        headers = {"Manage-Token": booked[0]["manage_token"]}
        path = f"/v1/bookings/{booked[0]['id']}/cancel"
        answers = await all_at_once(client, [client.build_request("POST", path, headers=headers) for _ in range(20)])
        assert {(answer.status_code, answer.json()["status"]) for answer in answers} == {(200, "cancelled")}
        assert {answer.json()["available_count"] for answer in answers} == {2}
        assert_slot_holds(service, slot_id, 4, 2)


async def test_a_cancelled_place_is_for_sale_at_once_to_exactly_one(service: Service):
    async with service.client() as client:
        slot_id = await make_slot(service, client, 1)
        for _ in range(5):
            answers = await race(client, slot_id, [1] * 10)
            [winner] = [answer.json() for answer in answers if answer.status_code == 201]
            assert_slot_holds(service, slot_id, 1, 1)
            headers = {"Manage-Token": winner["manage_token"]}
            cancelled = await client.post(f"/v1/bookings/{winner['id']}/cancel", headers=headers)
            assert cancelled.json()["available_count"] == 1
            assert_slot_holds(service, slot_id, 1, 0)


async def test_bookings_holds_releases_and_cancellations_in_any_order_keep_the_count(service: Service):
    capacity, dice = 12, random.Random(7)
    async with service.client() as client:
        slot_id = await make_slot(service, client, capacity)

        async def customer(number: int) -> int:
            """One customer's way through the shop; returns the places that they end up with."""
            party = dice.randint(1, 4)
            if number % 3 == 0:
                held = await client.post("/v1/holds", json={"slot_id": slot_id, "quantity": party})
                if held.status_code == 409:
                    return 0
                token = held.json()["token"]
                if number % 2:
                    gone = await client.delete(f"/v1/holds/{held.json()['id']}", headers={"Hold-Token": token})
                    assert gone.status_code == 204
                    return 0
                booked = await client.post("/v1/bookings", json={"hold_token": token, "customer": CUSTOMER})
                assert booked.status_code == 201, booked.text  # one's own hold never blocks
            else:
                booked = await client.post("/v1/bookings", json=booking_body(slot_id, party))
                if booked.status_code == 409:
                    return 0
                assert booked.status_code == 201, booked.text
            if number % 4 == 1:
                headers = {"Manage-Token": booked.json()["manage_token"]}
                ended = await client.post(f"/v1/bookings/{booked.json()['id']}/cancel", headers=headers)
                assert ended.status_code == 200
                return 0
            return party

        sold = sum(await asyncio.gather(*(customer(number) for number in range(120))))
        assert sold <= capacity
        assert_slot_holds(service, slot_id, capacity, sold)


async def test_s0_9_each_booking_is_audited_in_its_own_transaction(service: Service):
    async with service.client() as client:
        slot_id = await make_slot(service, client, 3)
        await race(client, slot_id, [1] * 10)
        [(bookings, same)] = service.query(
            "SELECT count(*), count(*) FILTER (WHERE mod(e.xid::text::bigint, 4294967296) = b.xmin::text::bigint)"
            " FROM bookings AS b JOIN events AS e ON e.booking_id = b.id AND e.type = 'booking.confirmed'"
            " WHERE b.slot_id = %s",
            slot_id,
        )
        assert (bookings, same) == (3, 3)
        answer = await client.get(f"/v1/events?slot_id={slot_id}&type=booking.confirmed", headers=service.operator)
        assert len(answer.json()["data"]) == 3


async def test_as_many_rivals_as_places_all_get_one(service: Service):
    """Between a commit and its settle a place is both held and booked: it must not count twice."""
    for _ in range(3):
        await assert_race(service, 100, [1] * 100, winners=100)


@pytest.mark.parametrize("capacity", [1, 30])
async def test_a_crowd_is_turned_away_by_redis_alone(with_redis: Service, capacity: int):
    """A crowd waits for its turns at Redis; whoever took that for a dead Redis would send it to Postgres."""
    before = with_redis.metric("holdfast_outcomes_total", operation="book", outcome="refused_early")
    await assert_race(with_redis, capacity, [1] * 300, winners=capacity)
    after = with_redis.metric("holdfast_outcomes_total", operation="book", outcome="refused_early")
    assert after - before == 300 - capacity


async def test_s1_2_redis_turns_away_without_touching_postgres(with_redis: Service):
    async with with_redis.client() as client:
        slot_id = await make_slot(with_redis, client, 1)
        assert (await client.post("/v1/bookings", json=booking_body(slot_id))).status_code == 201
        assert_slot_holds(with_redis, slot_id, 1, 1)
        before = with_redis.metric("holdfast_outcomes_total", operation="book", outcome="refused_early")
        answers = await race(client, slot_id, [1] * 50)
        assert {answer.status_code for answer in answers} == {409}
        after = with_redis.metric("holdfast_outcomes_total", operation="book", outcome="refused_early")
        assert after - before == 50


async def test_the_backstop_is_never_needed_while_redis_is_healthy(with_redis: Service):
    before = with_redis.metric("holdfast_backstop_conflicts_total")  # of other tests, which share the service
    async with with_redis.client() as client:
        slot_id = await make_slot(with_redis, client, 20)
        answers = await race(client, slot_id, [1] * 100)
        assert sold_places(answers) == 20
    assert with_redis.metric("holdfast_backstop_conflicts_total") == before
    assert with_redis.metric("holdfast_degraded") == 0
