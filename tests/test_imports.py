"""The architecture as a test: imports go one way (design 9), and each store has one module that knows it."""

import ast
from pathlib import Path

import pytest

APP = Path(__file__).parent.parent / "app"

#: What each module may import of ours. `api` and `cli` stand for their packages.
ALLOWED = {
    "coalesce": {"errors"},
    "paths": set(),
    "written": set(),
    "domain": set(),
    "errors": set(),
    "telemetry": set(),
    "tokens": set(),
    "settings": set(),
    "embedded": set(),
    "ending": set(),
    "migrate": {"paths"},
    "schema": set(),
    "breaker": {"telemetry"},
    "pipelines": {"breaker", "coalesce", "paths", "telemetry"},
    "holds": {"domain", "pipelines", "tokens"},
    "postgres": {"errors"},
    "ledger": {"coalesce", "domain", "errors", "postgres"},
    "commits": {"coalesce", "errors", "ledger", "postgres", "telemetry", "tokens"},
    "database": {"errors", "postgres", "schema"},
    "catalogue": {"database", "domain", "errors", "ledger", "schema", "tokens"},
    "records": {"catalogue", "database", "domain", "ledger", "schema"},
    "mirror": {"breaker", "domain", "errors", "holds", "ledger", "telemetry"},
    "gateway": {"settings"},
    "payments": {"domain", "gateway", "ledger", "tokens"},
    "feed": {"breaker", "holds", "pipelines"},
    "live": {"breaker", "domain", "ending", "engine", "errors", "feed", "telemetry"},
    "limits": {"breaker", "errors", "holds", "settings"},
    "places": {"domain", "engine", "errors", "holds", "ledger", "tokens"},
    "claims": {"breaker", "domain", "engine", "errors", "holds", "limits", "places", "settings", "tokens"},
    "engine": {
        "breaker",
        "commits",
        "ending",
        "errors",
        "feed",
        "gateway",
        "holds",
        "ledger",
        "limits",
        "mirror",
        "payments",
        "pipelines",
        "settings",
        "telemetry",
    },
    "booking": {"breaker", "domain", "engine", "errors", "holds", "ledger", "places", "telemetry", "tokens"},
    "holding": {"breaker", "claims", "domain", "engine", "errors", "holds", "ledger", "places", "telemetry", "tokens"},
    "hours": {"domain", "tokens"},
    "timetable": {"catalogue", "database", "domain", "errors", "schema", "tokens"},
    "schedules": {"engine", "errors", "hours", "ledger"},
    "settlement": {"booking", "domain", "engine", "errors", "gateway", "payments", "telemetry", "tokens"},
    "checkout": {
        "booking",
        "claims",
        "domain",
        "engine",
        "errors",
        "gateway",
        "ledger",
        "payments",
        "places",
        "settlement",
        "telemetry",
        "tokens",
        "written",
    },
    "appointments": {"booking", "domain", "engine", "errors", "ledger", "mirror", "tokens"},
    "reschedule": {
        "booking",
        "breaker",
        "domain",
        "engine",
        "errors",
        "holds",
        "ledger",
        "places",
        "postgres",
        "telemetry",
        "tokens",
    },
    "blocks": {"breaker", "domain", "engine", "errors", "holds", "ledger", "places", "postgres", "tokens"},
    "several": {
        "booking",
        "breaker",
        "claims",
        "domain",
        "engine",
        "errors",
        "holding",
        "holds",
        "ledger",
        "places",
        "postgres",
        "telemetry",
        "tokens",
    },
    "waiting": {"breaker", "domain", "engine", "errors", "holds", "ledger", "places", "telemetry", "tokens"},
    "notices": {"booking", "domain", "engine", "errors", "mail", "payments", "telemetry", "waiting", "written"},
    "jobs": {
        "engine",
        "errors",
        "gateway",
        "mail",
        "notices",
        "postgres",
        "queued",
        "schedules",
        "settlement",
        "telemetry",
        "waiting",
        "webhooks",
    },
    "queued": {"errors", "ledger", "postgres"},
    "worker": {"ending", "engine", "jobs", "settings"},
}
#: Packages, each as a whole.
ALLOWED_OF_PACKAGES = {
    "calendars": {"calendars", "domain", "errors", "ledger", "mail", "tokens"},
    "webhooks": {"errors", "ledger", "tokens", "webhooks"},
    "pages": {"pages", "written"},
}
TOP = {"main", "api", "cli"}


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"app.{a.name}" for a in node.names] if node.module == "app" else [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("app.")}
    return found


def modules() -> list[str]:
    return sorted(path.stem for path in APP.glob("*.py") if path.stem not in {"__init__", *TOP})


@pytest.mark.parametrize("module", modules())
def test_imports_go_one_way(module):
    assert module in ALLOWED, "a new module: say here what it may know"
    assert imported(APP / f"{module}.py") <= ALLOWED[module]


@pytest.mark.parametrize("package", ALLOWED_OF_PACKAGES)
def test_packages_are_as_narrow(package):
    for path in (APP / package).rglob("*.py"):
        assert imported(path) <= ALLOWED_OF_PACKAGES[package], path


@pytest.mark.parametrize("package", ["api", "cli", "simulator"])
def test_nobody_imports_upwards(package):
    assert not any(package in imported(APP / f"{module}.py") for module in modules())


def test_the_simulator_meets_the_service_over_http_only():
    files = {path: imported(path) for path in APP.rglob("*.py")}
    assert {path.relative_to(APP).parts[0] for path, known in files.items() if "simulator" in known} == {
        "simulator",
        "cli",
    }
    # Its mailbox reads e-mails as the service's own tools do.
    inside = [known for path, known in files.items() if APP / "simulator" in path.parents]
    assert set().union(*inside) == {"simulator", "settings", "mail"}


@pytest.mark.parametrize(
    ("library", "owners"),
    [
        ("redis", {"pipelines"}),
        ("psycopg", {"postgres", "database", "embedded", "jobs"}),
        ("stripe", {"gateway"}),
        ("procrastinate", {"jobs", "worker"}),
        ("sqlalchemy", {"schema", "database", "catalogue", "timetable", "records"}),
        ("litestar", set()),
    ],
)
def test_each_store_has_its_module(library, owners):
    users = {
        path.stem
        for path in APP.glob("*.py")
        if path.stem not in TOP
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == library)
        or (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == library for alias in node.names))
    }
    assert users <= owners
