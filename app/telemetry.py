"""What the service tells about itself: one JSON line and one observation per request, counters, the request id.

Personal data, bodies and headers never reach a log or a label: routes are told by their template, errors by type and
place. Knows nothing of Litestar; the metrics are plain objects that the engine increments.
"""

import asyncio
import atexit
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, BinaryIO

import msgspec
import structlog
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    start_http_server,
)
from prometheus_client.multiprocess import MultiProcessCollector

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

#: From a refused request of a millisecond to what a client's patience bears.
LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)

REQUESTS = Histogram(
    "holdfast_http_request_seconds",
    "Requests by route template; the count is in _count",
    ("method", "route", "status"),
    buckets=LATENCY_BUCKETS,
)
OUTCOMES = Counter("holdfast_outcomes", "What became of holds and bookings", ("operation", "outcome"))
#: A healthy Redis refuses first: every one of these is a place that layer 1 would have sold twice. Alert on it.
BACKSTOP_CONFLICTS = Counter("holdfast_backstop_conflicts", "Refusals by Postgres that Redis had let through")
DEGRADED = Gauge("holdfast_degraded", "1 while Redis is away", multiprocess_mode="livemax")
DRIFT = Counter("holdfast_reconcile_drift", "Mirrored slots that differed from Postgres and were repaired")
MIRROR_LOADS = Counter("holdfast_mirror_loads", "Slots read from Postgres because the mirror did not know them")
GATHERED = Histogram(
    "holdfast_gathered_calls",
    "Calls that went to a store together; the count is the number of round trips",
    ("store",),
    buckets=(1, 2, 5, 10, 20, 50, 100, 200),
)
IN_DOUBT = Counter("holdfast_in_doubt", "Commits whose answer was lost and had to be looked up")

MONEY_MISMATCHES = Gauge(
    "holdfast_money_mismatches",
    "Payments with neither booking nor refund, refunds that failed, bookings not paid: alert on anything but 0",
    multiprocess_mode="livemax",
)
LIVE_STREAMS = Gauge("holdfast_live_streams", "Open streams of live updates", multiprocess_mode="livesum")
JOBS = Counter("holdfast_jobs", "Jobs that the worker has done, and what became of them", ("task", "outcome"))

#: Log lines wait so long for each other, and so many bytes are written at once: what a pipe takes whole (PIPE_BUF).
LOG_SECONDS = 0.05
BYTES_TOGETHER = 4_096

_METHODS = frozenset({"GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS"})
#: Asked every few seconds by machines: they would fill the log with nothing.
_QUIET = frozenset({"/livez", "/readyz", "/metrics"})
#: A stream lives as long as it is wanted: its time says nothing about speed.
_STREAMS = frozenset({"/v1/live"})
_SANE_ID = re.compile(rb"[A-Za-z0-9._-]{8,64}")
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")

_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
log = structlog.get_logger()


def request_id() -> str | None:
    """Name the request being answered; None outside of one."""
    return _request_id.get()


class LinesTogether:
    """A stream for log lines that, inside an event loop, writes them a moment later and together.

    A write costs about as much as all else that logging a request does. What a killed process said in its last moment
    is lost; whatever else ends one writes it.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lines: list[bytes] = []
        self._writing_in: asyncio.AbstractEventLoop | None = None
        atexit.register(self._write)

    def write(self, line: bytes) -> None:
        self._lines.append(line)

    def flush(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._write()
            return
        # A loop that has ended before it wrote leaves that to the next, or to the exit.
        if self._writing_in is not loop:
            self._writing_in = loop
            loop.call_later(LOG_SECONDS, self._write)

    def _write(self) -> None:
        self._writing_in = None
        lines, self._lines = self._lines, []
        together = b""
        for line in [*lines, b""]:
            if together and (not line or len(together) + len(line) > BYTES_TOGETHER):
                with suppress(OSError, ValueError):  # nobody listens any more
                    self._stream.write(together)
                    self._stream.flush()
                together = b""
            together += line


@lru_cache(maxsize=100)
def outcomes(operation: str, word: str) -> Counter:
    """Name the counter of what became of an operation."""
    return OUTCOMES.labels(operation, word)


def configure_logging(level: int = logging.INFO) -> None:
    """Send every log line, also those of libraries, to stderr as JSON. Repeating it changes nothing."""
    shared: list[structlog.typing.Processor] = [
        _add_request_id,
        structlog.processors.add_log_level,
        _add_timestamp,
        _tell_exception,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer(serializer=_to_json)],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.BytesLoggerFactory(LinesTogether(sys.stderr.buffer)),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(serializer=lambda event, **_: _to_json(event).decode()),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(level, logging.INFO), force=True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):  # uvicorn's own handlers write plain text
        logging.getLogger(name).handlers.clear()
    for name in ("stripe", "httpx", "procrastinate"):  # a line for each call of theirs tells nobody anything
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    logging.getLogger("uvicorn.error").propagate = True
    logging.getLogger("uvicorn.access").propagate = False  # our line is cheaper, and says no query string


def exposition() -> tuple[bytes, str]:
    """Render the metrics of all worker processes (or of this one) in Prometheus' text form, with its media type."""
    registry = REGISTRY
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry), CONTENT_TYPE_LATEST


def serve_metrics(host: str, port: int) -> None:
    """Expose this process's metrics at a port of their own, from a thread: for one that serves nothing else.

    Raises:
        OSError: the port is taken, or the host is not ours.
    """
    start_http_server(port, addr=host)


class Observed:
    """The outermost ASGI layer: names the request, measures it and logs one line. It decides nothing.

    `always` are headers that every answer has, unless it says otherwise itself.
    """

    def __init__(self, app: ASGIApp, always: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self.app = app
        # Asked for every answer, whose headers have the same few dozen names in the same order: looking that up costs
        # half of working it out.
        self._unsaid = lru_cache(maxsize=500)(lambda said: [pair for pair in always if pair[0] not in said])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        this_id = _id_of(scope)
        header = (b"x-request-id", this_id.encode())
        status = 500  # unless an answer begins

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                told = message.get("headers", ())
                message["headers"] = [*told, *self._unsaid(tuple([name for name, _ in told])), header]
            await send(message)

        token = _request_id.set(this_id)
        try:
            await self.app(scope, receive, send_named)
        finally:
            _observe(scope, status, time.perf_counter() - started)
            _request_id.reset(token)


def _observe(scope: Scope, status: int, seconds: float) -> None:
    method = scope["method"] if scope["method"] in _METHODS else "OTHER"
    # Only a template may be a label or a log field: a path holds ids, and unknown paths hold anything.
    route = scope.get("path_template") or "unmatched"
    if route not in _STREAMS or status != 200:
        _timed(method, route, status).observe(seconds)
    if route not in _QUIET:
        log.info("request", method=method, route=route, status=status, ms=round(seconds * 1000, 2))


@lru_cache(maxsize=1_000)  # there are a few dozen; a look-up of labels costs more than the observation
def _timed(method: str, route: str, status: int) -> Histogram:
    return REQUESTS.labels(method, route, str(status))


def _id_of(scope: Scope) -> str:
    """Take the caller's id, or the trace it belongs to, when it is short and plain; else make one."""
    trace = b""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _SANE_ID.fullmatch(value):
            return str(value, "ascii")
        if name == b"traceparent" and (match := _TRACEPARENT.fullmatch(value)):
            trace = match[1]
    return trace.decode() or os.urandom(16).hex()


def _add_request_id(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if (this_id := _request_id.get()) is not None:
        event["request_id"] = this_id
    return event


def _add_timestamp(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    event["timestamp"] = datetime.now(UTC)
    return event


def _tell_exception(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace an exception by its types, places and first lines: what follows those may quote a customer's row."""
    error = event.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()[1]
    elif isinstance(error, tuple):
        error = error[1]
    told: list[dict[str, Any]] = []
    while isinstance(error, BaseException) and len(told) < 5:
        frames = traceback.extract_tb(error.__traceback__)
        told.append(
            {
                "type": type(error).__qualname__,
                "message": (str(error).splitlines() or [""])[0][:200],
                "at": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-12:]],
            }
        )
        error = error.__cause__ or error.__context__
    if told:
        event["exception"] = told
    return event


def _to_json(event: Any, **_: Any) -> bytes:
    return msgspec.json.encode(event, enc_hook=str)
