"""A queue that batches the queries of many searches, so that calls of the model stay full.

A search is a generator: it yields queries to the model, is sent their results, and returns the
images that it found. It may be for a batch or for a single image, which is then free to end early.
The queue packs the queries of all searches into calls of the model's `batch_size`, and starts the
next search as soon as there is room. The results of a search do not depend on the others, since
each image has its own noise.
"""

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from unfool.attacks.losses import LossRecord, Query, QueryResult, query_batch, record_gradient_step
from unfool.protocols import Classifier

Outcome = TypeVar("Outcome")
AttackSteps = Generator[Query, QueryResult, Outcome]


def serve(model: Classifier, searches: Iterable[AttackSteps[Outcome]]) -> list[Outcome]:
    """Run the searches and return their results, in order.

    `recording_losses` records their steps as those of one batch, with NaN for the steps that a
    search left out because it ended early.

    Args:
        model: The model, as the attacker sees it; called with `batch_size` images, if it has that.
        searches: The searches; each is started when there is room for it.
    """
    waiting = iter(enumerate(searches))
    pending: dict[tuple[Any, ...], deque[tuple[int, AttackSteps[Outcome], Query]]] = {}
    outcomes: dict[int, Outcome] = {}
    steps: dict[int, list[LossRecord]] = {}
    max_rows = getattr(model, "batch_size", None) or math.inf

    def resume(number: int, search: AttackSteps[Outcome], result: Any) -> None:
        try:
            query = search.send(result)
        except StopIteration as end:
            outcomes[number] = end.value
            return
        kind = (query.loss, query.gradient, query.target is None)
        pending.setdefault(kind, deque()).append((number, search, query))

    def longest_line() -> deque[tuple[int, AttackSteps[Outcome], Query]]:
        return max(pending.values(), key=_rows_of, default=deque())

    while True:
        while _rows_of(longest_line()) < max_rows and (started := next(waiting, None)):
            steps[started[0]] = []
            resume(*started, None)
        queue = longest_line()
        if not queue:
            break
        batch = [queue.popleft()]
        size = _rows(batch[0][2])
        while queue and size + _rows(queue[0][2]) <= max_rows:
            size += _rows(queue[0][2])
            batch.append(queue.popleft())
        results = query_batch(model, [query for _, _, query in batch])
        for (number, search, query), result in zip(batch, results, strict=True):
            if query.gradient:
                steps[number].append(LossRecord((query.noise.keys, query.loss), result.loss))
            resume(number, search, result)
    _record_losses(list(steps.values()))
    return [outcomes[number] for number in sorted(outcomes)]


def serve_images(
    model: Classifier,
    search: Callable[[list[int]], AttackSteps[Tensor]],
    size: int,
    separately: bool,
) -> Tensor:
    """Run one search for each of `size` images, or one for all of them together.

    Args:
        model: The model, as the attacker sees it.
        search: Starts the search for the images at the given positions.
        size: Number of images.
        separately: Whether each image gets its own search, so that it may end early.
    """
    groups = [[i] for i in range(size)] if separately else [list(range(size))]
    return torch.cat(serve(model, (search(group) for group in groups)))


def _rows(query: Query) -> int:
    return len(query.x) * query.draws


def _rows_of(queue: Iterable[tuple[int, Any, Query]]) -> int:
    return sum(_rows(query) for _, _, query in queue)


def _record_losses(searches: Sequence[Sequence[LossRecord]]) -> None:
    """Record the steps of several searches as those of one batch."""
    longest = max(searches, key=len, default=[])
    for i, step in enumerate(longest):
        losses = [
            steps[i].loss if i < len(steps) else torch.full_like(steps[0].loss, math.nan)
            for steps in searches
            if steps
        ]
        record_gradient_step(LossRecord(step.run, torch.cat(losses)))
