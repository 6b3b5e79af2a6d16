"""Idempotency as in Stripe's API v1.

Once execution began, status and body of the first answer are kept for 24 hours, also of a failure. What was refused
before (401, invalid parameters, another request with the same key under way) is not kept.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from app.simulator.forms import StripeError
from app.simulator.state import Books, KeyUse, Saved

KEEP_SECONDS = 24 * 3600
MAX_KEY_LENGTH = 255


def fingerprint(path: str, params: dict[str, Any]) -> str:
    """Tell two requests apart: by where they go and by what they say, in whatever order."""
    return hashlib.sha256(json.dumps([path, params], sort_keys=True).encode()).hexdigest()


class Idempotency:
    """The answers under idempotency keys."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._running: dict[str, str] = {}

    def first_answer(self, key: str | None, asked: str) -> Saved | None:
        """Return the kept answer, if there is one.

        Raises:
            StripeError: the key was used for another request, or its first request is still under way.
        """
        if key is None:
            return None
        if len(key) > MAX_KEY_LENGTH:
            raise StripeError(400, f"Idempotency keys must be at most {MAX_KEY_LENGTH} characters long.")
        saved = self._books.state.saved.get(key)
        if saved is not None and self._books.now() - saved.at >= KEEP_SECONDS:
            del self._books.state.saved[key]
            self._books.changed()
            saved = None
        first = saved.fingerprint if saved else self._running.get(key)
        if first not in (None, asked):
            told = "Keys for idempotent requests can only be used with the same parameters they were first used with."
            other = f"Try using a key other than '{key}' if you meant to execute a different request."
            raise StripeError(400, f"{told} {other}", kind="idempotency_error")
        if key in self._running:
            told = (
                "There is currently another in-progress request using this Idempotent Key (that probably means you"
                f" submitted twice, and the other request is still going through): {key}. Please try again later."
            )
            raise StripeError(409, told, kind="idempotency_error", code="idempotency_key_in_use")
        return saved

    @contextmanager
    def running(self, key: str | None, asked: str) -> Iterator[None]:
        """Keep others with the same key away while the first is executed."""
        if key is None:
            yield
            return
        self._running[key] = asked
        try:
            yield
        finally:
            del self._running[key]

    def keep(self, key: str | None, asked: str, status: int, body: bytes) -> None:
        """Keep an answer for whoever asks again."""
        if key is None:
            return
        self._books.state.saved[key] = Saved(fingerprint=asked, at=self._books.now(), status=status, body=body.decode())
        self._books.changed()

    def count(self, key: str | None, operation: str, *, executed: bool) -> None:
        """Count a request that came, or one that was executed."""
        if key is None:
            return
        use = self._books.state.keys.setdefault(key, KeyUse(operation=operation))
        use.requests += not executed
        use.executions += executed
        self._books.changed()
