"""The OpenAPI document and the service say the same: read by people here, and by schemathesis against every route."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import Status, events, from_schema

from app.api import strict
from tests import factories
from tests.service import CLIENT_SECONDS, OPERATOR_KEY, Service

#: Per operation and phase: enough to find what a person overlooks, few enough for every run of the suite.
MAX_EXAMPLES = 15

#: Routes for people and machines that are no part of the contract of programs.
UNDOCUMENTED = {"/livez", "/readyz", "/metrics", "/schema", "/schema/openapi.json", "/problems/{code}"}


OWN_FORM = {"/api/v1/public/{slug}/book"}


@pytest.fixture(scope="module")
def document(with_redis: Service) -> dict[str, Any]:
    answer = httpx.get(f"{with_redis.url}/schema/openapi.json", timeout=CLIENT_SECONDS)
    assert answer.headers["content-type"] == "application/json"
    found: dict[str, Any] = answer.json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield method, path, operation


def patterns(part: Any) -> Iterator[str]:
    """Find those that bodies and query strings must match: headers and paths have words of their own."""
    if isinstance(part, dict) and part.get("in") not in ("header", "path"):
        if isinstance(part.get("pattern"), str):
            yield part["pattern"]
        for inner in part.values():
            yield from patterns(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from patterns(inner)


def test_what_a_text_must_match_is_told_in_words(document: dict[str, Any]) -> None:
    found = set(patterns(document))
    assert len(found) > 10
    assert {
        each for each in found if "regex" in str(strict._invalid(f"Expected `str` matching regex {each!r}"))
    } == set()


def test_every_route_of_the_contract_is_documented(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    assert sorted((method.upper(), path) for method, path, _ in operations(document)) == [
        ("DELETE", "/v1/blocks/{block_id}"),
        ("DELETE", "/v1/calendar-feeds/{feed_id}"),
        ("DELETE", "/v1/holds/{hold_id}"),
        ("DELETE", "/v1/schedules/{schedule_id}"),
        ("DELETE", "/v1/schedules/{schedule_id}/exceptions/{exception_id}"),
        ("DELETE", "/v1/waiting-list/{entry_id}"),
        ("DELETE", "/v1/webhook-endpoints/{endpoint_id}"),
        ("GET", "/v1/blocks"),
        ("GET", "/v1/bookings"),
        ("GET", "/v1/bookings/{booking_id}"),
        ("GET", "/v1/bookings/{booking_id}/calendar"),
        ("GET", "/v1/calendar"),
        ("GET", "/v1/calendar-feeds"),
        ("GET", "/v1/calendars/{calendar}"),
        ("GET", "/v1/days"),
        ("GET", "/v1/events"),
        ("GET", "/v1/holds"),
        ("GET", "/v1/holds/{hold_id}"),
        ("GET", "/v1/jobs"),
        ("GET", "/v1/live"),
        ("GET", "/v1/payments"),
        ("GET", "/v1/schedules"),
        ("GET", "/v1/schedules/{schedule_id}"),
        ("GET", "/v1/services"),
        ("GET", "/v1/slots"),
        ("GET", "/v1/slots/{slot_id}"),
        ("GET", "/v1/venues"),
        ("GET", "/v1/venues/{slug}"),
        ("GET", "/v1/waiting-list"),
        ("GET", "/v1/waiting-list/{entry_id}"),
        ("GET", "/v1/webhook-deliveries"),
        ("GET", "/v1/webhook-endpoints"),
        ("PATCH", "/v1/schedules/{schedule_id}"),
        ("PATCH", "/v1/services/{service_id}"),
        ("PATCH", "/v1/slots/{slot_id}"),
        ("PATCH", "/v1/venues/{slug}"),
        ("POST", "/api/v1/public/{slug}/book"),
        ("POST", "/v1/blocks"),
        ("POST", "/v1/bookings"),
        ("POST", "/v1/bookings/{booking_id}/cancel"),
        ("POST", "/v1/bookings/{booking_id}/reschedule"),
        ("POST", "/v1/calendar-feeds"),
        ("POST", "/v1/calendar-feeds/{feed_id}/rotate"),
        ("POST", "/v1/checkout"),
        ("POST", "/v1/holds"),
        ("POST", "/v1/holds/{hold_id}/extend"),
        ("POST", "/v1/jobs/{job_id}/retry"),
        ("POST", "/v1/resources"),
        ("POST", "/v1/schedules"),
        ("POST", "/v1/schedules/{schedule_id}/exceptions"),
        ("POST", "/v1/services"),
        ("POST", "/v1/slots"),
        ("POST", "/v1/venues"),
        ("POST", "/v1/waiting-list"),
        ("POST", "/v1/webhook-deliveries/{delivery_id}/redeliver"),
        ("POST", "/v1/webhook-endpoints"),
        ("POST", "/v1/webhook-endpoints/{endpoint_id}/rotate"),
        ("POST", "/v1/webhooks/stripe"),
    ]


def test_what_is_sent_to_venues_is_documented(document: dict[str, Any]) -> None:
    sent = document["webhooks"]["event"]["post"]
    assert [header["name"] for header in sent["parameters"]] == ["webhook-id", "webhook-timestamp", "webhook-signature"]
    [(media_type, content)] = sent["requestBody"]["content"].items()
    assert media_type == "application/json"
    schema = document["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
    assert set(schema["required"]) == {"type", "source", "id", "time", "subject", "data"}
    assert schema["properties"].keys() == {*schema["required"], "specversion", "datacontenttype"}


def test_every_refusal_is_documented_as_a_problem(document: dict[str, Any]) -> None:
    for _, path, operation in operations(document):
        statuses = {int(status): answer for status, answer in operation["responses"].items()}
        assert {400, 500, 503} <= statuses.keys(), path
        # The salon's page has a form of its own (S4-2).
        form = ("application/json", "AppointmentError") if path in OWN_FORM else ("application/problem+json", "Problem")
        for status, answer in statuses.items():
            if status >= 400:
                assert list(answer["content"]) == [form[0]], path
                assert answer["content"][form[0]]["schema"] == {"$ref": f"#/components/schemas/{form[1]}"}
        assert "Retry-After" in statuses[503]["headers"]


def test_whoever_may_ask_too_often_is_told_beforehand(document: dict[str, Any]) -> None:
    """Everything that customers change is limited by their address; Stripe is not a customer."""
    limited = {
        (method, path): operation["responses"]
        for method, path, operation in operations(document)
        if method != "get" and "operator" not in str(operation.get("security")) and path != "/v1/webhooks/stripe"
    }
    assert ("post", "/api/v1/public/{slug}/book") in limited
    for route, responses in limited.items():
        assert "Retry-After" in responses.get("429", {}).get("headers", ()), route


def test_what_an_operator_may_is_documented_and_guarded(document: dict[str, Any], with_redis: Service) -> None:
    """Nobody gets 2xx from an operator's route without the key, and every other route says that it needs none."""
    public = {"/v1/venues/{slug}", "/v1/slots", "/v1/slots/{slot_id}", "/v1/holds", "/v1/holds/{hold_id}/extend"}
    for method, path, operation in operations(document):
        needs_key = operation.get("security") == [{"operator": []}]
        plain = re.sub(r"\{\w+_id\}", "4bf92f35-77b3-4da6-a3ce-929d0e0e4736", path).replace("{slug}", "x")
        status = httpx.request(method, with_redis.url + plain, timeout=CLIENT_SECONDS).status_code
        assert (status == 401) == needs_key, (method, path, status)
        if needs_key:
            assert "401" in operation["responses"]
        elif path in public:
            assert "security" not in operation
    assert document["components"]["securitySchemes"]["operator"]["scheme"] == "bearer"


def test_bodies_forbid_what_they_do_not_list(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]

    def of_body(schema: Any) -> Iterator[dict[str, Any]]:
        if isinstance(schema, dict):
            if "$ref" in schema:
                schema = schemas[schema["$ref"].rpartition("/")[2]]
            if schema.get("properties"):
                yield schema
            for inner in schema.values():
                yield from of_body(inner)
        elif isinstance(schema, list):
            for inner in schema:
                yield from of_body(inner)

    for _, path, operation in operations(document):
        if "requestBody" in operation:
            found = list(of_body(operation["requestBody"]["content"]["application/json"]["schema"]))
            assert found, path
            assert [schema["title"] for schema in found if schema["additionalProperties"] is not False] == []


def numbers(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        if schema.get("type") == "integer":
            yield schema
        for inner in schema.values():
            yield from numbers(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from numbers(inner)


def test_the_bounds_of_integers_are_integers(document: dict[str, Any]) -> None:
    bounds = [schema[bound] for schema in numbers(document) for bound in ("minimum", "maximum") if bound in schema]
    assert len(bounds) > 20
    assert {type(bound) for bound in bounds} == {int}


def test_headers_are_documented(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        headers = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "header"}
        if method == "post" and path != "/v1/webhooks/stripe":  # there the event's own id is the key
            assert "Idempotency-Key" in headers, path
        assert ("Hold-Token" in headers) == ("{hold_id}" in path)
        assert ("Manage-Token" in headers) == ("{booking_id}" in path)
        assert ("Waiting-Token" in headers) == ("{entry_id}" in path)
        if "201" in operation["responses"]:
            assert operation["responses"]["201"]["headers"].keys() == {"Location", "Idempotency-Replayed"}


def test_the_page_needs_nothing_from_elsewhere(with_redis: Service, document: dict[str, Any]) -> None:
    page = httpx.get(f"{with_redis.url}/schema", timeout=CLIENT_SECONDS)
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert re.findall(r"(?:https?:)?//|<script|<style|style=|<img|@import", page.text) == []
    assert all(url.startswith(("/static/", "/schema")) for url in re.findall(r'(?:href|src)="([^"]*)', page.text))
    for method, path, _ in operations(document):
        assert f"{method.upper()} {path}" in page.text


def test_schemathesis_finds_nothing(with_redis: Service) -> None:
    """All checks on every route, with examples, edge cases, random data and sequences of calls.

    What JSON Schema cannot say (a real time zone, an end after the start, 1.0 is no integer, one key for one request,
    16 KiB in all) may be refused with 400, 413 or 422 although it fits the document; all else must be as it is written.
    """
    with factories.client(with_redis, operator=True) as operator:
        factories.slot(operator, capacity=1000)
    config = SchemathesisConfig.from_dict(
        {
            "headers": {"Authorization": f"Bearer {OPERATOR_KEY}"},
            "generation": {"max-examples": MAX_EXAMPLES},
            "phases": {"stateful": {"max-steps": 8}},
            "checks": {
                "positive_data_acceptance": {"expected-statuses": ["2xx", 400, 401, 404, 409, 410, 413, 422]},
                # What is wrong may also be too long to be looked at.
                "negative_data_rejection": {"expected-statuses": [400, 401, 404, 405, 409, 413, 415, 422, 503]},
            },
            "seed": 1,
        }
    )
    schema = schemathesis.openapi.from_url(f"{with_redis.url}/schema/openapi.json", config=config)
    schema = schema.exclude(path="/v1/live")  # half a minute for each example: see test_live
    found: list[str] = []
    scenarios = 0
    for event in from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            scenarios += 1
            if event.status in (Status.FAILURE, Status.ERROR):
                found += [
                    f"{check.name}: {check.failure_info.failure}"
                    for checks in event.recorder.checks.values()
                    for check in checks
                    if check.failure_info is not None
                ]
        elif isinstance(event, events.NonFatalError | events.FatalError):
            found.append(str(event.value if isinstance(event, events.NonFatalError) else event.exception))
    assert scenarios > 50
    assert found == [], "\n".join(found)
