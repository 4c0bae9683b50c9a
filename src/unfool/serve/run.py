"""The server: it listens, answers, and on SIGTERM or Ctrl-C finishes the accepted requests."""

import gc
import logging
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn

from unfool import spec as specs
from unfool.errors import SpecError
from unfool.serve.app import make_app
from unfool.serve.defense import load_defense
from unfool.serve.limits import Limits
from unfool.serve.metrics import Metrics

BACKLOG = 2048  # connections that may wait to be accepted
# Seconds until a running thread must release the interpreter to a waiting one. After each kernel,
# the model may wait this long for a busy event loop; Python's default of 5 ms would stall it.
SWITCH = 1e-3
# Seconds that an idle connection stays open. Proxies keep theirs for up to a minute; a server that
# closes first makes them send requests into closed connections. uvicorn's default is 5 s.
KEEP_ALIVE = 75


class Server(uvicorn.Server):
    """A server whose shutdown ends the streams of open pages instead of waiting for them.

    Args:
        config: The configuration of uvicorn.
        end_streams: Ends these streams; None if there are none.
    """

    def __init__(self, config: uvicorn.Config, end_streams: Callable[[], None] | None = None):
        super().__init__(config)
        self._end_streams = end_streams

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish the accepted requests, and stop."""
        if self._end_streams is not None:
            self._end_streams()
        await super().shutdown(sockets)


def make_server(
    spec: str,
    changes: Sequence[str] = (),
    folder: str | None = None,
    *,
    name: str,
    device: str = "auto",
    batch_size: int = 256,
    votes: int = 8,
    limits: Limits | None = None,
    playground: bool = False,
) -> uvicorn.Server:
    """Load the model of a spec and make its service, which does not listen yet.

    With `playground`, it has a page at `/`.

    Raises:
        SpecError: Something in the spec is wrong, or `votes` is more than the limit.
    """
    limits = limits or Limits()
    if votes > limits.votes:
        raise SpecError(f"votes is {votes}, and max-votes is {limits.votes}: raise max-votes")
    metrics = Metrics()
    defense = load_defense(
        spec, changes, folder, name, device, batch_size, limits, metrics.observe_call
    )
    app, end_streams = make_app(defense, metrics, votes), None
    if playground:
        from unfool.serve.playground.lab import Lab
        from unfool.serve.playground.page import mount

        end_streams = mount(app, Lab(defense, specs.load(spec, changes)), votes)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(limits.seconds) + 1,
        timeout_keep_alive=KEEP_ALIVE,
    )
    return Server(config, end_streams)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes any free port.

    Raises:
        SpecError: The address is not available.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise SpecError(
            f"cannot listen on {host} port {port} ({why}): choose another --host or --port"
        ) from error


def serve(server: uvicorn.Server, listener: socket.socket, announce: Callable[[], None]) -> None:
    """Answer requests until SIGTERM or Ctrl-C; then finish the accepted ones and return."""
    logging.basicConfig(format="unfool: %(levelname)s: %(message)s", level=logging.WARNING)

    def ignore(*_: Any) -> None:  # uvicorn raises the signal again when it is done
        return None

    interval = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH)
    gc.freeze()  # libraries and model stay, so garbage collection need not scan them
    handlers = {number: signal.signal(number, ignore) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        announce()
        server.run(sockets=[listener])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        gc.unfreeze()
        sys.setswitchinterval(interval)
        listener.close()
