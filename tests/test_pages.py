"""What all pages share: files that may be kept, a strict policy, and signing in. Nothing here is about bookings."""

import hashlib
import re
import time
from collections.abc import Iterator
from typing import Literal

import httpx
import pytest
from playwright.sync_api import expect

from app.pages import assets
from app.tokens import sign_session
from tests import factories
from tests.browser import DESKTOP, PHONE, Windows, assert_accessible, chromium, sign_in, windows
from tests.service import OPERATOR_KEY, SECRET, Service, booking_body

__all__ = ["chromium", "windows"]


@pytest.fixture
def client(with_redis: Service) -> Iterator[httpx.Client]:
    with factories.client(with_redis) as client:
        yield client


def test_static_files_are_kept_for_good_under_their_digest(client: httpx.Client) -> None:
    first = client.get(assets.url("base.css"), headers={"Accept-Encoding": "gzip"})
    assert first.status_code == 200
    assert first.headers["content-encoding"] == "gzip"
    assert "immutable" in first.headers["cache-control"]
    assert first.headers["content-type"] == "text/css; charset=utf-8"
    assert first.content == assets.all_assets()["base.css"].body
    known = client.get(assets.url("base.css"), headers={"If-None-Match": first.headers["etag"]})
    assert (known.status_code, known.content) == (304, b"")
    plain = client.get(assets.url("base.css"), headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.content == first.content


def test_a_file_of_another_deployment_is_sent_but_not_kept(client: httpx.Client) -> None:
    answer = client.get("/static/000000000000/base.css")
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-cache")


@pytest.mark.parametrize(
    "path", ["nothing.css", "../assets.py", "..%2fassets.py", "%2e%2e/assets.py", "..%5cassets.py", ""]
)
def test_nothing_else_is_sent(client: httpx.Client, path: str) -> None:
    assert client.get(f"/static/{assets.digest()}/{path}").status_code == 404


def test_head_of_a_file(client: httpx.Client) -> None:
    answer = client.head(assets.url("base.css"))
    assert (answer.status_code, answer.content) == (200, b"")


def test_the_work_of_others_is_as_they_published_it() -> None:
    """Each file has a row with its hash, and a licence beside it."""
    vendored = {path: asset for path, asset in assets.all_assets().items() if path.startswith("vendor/")}
    table = vendored.pop("vendor/THIRD_PARTY.md").body.decode()
    rows = dict(re.findall(r"\| `([^`]+)` \| `([0-9a-f]{64})` \|$", table, re.MULTILINE))
    code = {path.removeprefix("vendor/"): asset for path, asset in vendored.items() if "LICENSE" not in path.upper()}
    assert {path: hashlib.sha256(asset.body).hexdigest() for path, asset in code.items()} == rows
    folders = {path.split("/")[0] for path in code}
    assert folders == {path.split("/")[1] for path in vendored if "LICENSE" in path.upper()}


# -- signing in -------------------------------------------------------------------------------------------------------


def signed_in(client: httpx.Client) -> str:
    answer = client.post("/session", json={"key": OPERATOR_KEY})
    assert answer.status_code == 204
    return answer.headers["set-cookie"]


def test_the_key_is_exchanged_for_a_cookie_no_script_can_read(client: httpx.Client) -> None:
    cookie = signed_in(client)
    assert OPERATOR_KEY not in cookie
    assert re.search("HttpOnly; SameSite=Strict", cookie)
    assert client.get("/v1/holds", headers={"Holdfast-Page": "1"}).status_code == 200


def test_the_cookie_alone_is_no_proof(client: httpx.Client) -> None:
    """Negative control of cross-site request forgery: what a foreign page can make a browser send."""
    signed_in(client)
    assert client.get("/v1/holds").status_code == 401
    assert client.post("/v1/venues", json={"slug": "x", "name": "X", "timezone": "UTC"}).status_code == 401


def test_a_wrong_key_or_cookie_opens_nothing(client: httpx.Client) -> None:
    assert client.post("/session", json={"key": "no" * 12}).status_code == 401
    ended = sign_session((SECRET,), OPERATOR_KEY, int(time.time()) - 1)
    for value in ("", "x", "A" * 64, "é".encode("latin-1").decode("latin-1"), ended):
        headers = {"Holdfast-Page": "1", "Cookie": f"holdfast_session={value}".encode("latin-1")}
        assert client.get("/v1/holds", headers=headers).status_code == 401, value


@pytest.mark.parametrize(
    "cookies",
    [
        'prefs={"theme":"dark"}; %s',
        "a[]=1; %s; b",
        "; =;%s;;",
        "holdfast_session=x; %s",
        "%s; holdfast_session=x",
    ],
)
def test_what_other_cookies_of_the_host_say_locks_nobody_out(client: httpx.Client, cookies: str) -> None:
    own = signed_in(client).partition(";")[0]
    with httpx.Client(base_url=client.base_url) as browser:
        headers = {"Holdfast-Page": "1", "Cookie": cookies % own}
        assert browser.get("/v1/holds", headers=headers).status_code == 200
        headers["Cookie"] = cookies % f"not_{own}"
        assert browser.get("/v1/holds", headers=headers).status_code == 401


def test_a_wrong_bearer_beside_a_session_is_refused(client: httpx.Client) -> None:
    signed_in(client)
    answer = client.get("/v1/holds", headers={"Holdfast-Page": "1", "Authorization": "Bearer " + "x" * 32})
    assert answer.status_code == 401


def test_signing_out_takes_the_cookie_away(client: httpx.Client) -> None:
    signed_in(client)
    assert client.delete("/session").status_code == 204
    assert client.get("/v1/holds", headers={"Holdfast-Page": "1"}).status_code == 401


def test_a_booking_from_an_operators_page_is_the_operators(client: httpx.Client, with_redis: Service) -> None:
    """The crowded routes skip the framework: a session must count there too."""
    with factories.client(with_redis, operator=True) as operator:
        wanted = booking_body(factories.slot(operator, capacity=2)["id"])
    signed_in(client)
    for headers, actor in ({"Holdfast-Page": "1"}, "operator"), ({}, "customer"):
        booking = client.post("/v1/bookings", json=wanted, headers=headers).json()
        told = with_redis.query("SELECT actor FROM events WHERE booking_id = %s", booking["id"])
        assert told == [(actor,)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_person_signs_in_and_out(
    with_redis: Service, windows: Windows, size: dict[str, int], scheme: Literal["light", "dark"]
) -> None:
    window = windows(size=size, scheme=scheme)
    window.expects("401")
    page = window.page(f"{with_redis.url}/ops")
    assert_accessible(page)
    sign_in(page, "not the operator key")
    expect(page.get_by_role("alert")).to_contain_text("not the operator key")
    assert_accessible(page)
    sign_in(page)
    expect(page.get_by_role("heading", name="Console")).to_be_visible()
    assert window.context.storage_state()["origins"] == []  # nothing that a script could read later
    assert OPERATOR_KEY not in page.content()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Operator key")).to_be_visible()


def test_who_tried_too_many_keys_is_told_to_wait(with_redis: Service, windows: Windows) -> None:
    window = windows()
    window.expects("429")
    page = window.page(f"{with_redis.url}/ops")
    page.route(
        "**/session", lambda route: route.fulfill(status=429, json={"code": "rate_limited"})
    )  # or nobody else could
    sign_in(page)
    expect(page.get_by_role("alert")).to_contain_text("Wait a minute")
