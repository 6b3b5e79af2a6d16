"""One HTTP worker: uvicorn on a socket that it was given. Started by `workers.supervise`, never by hand.

python -m app.cli.http_worker <socket that listens or keeps an address> <pipe of the parent> <pipe to it> <grace, s>
"""

import faulthandler
import gc
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from types import FrameType

#: Longer than clients keep idle connections themselves, so that they and not we close them: no request is lost on a
#: connection that was just being closed.
KEEP_ALIVE_SECONDS = 75
#: uvicorn's ticks are a tenth of a second apart.
TICKS_PER_PULSE = 10


def main() -> None:
    listener, pipe, pulse, grace_seconds = (int(argument) for argument in sys.argv[1:])
    threading.Thread(target=_die_with_parent, args=(pipe,), daemon=True).start()
    faulthandler.register(signal.SIGUSR2, all_threads=True)  # if we hang, the parent asks where
    import uvicorn

    from app.cli.sockets import BACKLOG, one_more
    from app.main import app_factory
    from app.settings import SettingsError, from_env

    try:
        chosen = from_env()
        application = app_factory(chosen)
    except SettingsError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    config = uvicorn.Config(
        application,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        interface="asgi3",
        log_config=None,  # the application has set up its own
        access_log=False,
        server_header=False,
        # The last address of X-Forwarded-For that is not one of the proxies' is the client's, and only if they sent it.
        proxy_headers=bool(chosen.trusted_proxies),
        forwarded_allow_ips=list(chosen.trusted_proxies or ()),
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        # Whoever reads too slowly to end is cancelled after this long, and the lifespan still runs to its end.
        timeout_graceful_shutdown=grace_seconds,
    )
    # What is loaded by now lives as long as the process: the collector need not look at it again and again. And it
    # looks less often: requests leave little that counting references does not free.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    # uvicorn stops cleanly and then raises the signal again: it must end us by the way that writes the last log lines.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            application.stop_soon()
            super().handle_exit(sig, frame)

        async def on_tick(self, counter: int) -> bool:
            if counter % TICKS_PER_PULSE == 0:
                with suppress(OSError):  # the parent has not looked for long
                    os.write(pulse, b".")
            return await super().on_tick(counter)

    given = socket.socket(fileno=listener)
    listens = given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    Server(config).run(sockets=[given if listens else one_more(given)])


def _die_with_parent(pipe: int) -> None:
    """End when nobody is left who could write to the pipe. At once: the bundled stores go at the same moment."""
    os.read(pipe, 1)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
