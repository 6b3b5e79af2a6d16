"""What the logs say, and above all what they do not say."""

import asyncio
import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import structlog

from app import telemetry
from tests import factories
from tests.service import CUSTOMER, Postgres, RedisServer, eventually, serving


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Configure logging into memory; calling the fixture returns what was logged, decoded."""
    written = io.TextIOWrapper(io.BytesIO(), write_through=True)
    root = logging.getLogger()
    before = root.handlers[:], root.level
    monkeypatch.setattr(sys, "stderr", written)
    telemetry.configure_logging()
    yield lambda: [json.loads(line) for line in written.buffer.getvalue().splitlines()]  # type: ignore[attr-defined]
    structlog.reset_defaults()
    root.handlers, root.level = before


def test_a_line_is_one_json_object_whoever_writes_it(lines: Any) -> None:
    structlog.get_logger().info("ours", text="a\r\nb")
    logging.getLogger("uvicorn.error").warning("theirs %s", "\nforged line")
    logging.getLogger("uvicorn.access").info("GET /?token=secret")
    ours, theirs = lines()
    assert (ours["event"], ours["text"], ours["level"]) == ("ours", "a\r\nb", "info")
    assert theirs["event"] == "theirs \nforged line"


def test_an_exception_is_told_without_the_row_it_is_about(lines: Any) -> None:
    try:
        try:
            raise psycopg.IntegrityError("violates a constraint\nDETAIL: Failing row contains (ada@example.com)")
        except psycopg.IntegrityError as error:
            raise RuntimeError("went wrong") from error
    except RuntimeError:
        structlog.get_logger().exception("unforeseen")
    (line,) = lines()
    assert [(told["type"], told["message"]) for told in line["exception"]] == [
        ("RuntimeError", "went wrong"),
        ("IntegrityError", "violates a constraint"),
    ]
    assert "ada" not in json.dumps(line)
    assert all("test_telemetry" in told["at"][-1] for told in line["exception"])


def test_lines_wait_for_each_other_inside_a_loop_and_none_is_lost_with_it() -> None:
    written = io.BytesIO()
    lines = telemetry.LinesTogether(written)

    async def log(*words: bytes) -> bytes:
        for word in words:
            lines.write(word)
            lines.flush()
        return written.getvalue()

    async def log_and_wait() -> None:
        assert await log(b"a\n", b"b\n") == b""
        while not written.getvalue():  # noqa: ASYNC110 nobody tells when a stream was written
            await asyncio.sleep(0.01)

    asyncio.run(log_and_wait())
    assert written.getvalue() == b"a\nb\n"
    assert asyncio.run(log(b"c\n")) == b"a\nb\n"  # its loop ends before its time comes
    lines.write(b"d\n")
    lines.flush()  # outside of a loop nothing waits
    assert written.getvalue() == b"a\nb\nc\nd\n"


def test_nothing_personal_and_no_secret_reaches_the_log(postgres: Postgres, bundled_redis_server: RedisServer) -> None:
    with (
        serving(postgres.fresh(), bundled_redis_server.url, workers=1) as service,
        factories.client(service, operator=True) as operator,
        factories.client(service) as everyone,
    ):
        slot = factories.slot(operator, capacity=5)
        hold = factories.hold(everyone, slot["id"])
        booking = factories.booking(everyone, slot["id"])
        everyone.get(f"/v1/bookings/{booking['id']}?c4n4ry=1", headers={"Manage-Token": booking["manage_token"]})
        everyone.get("/c4n4ry/%0A%0Dforged", headers={"Authorization": "Bearer c4n4ry"})
        everyone.post("/v1/bookings", json={"slot_id": "c4n4ry"})
        everyone.get("/v1/slots", headers={"X-Request-Id": "c4n4ry\u00e9".encode()})
        # The service was given an unnamed file to write to.
        log = Path(f"/proc/{service.process.pid}/fd/2")
        eventually(lambda: log.read_text().count('"event":"request"') >= 9, "the lines of the last requests")
        logged = log.read_text()
    requests = [json.loads(line) for line in logged.splitlines() if '"event":"request"' in line]
    routes = {line["route"] for line in requests}
    assert {"/v1/slots", "/v1/bookings/{booking_id}", "unmatched"} <= routes, logged
    assert all(line.keys() >= {"request_id", "method", "status", "ms"} for line in requests)
    key = service.operator["Authorization"].split()[1]
    for word in ("c4n4ry", "forged", *CUSTOMER.values(), hold["token"], booking["manage_token"], key):
        assert word not in logged


def test_the_lines_of_the_last_moment_are_written_when_a_service_is_stopped(
    postgres: Postgres, bundled_redis_server: RedisServer
) -> None:
    with serving(postgres.fresh(), bundled_redis_server.url, workers=1) as service:
        log = Path(f"/proc/{service.process.pid}/fd/2").open()  # noqa: SIM115 read when its writer is gone
        with factories.client(service) as everyone:
            everyone.get("/v1/slots", headers={"X-Request-Id": "the-last-one"})
    with log:
        assert "the-last-one" in log.read()
