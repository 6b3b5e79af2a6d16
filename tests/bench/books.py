"""The books: what was promised over HTTP, what the driver saw, what Postgres has, and what the mirror tells.

A fast service that answers wrongly is not fast but broken: whatever does not balance here voids the whole run.
"""

import json
import time
from collections.abc import Mapping
from uuid import UUID

import psycopg

from tests.bench.load import Load
from tests.bench.rows import Row
from tests.bench.stack import Server

#: What follows after the reply, such as settling the mirror, may be this late.
MIRROR_SECONDS = 20.0

_OFF = """
SELECT count(*) FROM slots AS s
LEFT JOIN (SELECT slot_id, sum(quantity) AS places FROM bookings
           WHERE status IN ('held', 'pending_payment', 'confirmed') GROUP BY slot_id) AS b ON b.slot_id = s.id
WHERE s.available_count <> s.capacity - coalesce(b.places, 0)
"""
_OFF_TEXTBOOK = """
SELECT count(*) FROM slots_textbook AS s
LEFT JOIN (SELECT slot_id, sum(quantity) AS places FROM bookings_textbook GROUP BY slot_id) AS b ON b.slot_id = s.id
WHERE s.available_count <> s.capacity - coalesce(b.places, 0)
"""


class Books:
    """Of one server, from its start. `wrongs` stays empty, or says in sentences what is not true."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.wrongs: list[str] = []
        self._hot: set[UUID] = set()
        self._by_tool = 0
        #: What the driver of the sample before may have left behind, where a stall kept it from ending with it.
        self._late: dict[tuple[str, str], int] = {}
        self._booked_before = self._one("SELECT count(*) FROM bookings")
        self._textbook_before = self._one("SELECT count(*) FROM bookings_textbook")
        self._answers_before = server.answers()

    def check(self, row: Row, got: Load, given: Mapping[tuple[str, str], int]) -> None:
        """After one sample: every answer is the one that the row is about, and the driver saw no other."""
        right = given.get((row.path, row.status), 0)
        # When its time is up, the driver hangs up on requests that are still answered; 400 where a body was cut off.
        cut_off = given.get((row.path, "400"), 0)
        known = {(row.path, row.status), (row.path, "400")}
        late, self._late = self._late, dict.fromkeys(known, max(0, got.requests + row.connections - right - cut_off))
        others = {" ".join(key): count for key, count in given.items() if key not in known and count > late.get(key, 0)}
        if others:
            self._wrong(row, f"answers other than {row.status}: {others}. {self.server.last_words()}")
        if got.requests == 0:
            self._wrong(row, "nothing was answered")
        if got.broken:
            self._wrong(row, f"{got.broken} connections broke or timed out")
        if got.not_2xx != (0 if row.status.startswith("2") else got.requests):
            self._wrong(row, f"{got.not_2xx} of {got.requests} answers were no success")
        most = got.requests + row.connections + late.get((row.path, row.status), 0)
        if not got.requests <= right <= right + cut_off <= most:
            self._wrong(
                row, f"the driver saw {got.requests} answers, the service counted {right} and {cut_off} cut off"
            )

    def remember(self, slot_id: UUID) -> None:
        """Have this slot looked at through the API as well, at the end."""
        self._hot.add(slot_id)

    def booked_by_tool(self, count: int) -> None:
        self._by_tool += count

    def close(self) -> None:
        """At the end: compare all that was promised with Postgres, slot by slot, and with what the service tells."""
        given = self.server.settled_answers() - self._answers_before
        if broken := {" ".join(key): count for key, count in given.items() if key[1].startswith("5")}:
            self.wrongs.append(f"answers of 500 and above: {broken}")
        booked = self._one("SELECT count(*) FROM bookings") - self._booked_before
        promised = given["/v1/bookings", "201"] + self._by_tool
        if booked != promised:
            self.wrongs.append(f"{promised} bookings were promised, Postgres has {booked}")
        booked = self._one("SELECT count(*) FROM bookings_textbook") - self._textbook_before
        promised = given["/bench/textbook", "201"]
        if booked != promised:
            self.wrongs.append(f"textbook: {promised} bookings were promised, Postgres has {booked}")
        if off := self._one(_OFF) + self._one(_OFF_TEXTBOOK):
            self.wrongs.append(f"available_count is not capacity less bookings in {off} slots")
        for slot_id in self._hot:
            self._check_told(slot_id)

    def _check_told(self, slot_id: UUID) -> None:
        """The service tells what Postgres has, and its mirror follows: once all is settled, nothing is held."""
        available = self._one("SELECT available_count FROM slots WHERE id = %s", slot_id)
        deadline = time.monotonic() + MIRROR_SECONDS
        while True:
            status, body = self.server.get(f"/v1/slots/{slot_id}")
            told = json.loads(body) if status == 200 else {}
            if (told.get("available_count"), told.get("available")) == (available, available):
                return
            if time.monotonic() > deadline:
                self.wrongs.append(f"slot {slot_id} has {available} places left, the service tells {told or status}")
                return
            time.sleep(0.5)

    def transactions(self) -> int:
        """Count what Postgres has done in this database, as far as its backends have told it yet."""
        return self._one("SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()")

    def refused(self) -> int:
        return self.server.answers()["/v1/bookings", "409"]

    def _wrong(self, row: Row, sentence: str) -> None:
        self.wrongs.append(f"{row.title}: {sentence}")

    def _one(self, query: str, *values: object) -> int:
        with psycopg.connect(self.server.stores.database_url, autocommit=True) as connection:
            row = connection.execute(query, values).fetchone()
        assert row is not None
        return int(row[0])
