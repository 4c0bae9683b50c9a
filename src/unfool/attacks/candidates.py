"""Which of an attack's candidates is returned; and the checks that attacks share."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from unfool.attacks.batch_queue import AttackSteps, serve
from unfool.attacks.losses import Loss, Query, QueryResult
from unfool.noise import Noise
from unfool.protocols import Classifier
from unfool.ranges import CountFromZero, MostOf, checked_dataclass
from unfool.threat import Norm, Threat, images


def rank_value(result: QueryResult) -> Tensor:
    """What candidates are ranked by, (B,): the share of wrong draws, and of equals the loss.

    One whose loss is no number is below all others, whatever answers its logits seem to give.
    """
    found = result.error_rate + 1e-3 * torch.tanh(result.loss / 10)
    return found.nan_to_num(nan=-torch.inf)


def choose(
    model: Classifier,
    y: Tensor,
    candidates: Iterable[Tensor],
    loss: Loss,
    noise: Noise,
    draws: int,
) -> Tensor:
    """The candidate of each image that is misclassified most often; of equals, the first.

    All meet the same draws, on which none of them was made: a candidate that was lucky on its own
    draws has nothing of it here.

    Args:
        model: The model, as the attacker sees it.
        y: Labels (B,).
        candidates: Images (B, C, H, W) each, one at least.
        loss: What ranks candidates that are misclassified equally often.
        noise: Of these draws alone.
        draws: Per candidate and image.
    """
    contest = Selection(y, loss, noise, draws)
    for candidate in candidates:
        serve(model, [contest.meet(candidate)])
    return contest.best


class Selection:
    """`choose` as a part of a search (`queue`): candidates that come one after another.

    Attributes:
        best: Of those that were met.
        wrong: Whether that was misclassified on all draws, (B,) of bool.
    """

    best: Tensor
    wrong: Tensor

    def __init__(self, y: Tensor, loss: Loss, noise: Noise, draws: int):
        self._asked = Query(y, y, loss, noise, 0, draws, gradient=False)
        self._highest: Tensor | None = None

    def meet(self, *candidates: Tensor, which: Tensor | None = None) -> AttackSteps[None]:
        """Compare with the best so far.

        Args:
            candidates: Images.
            which: Their positions in the batch; None for all. (The first is of all.)
        """
        asked, some = self._asked, slice(None) if which is None else which
        if which is not None:
            asked = asked._replace(y=asked.y[which], noise=asked.noise.take(which))
        for candidate in candidates:
            seen = yield asked._replace(x=candidate)
            found, wrong = rank_value(seen), seen.error_rate == 1
            if self._highest is None:
                self.best, self._highest, self.wrong = candidate.clone(), found, wrong
                continue
            better = found > self._highest[some]
            self.best[some] = torch.where(images(better), candidate, self.best[some])
            self.wrong[some] = torch.where(better, wrong, self.wrong[some])
            self._highest[some] = torch.where(better, found, self._highest[some])


@checked_dataclass
class EarlyStop:
    """When the search of an image may end: it is wrong on most draws, and again on fresh ones.

    The answers that came with a gradient are used first, so that an image that holds costs nothing;
    only if enough of them are wrong, fresh draws are asked, a few at a time, and no more once it is
    settled. So no lucky draws end a search.

    Attributes:
        draws: Fresh ones; with 0 a search never ends.
        share: Of the draws that must be wrong, both times.
    """

    draws: CountFromZero = 0
    share: MostOf = 1.0

    def here(self, query: Query, at_query: QueryResult) -> AttackSteps[bool]:
        """Whether the search of one image may end where it asked last, and what it saw."""
        noise = query.noise.child("stop", query.turn)
        if not self.draws or float(at_query.error_rate) < self.share - 1e-6:
            return False
        needed = math.ceil(self.share * self.draws - 1e-6)
        wrong = asked = 0
        while wrong < needed <= wrong + self.draws - asked:
            few = min(max(self.draws // 5, 1), self.draws - asked)
            result = yield query._replace(noise=noise, turn=asked, draws=few, gradient=False)
            asked, wrong = asked + few, wrong + round(few * float(result.error_rate))
        return wrong >= needed


def require_norm(attack: str, threat: Threat, *norms: Norm) -> None:
    """Refuse a threat of another norm than an attack is for.

    Raises:
        ValueError: It is another.
    """
    if threat.norm not in norms:
        others = {"l0": "salt-and-pepper or random-search", "l1": "pgd or apgd"}
        raise ValueError(
            f"{attack} works in {' and '.join(norms)}, not in the norm {threat.norm}: use "
            f"{others.get(threat.norm, 'pgd or apgd')}"
        )
