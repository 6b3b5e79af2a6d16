"""What goes over the wire about jobs, in addition to `wire`: the same rules, another subject."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from app import queued
from app.api import wire

JobId = Annotated[int, Meta(ge=1, le=2**63 - 1)]


class JobQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    status: queued.Status = "failed"
    limit: wire.Limit = 50
    cursor: wire.Seq | None = None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """`about` names what it is for, by ids; `error` is the type of its last failure, `next_at` when it is due again."""

    id: int
    task: str
    about: dict[str, Any]
    status: queued.Status
    attempts: int
    error: str | None
    queued_at: wire.At | None
    failed_at: wire.At | None
    next_at: wire.At | None


class JobPage(msgspec.Struct, frozen=True, kw_only=True):
    data: list[Job]
    next_cursor: str | None = None


def job(known: queued.Job) -> Job:
    return Job(**msgspec.structs.asdict(known))
