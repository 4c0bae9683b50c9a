"""What a request may ask for, and the errors that tell a client what it may not."""

from dataclasses import dataclass

BODIES = 16  # bodies of the largest size that are held at once


@dataclass(frozen=True)
class Limits:
    """The most that the service accepts.

    Attributes:
        body: Bytes of one request.
        pixels: Pixels of all images of one request, before they are resized.
        images: Images of one request.
        votes: Passes through the defense per image.
        queue: Passes (images times votes) that are accepted and not done.
        seconds: From the first byte of a request to its answer.
        seeds: Whether a request may choose the noise.
        steps: Of an attack in the playground.
    """

    body: int = 16 * 2**20
    pixels: int = 16_000_000
    images: int = 64
    votes: int = 64
    queue: int = 4096
    seconds: float = 30.0
    seeds: bool = True
    steps: int = 50


class Held:
    """The bytes of all bodies that are not answered; they may take as much as `BODIES` of the largest."""

    def __init__(self, limits: Limits):
        self.limits, self.bytes = limits, 0

    def take(self, size: int) -> None:
        """Make room for bytes that come.

        Raises:
            Refused: There is none.
        """
        if self.bytes + size > BODIES * self.limits.body:
            raise Refused(
                503, "the waiting requests take too much memory together: try again later", 1
            )
        self.bytes += size

    def give_back(self, size: int) -> None:
        """Free what an answered request took."""
        self.bytes -= size


class Refused(Exception):
    """A request that is refused, with an HTTP status from 400 on and one sentence."""

    def __init__(self, status: int, why: str, retry_after: int | None = None):
        super().__init__(why)
        self.status, self.why, self.retry_after = status, why, retry_after
