"""Templates become HTML. Everything that people typed is escaped, and a name that a template lacks is an error."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.pages import assets

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATES = Path(__file__).parent / "templates"


@cache
def environment() -> "Environment":
    """Make the environment of all templates; `static(path)` addresses a static file in them."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape  # noqa: PLC0415 with the first page

    made = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["static"] = assets.url
    return made


def html(template: str, **values: Any) -> bytes:
    """Render a template of `templates/`."""
    return environment().get_template(template).render(values).encode()
