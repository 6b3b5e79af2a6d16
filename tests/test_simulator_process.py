"""The process of the Stripe simulator: it remembers what was, refuses what is not safe, and ends with its parent."""

import os
import signal
import smtplib
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.service import HOLDFAST, START_SECONDS, eventually
from tests.stripe_simulator import CLIENT_SECONDS, ROOT, Simulator, running_receiver, running_simulator, see


def test_a_restart_knows_what_was_before(tmp_path):
    state = tmp_path / "stripe.json"
    options = {"HOLDFAST_SIMULATOR_STATE": str(state)}
    request = {"mode": "payment", "success_url": "https://shop.example/"}
    request |= {
        f"line_items[0]{name}": value
        for name, value in {
            "[quantity]": "1",
            "[price_data][currency]": "eur",
            "[price_data][unit_amount]": "900",
            "[price_data][product_data][name]": "Walk",
        }.items()
    }

    def ask(simulator: Simulator) -> httpx.Response:
        return httpx.post(
            f"{simulator.url}/v1/checkout/sessions",
            auth=(simulator.key, ""),
            data=request,
            headers={"Idempotency-Key": "once"},
            timeout=CLIENT_SECONDS,
        )

    with running_receiver() as receiver:
        receiver.answers[:] = [500] * 100
        with running_simulator(receiver.url, **options) as simulator:
            simulator.clock(60)
            first = ask(simulator).json()
            assert simulator.pay(first["id"])["payment_status"] == "paid"
            receiver.wait_for(1)
        receiver.answers.clear()
        receiver.received.clear()
        with running_simulator(receiver.url, **options) as simulator:
            # What was not received goes on.
            receiver.wait_for(1)
            assert simulator.session(first["id"])["payment_status"] == "paid"
            assert [one["kept"] for one in simulator.ledger()["payments"]] == [900]
            again = ask(simulator)
            assert (again.json()["id"], again.headers["idempotent-replayed"]) == (first["id"], "true")
    assert state.stat().st_mode & 0o077 == 0
    assert list(tmp_path.iterdir()) == [state]


def test_a_broken_state_is_no_fresh_start(tmp_path):
    state = tmp_path / "stripe.json"
    state.write_text("{")
    done = start_by_hand("--state", str(state))
    assert done.returncode == 2
    assert "The state of the simulator cannot be read" in done.stderr
    assert state.read_text() == "{"


def start_by_hand(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Start the command where it cannot run for long: with an option it refuses."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HOLDFAST_", "STRIPE_"))}
    command = [str(HOLDFAST), "simulator", "--port", "1", *arguments]
    return subprocess.run(
        command,
        env={**kept, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_production_has_no_simulator():
    done = start_by_hand(HOLDFAST_ENV="production")
    assert done.returncode == 2
    assert "not for production" in done.stderr
    with socket.create_server(("127.0.0.1", 0)) as listener:
        reader, writer = os.pipe()
        done = subprocess.run(
            [sys.executable, "-P", "-m", "app.simulator", str(listener.fileno()), str(reader)],
            env={**os.environ, "HOLDFAST_ENV": "production"},
            cwd=ROOT,
            pass_fds=(listener.fileno(), reader),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        os.close(reader)
        os.close(writer)
    assert done.returncode == 2
    assert "not for production" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "loopback"),  # noqa: S104 it is refused
        (["--webhook-url", "http://127.0.0.1:1/"], "STRIPE_WEBHOOK_SECRET"),
        (["--webhook-url", "http://127.0.0.1:1/", "--webhook-secret", "short"], "STRIPE_WEBHOOK_SECRET"),
    ],
)
def test_what_would_not_be_safe_is_refused(arguments, words):
    done = start_by_hand(*arguments)
    assert done.returncode == 2
    assert words in done.stderr


def test_the_command_serves_and_stops(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [str(HOLDFAST), "simulator", "--port", str(port), "--state", str(tmp_path / "state.json")]
    environ = {**os.environ, "HOLDFAST_ENV": "test"}
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        eventually(lambda: answers(port), "the command to serve", seconds=START_SECONDS)
        assert "no money moves" in see(f"http://127.0.0.1:{port}/livez").text
    finally:
        process.terminate()
        said, _ = process.communicate(timeout=START_SECONDS)
    assert process.returncode == 0
    assert "no money moves" in said
    assert f"http://127.0.0.1:{port}" in said


def answers(port: int) -> bool:
    try:
        return see(f"http://127.0.0.1:{port}/livez").status_code == 200
    except httpx.TransportError:
        return False


def test_it_ends_with_its_parent():
    with running_simulator(None) as simulator:
        simulator.lifeline.close()
        assert simulator.process.wait(timeout=START_SECONDS) == -signal.SIGKILL


def test_its_mailbox_takes_and_shows_mail(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as smtp:
        host, port = smtp.getsockname()
        with running_simulator(None, smtp=smtp, HOLDFAST_SIMULATOR_MAIL_DIR=str(tmp_path / "mail")) as simulator:
            with smtplib.SMTP(host, port, timeout=CLIENT_SECONDS) as post:
                letter = "Subject: Your booking\nFrom: a@shop.example\nTo: b@example.com\n\nHello"
                post.sendmail("a@shop.example", ["b@example.com"], letter)
            assert "Your booking" in see(f"{simulator.url}/mailbox").text
    with running_simulator(None) as simulator:
        assert see(f"{simulator.url}/mailbox").status_code == 404
