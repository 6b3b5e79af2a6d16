"""Where the top-level folders are: beside the package in a checkout, inside it in an installed wheel."""

from pathlib import Path

_PACKAGE = Path(__file__).parent


def lua_dir() -> Path:
    return _folder("lua")


def migrations_dir() -> Path:
    return _folder("migrations")


def _folder(name: str) -> Path:
    installed = _PACKAGE / f"_{name}"
    return installed if installed.is_dir() else _PACKAGE.parent / name
