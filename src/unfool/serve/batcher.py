"""One thread that runs the model, in calls shared by the waiting requests."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unfool.noise import Noise

Outputs = tuple[Tensor, ...]  # each with one row per row of the call
Call = Callable[[Tensor, Noise], Outputs]
Observe = Callable[[int, float], None]
Task = Callable[[], Any]
LINGER = 0.005  # seconds for which a call that is not full waits for more rows
MAX_BYTES = 2**30  # largest total size of the queued images
log = logging.getLogger("unfool.serve")


class Overloaded(RuntimeError):
    """The queue is full, or the service is stopping; `retry_after` is in seconds."""

    def __init__(self, why: str, retry_after: int):
        super().__init__(why)
        self.retry_after = retry_after


class ModelFailed(RuntimeError):
    """The model raised an error, which is in the log."""


@dataclass(eq=False)
class Part:
    """Rows of work: row r is image `r % len(x)` with the noise of row r.

    Attributes:
        x: Images (B, C, H, W).
        noise: Noise of each row; a multiple of B rows.
        rows_started: Number of rows that were put into calls.
        outputs: Outputs of each finished call.
    """

    x: Tensor
    noise: Noise
    rows_started: int = 0
    outputs: list[Outputs] = field(default_factory=list)


@dataclass(eq=False)
class _Job:
    kind: str
    parts: Sequence[Part]
    exclusive: bool
    future: "Future[Any]"
    rows: int
    bytes: int
    rows_left: int  # rows without an output
    task: Task | None = None  # run instead of parts


class _Slice(NamedTuple):
    """Rows `first` to `last` (exclusive) of a part, to be computed in the next call."""

    job: _Job
    part: Part
    first: int
    last: int

    def images(self) -> Tensor:
        """Return the image of each row."""
        x = self.part.x
        if len(x) == 1:
            return x.expand(self.last - self.first, -1, -1, -1)
        return x[[row % len(x) for row in range(self.first, self.last)]]


class Batcher:
    """A bounded queue with one worker thread, which combines several jobs in one call of the model.

    A job that must be repeatable to the last bit is `exclusive`: kernels round differently in calls
    of different sizes, so each of its parts gets its own calls of at most `batch_size` rows.

    Args:
        calls: The functions that compute rows, by kind.
        batch_size: Most rows in one call.
        max_rows: Most rows that are accepted but not done.
        observe: Called with the rows and the seconds of each call.
    """

    def __init__(self, calls: Mapping[str, Call], batch_size: int, max_rows: int, observe: Observe):
        self._calls, self._observe = calls, observe
        self.batch_size, self.max_rows = batch_size, max_rows
        self.rows, self._bytes, self._seconds_per_row = 0, 0, 0.0
        self._waiting: deque[_Job] = deque()
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="unfool-model", daemon=True)
        self._thread.start()

    def submit(self, kind: str, parts: Sequence[Part], exclusive: bool) -> "Future[list[Outputs]]":
        """Accept a job; the future holds the outputs of each part, or ModelFailed.

        Raises:
            Overloaded: There is no room for it, or the service is stopping.
        """
        rows = sum(len(part.noise) for part in parts)
        size = sum(part.x.numel() * part.x.element_size() for part in parts)
        return self._accept(_Job(kind, parts, exclusive, Future(), rows, size, rows))

    def run(self, task: Task, rows: int) -> "Future[Any]":
        """Accept a function to run between calls of the model; the future holds what it returns.

        Args:
            task: The function, which may compute gradients.
            rows: Passes that it counts as in the queue.

        Raises:
            Overloaded: There is no room for it, or the service is stopping.
        """
        return self._accept(_Job("task", (), True, Future(), rows, 0, rows, task))

    def _accept(self, job: _Job) -> "Future[Any]":
        with self._changed:
            if self._closed:
                raise Overloaded(
                    "the service is shutting down: send the request to another one",
                    self.retry_after(),
                )
            full = self.rows + job.rows > self.max_rows or self._bytes + job.bytes > MAX_BYTES
            if self.rows and full:
                raise Overloaded(
                    f"the queue is full ({self.rows} of {self.max_rows} passes wait): try again later",
                    self.retry_after(),
                )
            self.rows, self._bytes = self.rows + job.rows, self._bytes + job.bytes
            self._waiting.append(job)
            self._changed.notify_all()
        return job.future

    def retry_after(self) -> int:
        """Estimate in how many seconds the accepted work will be done, from 1 to 60."""
        return max(1, min(60, math.ceil(self.rows * self._seconds_per_row)))

    @property
    def accepting(self) -> bool:
        """Whether the worker runs and `close` was not called."""
        return not self._closed and self._thread.is_alive()

    def close(self) -> None:
        """Accept no more jobs, finish the accepted ones, and stop the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    @torch.no_grad()
    def _work(self) -> None:
        while work := self._next():
            if isinstance(work, _Job):
                self._run(work)
            else:
                self._compute(work)

    def _next(self) -> _Job | list[_Slice]:
        """Wait for a task or the rows of the next call; no rows if closed and all work is done."""
        with self._changed:
            until = None
            while True:
                self._drop_canceled()
                if not self._waiting:
                    if self._closed:
                        return []
                    until = None
                    self._changed.wait()
                    continue
                if self._waiting[0].task is not None:
                    return self._waiting.popleft()
                until = until or time.monotonic() + LINGER
                patience = until - time.monotonic()
                if self._full() or self._closed or patience <= 0:
                    return self._take()
                self._changed.wait(patience)

    def _drop_canceled(self) -> None:
        for job in [job for job in self._waiting if job.future.done()]:
            self._waiting.remove(job)
            self._release_counts(job)

    def _full(self) -> bool:
        """Return whether the next call cannot gain rows by waiting."""
        if self._waiting[0].exclusive:
            return True
        rows = 0
        for _, _, remaining in self._fitting():
            rows += remaining
            if rows >= self.batch_size:
                return True
        return False

    def _fitting(self) -> Iterator[tuple[_Job, Part, int]]:
        """Yield the parts that may share the next call, oldest first, and their remaining rows."""
        head = self._waiting[0]
        first = next(part for part in head.parts if part.rows_started < len(part.noise))
        for job in self._waiting if not head.exclusive else (head,):
            if job is not head and (job.exclusive or job.kind != head.kind):
                continue
            for part in (first,) if head.exclusive else job.parts:
                if part.rows_started < len(part.noise) and part.x.shape[1:] == first.x.shape[1:]:
                    yield job, part, len(part.noise) - part.rows_started

    def _take(self) -> list[_Slice]:
        room, slices = self.batch_size, []
        for job, part, remaining in self._fitting():
            if not room:
                break
            count = min(room, remaining)
            slices.append(_Slice(job, part, part.rows_started, part.rows_started + count))
            part.rows_started, room = part.rows_started + count, room - count
        for job in {id(piece.job): piece.job for piece in slices}.values():
            if all(part.rows_started == len(part.noise) for part in job.parts):
                self._waiting.remove(job)
        return slices

    def _compute(self, slices: Sequence[_Slice]) -> None:
        """Compute rows; on an error, compute each job separately, so that only a bad one fails."""
        jobs = {id(piece.job): piece.job for piece in slices}
        x = torch.cat([piece.images() for piece in slices])
        noise = Noise.join([s.part.noise.take(range(s.first, s.last)) for s in slices])
        began = time.perf_counter()
        try:
            outputs = self._calls[slices[0].job.kind](x, noise)
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs.values():
                    self._compute([piece for piece in slices if piece.job is job])
                return
            log.exception("the model failed on %d images", len(x))
            self._fail(slices[0].job, error)
            return
        self._record_call(len(x), time.perf_counter() - began)
        counts = [piece.last - piece.first for piece in slices]
        split = zip(*(output.split(counts) for output in outputs), strict=True)
        for piece, count, piece_outputs in zip(slices, counts, split, strict=True):
            piece.part.outputs.append(piece_outputs)
            piece.job.rows_left -= count
        for job in jobs.values():
            if not job.rows_left:
                self._finish(job)

    def _run(self, job: _Job) -> None:
        assert job.task is not None
        began = time.perf_counter()
        try:
            result = job.task()
        except Exception as error:
            log.exception("the model failed in a task of %d passes", job.rows)
            self._fail(job, error)
            return
        self._record_call(job.rows, time.perf_counter() - began)
        self._remove_job(job)
        if job.future.set_running_or_notify_cancel():
            job.future.set_result(result)

    def _record_call(self, rows: int, seconds: float) -> None:
        seconds_per_row = seconds / rows
        self._seconds_per_row = (
            0.8 * (self._seconds_per_row or seconds_per_row) + 0.2 * seconds_per_row
        )
        self._observe(rows, seconds)

    def _finish(self, job: _Job) -> None:
        self._remove_job(job)
        if job.future.set_running_or_notify_cancel():
            job.future.set_result([_joined(part.outputs) for part in job.parts])

    def _fail(self, job: _Job, error: Exception) -> None:
        self._remove_job(job)
        if job.future.set_running_or_notify_cancel():
            job.future.set_exception(ModelFailed(type(error).__name__))

    def _remove_job(self, job: _Job) -> None:
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
            self._release_counts(job)

    def _release_counts(self, job: _Job) -> None:
        self.rows, self._bytes = self.rows - job.rows, self._bytes - job.bytes


def _joined(outputs: Sequence[Outputs]) -> Outputs:
    """Concatenate the outputs of all calls that computed a part."""
    if len(outputs) == 1:
        return outputs[0]
    return tuple(map(torch.cat, zip(*outputs, strict=True)))
