"""Calls a model at several draws of its noise, with as few calls as possible."""

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

    A model that draws nothing from its noise gives the same answer at every draw, so it is called
    at only two.

    Attributes:
        model: The model.
        noise_free: Whether the model drew nothing when it was last called; None if that is unknown.
    """

    model: Batched
    noise_free: bool | None = None

    def __call__(self, x: Tensor, noise: Noise, draws: int, first: int = 0) -> Tensor:
        """Return the class chosen at each draw, (B, draws), as `predict_draws` does."""
        if self.noise_free is False or not len(x):
            return predict_draws(self.model, x, noise, draws, first)
        before, first_draws = drawn_so_far(), min(draws, 2)
        chosen = predict_draws(self.model, x, noise, first_draws, first)
        noise_free = drawn_so_far() == before and bool((chosen == chosen[:, :1]).all())
        if draws > 1 or not noise_free:
            self.noise_free = noise_free
        if noise_free:
            return chosen[:, :1].expand(-1, draws)
        if draws == first_draws:
            return chosen
        rest = predict_draws(self.model, x, noise, draws - first_draws, first + first_draws)
        return torch.cat([chosen, rest], 1)


def curtailed(answer: Answer, labels: Sequence[int], k: int) -> list[tuple[list[int], Curtailed]]:
    """Compute the verdicts of a batch of images, each stopped once no draw can change it.

    Args:
        answer: A function that takes positions of images, the first draw, and the number of draws.
            It returns the chosen classes.
        labels: The class of each image.
        k: Draws of a full verdict.

    Returns:
        For each image, the first half of the draws, which every image has, and the draws after it.
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
