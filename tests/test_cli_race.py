"""`holdfast race`: many buyers for a few places, against a running service."""

import os
from collections.abc import Iterator
from uuid import uuid4

import pytest

from app.cli.home import Run, find_api, published
from tests.redis_servers import RedisServer
from tests.service import OPERATOR_KEY, Postgres, Service, serving, store_environ
from tests.terminal import holdfast

__all__ = ["holdfast"]


@pytest.fixture(scope="module")
def service(postgres: Postgres, bundled_redis_server: RedisServer) -> Iterator[Service]:
    with serving(postgres.fresh(), bundled_redis_server.url, redis=bundled_redis_server, workers=1) as running:
        yield running


def test_s1_1_a_race_for_the_last_place_has_one_winner(service, holdfast, monkeypatch):
    monkeypatch.setenv("API_URL", service.url)
    monkeypatch.setenv("HOLDFAST_OPERATOR_KEY", OPERATOR_KEY)
    monkeypatch.setenv("CONCURRENT_REQUESTS", "20")
    monkeypatch.setenv("TEST_ITERATIONS", "2")
    answer = holdfast("race", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["passed"]
    for one in answer.json["data"]:
        assert (one["total"], one["successful"], one["conflicts"], one["errors"]) == (20, 1, 19, 0)
        assert one["available_count"] == 0


def test_a_race_for_several_places_and_one_that_fails(service, holdfast):
    to = ("--url", service.url, "--operator-key", OPERATOR_KEY)
    text = holdfast("race", *to, "--requests", 10, "--capacity", 4).out
    assert "4, expected 4" in text
    slot_id = holdfast("race", *to, "--requests", 2, "--capacity", 4, "--json").json["data"][0]["slot_id"]
    # Two places are left: whoever expects three winners must be told, as must whoever expects but one.
    failed = holdfast("race", *to, "--slot", slot_id, "--requests", 5, "--capacity", 3, "--json")
    assert (failed.code, failed.json["passed"], failed.json["data"][0]["successful"]) == (1, False, 2)
    slot_id = holdfast("race", *to, "--requests", 2, "--capacity", 4, "--json").json["data"][0]["slot_id"]
    assert holdfast("race", *to, "--slot", slot_id, "--requests", 5).code == 1


def test_all_races_are_at_one_venue_which_no_calendar_asks_about(service, bundled_redis_server, holdfast, monkeypatch):
    for name, value in store_environ(service.database_url, bundled_redis_server.url).items():
        monkeypatch.setenv(name, value)
    to = ("--url", service.url, "--operator-key", OPERATOR_KEY)
    assert [holdfast("race", *to, "--requests", 1).code for _ in range(2)] == [0, 0]
    assert service.query("SELECT slug FROM venues") == [("holdfast-race",)]
    assert "There is no venue yet" in holdfast("calendar").err
    service.query(
        "INSERT INTO venues (id, slug, name, timezone) VALUES (gen_random_uuid(), 'own', 'Own', 'UTC') RETURNING 1"
    )
    assert holdfast("calendar", "--json").json["venue"] == "own"


def test_a_race_of_fewer_buyers_than_winners_is_failed(service, holdfast):
    to = ("--url", service.url, "--operator-key", OPERATOR_KEY)
    answer = holdfast("race", *to, "--requests", 3, "--capacity", 5, "--json")
    [one] = answer.json["data"]
    assert (answer.code, one["successful"], one["expected"], one["errors"]) == (1, 3, 5, 0)


def test_a_demo_has_every_name_of_this_machine(service, holdfast, monkeypatch, tmp_path):
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path))
    monkeypatch.delenv("HOLDFAST_OPERATOR_KEY", raising=False)
    port = service.url.rpartition(":")[2]
    with published(tmp_path, Run("redis://-", "postgresql://-", service.url, OPERATOR_KEY, os.getpid())):
        monkeypatch.setenv("API_URL", f"http://localhost:{port}")
        assert holdfast("race").code == 0
        for host in ("localhost", "127.0.0.1", "[::1]"):
            assert find_api(f"http://{host}:{port}/", None).operator_key == OPERATOR_KEY
        # To nobody else, though: neither to another port nor to another machine.
        for url in ("http://localhost:1", f"http://example.com:{port}", f"https://localhost:{port}"):
            assert find_api(url, None).operator_key is None


@pytest.mark.parametrize("url", ["localhost:8000", "http://localhost:many", "http://[::1", "http://"])
def test_a_race_against_what_is_no_address(holdfast, url):
    answer = holdfast("race", "--url", url, "--operator-key", OPERATOR_KEY)
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert answer.err.startswith("API_URL")


def test_a_race_where_no_demo_runs_says_so(holdfast, monkeypatch, tmp_path):
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path))
    monkeypatch.delenv("HOLDFAST_OPERATOR_KEY", raising=False)
    answer = holdfast("race")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert f"No demo runs in {tmp_path}" in answer.err


def test_a_race_against_nobody_or_without_the_key(service, holdfast):
    away = holdfast("race", "--url", "http://127.0.0.1:1", "--operator-key", OPERATOR_KEY)
    assert (away.code, away.out, away.err.count("\n")) == (5, "", 1)
    unknown = holdfast("race", "--url", service.url, "--slot", uuid4())
    assert (unknown.code, "slot_not_found" in unknown.err) == (3, True)
    answer = holdfast("race", "--url", service.url, "--operator-key", "wrong" * 8)
    assert (answer.code, "401" in answer.err) == (1, True)
