"""Tokens are capabilities: nobody can make one, and a rotated secret still honours the old ones."""

from uuid import UUID

import pytest

from app.tokens import (
    HoldGrant,
    id_from_key,
    manage_token,
    new_id,
    read_hold,
    read_session,
    sign_hold,
    sign_session,
    token_hash,
)

SECRETS = ("a" * 32,)
GRANT = HoldGrant(new_id(), new_id(), 3, 1_800_000_000_123)


def test_a_token_says_what_was_signed():
    assert read_hold(SECRETS, sign_hold(SECRETS, GRANT)) == GRANT


def test_the_same_grant_has_the_same_token():
    assert sign_hold(SECRETS, GRANT) == sign_hold(SECRETS, GRANT)


def test_no_byte_of_a_token_can_be_changed():
    token = sign_hold(SECRETS, GRANT)
    for position in range(len(token)):
        other = "A" if token[position] != "A" else "B"
        assert read_hold(SECRETS, token[:position] + other + token[position + 1 :]) is None


@pytest.mark.parametrize("token", ["", "x", "ä" * 80, "=" * 80, "A" * 80, "A" * 5000, "\0", "A" * 79 + "\n"])
def test_garbage_is_nobodys_token(token):
    assert read_hold(SECRETS, token) is None


def test_a_token_of_another_secret_is_refused():
    assert read_hold(("b" * 32,), sign_hold(SECRETS, GRANT)) is None


def test_a_rotated_secret_still_reads_the_old_tokens():
    assert read_hold(("b" * 32, *SECRETS), sign_hold(SECRETS, GRANT)) == GRANT


def test_a_hold_token_is_no_manage_token():
    booking_id = new_id()
    assert manage_token(SECRETS, booking_id) != manage_token(("b" * 32,), booking_id)
    assert len(token_hash(manage_token(SECRETS, booking_id))) == 32


def test_ids_are_uuids_of_their_version():
    assert new_id().version == 7
    assert id_from_key("book", UUID(int=1), "k").version == 8
    assert new_id().variant == "specified in RFC 4122"


def test_ids_made_later_sort_later():
    ids = [new_id() for _ in range(1000)]
    times = [i.int >> 80 for i in ids]
    assert times == sorted(times)
    assert len(set(ids)) == 1000


def test_a_key_names_one_id_per_route_and_venue():
    venue, other = UUID(int=1), UUID(int=2)
    ids = {id_from_key(scope, v, key) for scope in ("book", "hold") for v in (venue, other) for key in ("k", "l")}
    assert len(ids) == 8
    assert id_from_key("book", venue, "k") == id_from_key("book", venue, "k")


def test_a_session_ends_with_the_operator_key_and_with_the_secret() -> None:
    secrets, key = ("s" * 32, "t" * 32), "operator-key-0001"
    token = sign_session(secrets, key, 2_000_000_000)
    assert read_session(secrets, key, token) == 2_000_000_000
    assert read_session(secrets[::-1], key, token) == 2_000_000_000  # while secrets are rotated
    assert read_session(secrets, "operator-key-0002", token) == 0
    assert read_session(("u" * 32,), key, token) == 0
    assert read_session(secrets, key, token[:-4] + "AAA=") == 0
    assert read_session(secrets, key, "") == 0
