"""What a model answers at several draws of its noise, in no more calls than can tell."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unfool.attacks.views import Batched
from unfool.defenses.purified_classifier import predict_draws
from unfool.noise import Noise, drawn_so_far
from unfool.results.outcome import Curtailed, first_half, settled

Answer = Callable[[list[int], int, int], Tensor]


@dataclass
class DrawCaller:
    """Calls a model at several draws.

    One that draws nothing from its noise answers alike at all of them, and is called at two.

    Attributes:
        model: It.
        noise_free: Whether it drew nothing when it was called last; None if that is not known.
    """

    model: Batched
    noise_free: bool | None = None

    def __call__(self, x: Tensor, noise: Noise, draws: int, first: int = 0) -> Tensor:
        """The class chosen at each draw, (B, draws): `predict_draws`."""
        if self.noise_free is False or not len(x):
            return predict_draws(self.model, x, noise, draws, first)
        before, few = drawn_so_far(), min(draws, 2)
        found = predict_draws(self.model, x, noise, few, first)
        alike = drawn_so_far() == before and bool((found == found[:, :1]).all())
        if draws > 1 or not alike:
            self.noise_free = alike
        if alike:
            return found[:, :1].expand(-1, draws)
        if draws == few:
            return found
        rest = predict_draws(self.model, x, noise, draws - few, first + few)
        return torch.cat([found, rest], 1)


def curtailed(answer: Answer, labels: Sequence[int], k: int) -> list[tuple[list[int], Curtailed]]:
    """The verdicts of a batch of images, each stopped once no further draw can change it.

    Args:
        answer: Called with positions of images, the first draw and the number of draws; returns the
            classes chosen there.
        labels: The class of each image.
        k: Draws of a verdict.

    Returns:
        Of each image, the draws that all have, and what came after them.
    """
    half = first_half(k)
    taken: list[list[int]] = answer(list(range(len(labels))), 0, half).tolist()
    for draw in range(half, k):
        open_ = [i for i, label in enumerate(labels) if not settled(taken[i], label, k)]
        if not open_:
            break
        for i, (chosen,) in zip(open_, answer(open_, draw, 1).tolist(), strict=True):
            taken[i].append(chosen)
    return [(draws[:half], {"of": k, "further": draws[half:]}) for draws in taken]
