"""Pages of lists: the cursors are those of the API, whose module is imported only when there is one to read or tell."""

from datetime import datetime
from uuid import UUID

Position = tuple[datetime, UUID]


def position(cursor: str | None) -> Position | None:
    """Read a cursor that somebody gave.

    Raises:
        InvalidRequest: not one of ours.
    """
    if cursor is None:
        return None
    from app.api import wire

    return wire.position(cursor)


def next_cursor(last: Position | None) -> str | None:
    """Name the place behind the last row of a page; None when nothing follows."""
    if last is None:
        return None
    from app.api import wire

    return wire.cursor(*last)
