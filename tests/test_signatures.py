"""Stripe's signatures: whose word about money is taken."""

import time
from collections.abc import Callable

import pytest

from app.gateway import BadSignature, verified
from app.simulator.delivery import signature

SECRETS = ("whsec_the_new_one", "whsec_the_old_one")
BODY = b'{"id": "evt_1", "type": "checkout.session.completed"}'


def signed(body: bytes = BODY, *, at: float = 0, secrets: tuple[str, ...] = SECRETS[:1]) -> str:
    return signature(body, secrets, int(time.time() + at))


@pytest.mark.parametrize("secret", SECRETS)
def test_either_of_two_secrets_verifies_while_one_is_rotated(secret):
    assert verified(BODY, signed(secrets=(secret,)), SECRETS)["id"] == "evt_1"
    assert verified(BODY, signed(secrets=("whsec_unknown", secret)), SECRETS)["id"] == "evt_1"


@pytest.mark.parametrize("at", [-280, 0, 290])
def test_a_signature_of_these_minutes_is_taken(at):
    assert verified(BODY, signed(at=at), SECRETS)["id"] == "evt_1"


NO_SIGNATURES: dict[str, Callable[[], str]] = {
    "none": lambda: "",
    "garbage": lambda: "garbage",
    "empty parts": lambda: "t=,v1=",
    "odd time": lambda: "t=1_0,v1=00",
    "no signature": lambda: f"t={int(time.time())}",
    "not ASCII": lambda: f"t={int(time.time())},v1=\xe9",
    "no time": lambda: f"v1={'0' * 64}",
    "wrong secret": lambda: signed(secrets=("whsec_unknown",)),
    "v0 only": lambda: signed().replace("v1=", "v0="),
    "301 s old": lambda: signed(at=-301),
    "from the future": lambda: signed(at=320),
    "a year ahead": lambda: signed(at=366 * 86_400),
    "of another body": lambda: signed(BODY + b" "),
}


@pytest.mark.parametrize("header", NO_SIGNATURES.values(), ids=NO_SIGNATURES)
def test_no_other_signature_is_taken(header):
    with pytest.raises(BadSignature):
        verified(BODY, header(), SECRETS)


@pytest.mark.parametrize(
    "body", [b"\xff\xfe", b"not JSON", b"[1]", b"null", b"{}", b'{"id": 1, "type": "a.b"}', b"[" * 9000]
)
def test_a_signed_body_that_is_no_event_is_not_taken(body):
    with pytest.raises(BadSignature):
        verified(body, signed(body), SECRETS)
