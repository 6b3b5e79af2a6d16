"""Jobs that failed, as operators see them: listed without anything personal, and given another chance."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import psycopg
import pytest

from app import queued
from app.errors import Busy, DatabaseUnavailable
from tests import factories
from tests.service import CLIENT_SECONDS, START_SECONDS, Service, engine_on, eventually, free_port, store_environ
from tests.shop import running_worker


@pytest.fixture
def operator(with_redis: Service) -> Iterator[httpx.Client]:
    with factories.client(with_redis, operator=True) as client:
        yield client


def queue(service: Service, task: str, arguments: str, status: str = "todo", lock: str | None = None) -> int:
    """Queue a job past the service."""
    options = "-c search_path=public,jobs"  # the triggers of the queue name its types without their schema
    with psycopg.connect(service.database_url, autocommit=True, options=options) as connection:
        [job_id] = connection.execute(
            "INSERT INTO procrastinate_jobs (queue_name, task_name, args, status, queueing_lock)"
            " VALUES ('default', %s, %s, %s, %s) RETURNING id",
            (task, arguments, status, lock),
        ).fetchone() or [0]
    return int(job_id)


def test_a_job_that_failed_tells_why_and_is_done_when_its_reason_is_gone(
    with_redis: Service, operator: httpx.Client
) -> None:
    slot_id = factories.slot(operator)["id"]
    job_id = queue(with_redis, "tell_mirror", '{"slot_id": "nobody", "nothing": null}')
    service = with_redis

    def listed(status: str) -> list[dict[str, object]]:
        data = operator.get("/v1/jobs", params={"status": status}).json()["data"]
        return [job for job in data if job["id"] == job_id]

    assert [job["attempts"] for job in listed("waiting")] == [0]
    environ, port = store_environ(service.database_url, service.redis.url if service.redis else ""), free_port()
    with running_worker(environ, "--metrics-port", str(port)):
        eventually(lambda: listed("failed") != [], "the job to fail", seconds=START_SECONDS)
        [failed] = listed("failed")
        assert (failed["task"], failed["about"], failed["attempts"]) == ("tell_mirror", {"slot_id": "nobody"}, 1)
        assert (failed["error"], failed["status"], failed["next_at"]) == ("TypeError", "failed", None)
        assert failed["failed_at"] is not None

        told = httpx.get(
            f"http://127.0.0.1:{port}/metrics", timeout=CLIENT_SECONDS
        ).text  # no HTTP worker knows what a job worker did
        assert 'holdfast_jobs_total{outcome="failed",task="tell_mirror"} 1.0' in told

        service.query(
            "UPDATE jobs.procrastinate_jobs SET args = args - 'nothing' || jsonb_build_object('slot_id', %s::text)"
            " WHERE id = %s RETURNING 1",
            slot_id,
            job_id,
        )
        again = operator.post(f"/v1/jobs/{job_id}/retry")
        assert (again.status_code, again.json()["attempts"]) == (200, 0)
        gone = "SELECT 1 FROM jobs.procrastinate_jobs WHERE id = %s"
        eventually(lambda: service.query(gone, job_id) == [], "the job to be done")
    told = "SELECT actor, data ->> 'task' FROM events WHERE type = 'job.retried' AND data ->> 'job_id' = %s"
    assert service.query(told, str(job_id)) == [("operator", "tell_mirror")]


def test_a_job_that_waits_already_is_left_alone(with_redis: Service, operator: httpx.Client) -> None:
    job_id = queue(with_redis, "tell_mirror", "{}", status="failed")
    key = {"Idempotency-Key": f"retry-{job_id}"}
    first = operator.post(f"/v1/jobs/{job_id}/retry", headers=key)
    again = operator.post(f"/v1/jobs/{job_id}/retry", headers=key)
    other = operator.post(f"/v1/jobs/{job_id}/retry")
    assert first.json()["status"] == "waiting"
    assert (again.content, again.headers["idempotency-replayed"]) == (first.content, "true")
    assert other.json() == first.json()
    told = "SELECT count(*) FROM events WHERE type = 'job.retried' AND data ->> 'job_id' = %s"
    assert with_redis.query(told, str(job_id)) == [(1,)]


@pytest.mark.anyio
async def test_what_begins_anew_is_not_told_as_without_effect(
    with_redis: Service, operator: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = queue(with_redis, "tell_mirror", "{}", status="failed")
    assert with_redis.redis is not None
    async with engine_on(with_redis.database_url, with_redis.redis.url) as engine:
        run = engine.ledger.postgres.rows

        async def busy_afterwards(statement: str, values: Any) -> list[Any]:
            if "SET status = 'todo'" not in statement:
                raise Busy
            return await run(statement, values)

        monkeypatch.setattr(engine.ledger.postgres, "rows", busy_afterwards)
        with pytest.raises(DatabaseUnavailable) as told:
            await queued.retry(engine.ledger, job_id, None)
    assert not told.value.effect_none
    again = await asyncio.to_thread(operator.post, f"/v1/jobs/{job_id}/retry")
    assert again.json()["status"] == "waiting"  # asked again, it tells


def test_one_that_was_queued_again_since_stays_as_it_is(with_redis: Service, operator: httpx.Client) -> None:
    failed = queue(with_redis, "close_payment", "{}", status="failed", lock="close_payment:1")
    queue(with_redis, "close_payment", "{}", lock="close_payment:1")
    answer = operator.post(f"/v1/jobs/{failed}/retry")
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")


@pytest.mark.parametrize("odd", ["999999999", "0", "-1", "x", "1.5", "9" * 30])
def test_what_is_no_job_is_not_found(operator: httpx.Client, odd: str) -> None:
    assert operator.post(f"/v1/jobs/{odd}/retry").status_code == 404


def test_jobs_are_listed_page_by_page(with_redis: Service, operator: httpx.Client) -> None:
    made = [queue(with_redis, "look_payment", f'{{"payment_id": "{n}"}}', status="failed") for n in range(3)]
    seen: list[int] = []
    cursor: dict[str, str] = {}
    while True:
        page = operator.get("/v1/jobs", params={"limit": 2, **cursor}).json()
        seen += [job["id"] for job in page["data"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert [job_id for job_id in seen if job_id in made] == made[::-1]
    assert seen == sorted(seen, reverse=True)
