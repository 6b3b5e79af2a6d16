"""For operators: the jobs that follow from what happened, and above all those that failed."""

import msgspec
from litestar import Response, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath

from app import queued
from app.api import answers, wire, wire_jobs
from app.api.docs import operator_security, problems
from app.api.public import IdempotencyKey
from app.api.strict import ApiRequest, keyed, operator_only, query
from app.telemetry import request_id


@get(
    "/v1/jobs",
    opt={"query": wire_jobs.JobQuery},
    guards=[operator_only],
    security=operator_security,
    responses=problems(401),
)
async def list_jobs(request: ApiRequest) -> Response[wire_jobs.JobPage]:
    """List jobs, the newest first: by default those that failed for good, which are kept for a week."""
    asked = query(request, wire_jobs.JobQuery)
    found = await queued.listed(request.engine.ledger, asked.status, asked.cursor, asked.limit + 1)
    shown, more = wire.page_of(found, asked.limit, lambda last: str(last.id))
    return answers.ok(wire_jobs.JobPage(data=[wire_jobs.job(each) for each in shown], next_cursor=more))


@post(
    "/v1/jobs/{job_id:str}/retry",
    status_code=200,
    guards=[operator_only],
    security=operator_security,
    responses=problems(401, 404, 409, 422),
)
async def retry_job(
    request: ApiRequest, job_id: FromPath[wire_jobs.JobId], key: IdempotencyKey = None
) -> Response[wire_jobs.Job]:
    """Let a failed job begin anew, with all its tries. One that waits or runs already is left alone."""
    this = keyed(f"retry:{job_id}", key, None)
    if this and (first := await request.database.first_answer(this)):
        return answers.again(first, replayed=True)
    body = msgspec.json.encode(wire_jobs.job(await queued.retry(request.engine.ledger, job_id, request_id())))
    if this:
        body = await request.database.keep_answer(this, body)
    return answers.again(body, replayed=False)


ROUTES: list[HTTPRouteHandler] = [list_jobs, retry_job]
