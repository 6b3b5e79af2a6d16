"""Fixtures for every test."""

import pytest

from tests.service import bundled_redis_server, postgres, service, with_redis, without_redis

#: Shared from here, so that a session starts each server once.
__all__ = ["bundled_redis_server", "postgres", "service", "with_redis", "without_redis"]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The service runs on asyncio, and so do its tests."""
    return "asyncio"
