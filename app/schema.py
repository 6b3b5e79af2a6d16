"""The tables for SQLAlchemy Core: for queries, and nothing else.

The database is made by `migrations/`, where every rule has its reason beside it; triggers and functions live only
there. A test keeps these definitions equal to what the migrations make, names included.
"""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSON, JSONB, TIMESTAMP, TSTZRANGE, ExcludeConstraint
from sqlalchemy.types import UserDefinedType

metadata = sa.MetaData()

#: `clock_timestamp`, not `now`: what waited for a lock happened when it got it.
_NOW = sa.text("clock_timestamp()")
_UNRESOLVED = "status IN ('held', 'pending_payment')"


class Xid8(UserDefinedType[str]):
    """A transaction id that never wraps. It has an order but no arithmetic; Python sees it as text."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "xid8"


def _at(name: str, *, nullable: bool = False, default: bool = False) -> sa.Column[Any]:
    return sa.Column(name, TIMESTAMP(timezone=True), nullable=nullable, server_default=_NOW if default else None)


venues = sa.Table(
    "venues",
    metadata,
    sa.Column("id", sa.Uuid, nullable=False),
    sa.Column("slug", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("timezone", sa.Text, nullable=False),
    sa.Column("payment", sa.Text, nullable=False, server_default="on_site"),
    sa.Column("hold_ttl_seconds", sa.Integer),
    sa.Column("hold_max_seconds", sa.Integer, nullable=False, server_default=sa.text("1800")),
    _at("created_at", default=True),
    sa.Column("refund_hours", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("return_origins", ARRAY(sa.Text)),
    sa.Column("waiting_offer_minutes", sa.Integer, nullable=False, server_default=sa.text("15")),
    sa.Column("origins", ARRAY(sa.Text), nullable=False, server_default=sa.text("'{}'::text[]")),
    sa.Column("holds_per_client", sa.Integer),
    sa.PrimaryKeyConstraint("id", name="venues_pkey"),
    sa.UniqueConstraint("slug", name="venues_slug_unique"),
    sa.CheckConstraint("slug ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'", name="venues_slug_form"),
    sa.CheckConstraint("char_length(name) BETWEEN 1 AND 200", name="venues_name_length"),
    sa.CheckConstraint("char_length(timezone) BETWEEN 1 AND 64", name="venues_timezone_length"),
    sa.CheckConstraint("payment IN ('on_site', 'required')", name="venues_payment_known"),
    sa.CheckConstraint("hold_ttl_seconds BETWEEN 1 AND 86400", name="venues_hold_ttl_range"),
    sa.CheckConstraint("hold_max_seconds BETWEEN 1 AND 86400", name="venues_hold_max_range"),
    sa.CheckConstraint("refund_hours BETWEEN 0 AND 8760", name="venues_refund_hours_range"),
    sa.CheckConstraint("cardinality(return_origins) <= 20", name="venues_return_origins_few"),
    sa.CheckConstraint("waiting_offer_minutes BETWEEN 1 AND 1440", name="venues_waiting_offer_range"),
    sa.CheckConstraint("cardinality(origins) <= 20", name="venues_origins_few"),
    sa.CheckConstraint("holds_per_client BETWEEN 0 AND 100000", name="venues_holds_per_client_range"),
)

resources = sa.Table(
    "resources",
    metadata,
    sa.Column("id", sa.Uuid, nullable=False),
    sa.Column("no", sa.BigInteger, sa.Identity(always=True), nullable=False),
    sa.Column("venue_id", sa.Uuid, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("one_at_a_time", sa.Boolean, sa.Computed("kind <> 'event'", persisted=True), nullable=False),
    _at("created_at", default=True),
    _at("slots_due_at", nullable=True),
    sa.Column("schedule_version", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.PrimaryKeyConstraint("id", name="resources_pkey"),
    sa.ForeignKeyConstraint(["venue_id"], ["venues.id"], name="resources_of_a_venue"),
    sa.CheckConstraint("char_length(name) BETWEEN 1 AND 200", name="resources_name_length"),
    sa.CheckConstraint("kind IN ('person', 'place', 'event')", name="resources_kind_known"),
    sa.UniqueConstraint("no", name="resources_no_unique"),
    sa.UniqueConstraint("id", "venue_id", "no", "one_at_a_time", name="resources_identity_for_slots"),
    sa.UniqueConstraint("id", "venue_id", name="resources_identity_for_services"),
    sa.Index("resources_by_venue", "venue_id", "created_at"),
    sa.Index("resources_by_slots_due", "slots_due_at", postgresql_where=sa.text("slots_due_at IS NOT NULL")),
)

services = sa.Table(
    "services",
    metadata,
    sa.Column("id", sa.Uuid, nullable=False),
    sa.Column("venue_id", sa.Uuid, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("duration_minutes", sa.Integer, nullable=False),
    sa.Column("buffer_minutes", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("capacity", sa.Integer, nullable=False, server_default=sa.text("1")),
    sa.Column("price_amount", sa.BigInteger),
    sa.Column("price_currency", sa.Text),
    sa.Column("active", sa.Boolean, nullable=False, server_default=sa.true()),
    _at("created_at", default=True),
    sa.PrimaryKeyConstraint("id", name="services_pkey"),
    sa.ForeignKeyConstraint(["venue_id"], ["venues.id"], name="services_of_a_venue"),
    sa.CheckConstraint("char_length(name) BETWEEN 1 AND 200", name="services_name_length"),
    sa.CheckConstraint("duration_minutes BETWEEN 1 AND 44640", name="services_duration_range"),
    sa.CheckConstraint("buffer_minutes BETWEEN 0 AND 1440", name="services_buffer_range"),
    sa.CheckConstraint("capacity BETWEEN 1 AND 100000", name="services_capacity_range"),
    sa.CheckConstraint("(price_amount IS NULL) = (price_currency IS NULL)", name="services_price_whole"),
    sa.CheckConstraint("price_amount BETWEEN 0 AND 1000000000", name="services_price_range"),
    sa.CheckConstraint("price_currency ~ '^[A-Z]{3}$'", name="services_price_currency_form"),
    sa.UniqueConstraint("id", "venue_id", name="services_identity_for_others"),
    sa.Index("services_by_venue", "venue_id", "created_at"),
)

service_resources = sa.Table(
    "service_resources",
    metadata,
    sa.Column("service_id", sa.Uuid, nullable=False),
    sa.Column("resource_id", sa.Uuid, nullable=False),
    sa.Column("venue_id", sa.Uuid, nullable=False),
    sa.PrimaryKeyConstraint("service_id", "resource_id", name="service_resources_pkey"),
    sa.ForeignKeyConstraint(
        ["service_id", "venue_id"], ["services.id", "services.venue_id"], name="service_resources_of_a_service"
    ),
    sa.ForeignKeyConstraint(
        ["resource_id", "venue_id"], ["resources.id", "resources.venue_id"], name="service_resources_of_a_resource"
    ),
)

schedules = sa.Table(
    "schedules",
    metadata,
    sa.Column("id", sa.Uuid, nullable=False),
    sa.Column("venue_id", sa.Uuid, nullable=False),
    sa.Column("resource_id", sa.Uuid, nullable=False),
    sa.Column("step_minutes", sa.Integer, nullable=False),
    sa.Column("from_date", sa.Date, nullable=False),
    sa.Column("to_date", sa.Date),
    sa.Column("notice_minutes", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("horizon_days", sa.Integer, nullable=False, server_default=sa.text("60")),
    _at("created_at", default=True),
    sa.PrimaryKeyConstraint("id", name="schedules_pkey"),
    sa.ForeignKeyConstraint(
        ["resource_id", "venue_id"], ["resources.id", "resources.venue_id"], name="schedules_of_a_resource"
    ),
    sa.CheckConstraint("step_minutes BETWEEN 5 AND 1440", name="schedules_step_range"),
    sa.CheckConstraint("to_date >= from_date", name="schedules_dates_in_order"),
    sa.CheckConstraint("notice_minutes BETWEEN 0 AND 525600", name="schedules_notice_range"),
    sa.CheckConstraint("horizon_days BETWEEN 1 AND 366", name="schedules_horizon_range"),
    sa.UniqueConstraint("id", "resource_id", name="schedules_identity_for_services"),
    sa.Index("schedules_by_resource", "resource_id", "created_at"),
    sa.Index("schedules_by_venue", "venue_id", "created_at"),
)

schedule_services = sa.Table(
    "schedule_services",
    metadata,
    sa.Column("schedule_id", sa.Uuid, nullable=False),
    sa.Column("service_id", sa.Uuid, nullable=False),
    sa.Column("resource_id", sa.Uuid, nullable=False),
    sa.PrimaryKeyConstraint("schedule_id", "service_id", name="schedule_services_pkey"),
    sa.ForeignKeyConstraint(
        ["schedule_id", "resource_id"],
        ["schedules.id", "schedules.resource_id"],
        ondelete="CASCADE",
        name="schedule_services_of_a_schedule",
    ),
    sa.ForeignKeyConstraint(
        ["service_id", "resource_id"],
        ["service_resources.service_id", "service_resources.resource_id"],
        ondelete="CASCADE",
        name="schedule_services_offered_by_its_resource",
    ),
    sa.Index("schedule_services_by_service", "service_id", "resource_id"),
)

_WITHIN_A_DAY = "0 <= opens AND opens < closes AND closes <= 1440"

schedule_hours = sa.Table(
    "schedule_hours",
    metadata,
    sa.Column("schedule_id", sa.Uuid, nullable=False),
    sa.Column("weekday", sa.Integer, nullable=False),
    sa.Column("opens", sa.Integer, nullable=False),
    sa.Column("closes", sa.Integer, nullable=False),
    sa.PrimaryKeyConstraint("schedule_id", "weekday", "opens", name="schedule_hours_pkey"),
    sa.ForeignKeyConstraint(["schedule_id"], ["schedules.id"], ondelete="CASCADE", name="schedule_hours_of_a_schedule"),
    sa.CheckConstraint("weekday BETWEEN 1 AND 7", name="schedule_hours_weekday_known"),
    sa.CheckConstraint(_WITHIN_A_DAY, name="schedule_hours_within_a_day"),
)

schedule_exceptions = sa.Table(
    "schedule_exceptions",
    metadata,
    sa.Column("id", sa.Uuid, nullable=False),
    sa.Column("schedule_id", sa.Uuid, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("from_date", sa.Date, nullable=False),
    sa.Column("to_date", sa.Date, nullable=False),
    sa.Column("opens", sa.Integer),
    sa.Column("closes", sa.Integer),
    sa.Column("note", sa.Text),
    _at("created_at", default=True),
    sa.PrimaryKeyConstraint("id", name="schedule_exceptions_pkey"),
    sa.ForeignKeyConstraint(
        ["schedule_id"], ["schedules.id"], ondelete="CASCADE", name="schedule_exceptions_of_a_schedule"
    ),
    sa.CheckConstraint("kind IN ('off', 'extra')", name="schedule_exceptions_kind_known"),
    sa.CheckConstraint("to_date BETWEEN from_date AND from_date + 366", name="schedule_exceptions_dates_in_order"),
    sa.CheckConstraint(_WITHIN_A_DAY, name="schedule_exceptions_within_a_day"),
    sa.CheckConstraint(
        "(opens IS NULL) = (closes IS NULL) AND (opens IS NOT NULL OR kind = 'off')",
        name="schedule_exceptions_hours_whole",
    ),
    sa.CheckConstraint("char_length(note) BETWEEN 1 AND 200", name="schedule_exceptions_note_length"),
    sa.Index("schedule_exceptions_by_schedule", "schedule_id", "from_date"),
)

slots = sa.Table(
    "slots",
    metadata,
    sa.Column("id", sa.Uuid, nullable=False),
    sa.Column("venue_id", sa.Uuid, nullable=False),
    sa.Column("resource_id", sa.Uuid, nullable=False),
    sa.Column("resource_no", sa.BigInteger, nullable=False),
    sa.Column("one_at_a_time", sa.Boolean, nullable=False),
    sa.Column("service_id", sa.Uuid),
    _at("starts_at"),
    _at("ends_at"),
    sa.Column("capacity", sa.Integer, nullable=False),
    sa.Column("available_count", sa.Integer, nullable=False),
    sa.Column("exclusive", sa.Boolean, nullable=False),
    sa.Column("status", sa.Text, nullable=False, server_default="open"),
    sa.Column("version", sa.BigInteger, nullable=False, server_default=sa.text("1")),
    sa.Column("price_amount", sa.BigInteger),
    sa.Column("price_currency", sa.Text),
    _at("created_at", default=True),
    _at("occupied_until"),
    _at("closes_at", nullable=True),
    sa.Column("made_by_schedule", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("closed_by_schedule", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("is_block", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.PrimaryKeyConstraint("id", name="slots_pkey"),
    sa.ForeignKeyConstraint(
        ["resource_id", "venue_id", "resource_no", "one_at_a_time"],
        ["resources.id", "resources.venue_id", "resources.no", "resources.one_at_a_time"],
        name="slots_of_a_resource",
    ),
    sa.ForeignKeyConstraint(
        ["service_id", "venue_id"], ["services.id", "services.venue_id"], name="slots_of_a_service"
    ),
    sa.CheckConstraint(
        "ends_at > starts_at AND ends_at <= starts_at + interval '31 days'", name="slots_end_after_start"
    ),
    sa.CheckConstraint("capacity BETWEEN 1 AND 100000", name="slots_capacity_range"),
    sa.CheckConstraint("available_count BETWEEN 0 AND capacity", name="slots_available_count_range"),
    sa.CheckConstraint("exclusive = (capacity = 1)", name="slots_exclusive_is_capacity_one"),
    sa.CheckConstraint("status IN ('open', 'closed')", name="slots_status_known"),
    sa.CheckConstraint("(price_amount IS NULL) = (price_currency IS NULL)", name="slots_price_whole"),
    sa.CheckConstraint("price_amount BETWEEN 0 AND 1000000000", name="slots_price_range"),
    sa.CheckConstraint("price_currency ~ '^[A-Z]{3}$'", name="slots_price_currency_form"),
    sa.CheckConstraint(
        "occupied_until >= ends_at AND occupied_until <= ends_at + interval '1 day'",
        name="slots_occupied_until_after_end",
    ),
    sa.CheckConstraint("closes_at < starts_at", name="slots_close_before_start"),
    sa.CheckConstraint(
        "NOT closed_by_schedule OR made_by_schedule AND status = 'closed'", name="slots_closed_by_schedule_is_closed"
    ),
    sa.CheckConstraint(
        "NOT is_block OR (status = 'closed' AND capacity = 1 AND one_at_a_time AND service_id IS NULL"
        " AND NOT made_by_schedule)",
        name="slots_blocks_are_never_sold",
    ),
    sa.UniqueConstraint("id", "exclusive", "venue_id", name="slots_identity_for_bookings"),
    sa.Index("slots_by_venue_time", "venue_id", "starts_at", "id"),
    sa.Index("slots_by_resource_time", "resource_id", "starts_at", "id"),
    sa.Index(
        "slots_by_service_time",
        "service_id",
        "starts_at",
        "id",
        postgresql_where=sa.text("service_id IS NOT NULL"),
    ),
    sa.Index(
        "slots_by_offer_time",
        "resource_id",
        "service_id",
        "starts_at",
        "id",
        postgresql_where=sa.text("service_id IS NOT NULL"),
    ),
    sa.Index("slots_blocks_by_venue", "venue_id", "starts_at", "id", postgresql_where=sa.text("is_block")),
)

blocks = sa.Table(
    "blocks",
    metadata,
    sa.Column("id", sa.Uuid, nullable=False),
    sa.Column("reason", sa.Text),
    _at("created_at", default=True),
    _at("removed_at", nullable=True),
    sa.PrimaryKeyConstraint("id", name="blocks_pkey"),
    sa.ForeignKeyConstraint(["id"], ["slots.id"], name="blocks_take_a_slot"),
    sa.CheckConstraint("char_length(reason) BETWEEN 1 AND 200", name="blocks_reason_length"),
)

bookings = sa.Table(
    "bookings",
    metadata,
    sa.Column("id", sa.Uuid, nullable=False),
    sa.Column("venue_id", sa.Uuid, nullable=False),
    sa.Column("slot_id", sa.Uuid, nullable=False),
    sa.Column("exclusive", sa.Boolean, nullable=False),
    sa.Column("quantity", sa.Integer, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    _at("expires_at", nullable=True),
    sa.Column("customer_name", sa.Text),
    sa.Column("customer_email", sa.Text),
    sa.Column("customer_phone", sa.Text),
    sa.Column("metadata", JSON, nullable=False, server_default="{}"),
    sa.Column("idempotency_key", sa.Text),
    sa.Column("fingerprint", sa.LargeBinary),
    sa.Column("manage_token_hash", sa.LargeBinary),
    sa.Column("available_after", sa.Integer, nullable=False),
    _at("created_at", default=True),
    _at("confirmed_at", nullable=True),
    _at("cancelled_at", nullable=True),
    _at("expired_at", nullable=True),
    sa.Column("version", sa.Integer, nullable=False, server_default=sa.text("1")),
    sa.PrimaryKeyConstraint("id", name="bookings_pkey"),
    sa.ForeignKeyConstraint(
        ["slot_id", "exclusive", "venue_id"],
        ["slots.id", "slots.exclusive", "slots.venue_id"],
        onupdate="CASCADE",
        name="bookings_of_a_slot",
    ),
    sa.CheckConstraint("quantity BETWEEN 1 AND 100000", name="bookings_quantity_range"),
    sa.CheckConstraint(
        "status IN ('held', 'pending_payment', 'confirmed', 'cancelled', 'expired')", name="bookings_status_known"
    ),
    sa.CheckConstraint(f"({_UNRESOLVED}) = (expires_at IS NOT NULL)", name="bookings_deadline_while_unresolved"),
    sa.CheckConstraint(
        "CASE status WHEN 'confirmed' THEN confirmed_at IS NOT NULL WHEN 'cancelled' THEN true"
        " ELSE confirmed_at IS NULL END",
        name="bookings_confirmed_at_when_confirmed",
    ),
    sa.CheckConstraint(
        "(status = 'cancelled') = (cancelled_at IS NOT NULL)", name="bookings_cancelled_at_when_cancelled"
    ),
    sa.CheckConstraint("(status = 'expired') = (expired_at IS NOT NULL)", name="bookings_expired_at_when_expired"),
    sa.CheckConstraint(
        "(customer_name IS NULL) = (customer_email IS NULL)"
        " AND (customer_name IS NOT NULL OR status IN ('held', 'cancelled', 'expired'))",
        name="bookings_customer_when_booked",
    ),
    sa.CheckConstraint(
        "char_length(customer_name) BETWEEN 1 AND 200 AND char_length(customer_email) BETWEEN 3 AND 254"
        " AND char_length(customer_phone) BETWEEN 1 AND 40",
        name="bookings_customer_lengths",
    ),
    sa.CheckConstraint("version > 0", name="bookings_version_positive"),
    sa.CheckConstraint("json_typeof(metadata) = 'object'", name="bookings_metadata_object"),
    sa.CheckConstraint("idempotency_key IS NULL OR fingerprint IS NOT NULL", name="bookings_key_with_fingerprint"),
    sa.CheckConstraint("char_length(idempotency_key) BETWEEN 1 AND 255", name="bookings_key_length"),
    sa.Index(
        "bookings_one_live_on_exclusive_slot",
        "slot_id",
        unique=True,
        postgresql_where=sa.text("exclusive AND status IN ('held', 'pending_payment', 'confirmed')"),
    ),
    sa.Index(
        "bookings_one_per_idempotency_key",
        "idempotency_key",
        "venue_id",
        unique=True,
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    ),
    sa.Index("bookings_by_slot", "slot_id", "created_at"),
    sa.Index("bookings_by_venue", "venue_id", "created_at"),
    sa.Index("bookings_by_time", "created_at"),
    sa.Index("bookings_by_deadline", "expires_at", postgresql_where=sa.text(_UNRESOLVED)),
    sa.Index("bookings_unresolved_by_slot", "slot_id", "expires_at", postgresql_where=sa.text(_UNRESOLVED)),
)

occupied = sa.Table(
    "occupied",
    metadata,
    sa.Column("slot_id", sa.Uuid, nullable=False),
    sa.Column("resource_no", sa.BigInteger, nullable=False),
    sa.Column("during", TSTZRANGE, nullable=False),
    sa.PrimaryKeyConstraint("slot_id", name="occupied_pkey"),
    sa.ForeignKeyConstraint(["slot_id"], ["slots.id"], name="occupied_by_a_slot"),
    ExcludeConstraint(
        (sa.literal_column("int8range(resource_no, resource_no, '[]')"), "&&"),
        ("during", "&&"),
        using="gist",
        name="occupied_one_thing_at_a_time",
    ),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("seq", sa.BigInteger, sa.Identity(always=True), nullable=False),
    sa.Column("xid", Xid8, nullable=False, server_default=sa.text("pg_current_xact_id()")),
    _at("at", default=True),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("request_id", sa.Text),
    sa.Column("venue_id", sa.Uuid),
    sa.Column("slot_id", sa.Uuid),
    sa.Column("booking_id", sa.Uuid),
    sa.Column("data", JSONB, nullable=False, server_default="{}"),
    sa.PrimaryKeyConstraint("seq", name="events_pkey"),
    sa.CheckConstraint(r"type = 'booking.confirmed' OR type ~ '^[a-z_]{1,40}\.[a-z_]{1,40}$'", name="events_type_form"),
    sa.CheckConstraint("actor IN ('customer', 'operator', 'system')", name="events_actor_known"),
    sa.CheckConstraint("jsonb_typeof(data) = 'object'", name="events_data_object"),
    sa.Index("events_in_commit_order", "xid", "seq"),
    sa.Index("events_by_type", "type", "seq", postgresql_where=sa.text("type <> 'booking.confirmed'")),
    sa.Index("events_by_slot", "slot_id", "seq", postgresql_where=sa.text("slot_id IS NOT NULL")),
    sa.Index("events_by_booking", "booking_id", "seq", postgresql_where=sa.text("booking_id IS NOT NULL")),
    sa.Index("events_by_time", "at", "seq"),
)

answers = sa.Table(
    "answers",
    metadata,
    sa.Column("scope", sa.Text, nullable=False),
    sa.Column("idempotency_key", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.LargeBinary, nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    _at("created_at", default=True),
    sa.PrimaryKeyConstraint("scope", "idempotency_key", name="answers_pkey"),
    sa.CheckConstraint("status BETWEEN 200 AND 299", name="answers_are_successes"),
    sa.Index("answers_by_time", "created_at"),
)

abandoned_attempts = sa.Table(
    "abandoned_attempts",
    metadata,
    sa.Column("attempt", sa.Uuid, nullable=False),
    _at("at", default=True),
    sa.PrimaryKeyConstraint("attempt", name="abandoned_attempts_pkey"),
)

_UNFINISHED = "status IN ('creating', 'open', 'closing', 'abandoned')"
_WAS_PAID = "status IN ('paid', 'mismatched')"

payments = sa.Table(
    "payments",
    metadata,
    sa.Column("id", sa.Uuid, nullable=False),
    sa.Column("venue_id", sa.Uuid, nullable=False),
    sa.Column("slot_id", sa.Uuid, nullable=False),
    sa.Column("booking_id", sa.Uuid),
    sa.Column("rebooked_id", sa.Uuid),
    sa.Column("quantity", sa.Integer, nullable=False),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False, server_default="creating"),
    sa.Column("params", JSON),
    _at("expires_at", nullable=True),
    sa.Column("session_id", sa.Text),
    sa.Column("session_url", sa.Text),
    sa.Column("payment_intent", sa.Text),
    sa.Column("paid_amount", sa.BigInteger),
    sa.Column("refund_status", sa.Text, nullable=False, server_default="none"),
    sa.Column("refund_reason", sa.Text),
    _at("owed_at", nullable=True),
    sa.Column("refunded_amount", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    _at("created_at", default=True),
    _at("asked_at", default=True),
    _at("paid_at", nullable=True),
    _at("refunded_at", nullable=True),
    sa.PrimaryKeyConstraint("id", name="payments_pkey"),
    sa.ForeignKeyConstraint(["venue_id"], ["venues.id"], name="payments_of_a_venue"),
    sa.ForeignKeyConstraint(["slot_id"], ["slots.id"], name="payments_for_a_slot"),
    sa.UniqueConstraint("session_id", name="payments_session_unique"),
    sa.CheckConstraint(
        "status IN ('creating', 'open', 'closing', 'abandoned', 'failed', 'expired', 'paid', 'mismatched')",
        name="payments_status_known",
    ),
    sa.CheckConstraint(
        "refund_status IN ('none', 'due', 'waived', 'done', 'failed')", name="payments_refund_status_known"
    ),
    sa.CheckConstraint(
        f"refund_status = 'none' AND refunded_amount = 0 OR {_WAS_PAID}", name="payments_refund_of_what_was_paid"
    ),
    sa.CheckConstraint(f"({_WAS_PAID}) = (paid_at IS NOT NULL)", name="payments_paid_at_when_paid"),
    sa.CheckConstraint("(paid_at IS NULL) = (paid_amount IS NULL)", name="payments_paid_amount_when_paid"),
    sa.CheckConstraint("status <> 'paid' OR paid_amount = amount", name="payments_paid_amount_is_what_was_asked"),
    sa.CheckConstraint("(refund_status = 'done') = (refunded_at IS NOT NULL)", name="payments_refunded_at_when_done"),
    sa.CheckConstraint("refund_status <> 'done' OR refunded_amount >= paid_amount", name="payments_refunded_when_done"),
    sa.CheckConstraint(
        "status NOT IN ('open', 'paid', 'mismatched') OR session_id IS NOT NULL", name="payments_session_when_open"
    ),
    sa.CheckConstraint("amount BETWEEN 0 AND 100000000000000 AND refunded_amount >= 0", name="payments_amount_range"),
    sa.CheckConstraint("quantity BETWEEN 1 AND 100000", name="payments_quantity_range"),
    sa.CheckConstraint("currency ~ '^[A-Z]{3}$'", name="payments_currency_form"),
    sa.Index(
        "payments_one_per_booking",
        "booking_id",
        unique=True,
        postgresql_where=sa.text("status IN ('creating', 'open', 'closing', 'expired', 'paid')"),
    ),
    sa.Index("payments_by_booking", "booking_id"),
    sa.Index("payments_by_rebooked", "rebooked_id", postgresql_where=sa.text("rebooked_id IS NOT NULL")),
    sa.Index("payments_by_intent", "payment_intent", postgresql_where=sa.text("payment_intent IS NOT NULL")),
    sa.Index("payments_unfinished", "asked_at", postgresql_where=sa.text(_UNFINISHED)),
    sa.Index("payments_refunds_due", "asked_at", postgresql_where=sa.text("refund_status = 'due'")),
    sa.Index("payments_refunds_done", "refunded_at", postgresql_where=sa.text("refund_status = 'done'")),
    sa.Index("payments_by_time", "created_at"),
    sa.Index("payments_with_params", "created_at", postgresql_where=sa.text("params IS NOT NULL")),
)

refunds = sa.Table(
    "refunds",
    metadata,
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("payment_id", sa.Uuid, nullable=False),
    sa.Column("amount", sa.BigInteger, nullable=False),
    _at("created_at", default=True),
    _at("failed_at", nullable=True),
    sa.PrimaryKeyConstraint("id", name="refunds_pkey"),
    sa.ForeignKeyConstraint(["payment_id"], ["payments.id"], name="refunds_of_a_payment"),
    sa.CheckConstraint("amount > 0", name="refunds_amount_positive"),
    sa.Index("refunds_by_payment", "payment_id"),
)

webhook_inbox = sa.Table(
    "webhook_inbox",
    metadata,
    sa.Column("event_id", sa.Text, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("object", JSONB, nullable=False),
    _at("received_at", default=True),
    _at("queued_at", nullable=True),
    _at("applied_at", nullable=True),
    sa.Column("outcome", sa.Text),
    sa.PrimaryKeyConstraint("event_id", name="webhook_inbox_pkey"),
    sa.CheckConstraint("(applied_at IS NULL) = (outcome IS NULL)", name="webhook_inbox_outcome_when_applied"),
    sa.Index("webhook_inbox_waiting", "received_at", postgresql_where=sa.text("queued_at IS NULL")),
    sa.Index("webhook_inbox_by_time", "received_at"),
)

event_readers = sa.Table(
    "event_readers",
    metadata,
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("xid", Xid8, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.PrimaryKeyConstraint("name", name="event_readers_pkey"),
)

webhook_endpoints = sa.Table(
    "webhook_endpoints",
    metadata,
    sa.Column("id", sa.Uuid, nullable=False),
    sa.Column("venue_id", sa.Uuid, nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("secret", sa.Text),
    sa.Column("old_secret", sa.Text),
    _at("old_secret_until", nullable=True),
    sa.Column("types", ARRAY(sa.Text)),
    _at("created_at", default=True),
    _at("disabled_at", nullable=True),
    sa.Column("disabled_why", sa.Text),
    _at("removed_at", nullable=True),
    sa.PrimaryKeyConstraint("id", name="webhook_endpoints_pkey"),
    sa.ForeignKeyConstraint(["venue_id"], ["venues.id"], name="webhook_endpoints_of_a_venue"),
    sa.CheckConstraint("url ~ '^https?://[!-~]+$' AND char_length(url) <= 2000", name="webhook_endpoints_url_form"),
    sa.CheckConstraint(
        "secret ~ '^whsec_[A-Za-z0-9+/]{32,88}=*$' AND old_secret ~ '^whsec_[A-Za-z0-9+/]{32,88}=*$'",
        name="webhook_endpoints_secret_form",
    ),
    sa.CheckConstraint("(secret IS NULL) = (removed_at IS NOT NULL)", name="webhook_endpoints_secret_until_removed"),
    sa.CheckConstraint(
        "(old_secret IS NULL) = (old_secret_until IS NULL)", name="webhook_endpoints_old_secret_with_its_end"
    ),
    sa.CheckConstraint("(disabled_at IS NULL) = (disabled_why IS NULL)", name="webhook_endpoints_why_when_disabled"),
    sa.CheckConstraint("char_length(disabled_why) BETWEEN 1 AND 200", name="webhook_endpoints_why_length"),
    sa.CheckConstraint("removed_at IS NULL OR disabled_at IS NOT NULL", name="webhook_endpoints_removed_is_disabled"),
    sa.CheckConstraint("cardinality(types) BETWEEN 1 AND 50", name="webhook_endpoints_types_few"),
    sa.Index(
        "webhook_endpoints_by_venue", "venue_id", "created_at", "id", postgresql_where=sa.text("removed_at IS NULL")
    ),
)

webhook_deliveries = sa.Table(
    "webhook_deliveries",
    metadata,
    sa.Column("id", sa.Uuid, nullable=False),
    sa.Column("endpoint_id", sa.Uuid, nullable=False),
    sa.Column("event_seq", sa.BigInteger, nullable=False),
    sa.Column("status", sa.Text, nullable=False, server_default="pending"),
    sa.Column("attempts", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("answer_status", sa.Integer),
    sa.Column("error", sa.Text),
    _at("next_at", nullable=True, default=True),
    _at("leased_until", nullable=True),
    _at("created_at", default=True),
    _at("delivered_at", nullable=True),
    sa.PrimaryKeyConstraint("id", name="webhook_deliveries_pkey"),
    sa.ForeignKeyConstraint(["endpoint_id"], ["webhook_endpoints.id"], name="webhook_deliveries_to_an_endpoint"),
    sa.ForeignKeyConstraint(["event_seq"], ["events.seq"], name="webhook_deliveries_of_an_event"),
    sa.UniqueConstraint("endpoint_id", "event_seq", name="webhook_deliveries_once_per_event"),
    sa.CheckConstraint("status IN ('pending', 'delivered', 'dead')", name="webhook_deliveries_status_known"),
    sa.CheckConstraint(
        "(status = 'delivered') = (delivered_at IS NOT NULL)", name="webhook_deliveries_delivered_at_when_delivered"
    ),
    sa.CheckConstraint("(status = 'pending') = (next_at IS NOT NULL)", name="webhook_deliveries_next_at_while_pending"),
    sa.CheckConstraint("leased_until IS NULL OR status = 'pending'", name="webhook_deliveries_leased_while_pending"),
    sa.CheckConstraint("attempts BETWEEN 0 AND 1000", name="webhook_deliveries_attempts_range"),
    sa.CheckConstraint("answer_status BETWEEN 100 AND 999", name="webhook_deliveries_answer_status_range"),
    sa.CheckConstraint("char_length(error) BETWEEN 1 AND 200", name="webhook_deliveries_error_length"),
    sa.Index("webhook_deliveries_due", "endpoint_id", "next_at", postgresql_where=sa.text("status = 'pending'")),
    sa.Index(
        "webhook_deliveries_leased",
        "endpoint_id",
        "leased_until",
        postgresql_where=sa.text("leased_until IS NOT NULL"),
    ),
    sa.Index("webhook_deliveries_by_endpoint", "endpoint_id", "created_at", "id"),
    sa.Index("webhook_deliveries_by_time", "created_at", "id"),
    sa.Index("webhook_deliveries_dead", "created_at", "id", postgresql_where=sa.text("status = 'dead'")),
)

calendar_feeds = sa.Table(
    "calendar_feeds",
    metadata,
    sa.Column("id", sa.Uuid, nullable=False),
    sa.Column("venue_id", sa.Uuid, nullable=False),
    sa.Column("resource_id", sa.Uuid),
    sa.Column("secret_hash", sa.LargeBinary),
    _at("created_at", default=True),
    _at("rotated_at", nullable=True),
    _at("removed_at", nullable=True),
    sa.PrimaryKeyConstraint("id", name="calendar_feeds_pkey"),
    sa.ForeignKeyConstraint(["venue_id"], ["venues.id"], name="calendar_feeds_of_a_venue"),
    sa.ForeignKeyConstraint(
        ["resource_id", "venue_id"], ["resources.id", "resources.venue_id"], name="calendar_feeds_of_a_resource"
    ),
    sa.UniqueConstraint("secret_hash", name="calendar_feeds_secret_unique"),
    sa.CheckConstraint("octet_length(secret_hash) = 32", name="calendar_feeds_secret_hash_length"),
    sa.CheckConstraint("(secret_hash IS NULL) = (removed_at IS NOT NULL)", name="calendar_feeds_secret_until_removed"),
    sa.Index(
        "calendar_feeds_one_per_resource", "resource_id", unique=True, postgresql_where=sa.text("removed_at IS NULL")
    ),
    sa.Index(
        "calendar_feeds_one_per_venue",
        "venue_id",
        unique=True,
        postgresql_where=sa.text("resource_id IS NULL AND removed_at IS NULL"),
    ),
    sa.Index("calendar_feeds_by_venue", "venue_id", "created_at", "id", postgresql_where=sa.text("removed_at IS NULL")),
)

_IS_WAITING = "status = 'waiting'"

waiting_entries = sa.Table(
    "waiting_entries",
    metadata,
    sa.Column("id", sa.Uuid, nullable=False),
    sa.Column("venue_id", sa.Uuid, nullable=False),
    sa.Column("slot_id", sa.Uuid),
    sa.Column("service_id", sa.Uuid),
    sa.Column("day", sa.Date),
    sa.Column("resource_id", sa.Uuid),
    sa.Column("quantity", sa.Integer, nullable=False),
    sa.Column("status", sa.Text, nullable=False, server_default="waiting"),
    sa.Column("customer_name", sa.Text, nullable=False),
    sa.Column("customer_email", sa.Text, nullable=False),
    sa.Column("customer_phone", sa.Text),
    _at("wanted_until"),
    sa.Column("first_position", sa.Integer, nullable=False),
    sa.Column("hold_id", sa.Uuid),
    sa.Column("offered_slot_id", sa.Uuid),
    _at("offered_at", nullable=True),
    _at("offered_until", nullable=True),
    _at("created_at", default=True),
    _at("ended_at", nullable=True),
    sa.PrimaryKeyConstraint("id", name="waiting_entries_pkey"),
    sa.ForeignKeyConstraint(["venue_id"], ["venues.id"], name="waiting_entries_of_a_venue"),
    sa.ForeignKeyConstraint(["slot_id"], ["slots.id"], name="waiting_entries_for_a_slot"),
    sa.ForeignKeyConstraint(
        ["service_id", "venue_id"], ["services.id", "services.venue_id"], name="waiting_entries_of_a_service"
    ),
    sa.ForeignKeyConstraint(
        ["resource_id", "venue_id"], ["resources.id", "resources.venue_id"], name="waiting_entries_of_a_resource"
    ),
    sa.CheckConstraint(
        "(slot_id IS NULL) = (service_id IS NOT NULL) AND (slot_id IS NULL) = (day IS NOT NULL)"
        " AND (resource_id IS NULL OR slot_id IS NULL)",
        name="waiting_entries_slot_or_day",
    ),
    sa.CheckConstraint(
        "status IN ('waiting', 'offered', 'booked', 'lapsed', 'left', 'expired')", name="waiting_entries_status_known"
    ),
    sa.CheckConstraint("quantity BETWEEN 1 AND 100000", name="waiting_entries_quantity_range"),
    sa.CheckConstraint(
        "char_length(customer_name) BETWEEN 1 AND 200 AND char_length(customer_email) BETWEEN 3 AND 254"
        " AND char_length(customer_phone) BETWEEN 1 AND 40",
        name="waiting_entries_customer_lengths",
    ),
    sa.CheckConstraint(
        "(hold_id IS NULL) = (offered_slot_id IS NULL) AND (hold_id IS NULL) = (offered_at IS NULL)"
        " AND (hold_id IS NULL) = (offered_until IS NULL)",
        name="waiting_entries_offer_whole",
    ),
    sa.CheckConstraint(
        "CASE WHEN status IN ('waiting', 'expired') THEN hold_id IS NULL"
        " WHEN status IN ('offered', 'booked', 'lapsed') THEN hold_id IS NOT NULL ELSE true END",
        name="waiting_entries_offer_by_status",
    ),
    sa.CheckConstraint(
        "(status IN ('waiting', 'offered')) = (ended_at IS NULL)", name="waiting_entries_ended_at_when_ended"
    ),
    sa.Index(
        "waiting_entries_one_live_per_email",
        "slot_id",
        "service_id",
        "day",
        "resource_id",
        sa.text("lower(customer_email)"),
        unique=True,
        postgresql_nulls_not_distinct=True,
        postgresql_where=sa.text("status IN ('waiting', 'offered')"),
    ),
    sa.Index("waiting_entries_anybody", "venue_id", postgresql_where=sa.text(_IS_WAITING)),
    sa.Index(
        "waiting_entries_line_of_slot",
        "slot_id",
        "created_at",
        "id",
        postgresql_where=sa.text(f"{_IS_WAITING} AND slot_id IS NOT NULL"),
    ),
    sa.Index(
        "waiting_entries_line_of_day",
        "service_id",
        "day",
        "created_at",
        "id",
        postgresql_where=sa.text(f"{_IS_WAITING} AND service_id IS NOT NULL"),
    ),
    sa.Index("waiting_entries_due", "wanted_until", postgresql_where=sa.text(_IS_WAITING)),
    sa.Index("waiting_entries_one_per_hold", "hold_id", unique=True, postgresql_where=sa.text("hold_id IS NOT NULL")),
    sa.Index("waiting_entries_by_venue", "venue_id", "created_at", "id"),
    sa.Index("waiting_entries_by_time", "created_at", "id"),
)

claims = sa.Table(
    "claims",
    metadata,
    sa.Column("client", sa.Text, nullable=False),
    sa.Column("id", sa.Uuid, nullable=False),
    sa.Column("places", sa.Integer, nullable=False),
    _at("expires_at"),
    sa.PrimaryKeyConstraint("client", "id", name="claims_pkey"),
    sa.CheckConstraint("places BETWEEN 1 AND 100000", name="claims_places_range"),
    sa.Index("claims_lapsed", "expires_at"),
)
