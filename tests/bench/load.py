"""Who asks: wrk, or k6 where it is not installed. Sends one kind of request for a while and tells how fast it went."""

import json
import re
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec

HERE = Path(__file__).parent
#: After the time is up, wrk and k6 still have to write their summary; far above what they need.
PATIENCE_SECONDS = 30.0
#: Connections are opened, and wait so long before the first of them asks: see post.lua.
LEAD_MS = 300
#: One thread of wrk sends far more than the service can answer, and leaves the other core alone.
THREADS = 1

_UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}
_DURATION = r"([\d.]+)(us|ms|s|m)"


class LoadFailed(Exception):
    """The driver could not run, or said something we do not understand."""


class Shot(msgspec.Struct, frozen=True):
    """What to send: one path and body for a number of slots, over a number of connections."""

    path: str
    body: str  # with %s for the slot id
    slots: Path  # a file with an id per line; picked at random
    keyed: bool = False
    connections: int = 64


class Load(msgspec.Struct, frozen=True):
    """What came back."""

    requests: int
    per_second: float
    p50_ms: float
    p99_ms: float
    not_2xx: int
    broken: int  # connections refused, cut or timed out


def find_driver() -> str:
    """Choose wrk where it is installed, else k6.

    Raises:
        LoadFailed: neither is.
    """
    if shutil.which("wrk"):
        return "wrk"
    if _k6():
        return "k6"
    raise LoadFailed("wrk is missing (apt-get install wrk), and so is k6 (uv sync)")


def version_of(driver: str) -> str:
    if driver == "wrk":
        said = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False)
        return (said.stdout + said.stderr).split("\n")[0].split(" [")[0].removeprefix("wrk ").strip()
    said = subprocess.run([_k6() or "k6", "version"], capture_output=True, text=True, check=False)
    return said.stdout.split("\n")[0].removeprefix("k6 ").split(" (")[0]


def _k6() -> str | None:
    """Find the k6 of this environment, or else any."""
    beside = Path(sys.executable).with_name("k6")
    return str(beside) if beside.exists() else shutil.which("k6")


def send(driver: str, url: str, shot: Shot, seconds: int) -> Load:
    """Send as many requests as the service answers, each connection one after the other.

    Raises:
        LoadFailed
    """
    return _with_wrk(url, shot, seconds) if driver == "wrk" else _with_k6(url, shot, seconds)


def _with_wrk(url: str, shot: Shot, seconds: int) -> Load:
    command = ["wrk", "-t", str(THREADS), "-c", str(shot.connections), "-d", f"{seconds}s", "--latency"]
    command += ["--timeout", "10s", "-s", str(HERE / "post.lua"), url, "--", shot.path, shot.body, str(shot.slots)]
    command += [str(shot.connections // THREADS), str(LEAD_MS), *([secrets.token_hex(8)] if shot.keyed else [])]
    return parse_wrk(_output(command, seconds), LEAD_MS / 1000)


def _output(command: list[str], seconds: int) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + PATIENCE_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise LoadFailed(f"{command[0]} did not end") from error
    if done.returncode != 0:
        raise LoadFailed(f"{command[0]} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout


def parse_wrk(text: str, lead_seconds: float = 0.0) -> Load:
    """Read wrk's report; for `lead_seconds` of its time nothing was asked.

    Raises:
        LoadFailed: it is none, or not a whole one.
    """
    requests = re.search(r"^\s*(\d+) requests in " + _DURATION, text, re.MULTILINE)
    shares = {found[1]: found for found in re.finditer(r"^\s*(\d+)%\s+" + _DURATION, text, re.MULTILINE)}
    if not requests or not {"50", "99"} <= shares.keys():
        raise LoadFailed(f"wrk said: {text.strip()[-500:]}")
    p50, p99 = (float(shares[share][2]) * _UNITS_MS[shares[share][3]] for share in ("50", "99"))
    not_2xx = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    sockets = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    return Load(
        requests=int(requests[1]),
        per_second=int(requests[1]) / (float(requests[2]) * _UNITS_MS[requests[3]] / 1000 - lead_seconds),
        p50_ms=p50,
        p99_ms=p99,
        not_2xx=int(not_2xx[1]) if not_2xx else 0,
        broken=sum(map(int, sockets.groups())) if sockets else 0,
    )


def _with_k6(url: str, shot: Shot, seconds: int) -> Load:
    values = {
        "URL": url + shot.path,
        "BODY": shot.body,
        "SLOTS": str(shot.slots.resolve()),
        "KEYS": secrets.token_hex(8) if shot.keyed else "",
        "CONNECTIONS": str(shot.connections),
        "SECONDS": str(seconds),
    }
    command = [_k6() or "k6", "run", "--quiet", "--no-usage-report", "--address", ""]
    for name, value in values.items():
        command += ["--env", f"{name}={value}"]
    return parse_k6(_output([*command, str(HERE / "post.js")], seconds))


def parse_k6(text: str) -> Load:
    """Read what post.js prints.

    Raises:
        LoadFailed
    """
    try:
        metrics = json.loads(text[text.index("{") :])
        requests, times = metrics["http_reqs"], metrics["http_req_duration"]
        return Load(
            requests=int(requests["count"]),
            per_second=float(requests["rate"]),
            p50_ms=float(times["med"]),
            p99_ms=float(times["p(99)"]),
            not_2xx=int(metrics["not_2xx"]["count"]),
            broken=int(metrics["broken"]["count"]),
        )
    except (ValueError, KeyError) as error:
        raise LoadFailed(f"k6 said: {text.strip()[-500:]}") from error
