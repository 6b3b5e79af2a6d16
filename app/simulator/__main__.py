"""The simulator as a child process, on a socket that it was given. It ends with its parent.

python -P -m app.simulator <listening socket> <pipe of the parent> [<listening socket of the mailbox's SMTP>]

The rest from the environment: HOLDFAST_SIMULATOR_URL (where browsers find it; default: where it listens),
HOLDFAST_SIMULATOR_WEBHOOK_URL, STRIPE_WEBHOOK_SECRET, HOLDFAST_SIMULATOR_STATE, HOLDFAST_SIMULATOR_MAIL_DIR.
"""

import os
import signal
import socket
import sys
import threading
from pathlib import Path


def main() -> None:
    listener, pipe, *mail = (int(argument) for argument in sys.argv[1:])
    threading.Thread(target=_die_with_parent, args=(pipe,), daemon=True).start()
    # Heavy, and the parent may be gone before they are loaded.
    from app.settings import SettingsError  # noqa: PLC0415
    from app.simulator.server import Setup, refuse_production, serve, webhook_secrets  # noqa: PLC0415

    connection = socket.socket(fileno=listener)
    try:
        refuse_production()
        host, port = connection.getsockname()[:2]
        host = f"[{host}]" if ":" in host else host
        webhook_url = os.environ.get("HOLDFAST_SIMULATOR_WEBHOOK_URL") or None
        setup = Setup(
            public_url=os.environ.get("HOLDFAST_SIMULATOR_URL", "").rstrip("/") or f"http://{host}:{port}",
            webhook_url=webhook_url,
            webhook_secrets=webhook_secrets(os.environ.get("STRIPE_WEBHOOK_SECRET", ""), webhook_url),
            state=_path("HOLDFAST_SIMULATOR_STATE"),
            mail_dir=_path("HOLDFAST_SIMULATOR_MAIL_DIR"),
        )
        serve(setup, connection, smtp=socket.socket(fileno=mail[0]) if mail else None)
    except SettingsError as error:
        print(error, file=sys.stderr)  # noqa: T201 this is a program
        sys.exit(2)


def _path(name: str) -> Path | None:
    return Path(text) if (text := os.environ.get(name)) else None


def _die_with_parent(pipe: int) -> None:
    """End when nobody is left who could write to the pipe."""
    os.read(pipe, 1)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
