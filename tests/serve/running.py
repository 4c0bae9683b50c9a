"""A service on loopback that runs in a thread of the test, set up as the command does."""

import threading
from contextlib import contextmanager
from pathlib import Path

import httpx

from unfool.serve import run

TOY = ["purifier.steps=3"]


class Started:
    """A running service and a client of it."""

    uploads: Path  # upload folder of the playground, if it has one

    def __init__(self, server, address, thread):
        self.server, self.address, self.thread = server, address, thread
        self.client = httpx.Client(base_url=address, timeout=60)

    def stop(self):
        """Do what SIGTERM does: finish the accepted requests, then stop."""
        self.server.should_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive()


@contextmanager
def started(spec="blobs", changes=TOY, **options):
    server = run.make_server(spec, changes, name=options.pop("name", spec), **options)
    with run.listen("127.0.0.1", 0) as at:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [at]})
        thread.start()
        service = Started(server, f"http://127.0.0.1:{at.getsockname()[1]}", thread)
        try:
            yield service
        finally:
            service.client.close()
            service.stop()
