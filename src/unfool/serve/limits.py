"""The limits of the service, and the error that refuses a request."""

from dataclasses import dataclass

BODIES = 16  # bodies of the largest size that may be held at once


@dataclass(frozen=True)
class Limits:
    """The most that the service accepts.

    Attributes:
        body: Bytes of one request.
        pixels: Pixels in all images of one request, before resizing.
        images: Images in one request.
        votes: Passes through the defense per image.
        queue: Passes (images times votes) that are accepted but not done.
        seconds: Seconds from the first byte of a request to its answer.
        seeds: Whether a request may choose the seed of the noise.
        steps: Steps of an attack in the playground.
    """

    body: int = 16 * 2**20
    pixels: int = 16_000_000
    images: int = 64
    votes: int = 64
    queue: int = 4096
    seconds: float = 30.0
    seeds: bool = True
    steps: int = 50


class PendingBodies:
    """The number of bytes of all unanswered requests, at most `BODIES` times the largest body."""

    def __init__(self, limits: Limits):
        self.limits, self.bytes = limits, 0

    def add(self, size: int) -> None:
        """Count bytes that arrive.

        Raises:
            Refused: There is no room for them.
        """
        if self.bytes + size > BODIES * self.limits.body:
            raise Refused(
                503, "the waiting requests take too much memory together: try again later", 1
            )
        self.bytes += size

    def release(self, size: int) -> None:
        """Release the bytes of a request that is answered."""
        self.bytes -= size


class Refused(Exception):
    """The refusal of a request, with an HTTP status of 400 or more and one sentence."""

    def __init__(self, status: int, why: str, retry_after: int | None = None):
        super().__init__(why)
        self.status, self.why, self.retry_after = status, why, retry_after
