"""`holdfast doctor`: is everything as the promises need it? Looks, changes nothing, and says what to do."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import rich_click as click

from app.cli.failing import CONFLICT, DONE, FAILED, UNREACHABLE
from app.cli.show import emit, number, out, table
from app.settings import Settings, SettingsError, from_env

if TYPE_CHECKING:
    import psycopg
#: Deadlines are made on one clock and read on another. The hold's life is minutes: a second does not matter yet.
MAX_SKEW_SECONDS = 2.0
#: One that takes longer than that says nothing.
LOOKS_AT_A_CLOCK = 3
#: The invariants read whole tables; on a large database this may take its time, but not for ever.
STATEMENT_TIMEOUT = "60s"

MIN_REDIS, MIN_POSTGRES = (6, 2), 150_000

MONEY = "Money adds up: paid means booked, or refunded once"
#: What must not be found in any committed state (I1, I2 and S0-11): every query answers with the slots that break it,
#: and that of the money with payments or bookings.
INVARIANTS = {
    "No slot is oversold": """
        SELECT b.slot_id FROM bookings AS b JOIN slots AS s ON s.id = b.slot_id
        WHERE b.status IN ('held', 'pending_payment', 'confirmed')
        GROUP BY b.slot_id, s.capacity HAVING sum(b.quantity) > s.capacity""",
    "No available_count is negative": "SELECT id FROM slots WHERE available_count < 0 OR available_count > capacity",
    "available_count is capacity less live bookings": """
        SELECT s.id FROM slots AS s LEFT JOIN (
            SELECT slot_id, sum(quantity) AS taken FROM (
                SELECT slot_id, quantity FROM bookings WHERE status IN ('held', 'pending_payment', 'confirmed')
                UNION ALL
                SELECT id, 1 FROM blocks WHERE removed_at IS NULL) AS takers GROUP BY slot_id) AS live
            ON live.slot_id = s.id
        WHERE s.available_count <> s.capacity - coalesce(live.taken, 0)""",
    "An exclusive slot has at most one live booking": """
        SELECT b.slot_id FROM bookings AS b JOIN slots AS s ON s.id = b.slot_id
        WHERE s.capacity = 1 AND b.status IN ('held', 'pending_payment', 'confirmed')
        GROUP BY b.slot_id HAVING count(*) > 1""",
    "Nobody is in two places at once": """
        SELECT id FROM (
            SELECT s.id, s.starts_at, max(s.ends_at) OVER (
                PARTITION BY s.resource_id ORDER BY s.starts_at, s.id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ) AS busy_until
            FROM slots AS s JOIN resources AS r ON r.id = s.resource_id
            WHERE r.kind <> 'event' AND (
                EXISTS (SELECT FROM bookings AS b WHERE b.slot_id = s.id
                    AND b.status IN ('held', 'pending_payment', 'confirmed'))
                OR EXISTS (SELECT FROM blocks AS b WHERE b.id = s.id AND b.removed_at IS NULL))) AS occupied_slots
        WHERE busy_until > starts_at""",
    MONEY: "SELECT coalesce(payment_id, booking_id) FROM money_mismatches",
    "Whoever was offered places from the waiting list has them": """
        SELECT w.offered_slot_id FROM waiting_entries AS w LEFT JOIN bookings AS b ON b.id = w.hold_id
        WHERE w.status = 'offered' AND (b.id IS NULL OR b.status NOT IN ('held', 'pending_payment'))""",
}

#: Layer 3 and what keeps the counts. Without one of these the database would believe anything.
TRIGGERS = (
    "blocks_keep_occupied",
    "blocks_never_move",
    "bookings_inserted",
    "bookings_updated",
    "bookings_deleted",
    "bookings_follow_transitions",
    "bookings_never_truncated",
    "bookings_confirmed_when_paid",
    "bookings_end_offers",
    "bookings_end_offers_deleted",
    "bookings_wanted_deleted",
    "bookings_wanted_updated",
    "events_append_only",
    "occupied_kept_by_bookings",
    "payments_follow_transitions",
    "payments_never_deleted",
    "refunds_follow_transitions",
    "refunds_never_deleted",
    "slots_begin_empty",
    "slots_guard_changes",
    "slots_wanted_changed",
    "slots_wanted_inserted",
    "waiting_entries_follow_transitions",
)
CONSTRAINTS = (
    "slots_available_count_range",
    "slots_blocks_are_never_sold",
    "slots_exclusive_is_capacity_one",
    "bookings_of_a_slot",
    "bookings_quantity_range",
    "bookings_status_known",
    "occupied_one_thing_at_a_time",
    "payments_session_unique",
    "payments_refund_of_what_was_paid",
    "webhook_deliveries_once_per_event",
)
INDEXES = (
    "bookings_one_live_on_exclusive_slot",
    "bookings_one_per_idempotency_key",
    "bookings_pkey",
    "payments_one_per_booking",
    "waiting_entries_one_live_per_email",
    "waiting_entries_one_per_hold",
)

NAME_THE_PROXIES = "set HOLDFAST_TRUSTED_PROXIES to your proxies, or to none: then every client is limited for itself"
_UNNAMED = "and nobody said who the proxies are: all customers behind one are one client"

Verdict = Literal["ok", "warning", "failed", "violated", "unreachable"]


class Check(msgspec.Struct, frozen=True):
    name: str
    verdict: Verdict
    found: str
    hint: str = ""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One object for programs.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check settings, stores, clocks, the rules in the database, and that no promise is broken.

    Exits 5 when a store cannot be reached, 4 when an invariant is violated, 1 for anything else.
    """
    checks = list(_checks())
    verdicts = {check.verdict for check in checks}
    if as_json:
        emit({"ok": not verdicts - {"ok", "warning"}, "checks": checks})
    else:
        _print(checks)
    codes: tuple[tuple[Verdict, int], ...] = (("unreachable", UNREACHABLE), ("violated", CONFLICT), ("failed", FAILED))
    ctx.exit(next((code for verdict, code in codes if verdict in verdicts), DONE))


def _print(checks: list[Check]) -> None:
    marks = {"ok": "[green]✓[/]", "warning": "[yellow]![/]"}
    rows = table("", "Check", "Found")
    for check in checks:
        hint = f"\n[yellow]→ {check.hint}[/]" if check.hint and check.verdict != "ok" else ""
        rows.add_row(marks.get(check.verdict, "[red]✗[/]"), check.name, check.found + hint)
    out().print(rows)


def _checks() -> Iterator[Check]:
    from app.cli.home import store_settings

    yield from _settings_checks()
    try:
        settings = store_settings()
    except SettingsError as error:
        yield Check("Stores", "unreachable", str(error), "set REDIS_URL and DATABASE_URL, or start `holdfast demo`")
        return
    yield from _postgres(settings)
    yield from _redis(settings)


def _settings_checks() -> Iterator[Check]:
    """Check what `serve` would start with; a demo has made its own."""
    from app.cli.home import home_dir, read_run

    if not os.environ.get("REDIS_URL") and (run := read_run(home_dir())):
        yield Check("Settings", "ok", f"of the demo in {home_dir()}, process {run.pid}")
        return
    try:
        settings = from_env()
    except SettingsError as error:
        yield Check("Settings", "failed", str(error), "`holdfast serve` would not start")
        return
    yield Check("Settings", "ok", f"complete, {settings.workers} workers on {settings.host}:{settings.port}")
    yield from _limits_checks(settings)
    if settings.production and not settings.public_url.startswith("https://"):
        hint = "set HOLDFAST_PUBLIC_URL to the https address that customers use: links, cookies and HSTS follow it"
        yield Check("Public address", "warning", settings.public_url, hint)


def _limits_checks(settings: Settings) -> Iterator[Check]:
    if settings.trusted_proxies is not None:
        return
    if settings.rate_limit is not None or settings.holds_per_client:
        yield Check("Limits", "warning", f"on, {_UNNAMED}", NAME_THE_PROXIES)
    elif settings.production:
        yield Check("Limits", "warning", "off: nobody said who the proxies are", NAME_THE_PROXIES)


def _venues_limits(connection: "psycopg.Connection[Any]") -> Iterator[Check]:
    """Look for venues with a limit of their own, which holds whether or not anybody said who the proxies are."""
    [limited] = _first(connection, "SELECT count(*) FROM venues WHERE holds_per_client > 0")
    if limited and not os.environ.get("HOLDFAST_TRUSTED_PROXIES", "").strip():
        yield Check("Limits of venues", "warning", f"{number(limited, 'venue')}, {_UNNAMED}", NAME_THE_PROXIES)


# -- Postgres ---------------------------------------------------------------------------------------------------------


def _postgres(settings: Settings) -> Iterator[Check]:
    import psycopg

    options = f"-c statement_timeout={STATEMENT_TIMEOUT} -c default_transaction_read_only=on"
    try:
        with psycopg.connect(settings.database_url, connect_timeout=3, autocommit=True, options=options) as connection:
            yield from _postgres_checks(connection, settings)
    except psycopg.OperationalError as error:
        reason = str(error).strip().splitlines()[0]
        yield Check("Postgres", "unreachable", reason, "is it running, and is DATABASE_URL right?")


def _postgres_checks(connection: "psycopg.Connection[Any]", settings: Settings) -> Iterator[Check]:
    from app.cli.stores import schema_problem

    version = connection.info.server_version
    yield _judged(
        "Postgres", version >= MIN_POSTGRES, f"version {version // 10_000}.{version % 10_000}", "use 15 or newer"
    )
    [standby] = _first(connection, "SELECT pg_is_in_recovery()")
    yield _judged(
        "Takes writes", not standby, "no: a standby" if standby else "yes", "point DATABASE_URL to the primary"
    )
    problem = schema_problem(settings.database_url)
    yield _judged("Schema", problem is None, problem or "newest", "run `holdfast db upgrade`")
    yield _clock(
        "Postgres' clock", lambda: float(_first(connection, "SELECT extract(epoch FROM clock_timestamp())")[0])
    )
    [synchronous] = _first(connection, "SHOW synchronous_commit")
    hint = "an acknowledged booking may be lost in a crash: set synchronous_commit = on"
    yield _judged("Acknowledged is durable", synchronous != "off", f"synchronous_commit {synchronous}", hint)
    if problem and "no schema" in problem:
        return
    yield from _rules(connection)
    if problem is None:
        yield from _venues_limits(connection)
    for name, query in INVARIANTS.items():
        broken = [str(row[0]) for row in connection.execute(query).fetchmany(1000)]
        noun = "payment" if name == MONEY else "slot"
        found = f"{number(len(broken), noun)}, such as {broken[0]}" if broken else "0 rows"
        hint = "stop selling these slots; `holdfast events tail --slot …` tells what happened"
        if name == MONEY:
            hint = (
                "`holdfast payments list --refund failed`, then `holdfast payments refund` (with --by-hand to note it)"
            )
        yield Check(name, "violated" if broken else "ok", found, hint)


def _rules(connection: "psycopg.Connection[Any]") -> Iterator[Check]:
    """Look the rules up in the catalogue: a disabled trigger or an invalid index keeps nothing."""
    queries = (
        ("Triggers", TRIGGERS, "SELECT tgname FROM pg_trigger WHERE tgname = ANY (%s) AND tgenabled IN ('O', 'A')"),
        ("Constraints", CONSTRAINTS, "SELECT conname FROM pg_constraint WHERE conname = ANY (%s) AND convalidated"),
        (
            "Unique indexes",
            INDEXES,
            "SELECT c.relname FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid"
            " WHERE c.relname = ANY (%s) AND i.indisvalid AND i.indisready AND i.indisunique",
        ),
    )
    for name, wanted, query in queries:
        missing = sorted(set(wanted) - {row[0] for row in connection.execute(query, (list(wanted),))})
        found = f"missing or disabled: {', '.join(missing)}" if missing else f"{len(wanted)} in force"
        yield Check(name, "violated" if missing else "ok", found, "restore them before anything else is sold")


# -- Redis ------------------------------------------------------------------------------------------------------------


def _redis(settings: Settings) -> Iterator[Check]:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    url, once = settings.redis_url, Retry(NoBackoff(), 0)
    limits: dict[str, Any] = {"socket_timeout": 3, "socket_connect_timeout": 3, "retry": once, "decode_responses": True}
    try:
        if "+cluster://" in url:
            client: Any = redis.RedisCluster.from_url(url.replace("+cluster", "", 1), **limits)
        else:
            client = redis.Redis.from_url(url, **limits)
        with contextlib.closing(client):
            yield from _redis_checks(client)
    except (redis.RedisError, OSError) as error:
        yield Check(
            "Redis", "unreachable", str(error), "bookings go on without it; holds are rows in Postgres meanwhile"
        )


def _redis_checks(client: Any) -> Iterator[Check]:
    info = _of_first_node(client.info())
    version = str(info["redis_version"])
    new_enough = tuple(int(part) for part in version.split(".")[:2]) >= MIN_REDIS
    yield _judged("Redis", new_enough, f"version {version}", "use Redis 6.2 or newer, or Valkey")
    policy = str(info.get("maxmemory_policy", "unknown"))
    found, hint = f"maxmemory-policy {policy}", "it deletes holds to make room: set maxmemory-policy noeviction"
    yield _judged("Keeps every hold", policy in ("noeviction", "unknown"), found, hint)
    writes = info.get("role") == "master" and info.get("rdb_last_bgsave_status", "ok") == "ok"
    yield _judged("Takes writes", writes, str(info.get("role")), "point REDIS_URL to the primary; look at its disk")
    kept = bool(info.get("aof_enabled"))
    found = "append-only file" if kept else "snapshots at most"
    yield Check("Survives a restart", "ok" if kept else "warning", found, "holds are lost then: set appendonly yes")
    yield _scripts(client)
    yield _clock("Redis' clock", lambda: _seconds(_of_first_node(client.time())))


def _scripts(client: Any) -> Check:
    from app.pipelines import read_scripts

    scripts = read_scripts()
    refused = [name for name, script in scripts.items() if client.script_load(script.text) != script.sha]
    found = f"refused: {', '.join(refused)}" if refused else f"{len(scripts)} loaded"
    return Check("Scripts", "failed" if refused else "ok", found, "this server is not Redis enough")


def _of_first_node(answer: Any) -> Any:
    """A cluster answers for each node; the first one speaks for all."""
    if isinstance(answer, dict) and answer and all(isinstance(value, dict | tuple | list) for value in answer.values()):
        return next(iter(answer.values()))
    return answer


def _seconds(at: "tuple[int, int]") -> float:
    return at[0] + at[1] / 1e6


# -- common -----------------------------------------------------------------------------------------------------------


def _clock(name: str, read: Callable[[], float]) -> Check:
    """Compare a store's clock with ours, as exactly as the round trip allows."""
    for _ in range(LOOKS_AT_A_CLOCK):
        before = time.time()
        theirs = read()
        after = time.time()
        if after - before <= MAX_SKEW_SECONDS:  # else somebody stood still in between, and nothing can be said
            skew = theirs - (before + after) / 2
            good = abs(skew) <= MAX_SKEW_SECONDS
            return _judged(name, good, f"{skew * 1000:+.0f} ms from ours", "run NTP on both machines")
    return Check(name, "warning", "it answers too slowly to tell", "look again when the machines have less to do")


def _judged(name: str, good: bool, found: str, hint: str) -> Check:
    return Check(name, "ok" if good else "failed", found, hint)


def _first(connection: "psycopg.Connection[Any]", query: str) -> Any:
    return connection.execute(query).fetchone()
