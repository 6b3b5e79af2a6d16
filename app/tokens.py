"""Signed capabilities: who shows one may act, without a look into a store.

A hold token carries what it grants, so a hold survives a Redis that forgot it. A manage token is derived from its
booking's id, so a repeated request can be answered word for word; only its hash is stored (reliability.md 6.3).
"""

import base64
import binascii
import hashlib
import hmac
import os
import struct
import time
from datetime import UTC, datetime
from functools import lru_cache
from uuid import UUID

import msgspec

_GRANT = struct.Struct(">16s16sIQ")  # hold id, slot id, quantity, expiry in Unix ms
_SESSION = struct.Struct(">Q8s")  # its end in Unix seconds, and what makes two of one second differ
_SIGNATURE_BYTES = 16  # 128 bits: beyond guessing, and the token stays short enough for a header
_MAX_TOKEN_LENGTH = 128


class HoldGrant(msgspec.Struct, frozen=True):
    """What a hold token says; true because it is signed."""

    hold_id: UUID
    slot_id: UUID
    quantity: int
    expires_at_ms: int

    @property
    def expires_at(self) -> datetime:
        return from_ms(self.expires_at_ms)


def from_ms(unix_ms: int) -> datetime:
    return datetime.fromtimestamp(unix_ms / 1000, tz=UTC)


def sign_hold(secrets: tuple[str, ...], grant: HoldGrant) -> str:
    payload = _GRANT.pack(grant.hold_id.bytes, grant.slot_id.bytes, grant.quantity, grant.expires_at_ms)
    return base64.urlsafe_b64encode(payload + _mac(secrets[0], b"hold", payload)[:_SIGNATURE_BYTES]).decode()


def read_hold(secrets: tuple[str, ...], token: str) -> HoldGrant | None:
    """Return what the token grants, or None when it is not ours. An expired grant is returned: the store decides."""
    if len(token) > _MAX_TOKEN_LENGTH:
        return None
    try:
        raw = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return None
    payload, signature = raw[: _GRANT.size], raw[_GRANT.size :]
    if len(payload) != _GRANT.size:
        return None
    if not any(hmac.compare_digest(signature, _mac(s, b"hold", payload)[:_SIGNATURE_BYTES]) for s in secrets):
        return None
    hold_id, slot_id, quantity, expires_at_ms = _GRANT.unpack(payload)
    return HoldGrant(UUID(bytes=hold_id), UUID(bytes=slot_id), quantity, expires_at_ms)


def manage_token(secrets: tuple[str, ...], booking_id: UUID) -> str:
    return base64.urlsafe_b64encode(_mac(secrets[0], b"manage", booking_id.bytes)[:24]).decode()


def waiting_token(secret: str, entry_id: UUID) -> str:
    return base64.urlsafe_b64encode(_mac(secret, b"waiting", entry_id.bytes)[:24]).decode()


def sign_session(secrets: tuple[str, ...], operator_key: str, ends_at: int) -> str:
    """Sign that somebody showed the operator key; good until `ends_at` (Unix seconds), or until the key is another."""
    payload = _SESSION.pack(ends_at, os.urandom(8))
    return base64.urlsafe_b64encode(payload + _session_mac(secrets[0], operator_key, payload)).decode()


def read_session(secrets: tuple[str, ...], operator_key: str, token: str) -> int:
    """Return when a session ends, in Unix seconds: long ago when it is not ours."""
    try:
        raw = base64.b64decode(token[:_MAX_TOKEN_LENGTH].encode("ascii"), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return 0
    payload, signature = raw[: _SESSION.size], raw[_SESSION.size :]
    if not any(hmac.compare_digest(signature, _session_mac(s, operator_key, payload)) for s in secrets):
        return 0
    ends_at: int = _SESSION.unpack(payload)[0]
    return ends_at


def _session_mac(secret: str, operator_key: str, payload: bytes) -> bytes:
    return _mac(secret, b"session", hashlib.sha256(operator_key.encode()).digest() + payload)


def client_name(secret: str, address: str) -> str:
    """Name whoever has an address: the stores need not know it."""
    return _mac(secret, b"client", address.encode())[:16].hex()


def token_hash(token: str) -> bytes:
    """What is stored of a manage token. The token has 192 random-looking bits, so one plain hash is enough."""
    return hashlib.sha256(token.encode()).digest()


def new_id() -> UUID:
    """Make a UUIDv7 (RFC 9562): ids made together lie together in every index."""
    value = int.from_bytes(struct.pack(">Q", time.time_ns() // 1_000_000)[2:] + os.urandom(10), "big")
    value = value & ~(0xF000 << 64) | 0x7000 << 64
    value = value & ~(0xC000 << 48) | 0x8000 << 48
    return UUID(int=value)


def id_from_key(scope: str, venue_id: UUID, key: str) -> UUID:
    """Derive an id (UUIDv8) from an Idempotency-Key, so that a repeated request names the same hold and booking.

    `scope` keeps apart what one client may do under one key on different routes.
    """
    return derived_id(scope.encode(), venue_id.bytes, key.encode())


def derived_id(*named: bytes) -> UUID:
    """Derive an id (UUIDv8, RFC 9562) from what it names: whoever names the same, means the same."""
    digest = hashlib.sha256(b"\0".join(named)).digest()
    value = int.from_bytes(digest[:16], "big")
    value = value & ~(0xF000 << 64) | 0x8000 << 64
    value = value & ~(0xC000 << 48) | 0x8000 << 48
    return UUID(int=value)


def _mac(secret: str, purpose: bytes, message: bytes) -> bytes:
    mac = _keyed(secret).copy()  # hashing the key anew costs as much as hashing the message
    mac.update(purpose + b"\0" + message)
    return mac.digest()


@lru_cache(maxsize=16)
def _keyed(secret: str) -> hmac.HMAC:
    return hmac.new(secret.encode(), digestmod="sha256")
