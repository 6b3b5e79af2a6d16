"""A wrong setting stops the start with one line that names the variable (api.md)."""

import pytest

from app.settings import Rate, SettingsError, from_env

GOOD = {
    "REDIS_URL": "redis://localhost/0",
    "DATABASE_URL": "postgresql://localhost/holdfast",
    "HOLDFAST_OPERATOR_KEY": "k" * 16,
    "HOLDFAST_SECRET": "s" * 32,
}


def test_defaults_are_those_of_the_contract():
    settings = from_env(GOOD)
    assert (settings.host, settings.port, settings.workers) == ("127.0.0.1", 8000, 1)
    assert settings.hold_ttl_seconds == 300
    assert settings.production


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REDIS_URL", ""),
        ("REDIS_URL", "http://localhost"),
        ("DATABASE_URL", "mysql://localhost"),
        ("DATABASE_URL", None),
        ("HOLDFAST_OPERATOR_KEY", "short"),
        ("HOLDFAST_SECRET", "short"),
        ("HOLDFAST_SECRET", "s" * 32 + ",short"),
        ("HOLDFAST_HOST", ""),
        ("HOLDFAST_PORT", "http"),
        ("HOLDFAST_PORT", "70000"),
        ("HOLDFAST_WORKERS", "0"),
        ("HOLDFAST_HOLD_TTL_SECONDS", "-1"),
        ("HOLDFAST_HOLD_TTL_SECONDS", "5m"),
        ("HOLDFAST_LIVE_STREAMS", "-1"),
        ("HOLDFAST_TRUSTED_PROXIES", "all"),
        ("HOLDFAST_TRUSTED_PROXIES", "10.0.0.1/8"),
        ("HOLDFAST_TRUSTED_PROXIES", "10.0.0.1,"),
        ("HOLDFAST_RATE_LIMIT", "50"),
        ("HOLDFAST_RATE_LIMIT", "0/s"),
        ("HOLDFAST_RATE_LIMIT", "50/day"),
        ("HOLDFAST_HOLDS_PER_CLIENT", "0"),
        ("HOLDFAST_HOLDS_PER_CLIENT", "some"),
        ("HOLDFAST_ENV", "prod"),
        ("HOLDFAST_DEMO", "yes"),
        ("HOLDFAST_PUBLIC_URL", "salon.example"),
        ("HOLDFAST_PUBLIC_URL", "http://salon.example:port"),
        ("STRIPE_API_BASE", "ftp://localhost"),
        ("STRIPE_API_KEY", "sk_simulator_abc"),
        ("STRIPE_WEBHOOK_SECRET", "whsec_abcdefgh,"),
        ("HOLDFAST_SMTP_URL", "localhost:25"),
        ("HOLDFAST_MAIL_FROM", "Salon"),
    ],
)
def test_a_wrong_value_is_told_in_one_line(name, value):
    environ = {k: v for k, v in {**GOOD, name: value}.items() if v is not None}
    with pytest.raises(SettingsError) as error:
        from_env(environ)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_other_spellings_of_the_stores_are_understood():
    settings = from_env({**GOOD, "REDIS_URL": "valkey://h/0", "DATABASE_URL": "postgres://h/d"})
    assert settings.redis_url == "redis://h/0"
    assert settings.database_url == "postgresql://h/d"


def test_the_simulator_is_for_everything_but_production():
    assert from_env({**GOOD, "HOLDFAST_ENV": "test", "STRIPE_API_KEY": "sk_simulator_abc"}).stripe_api_key


def test_two_webhook_secrets_serve_while_one_is_rotated():
    settings = from_env({**GOOD, "STRIPE_WEBHOOK_SECRET": "whsec_new_new, whsec_old_old"})
    assert settings.stripe_webhook_secrets == ("whsec_new_new", "whsec_old_old")


def test_secrets_are_not_shown():
    shown = repr(from_env({**GOOD, "STRIPE_API_KEY": "sk_live_abc", "STRIPE_WEBHOOK_SECRET": "whsec_abcdefgh"}))
    assert not any(secret in shown for secret in ("k" * 16, "s" * 32, "sk_live", "whsec"))


def test_clients_are_limited_where_it_is_known_who_they_are():
    unsaid = from_env(GOOD)
    assert (unsaid.trusted_proxies, unsaid.rate_limit, unsaid.holds_per_client) == (None, None, 0)
    direct = from_env({**GOOD, "HOLDFAST_TRUSTED_PROXIES": "none"})
    assert (direct.trusted_proxies, direct.rate_limit, direct.holds_per_client) == ((), Rate(50, 1, 200), 20)
    proxied = from_env({**GOOD, "HOLDFAST_TRUSTED_PROXIES": "127.0.0.1, 10.0.0.0/8, ::1"})
    assert proxied.trusted_proxies == ("127.0.0.1", "10.0.0.0/8", "::1")
    demo = from_env({**GOOD, "HOLDFAST_TRUSTED_PROXIES": "none", "HOLDFAST_DEMO": "on"})
    assert (demo.rate_limit, demo.holds_per_client) == (None, 0)
    chosen = {"HOLDFAST_RATE_LIMIT": "30/min", "HOLDFAST_HOLDS_PER_CLIENT": "5"}
    asked = from_env({**GOOD, **chosen})
    assert (asked.rate_limit, asked.holds_per_client) == (Rate(30, 60, 120), 5)
    off = dict.fromkeys(chosen, "off")
    nobody = from_env({**GOOD, **off, "HOLDFAST_TRUSTED_PROXIES": "none"})
    assert (nobody.rate_limit, nobody.holds_per_client) == (None, 0)
