"""Which of an attack's candidates is returned; and the checks that attacks share."""

from collections.abc import Iterable

import torch
from torch import Tensor

from defuse.attacks.losses import Look, Loss, look
from defuse.noise import Noise
from defuse.protocols import Classifier
from defuse.threat import Threat, images


def worth(seen: Look) -> Tensor:
    """What candidates are ranked by, (B,): the share of wrong draws, and of equals the loss.

    A loss that is no number counts for the lowest.
    """
    return seen.wrong + 1e-3 * torch.tanh(seen.loss.nan_to_num(nan=-torch.inf) / 10)


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
    several = iter(candidates)
    best = next(several)
    highest = worth(look(model, best, y, loss, noise, 0, draws, gradient=False))
    for candidate in several:
        found = worth(look(model, candidate, y, loss, noise, 0, draws, gradient=False))
        better = found > highest
        best = torch.where(images(better), candidate, best)
        highest = torch.where(better, found, highest)
    return best


def check_counts(attack: object, *names: str, compare: int | None = None) -> None:
    """Refuse an attack that has an attribute of `names` below 1, or such a `compare`.

    Raises:
        ValueError: It has.
    """
    for name in names:
        if getattr(attack, name) < 1:
            raise ValueError(f"{name} must be 1 or more, not {getattr(attack, name)}")
    if compare is not None and compare < 1:
        raise ValueError(f"compare must be 1 or more, not {compare}")


def check_ball(attack: str, threat: Threat) -> None:
    """Refuse a threat that is neither linf nor l2.

    Raises:
        ValueError: It is not.
    """
    if threat.norm not in ("linf", "l2"):
        raise ValueError(
            f"{attack} is for the norms linf and l2, not {threat.norm}: use salt-and-pepper or "
            "random-search"
        )
