"""The choice among an attack's candidates, early stopping, and a check that attacks share."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from unfool.attacks.batch_queue import AttackSteps, serve
from unfool.attacks.losses import Loss, Query, QueryResult
from unfool.noise import Noise
from unfool.protocols import Classifier
from unfool.ranges import CountFromZero, MostOf, checked_dataclass
from unfool.threat import Norm, Threat, per_image


def rank_score(result: QueryResult) -> Tensor:
    """Return the value that ranks candidates, (B,): the share of wrong draws, then the loss.

    A candidate whose loss is NaN ranks below all others, whatever class its logits suggest. In
    float64, the arctangent tells large and small losses apart.
    """
    loss_score = torch.atan(result.loss.double() / 10)
    score = result.error_rate.double() + 1e-6 * loss_score
    return score.nan_to_num(nan=-torch.inf)


def choose(
    model: Classifier,
    y: Tensor,
    candidates: Iterable[Tensor],
    loss: Loss,
    noise: Noise,
    draws: int,
) -> Tensor:
    """Return the candidate of each image that is misclassified most often; on ties, the first.

    All candidates are evaluated on the same draws, which were used to make none of them, so a
    candidate that was lucky on its own draws has no advantage here.

    Args:
        model: The model, as the attacker sees it.
        y: Labels (B,).
        candidates: At least one batch of images (B, C, H, W).
        loss: The loss that ranks candidates that are misclassified equally often.
        noise: The noise of these draws, used for nothing else.
        draws: Draws per candidate and image.
    """
    selection = Selection(y, loss, noise, draws)
    for candidate in candidates:
        serve(model, [selection.compare(candidate)])
    return selection.best


class Selection:
    """`choose` as a part of a search (`batch_queue`), where candidates arrive one after another.

    Attributes:
        best: The best candidate so far.
        wrong: Whether that candidate was misclassified on all draws, (B,) of bool.
    """

    best: Tensor
    wrong: Tensor

    def __init__(self, y: Tensor, loss: Loss, noise: Noise, draws: int):
        self._query = Query(y, y, loss, noise, 0, draws, gradient=False)
        self._best_rank: Tensor | None = None

    def compare(self, *candidates: Tensor, which: Tensor | None = None) -> AttackSteps[None]:
        """Compare candidates with the best one so far.

        Args:
            candidates: Images.
            which: Their positions in the batch; None for all. (The first candidate must have all.)
        """
        query, positions = self._query, slice(None) if which is None else which
        if which is not None:
            query = query._replace(y=query.y[which], noise=query.noise.take(which))
        for candidate in candidates:
            result = yield query._replace(x=candidate)
            score, is_wrong = rank_score(result), result.error_rate == 1
            if self._best_rank is None:
                self.best, self._best_rank, self.wrong = candidate.clone(), score, is_wrong
                continue
            is_better = score > self._best_rank[positions]
            self.best[positions] = torch.where(
                per_image(is_better), candidate, self.best[positions]
            )
            self.wrong[positions] = torch.where(is_better, is_wrong, self.wrong[positions])
            self._best_rank[positions] = torch.where(is_better, score, self._best_rank[positions])


@checked_dataclass
class EarlyStop:
    """A rule that ends an image's search once most draws are wrong, and most fresh draws, too.

    The draws that came with the gradient are checked first, so an image that withstands them costs
    nothing extra. Only if enough of them are wrong are fresh draws made, a few at a time, until the
    outcome is settled. So lucky draws do not end a search.

    Attributes:
        draws: Number of fresh draws; with 0, a search never ends early.
        share: The share of draws that must be wrong, both times.
    """

    draws: CountFromZero = 0
    share: MostOf = 1.0

    def check(self, query: Query, at_query: QueryResult) -> AttackSteps[bool]:
        """Return whether the search for one image may end at its last query, given the result."""
        noise = query.noise.child("stop", query.query_index)
        if not self.draws or float(at_query.error_rate) < self.share - 1e-6:
            return False
        needed = math.ceil(self.share * self.draws - 1e-6)
        known = query.noise.known_noise
        # paths of a known pool are numbered by query, so only one query takes a path once
        at_once = self.draws if known and known.pool else max(self.draws // 5, 1)
        wrong_draws = draws_so_far = 0
        while wrong_draws < needed <= wrong_draws + self.draws - draws_so_far:
            draws = min(at_once, self.draws - draws_so_far)
            result = yield query._replace(
                noise=noise, query_index=draws_so_far, draws=draws, gradient=False
            )
            draws_so_far += draws
            wrong_draws += round(draws * float(result.error_rate))
        return wrong_draws >= needed


def require_norm(attack: str, threat: Threat, *norms: Norm) -> None:
    """Refuse a threat whose norm an attack does not support.

    Raises:
        ValueError: The threat's norm is not among `norms`.
    """
    if threat.norm not in norms:
        others = {"l0": "salt-and-pepper or random-search", "l1": "pgd or apgd"}
        raise ValueError(
            f"{attack} works in {' and '.join(norms)}, not in the norm {threat.norm}: use "
            f"{others.get(threat.norm, 'pgd or apgd')}"
        )
