"""The booking page of a venue: the widget, and for browsers without JavaScript the same in links and forms.

What was chosen stands in the address and what was typed in the form; nothing is kept between two requests, and no
cookie says who asks. A form books all the same, in whatever name it holds: so only those of our own pages are taken,
lest another site has its visitors' browsers fill a venue. Its hidden key, an Idempotency-Key, makes sending it twice
harmless.

Here is what all steps share; `book_times` has the links that choose, `book_form` what is typed.
"""

from collections.abc import Mapping
from datetime import date, datetime
from typing import Any
from urllib.parse import urlencode, urlsplit
from zoneinfo import ZoneInfo

import msgspec

from app import written
from app.api import pages
from app.api.answers import Answer
from app.api.strict import ApiRequest
from app.domain import Venue
from app.pages import language
from app.settings import STRIPE_API, Settings


class Page(msgspec.Struct, frozen=True):
    """What all steps of one visit share."""

    request: ApiRequest
    venue: Venue
    language: str

    @property
    def words(self) -> Mapping[str, Any]:
        return language.words(self.language)

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.venue.timezone)

    def href(self, **chosen: Any) -> str:
        """Address a step. The language stays the one that the address asked for."""
        given = {**chosen, "lang": self.request.query_params.get("lang")}
        query = urlencode({name: str(value) for name, value in given.items() if value})
        return f"/book/{self.venue.slug}{'?' if query else ''}{query}"

    def answer(self, template: str, *, status: int = 200, **values: Any) -> Answer:
        return pages.page(
            template,
            status=status,
            framed_by=pages.framed_by(self.venue),
            forms_to=forms_to(self.request.engine.settings),
            w=self.words,
            lang=self.language,
            venue=self.venue,
            here=self.href(),
            **values,
        )

    def times(self, starts_at: datetime, ends_at: datetime) -> str:
        return written.span(self.language, starts_at.astimezone(self.zone), ends_at.astimezone(self.zone))

    def day(self, day: date) -> str:
        return written.day(self.language, day)

    def money(self, amount: int, currency: str) -> str:
        return written.money(self.language, amount, currency)


def language_of(request: ApiRequest) -> str:
    """Choose the language in which somebody is answered."""
    return language.choose(request.query_params.get("lang"), request.headers.get("accept-language", ""))


def forms_to(settings: Settings) -> str:
    """Tell where forms may lead. Browsers ask the policy also about the page for paying that answers one, which may be
    on a domain of the venue's own.
    """
    if settings.stripe_api_base == STRIPE_API:
        return "'self' https:"
    simulator = urlsplit(settings.stripe_api_base)
    return f"'self' {simulator.scheme}://{simulator.hostname}:*"


async def open_page(request: ApiRequest, slug: str) -> Page:
    return Page(request, await request.catalogue.venue(slug), language_of(request))
