"""The queue as operators see it: which jobs wait, run or have failed, and how one that failed is given another chance.

`jobs` fills and empties the queue, in the worker; here its rows are only looked at and woken. They live in a schema of
their own, whose triggers find their tables by the search path.
"""

from datetime import datetime
from typing import Any, Literal

import msgspec

from app.errors import Conflict, DatabaseUnavailable, NotFound, Unavailable
from app.ledger import Ledger
from app.postgres import RuleViolated

Row = Any
Status = Literal["waiting", "running", "failed"]

#: As the queue says it. What succeeded is deleted.
_WORDS: dict[Status, str] = {"waiting": "todo", "running": "doing", "failed": "failed"}
#: Beside a job's arguments: the type of what it last failed with, which the queue itself does not keep.
FAILED_WITH = "failed_with"

_QUEUED = (
    "SELECT j.id, j.task_name AS task, j.args, j.status::text AS word, j.attempts, j.scheduled_at AS next_at,"
    "  (SELECT min(e.at) FROM jobs.procrastinate_events AS e WHERE e.job_id = j.id) AS queued_at,"
    "  (SELECT max(e.at) FROM jobs.procrastinate_events AS e"
    "    WHERE e.job_id = j.id AND e.type IN ('failed', 'deferred_for_retry')) AS failed_at"
    " FROM jobs.procrastinate_jobs AS j"
)


class Job(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    task: str
    #: Ids and words, never anything about a person: see `jobs`.
    about: dict[str, Any]
    status: Status
    #: Ended so far.
    attempts: int
    #: The type of the last failure; None: it never failed, or its worker died of it.
    error: str | None
    queued_at: datetime | None
    failed_at: datetime | None
    next_at: datetime | None


async def listed(ledger: Ledger, status: Status, before: int | None, limit: int) -> list[Job]:
    """List jobs, the newest first, behind one of them."""
    rows = await ledger.repeatable(
        f"{_QUEUED} WHERE j.status = %(word)s::jobs.procrastinate_job_status"
        "   AND (%(before)s::bigint IS NULL OR j.id < %(before)s) ORDER BY j.id DESC LIMIT %(limit)s",
        {"word": _WORDS[status], "before": before, "limit": limit},
    )
    return [_job(row) for row in rows]


async def retry(ledger: Ledger, job_id: int, request_id: str | None) -> Job:
    """Let a failed job begin anew, with all its tries. Repeated, it changes nothing: the job waits or runs already.

    Raises:
        NotFound: no such job, or it is done meanwhile. Conflict: the same has been queued since, or it was given up.
    """
    try:
        await ledger.repeatable(
            "WITH path AS MATERIALIZED (SELECT set_config('search_path', 'jobs, public', true)),"
            " woken AS (UPDATE jobs.procrastinate_jobs AS j SET status = 'todo', attempts = 0, scheduled_at = NULL"
            "   FROM path WHERE j.id = %(id)s AND j.status = 'failed' RETURNING j.id, j.task_name),"
            " told AS (INSERT INTO public.events (type, actor, request_id, data)"
            "   SELECT 'job.retried', 'operator', %(request)s, jsonb_build_object('job_id', id, 'task', task_name)"
            "   FROM woken) SELECT count(*) FROM woken",
            {"id": job_id, "request": request_id},
        )
    except RuleViolated as violation:
        raise Conflict("The same has been queued since: this one is not needed any more") from violation
    try:
        rows = await ledger.repeatable(f"{_QUEUED} WHERE j.id = %s", (job_id,))
    except Unavailable as error:  # it begins anew: only the answer could not be read
        raise DatabaseUnavailable(effect_none=False) from error
    if not rows:
        raise NotFound("Job not found")
    if rows[0].word not in _WORDS.values():
        raise Conflict(f"The job was {rows[0].word}")
    return _job(rows[0])


async def note_failure(ledger: Ledger, job_id: int, error: BaseException) -> None:
    """Keep the type of what a job failed with, and nothing that the error says: that may quote a customer's row.

    Raises:
        Unavailable
    """
    await ledger.repeatable(
        "WITH noted AS (UPDATE jobs.procrastinate_jobs SET args = args || jsonb_build_object(%s::text, %s::text)"
        " WHERE id = %s RETURNING 1) SELECT count(*) FROM noted",
        (FAILED_WITH, type(error).__name__, job_id),
    )


def _job(row: Row) -> Job:
    about = {name: value for name, value in row.args.items() if value is not None and name != FAILED_WITH}
    status = next(status for status, word in _WORDS.items() if word == row.word)
    return Job(
        id=row.id,
        task=row.task,
        about=about,
        status=status,
        attempts=row.attempts,
        error=row.args.get(FAILED_WITH),
        queued_at=row.queued_at,
        failed_at=row.failed_at,
        next_at=row.next_at,
    )
