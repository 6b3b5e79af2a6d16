"""Settings: read from the environment once, checked before anything starts."""

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from email.utils import parseaddr
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec

T = TypeVar("T")

MIN_SECRET_LENGTH = 32
MIN_OPERATOR_KEY_LENGTH = 16
MIN_WEBHOOK_SECRET_LENGTH = 8
#: The only keys that our Stripe simulator takes: whoever runs with one moves no money, which production must not.
SIMULATOR_KEY_PREFIX = "sk_simulator_"
#: What a client may ask at once after a silence, in seconds (or whatever its rate is in) of its rate.
BURST = 4
#: Places that a venue, or the service, may let one client hold.
MOST_HOLDS = 1_000
STRIPE_API = "https://api.stripe.com"


class Rate(msgspec.Struct, frozen=True):
    """So many requests in so many seconds, and so many at once after a silence."""

    count: int
    seconds: int
    burst: int


class SettingsError(Exception):
    """A variable is missing or wrong; the text is one line that names it."""


#: Where limits are on by default. A person clicks once a second at most; behind one address may be an office.
DEFAULT_RATE = Rate(50, 1, BURST * 50)
DEFAULT_HOLDS = 20


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator can decide. Secrets are never shown: `repr` leaves them out."""

    redis_url: str
    database_url: str
    operator_key: str
    #: The first signs tokens, all of them verify: put the new one in front to rotate.
    secrets: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    #: How long a customer's hold lives when its venue does not say otherwise.
    hold_ttl_seconds: int = 300
    #: Live streams that a process keeps open at once. Each costs some ten KB, and a write for every change it shows.
    live_streams: int = 1000
    #: Whose X-Forwarded-For is believed: addresses and networks. None: nobody said, and nobody's is.
    trusted_proxies: tuple[str, ...] | None = None
    #: How often one client may change something. None: as often as it likes.
    rate_limit: Rate | None = None
    #: Places of a venue that one client may hold at once, where the venue does not say otherwise; 0: any number.
    holds_per_client: int = 0
    #: Where customers reach the service: links in e-mails, and where Stripe sends them back to.
    public_url: str = "http://127.0.0.1:8000"
    #: None: nothing can be paid online.
    stripe_api_key: str | None = None
    stripe_api_base: str = STRIPE_API
    #: Any of them verifies: two while one is rotated. None: the webhook endpoint is off.
    stripe_webhook_secrets: tuple[str, ...] = ()
    #: smtp://user:password@host:port (STARTTLS when offered), smtps://… None: no e-mail is sent.
    smtp_url: str | None = None
    mail_from: str = "Holdfast <no-reply@localhost>"
    #: Demo mode prints its operator key and runs on the bundled servers.
    demo: bool = False
    #: An evicting Redis deletes the holds first, silently: only a demo may ignore that.
    production: bool = False

    @property
    def stripe_is_live(self) -> bool:
        """Tell whether our key moves real money."""
        return (self.stripe_api_key or "").split("_")[1:2] == ["live"]

    def __repr__(self) -> str:
        return f"Settings(host={self.host!r}, port={self.port}, workers={self.workers})"


def from_env(environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings.

    Raises:
        SettingsError: a variable is missing or has a wrong value.
    """
    production = _choice(environ, "HOLDFAST_ENV", "production", ("production", "development", "test")) == "production"
    proxies = _proxies(environ)
    # Limits by address are for who has said how addresses are told. Else all customers of an unnamed proxy were one.
    limited = proxies is not None and not _flag(environ, "HOLDFAST_DEMO")
    host, port = _host(environ), _integer(environ, "HOLDFAST_PORT", 8000, 1, 65_535)
    return Settings(
        redis_url=_redis_url(_required(environ, "REDIS_URL")),
        database_url=_database_url(_required(environ, "DATABASE_URL")),
        operator_key=_long(environ, "HOLDFAST_OPERATOR_KEY", MIN_OPERATOR_KEY_LENGTH),
        secrets=_secrets(environ),
        host=host,
        port=port,
        workers=_integer(environ, "HOLDFAST_WORKERS", 1, 1, 64),
        hold_ttl_seconds=_integer(environ, "HOLDFAST_HOLD_TTL_SECONDS", 300, 1, 86_400),
        live_streams=_integer(environ, "HOLDFAST_LIVE_STREAMS", 1000, 0, 100_000),
        trusted_proxies=proxies,
        rate_limit=_rate(environ, "HOLDFAST_RATE_LIMIT", DEFAULT_RATE if limited else None),
        holds_per_client=_holds_per_client(environ, DEFAULT_HOLDS if limited else 0),
        demo=_flag(environ, "HOLDFAST_DEMO"),
        production=production,
        public_url=_url(environ, "HOLDFAST_PUBLIC_URL", f"http://{host}:{port}", ("http", "https")),
        stripe_api_key=_stripe_key(environ, production=production),
        stripe_api_base=_url(environ, "STRIPE_API_BASE", STRIPE_API, ("http", "https")),
        stripe_webhook_secrets=_webhook_secrets(environ),
        smtp_url=_url(environ, "HOLDFAST_SMTP_URL", "", ("smtp", "smtps")) or None,
        mail_from=_mail_from(environ),
    )


def _host(environ: Mapping[str, str]) -> str:
    host = environ.get("HOLDFAST_HOST", "127.0.0.1").strip()
    if not host:  # which would be every address of the machine: who means that says 0.0.0.0
        raise SettingsError("HOLDFAST_HOST is empty")
    return host


def _required(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name, "").strip()
    if not value:
        raise SettingsError(f"{name} is not set")
    return value


def _long(environ: Mapping[str, str], name: str, length: int) -> str:
    value = _required(environ, name)
    if len(value) < length:
        raise SettingsError(f"{name} must have at least {length} characters")
    return value


def _secrets(environ: Mapping[str, str]) -> tuple[str, ...]:
    secrets = tuple(part.strip() for part in _required(environ, "HOLDFAST_SECRET").split(","))
    if any(len(secret) < MIN_SECRET_LENGTH for secret in secrets):
        raise SettingsError(f"HOLDFAST_SECRET must have at least {MIN_SECRET_LENGTH} characters, each part of it")
    return secrets


def _stripe_key(environ: Mapping[str, str], *, production: bool) -> str | None:
    key = environ.get("STRIPE_API_KEY", "").strip() or None
    if production and key and key.startswith(SIMULATOR_KEY_PREFIX):
        raise SettingsError("STRIPE_API_KEY is one of the Stripe simulator, which is not for production")
    return key


def _webhook_secrets(environ: Mapping[str, str]) -> tuple[str, ...]:
    text = environ.get("STRIPE_WEBHOOK_SECRET", "").strip()
    secrets = tuple(part.strip() for part in text.split(",")) if text else ()
    if any(len(secret) < MIN_WEBHOOK_SECRET_LENGTH for secret in secrets):
        # An empty secret would verify whatever anybody signs with nothing.
        raise SettingsError(
            f"STRIPE_WEBHOOK_SECRET must have at least {MIN_WEBHOOK_SECRET_LENGTH} characters, each part of it"
        )
    return secrets


def _proxies(environ: Mapping[str, str]) -> tuple[str, ...] | None:
    text = environ.get("HOLDFAST_TRUSTED_PROXIES", "").strip()
    if not text:
        return None
    named = () if text == "none" else tuple(part.strip() for part in text.split(","))
    try:
        for each in named:
            ipaddress.ip_network(each)
    except ValueError:
        raise SettingsError(
            f"HOLDFAST_TRUSTED_PROXIES must be addresses and networks, such as 10.0.0.0/8, or none, not {text!r}"
        ) from None
    return named


def _rate(environ: Mapping[str, str], name: str, default: Rate | None) -> Rate | None:
    text = environ.get(name, "").strip()
    if text in ("", "off"):
        return None if text else default
    match = re.fullmatch(r"([1-9][0-9]{0,5})/(s|min|h)", text)
    if match is None:
        raise SettingsError(f"{name} must be off or like 50/s, 100/min or 500/h, not {text!r}")
    count = int(match[1])
    return Rate(count, {"s": 1, "min": 60, "h": 3600}[match[2]], BURST * count)


def _holds_per_client(environ: Mapping[str, str], default: int) -> int:
    name = "HOLDFAST_HOLDS_PER_CLIENT"
    text = environ.get(name, "").strip()
    if text in ("", "off"):
        return 0 if text else default
    return _integer(environ, name, default, 1, MOST_HOLDS)


def _mail_from(environ: Mapping[str, str]) -> str:
    text = environ.get("HOLDFAST_MAIL_FROM", "").strip() or "Holdfast <no-reply@localhost>"
    if "@" not in parseaddr(text)[1] or not text.isprintable():
        raise SettingsError(f"HOLDFAST_MAIL_FROM must be like Salon <hello@salon.example>, not {text!r}")
    return text


def _url(environ: Mapping[str, str], name: str, default: str, schemes: tuple[str, ...]) -> str:
    url = environ.get(name, "").strip().rstrip("/") or default
    try:
        parts = urlsplit(url)
        right = not url or (parts.scheme in schemes and parts.hostname and parts.port != 0)
    except ValueError:  # of a port that is no number
        right = False
    if not right:
        raise SettingsError(
            f"{name} must begin with {' or '.join(f'{scheme}://' for scheme in schemes)} and name a host"
        )
    return url


def _integer(environ: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    value = _converted(environ, name, default, int, "a whole number")
    if not low <= value <= high:
        raise SettingsError(f"{name} must be between {low} and {high}, not {value}")
    return value


def _flag(environ: Mapping[str, str], name: str) -> bool:
    return _choice(environ, name, "off", ("on", "off")) == "on"


def _choice(environ: Mapping[str, str], name: str, default: str, allowed: tuple[str, ...]) -> str:
    value = environ.get(name, "") or default
    if value not in allowed:
        raise SettingsError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
    return value


def _converted(environ: Mapping[str, str], name: str, default: T, convert: Callable[[str], T], form: str) -> T:
    text = environ.get(name, "").strip()
    if not text:
        return default
    try:
        return convert(text)
    except ValueError:
        raise SettingsError(f"{name} must be {form}, not {text!r}") from None


def _redis_url(url: str) -> str:
    url = url.replace("valkey", "redis", 1) if url.startswith("valkey") else url
    if urlsplit(url).scheme not in {"redis", "rediss", "unix", "redis+cluster", "rediss+cluster"}:
        raise SettingsError(
            "REDIS_URL must begin with redis://, rediss://, unix://, redis+cluster:// or rediss+cluster://"
        )
    return url


def _database_url(url: str) -> str:
    url = url.replace("postgres://", "postgresql://", 1)
    if urlsplit(url).scheme != "postgresql":
        raise SettingsError("DATABASE_URL must begin with postgresql://")
    return url
