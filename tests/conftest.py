"""Fixtures for every test."""

import logging
import os
from collections.abc import Iterator

import pytest
import structlog

import app.booking
import app.breaker
import app.commits
import app.ending
import app.engine
import app.mirror
import app.pipelines
from tests.redis_servers import cluster, redis6, redis7
from tests.service import bundled_redis_server, postgres, service, with_redis, without_redis

#: The tests start hundreds of processes, each of which would compile all that it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

#: Shared from here, so that a session starts each server once.
__all__ = [
    "bundled_redis_server",
    "cluster",
    "postgres",
    "redis6",
    "redis7",
    "service",
    "with_redis",
    "without_redis",
]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The service runs on asyncio, and so do its tests."""
    return "asyncio"


@pytest.fixture(autouse=True)
def _logs_as_at_the_start() -> Iterator[None]:
    """Undo what a command does to the logs of its own process: here it shares one with every other test."""
    yield
    logging.disable(logging.NOTSET)
    structlog.reset_defaults()
    for module in (app.booking, app.breaker, app.commits, app.ending, app.engine, app.mirror, app.pipelines):
        if hasattr(module, "log"):
            module.log = structlog.get_logger()  # the old one remembers how it was first used
