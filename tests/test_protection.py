"""What keeps others out of the way: whose pages may call, how often, and how much one client may hold."""

import msgspec
import pytest

from app.api import strict, wire
from app.errors import InvalidRequest

# -- the origins of a venue -------------------------------------------------------------------------------------------


def venue_with(origins: object) -> wire.VenueWanted:
    wanted = {"slug": "salon", "name": "Salon", "timezone": "Europe/Berlin", "origins": origins}
    decoded: wire.VenueWanted = strict.decode(msgspec.json.encode(wanted), wire.VenueWanted)
    return decoded


@pytest.mark.parametrize(
    "origin",
    ["https://salon.example", "http://localhost:8080", "https://a.b.c-d.example:8443", "http://127.0.0.1", "*"],
)
def test_an_origin_is_as_browsers_send_it(origin: str) -> None:
    assert venue_with([origin]).origins == [origin]


@pytest.mark.parametrize(
    "origin",
    [
        "null", "", "salon.example", "//salon.example", "https://", "https://salon.example/", "https://salon.example/a",
        "HTTPS://salon.example", "https://Salon.example", "https://salon.example:443", "http://salon.example:80",
        "https://salon.example:0", "https://salon.example:65536", "https://ada@salon.example", "https://*.example",
        "ftp://salon.example", "javascript:alert(1)", "https://salon.example;", "https://salon.example 'self'",
        "https://salon.example\n", "https://sälon.example", "https://-a.example", "**",
        "https://a" + 300 * "a", 1, None,
    ],
)  # fmt: skip
def test_whatever_else_is_no_origin(origin: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        venue_with([origin])
    assert "origins" in caught.value.detail


def test_a_venue_names_twenty_origins_at_most() -> None:
    many = [f"https://{n}.example" for n in range(21)]
    assert len(venue_with(many[:20]).origins) == 20
    with pytest.raises(InvalidRequest):
        venue_with(many)
