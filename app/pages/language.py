"""The languages of the customers' pages: which one a person reads, and what the pages say in it.

A catalogue per language under `languages/`; all have the same names and placeholders, which a test sees to.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from app.written import LANGUAGES

_CATALOGUES = Path(__file__).parent / "languages"


def choose(asked: str | None, accepted: str) -> str:
    """Choose a language: the one that the address asks for, else the first that the browser prefers."""
    if asked in LANGUAGES:
        return asked
    for tag in sorted(accepted.lower().split(",")[:20], key=_quality, reverse=True):
        language = tag.partition(";")[0].strip().partition("-")[0]
        if language in LANGUAGES:
            return language
    return LANGUAGES[0]


def _quality(tag: str) -> float:
    """Read the weight of a language in Accept-Language; what is no weight counts as none."""
    _, weighted, weight = tag.partition(";q=")
    try:
        return float(weight) if weighted else 1.0
    except ValueError:
        return 0.0


@cache
def words(language: str) -> Mapping[str, Any]:
    """Read what the pages say in a language."""
    found: Mapping[str, Any] = msgspec.json.decode((_CATALOGUES / f"{language}.json").read_bytes())
    return found
