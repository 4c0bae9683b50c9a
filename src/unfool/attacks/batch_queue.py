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

from unfool.attacks.losses import LossRecord, Query, QueryResult, gradient_run, query_batch
from unfool.protocols import Classifier

Found = TypeVar("Found")
AttackSteps = Generator[Query, QueryResult, Found]


def serve(model: Classifier, searches: Iterable[AttackSteps[Found]]) -> list[Found]:
    """Run the searches and return their results, in order.

    `recording_losses` records their steps as those of one batch, with NaN for the steps that a
    search left out because it ended early.

    Args:
        model: The model, as the attacker sees it; called with `batch_size` images, if it has that.
        searches: The searches; each is started when there is room for it.
    """
    waiting = iter(enumerate(searches))
    asked: dict[tuple[Any, ...], deque[tuple[int, AttackSteps[Found], Query]]] = {}
    found: dict[int, Found] = {}
    steps: dict[int, list[LossRecord]] = {}
    rows = getattr(model, "batch_size", None) or math.inf

    def go_on(number: int, search: AttackSteps[Found], result: Any) -> None:
        try:
            query = search.send(result)
        except StopIteration as end:
            found[number] = end.value
            return
        kind = (query.loss, query.gradient, query.target is None)
        asked.setdefault(kind, deque()).append((number, search, query))

    def most() -> deque[tuple[int, AttackSteps[Found], Query]]:
        return max(asked.values(), key=_size, default=deque())

    while True:
        while _size(most()) < rows and (fresh := next(waiting, None)):
            steps[fresh[0]] = []
            go_on(*fresh, None)
        line = most()
        if not line:
            break
        batch = [line.popleft()]
        size = _rows(batch[0][2])
        while line and size + _rows(line[0][2]) <= rows:
            size += _rows(line[0][2])
            batch.append(line.popleft())
        answers = query_batch(model, [query for _, _, query in batch])
        for (number, search, query), result in zip(batch, answers, strict=True):
            if query.gradient:
                steps[number].append(LossRecord((query.noise.keys, query.loss), result.loss))
            go_on(number, search, result)
    _tell(list(steps.values()))
    return [found[number] for number in sorted(found)]


def serve_apart(
    model: Classifier, search: Callable[[list[int]], AttackSteps[Tensor]], size: int, apart: bool
) -> Tensor:
    """Run one search for each of `size` images, or one for all of them together.

    Args:
        model: The model, as the attacker sees it.
        search: Starts the search for the images at the given positions.
        size: Number of images.
        apart: Whether each image gets its own search, so that it may end early.
    """
    groups = [[i] for i in range(size)] if apart else [list(range(size))]
    return torch.cat(serve(model, (search(group) for group in groups)))


def _rows(query: Query) -> int:
    return len(query.x) * query.draws


def _size(line: Iterable[tuple[int, Any, Query]]) -> int:
    return sum(_rows(query) for _, _, query in line)


def _tell(searches: Sequence[Sequence[LossRecord]]) -> None:
    """Record the steps of several searches as those of one batch."""
    longest = max(searches, key=len, default=[])
    for i, step in enumerate(longest):
        losses = [
            steps[i].loss if i < len(steps) else torch.full_like(steps[0].loss, math.nan)
            for steps in searches
            if steps
        ]
        gradient_run(LossRecord(step.run, torch.cat(losses)))
