"""The server: it listens, answers, and on SIGTERM or Ctrl-C finishes what it accepted."""

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

BACKLOG = 2048  # connections that wait to be accepted
# Seconds until a thread that wants the interpreter gets it. After each kernel the model waits so long
# for a busy event loop, and Python's 5 ms would stall it.
SWITCH = 1e-3


class Server(uvicorn.Server):
    """A server that does not wait for streams which end with it alone, such as those of open pages.

    Args:
        config: As uvicorn takes it.
        end_streams: What ends them, if there are any.
    """

    def __init__(self, config: uvicorn.Config, end_streams: Callable[[], None] | None = None):
        super().__init__(config)
        self._end_streams = end_streams

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what was accepted, and stop."""
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
    """The service of a spec, its model loaded, not yet listening; with a page at `/` if asked for.

    Raises:
        SpecError: Something in the spec is wrong, or a number is out of range.
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
    )
    return Server(config, end_streams)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 is any free one.

    Raises:
        SpecError: The address cannot be had.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise SpecError(
            f"cannot listen on {host} port {port} ({why}): choose another --host or --port"
        ) from error


def serve(server: uvicorn.Server, at: socket.socket, say: Callable[[], None]) -> None:
    """Answer until SIGTERM or Ctrl-C; then finish what was accepted and return."""
    logging.basicConfig(format="unfool: %(levelname)s: %(message)s", level=logging.WARNING)

    def ignore(*_: Any) -> None:  # uvicorn raises the signal again when it is done
        return None

    interval = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH)
    gc.freeze()  # the libraries and the model stay: collections need not look at them again
    before = {each: signal.signal(each, ignore) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        say()
        server.run(sockets=[at])
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        gc.unfreeze()
        sys.setswitchinterval(interval)
        at.close()
