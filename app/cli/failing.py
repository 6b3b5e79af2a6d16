"""The one place where what went wrong becomes an exit code and one line on stderr, never a traceback."""

import os
import sys
from collections.abc import Callable
from typing import Any

import click

from app.errors import DatabaseUnavailable, InvalidRequest, NotFound, Problem, Unavailable
from app.settings import SettingsError

DONE, FAILED, USAGE, NOT_FOUND, CONFLICT, UNREACHABLE = range(6)
#: What a shell reports for a program that Ctrl-C ended.
INTERRUPTED = 130


class Failed(Exception):
    """A command's own way out: a line for people, and the code for programs."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


def guarded(command: Callable[[], Any]) -> int:
    """Run a command; return the exit code."""
    try:
        # click answers with the code given to ctx.exit, or with what the command returned.
        code = command()
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:  # the answer to a question was no
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # `holdfast … | head`: nobody reads any more. Python would complain once more when it flushes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if os.environ.get("HOLDFAST_TRACEBACK"):
            raise
        code, line = explain(error)
        print(line, file=sys.stderr)
        return code
    return code if isinstance(code, int) else DONE


def explain(error: Exception) -> tuple[int, str]:
    """Tell the exit code for an error, and what to print."""
    match error:
        case Failed():
            return error.code, str(error)
        case SettingsError():
            return USAGE, str(error)
        case DatabaseUnavailable():
            known = "nothing was changed" if error.effect_none else "whether this took effect is not known"
            return UNREACHABLE, f"Postgres cannot be reached: {known}"
        case Problem():
            return _code_of(error), error.detail
    if _is(error, "app.breaker", "RedisAway"):
        return UNREACHABLE, f"Redis cannot be reached: {error}"
    if _is(error, "app.embedded", "EmbeddedError"):
        return FAILED, str(error)
    if _is(error, "psycopg", "OperationalError") or _is(error, "sqlalchemy.exc", "OperationalError"):
        return UNREACHABLE, f"Postgres cannot be reached: {_first_line(getattr(error, 'orig', error))}"
    if _is(error, "httpx", "HTTPError"):
        return UNREACHABLE, f"The service cannot be reached: {_first_line(error) or type(error).__name__}"
    return FAILED, f"A bug: {type(error).__name__}: {_first_line(error)} (HOLDFAST_TRACEBACK=1 shows where)"


def _code_of(problem: Problem) -> int:
    match problem:
        case InvalidRequest():
            return USAGE
        case NotFound():
            return NOT_FOUND
        case Unavailable():
            return FAILED
    return CONFLICT if problem.status in (409, 410, 422) else FAILED


def _is(error: Exception, module: str, name: str) -> bool:
    """Compare with a class whose module is heavy: if it was never imported, the error is none of it."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(error, getattr(loaded, name))


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or [""])[0]
