"""Static files: read once, compressed once, and named so that a browser may keep them for ever.

All files share one digest, which stands before their names: `/static/<digest>/calendar/calendar.js`. So a module finds
its neighbours by relative imports, and after a deployment everything is fetched anew, together. The widget, for which
other people's pages wait, is joined to one file.
"""

import gzip
import hashlib
import mimetypes
import re
from functools import cache
from pathlib import Path

import msgspec

_STATIC = Path(__file__).resolve().parent / "static"
#: As browsers insist: a module of any other type is not run.
_TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
#: Comments and indentation are for us. Other people's pages wait for the widget, and need neither.
_FOR_READERS = re.compile(rb"^[ \t]*(?://[^\n]*|/\*\*.*?\*/)\n|^[ \t]+", re.MULTILINE | re.DOTALL)
_IMPORT = re.compile(rb'^import \{[^}]+\} from "(\.[^"]+)";\n', re.MULTILINE)
_EXPORT = re.compile(rb"^export (?=async |class |const |function )", re.MULTILINE)
#: What the widget's modules, beginning with the element's, are joined to.
WIDGET = "widget/widget.js"
_ELEMENT = "widget/element.js"
#: A smaller answer fits one packet as it is.
_WORTH_COMPRESSING = 1_000


class Asset(msgspec.Struct, frozen=True):
    """A file as it is sent; `gzipped` None where that would not make it smaller."""

    media_type: str
    body: bytes
    gzipped: bytes | None
    etag: str


@cache
def all_assets() -> dict[str, Asset]:
    """Read every static file, by its path below `static/`, as it was when the process first asked."""
    files = sorted(path for path in _STATIC.rglob("*") if path.is_file())
    found = {path.relative_to(_STATIC).as_posix(): _asset(path.suffix, _body(path)) for path in files}
    return {**found, WIDGET: _asset(".js", _joined(_STATIC / _ELEMENT, set()))}


@cache
def digest() -> str:
    """Name this state of all static files."""
    together = hashlib.sha256()
    for path, asset in all_assets().items():
        together.update(f"{path}\0{asset.etag}\0".encode())
    return together.hexdigest()[:12]


def url(path: str) -> str:
    """Address a static file, for good.

    Raises:
        KeyError: there is none, a mistake in a template.
    """
    all_assets()[path]
    return f"/static/{digest()}/{path}"


def _body(path: Path) -> bytes:
    return _bare(path) if path.suffix == ".js" and path.is_relative_to(_STATIC / "widget") else path.read_bytes()


def _bare(module: Path) -> bytes:
    return _FOR_READERS.sub(b"", module.read_bytes())


def _joined(module: Path, there: set[Path]) -> bytes:
    """Join a module to those that it imports, each once and before whoever needs it: one request instead of one each,
    and a quarter less to send.

    It takes no bundler as long as modules import by name, and no two of them call something at their top the same: a
    browser refuses the whole otherwise, and every test of the widget with it.
    """
    there.add(module)
    body = _bare(module)
    needed = [(module.parent / path.decode()).resolve() for path in _IMPORT.findall(body)]
    before = b"".join(_joined(each, there) for each in needed if each not in there)
    return before + _EXPORT.sub(b"", _IMPORT.sub(b"", body))


def _asset(suffix: str, body: bytes) -> Asset:
    media_type = _TYPES.get(suffix) or mimetypes.guess_type(f"a{suffix}")[0] or "application/octet-stream"
    small = gzip.compress(body, mtime=0) if len(body) > _WORTH_COMPRESSING else body
    etag = f'"{hashlib.sha256(body).hexdigest()[:24]}"'
    return Asset(media_type, body, small if len(small) < len(body) else None, etag)
