"""Reading requests: everything that comes from outside passes here, and is refused whole when any of it is odd.

Litestar alone would read `"3"` as 3, take any content type for JSON, and let the last of two equal keys win. Refusals
name the field and never repeat what was sent.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import litestar
import msgspec
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.exceptions import InternalServerException, NotFoundException
from litestar.handlers.base import BaseRouteHandler

from app.api import who
from app.catalogue import Catalogue
from app.database import Database, Keyed
from app.domain import Caller
from app.engine import Engine
from app.errors import InvalidRequest, Unauthorized, UnsupportedMediaType
from app.telemetry import request_id

Asked = TypeVar("Asked", bound=msgspec.Struct)

#: More than any request needs; a thousand brackets would exhaust the decoder's stack.
MAX_DEPTH = 32
#: JSON has no bounds for integers, msgspec and Postgres have.
MAX_INTEGER = 2**63 - 1

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
_AT = re.compile(r"^(.*?) - at `\$\.?(.*)`$", re.DOTALL)
_MISSING_FIELD = re.compile(r"^Object missing required field `(.*)`$", re.DOTALL)
#: How our own checks in the `wire` modules begin.
_NAMED_FIELD = re.compile(r"^([a-z_]+) must ")
_UNKNOWN_FIELD = re.compile(r"^Object contains unknown field `(.*)`$", re.DOTALL)
_INSTANT_WITHOUT_PLUS = re.compile(r"[0-9-]{10}T[0-9:.]+ [0-9]{2}:[0-9]{2}")
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,18}")


def whole(pattern: str) -> str:
    """Make a pattern for a whole text, in Python as in a browser: here `$` alone lets a line feed pass."""
    return rf"^{pattern}$(?!\n)"


#: What msgspec says of each text that does not match, and what is said instead.
_MEANINGS: dict[str, str] = {}


def said(pattern: str, meaning: str) -> str:
    """Name what a pattern asks for, since a page may show the message to whoever typed the text; gives the pattern."""
    _MEANINGS[f"Expected `str` matching regex {pattern!r}"] = meaning
    return pattern


#: For texts of some length that are not spaces alone.
NOT_BLANK = said(r"\S", "Must not be blank")


#: Quoted or bare. A bare one has no spaces around it, which HTTP would not keep.
IDEMPOTENCY_KEY_PATTERN = whole('("[ !#-~]{1,255}"|[!#-~]|[!#-~][ -~]{0,253}[!-~])')


class ApiRequest(litestar.Request[Any, Any, State]):
    """A request whose JSON is decoded straight into what its handler is annotated with."""

    @property
    def engine(self) -> Engine:
        engine: Engine = self.app.state.engine
        return engine

    @property
    def database(self) -> Database:
        database: Database = self.app.state.database
        return database

    @property
    def catalogue(self) -> Catalogue:
        catalogue: Catalogue = self.app.state.catalogue
        return catalogue

    @property
    def is_operator(self) -> bool:
        """True with the operator key or a session, False without any.

        Raises:
            Unauthorized: another key.
        """
        if "authorization" in self.headers:
            operator_only(self, self.route_handler)
        return who.is_operator(self.engine.settings, self.headers)

    @property
    def caller(self) -> Caller:
        """Name who asks, for the audit log."""
        return caller(self.engine, self.scope, self.headers)

    async def json(self) -> Any:
        self._refuse_other_media()
        field = self.route_handler.parsed_data_field
        return decode(await self.body(), field.annotation if field else Any)

    async def body(self) -> bytes:
        # Litestar reads a missing body before it asks for JSON, and would take it for "no data".
        try:
            body = await super().body()
        except InternalServerException as gone:  # the caller hung up, which is no bug of ours
            raise cut_off() from gone
        if not body and self.route_handler.parsed_data_field is not None:
            self._refuse_other_media()
            raise InvalidRequest("", "The body is empty")
        return body

    def _refuse_other_media(self) -> None:
        refuse_other_media(self.headers.get("content-type", ""), self.headers.get("content-encoding", "identity"))


async def exact_path(request: litestar.Request[Any, Any, Any]) -> None:
    """Refuse `/v1/slots/`, `/v1/slots%2F` and `/v1//slots`, which Litestar takes for `/v1/slots`: a thing has one
    address.
    """
    # Asynchronous, though it awaits nothing: any other hook costs every request a trip through a thread.
    path: bytes = request.scope["raw_path"]
    if b"//" in path or b"%2f" in path.lower() or (path.endswith(b"/") and path != b"/"):
        raise NotFoundException


def operator_only(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Let only operators pass: the guard of their routes, before the body is looked at."""
    if not who.is_operator(connection.app.state.engine.settings, connection.headers):
        raise Unauthorized


async def not_too_often(connection: ASGIConnection[Any, Any, Any, Any]) -> None:
    """Let a page's form pass whose sender does not ask too often. The API has its own guard before it (`edge`).

    Raises:
        RateLimited
    """
    engine: Engine = connection.app.state.engine
    await engine.limits.ask(engine.limits.requests, who.client(engine.settings, connection.scope))


def caller(engine: Engine, scope: Mapping[str, Any], headers: Mapping[str, str]) -> Caller:
    """Name who asks, for the audit log and for what one client may hold. Another's Authorization header, a proxy's say,
    makes no operator.
    """
    if who.is_operator(engine.settings, headers):
        return Caller("operator", request_id())
    return Caller("customer", request_id(), who.client(engine.settings, scope))


# -- bodies -----------------------------------------------------------------------------------------------------------


def refuse_other_media(content_type: str, content_encoding: str) -> None:
    """Let only plain JSON in UTF-8 pass.

    Raises:
        UnsupportedMediaType
    """
    kind, _, parameters = content_type.partition(";")
    charset = parameters.replace(" ", "").lower()
    if kind.strip().lower() != "application/json" or charset not in ("", "charset=utf-8", 'charset="utf-8"'):
        raise UnsupportedMediaType
    if content_encoding.lower() != "identity":
        raise UnsupportedMediaType


def cut_off() -> InvalidRequest:
    """Say that the caller hung up in the middle: to the metrics and the log, for nobody else listens any more."""
    return InvalidRequest("", "The connection ended before the body did")


def decode(body: bytes, annotation: Any) -> Any:
    """Decode JSON into a Struct, or into that of several which the body's keys tell (see `_member`).

    Raises:
        InvalidRequest
    """
    _refuse_depth(body)
    try:
        raw = _STRICT.decode(body.decode())
        value = _decoder(_member(annotation, raw)).decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, json.JSONDecodeError):
        raise InvalidRequest("", "The body is not valid JSON in UTF-8") from None
    if b"\\u" in body:  # the only way into a JSON string for what a database or UTF-8 cannot hold
        _refuse_odd_characters(raw)
    return value


@cache
def _decoder(struct: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(struct, strict=True)


@cache
def _members(annotation: Any) -> tuple[Any, ...]:
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _member(annotation: Any, raw: Any) -> Any:
    """Choose among Structs: a later one when its first field is there, else the first one."""
    first, *others = _members(annotation)
    if isinstance(raw, dict):
        for other in others:
            if other.__struct_fields__[0] in raw:
                return other
    return first


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InvalidRequest("", "The same key stands twice in one object")
    return found


def _bounded(digits: str) -> int:
    if len(digits) > 20 or abs(int(digits)) > MAX_INTEGER:
        raise InvalidRequest("", "A number is too large")
    return int(digits)


def _no_constant(_: str) -> float:
    raise InvalidRequest("", "NaN and Infinity are not JSON")


#: Made once: `json.loads` would make one for every body, which costs as much as decoding it.
_STRICT = json.JSONDecoder(object_pairs_hook=_without_duplicates, parse_int=_bounded, parse_constant=_no_constant)


def _refuse_depth(body: bytes) -> None:
    if body.count(b"{") + body.count(b"[") <= MAX_DEPTH:
        return
    depth = 0
    for character in _STRING.sub(b"", body):
        depth += (character in b"{[") - (character in b"}]")
        if depth > MAX_DEPTH:
            raise InvalidRequest("", "The body is nested too deeply")


def _refuse_odd_characters(value: Any) -> None:
    if isinstance(value, str):
        if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            raise InvalidRequest("", "NUL and lone surrogates are not text")
    elif isinstance(value, dict):
        for key, inner in value.items():
            _refuse_odd_characters(key)
            _refuse_odd_characters(inner)
    elif isinstance(value, list):
        for inner in value:
            _refuse_odd_characters(inner)


def _invalid(told: str) -> InvalidRequest:
    """Turn msgspec's sentence into field and message."""
    match = _AT.match(told)
    message, path = (match[1], match[2]) if match else (told, "")
    for pattern, meaning in ((_UNKNOWN_FIELD, "Unknown field"), (_MISSING_FIELD, "Missing"), (_NAMED_FIELD, message)):
        if found := pattern.match(message):
            field = found[1][:64]
            return InvalidRequest(f"{path}.{field}" if path else field, meaning)
    if message.startswith("Invalid enum value"):
        message = "Not one of the values allowed here"  # msgspec would repeat what was sent
    return InvalidRequest(path, _MEANINGS.get(message, message))


# -- query strings ----------------------------------------------------------------------------------------------------


def query(request: ApiRequest, struct: type[Asked]) -> Asked:
    """Read the query string into a Struct: no unknown names, no name twice, and numbers in plain digits.

    A space in an instant was the plus of its offset: in a query string it means one.

    Raises:
        InvalidRequest
    """
    integers = _integer_fields(struct)
    given: dict[str, Any] = {}
    for name, text in request.query_params.multi_items():
        if name in given:
            raise InvalidRequest(name[:64], "Given twice")
        if "\0" in text:
            raise InvalidRequest(name[:64], "NUL is not text")
        if _INSTANT_WITHOUT_PLUS.fullmatch(text):
            text = text.replace(" ", "+")  # noqa: PLW2901 the same text as it was meant
        given[name] = int(text) if name in integers and _WHOLE_NUMBER.fullmatch(text) else text
    try:
        return msgspec.convert(given, struct, strict=True)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None


@cache
def _integer_fields(struct: type[msgspec.Struct]) -> frozenset[str]:
    types = {field.name: field for field in msgspec.inspect.type_info(struct).fields}  # type: ignore[attr-defined]
    return frozenset(
        field.encode_name
        for field in types.values()
        if any(isinstance(t, msgspec.inspect.IntType) for t in getattr(field.type, "types", (field.type,)))
    )


# -- single values ----------------------------------------------------------------------------------------------------

#: What the wire takes for an instant. The years keep arithmetic with it inside what Python and Postgres can hold.
FIRST_YEAR, LAST_YEAR = 1970, 2200


def instant(value: datetime, name: str) -> datetime:
    """Return an instant in UTC.

    Raises:
        ValueError: outside of the years that are served.
    """
    if not FIRST_YEAR <= value.year <= LAST_YEAR:
        raise ValueError(f"{name} must be between the years {FIRST_YEAR} and {LAST_YEAR}")
    return value.astimezone(UTC)


def idempotency_key(header: str | None) -> str | None:
    """Read an Idempotency-Key, in quotes (as the draft standard has it) or bare: the same key.

    Raises:
        InvalidRequest
    """
    if header is None:
        return None
    key = header.strip(" ")
    if not re.match(IDEMPOTENCY_KEY_PATTERN, key):
        raise InvalidRequest("Idempotency-Key", "Must have 1 to 255 printable ASCII characters")
    return key[1:-1] if key.startswith('"') else key


def keyed(scope: str, header: str | None, asked: Any) -> Keyed | None:
    """Bind an Idempotency-Key to a use and to what was asked, however that was written."""
    key = idempotency_key(header)
    if key is None:
        return None
    fingerprint = hashlib.sha256(msgspec.json.encode(asked, order="deterministic")).digest()
    return Keyed(scope, key, fingerprint)
