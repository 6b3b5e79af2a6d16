"""Requests in Stripe's form encoding (`a[b][0]=c`) and errors in Stripe's words."""

import re
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec

T = TypeVar("T")

#: Deeper than any parameter of Stripe.
MAX_DEPTH = 8
_NAME = re.compile(r"[^\[\]]+(?:\[[^\[\]]*\])*")
_UNKNOWN = re.compile(r"^Object contains unknown field `(.*)`$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(.*)`$", re.DOTALL)


class StripeError(Exception):
    """A refusal as Stripe words it: status and body of the answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        given = {"type": kind, "code": code, "message": message, "param": param}
        self.error = {name: value for name, value in given.items() if value is not None}

    @property
    def body(self) -> dict[str, Any]:
        """What is answered."""
        return {"error": self.error}


def missing(kind: str, identifier: str, param: str, status: int = 404) -> StripeError:
    """Make the error for something that is not there."""
    return StripeError(status, f"No such {kind}: '{identifier}'", code="resource_missing", param=param)


def decode(encoded: str) -> dict[str, Any]:
    """Unfold a form or a query string. Empty values are as good as absent, and objects of numbers are lists.

    Raises:
        StripeError
    """
    try:
        pairs = parse_qsl(encoded, keep_blank_values=False, strict_parsing=False, errors="strict", max_num_fields=1000)
    except (ValueError, UnicodeDecodeError):
        raise StripeError(400, "Invalid request (the parameters cannot be decoded)") from None
    root: dict[str, Any] = {}
    for name, value in pairs:
        steps = re.findall(r"[^\[\]]+|(?<=\[)(?=\])", name)
        if not _NAME.fullmatch(name) or len(steps) > MAX_DEPTH:
            raise StripeError(400, f"Invalid parameter name: {name[:100]}", param=name[:100])
        _put(root, steps, value, name)
    unfolded: dict[str, Any] = _with_lists(root)
    return unfolded


def _put(root: dict[str, Any], steps: list[str], value: str, name: str) -> None:
    inner = root
    for step in steps[:-1]:
        inner = inner.setdefault(step or str(len(inner)), {})
        if not isinstance(inner, dict):
            raise StripeError(400, f"Invalid parameter: {name[:100]} is both a value and an object", param=name[:100])
    inner[steps[-1] or str(len(inner))] = value


def _with_lists(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    # A list is written as an object of numbers. Metadata never are one, whatever their names.
    inner = {name: item if name == "metadata" else _with_lists(item) for name, item in value.items()}
    if inner and all(name.isdecimal() for name in inner):
        return [inner[name] for name in sorted(inner, key=int)]
    return inner


def read(params: dict[str, Any], struct: type[T]) -> T:
    """Convert unfolded parameters, in which numbers are texts, into a Struct.

    Raises:
        StripeError: what Stripe answers to a parameter that is unknown, missing or wrong.
    """
    try:
        return msgspec.convert(params, struct, strict=False)
    except msgspec.ValidationError as error:
        raise _refused(str(error)) from None


def _refused(told: str) -> StripeError:
    message, _, place = told.partition(" - at `$")
    # `[...]` is msgspec's word for a value of a mapping.
    path = _bracketed(place.removesuffix("`").removeprefix(".").replace("[...]", ""))
    if found := _UNKNOWN.match(message):
        name = _inside(path, found[1])
        told = f"Received unknown parameter: {name} (or one that this simulator does not simulate)"
        return StripeError(400, told, code="parameter_unknown", param=name)
    if found := _MISSING.match(message):
        name = _inside(path, found[1])
        return StripeError(400, f"Missing required param: {name}.", code="parameter_missing", param=name)
    if "`int`" in message:
        return StripeError(400, f"Invalid integer: {path}", code="parameter_invalid_integer", param=path)
    return StripeError(400, f"Invalid {path or 'request'}: {message}", param=path or None)


def _bracketed(path: str) -> str:
    """Turn msgspec's `line_items[0].quantity` into Stripe's `line_items[0][quantity]`."""
    first, *rest = path.split(".")
    return first + "".join(re.sub(r"^([^\[]+)", r"[\1]", step) for step in rest)


def _inside(path: str, name: str) -> str:
    return f"{path}[{name}]" if path else name
