"""Threat models: what an attacker may change, and which noise they know."""

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from unfool.noise import Noise, permutation
from unfool.ranges import NotNegative, check_fields

Norm = Literal["linf", "l2", "l1", "l0"]
SPARSE_SHARE = 0.05  # of the values, those with the largest slopes, which a step under l1 changes


@dataclass(frozen=True)
class Threat:
    """The set of all images in [0, 1] within `eps` of the original.

    Attributes:
        norm: `"linf"` (the largest change of a pixel), `"l2"` (Euclidean length), `"l1"` (the sum
            of all changes), or `"l0"` (the share of pixels that change at all, in any of their
            channels).
        eps: The budget, in units of [0, 1] pixels (8/255, or the text "8/255", is 0.0314); for l0 a
            share of the pixels, 0 to 1.

    Raises:
        ValueError: The budget is below 0, or above 1 in linf or l0.
    """

    norm: Norm
    eps: NotNegative

    if TYPE_CHECKING:

        def __init__(self, norm: Norm, eps: float | str) -> None: ...

    def __post_init__(self) -> None:
        if isinstance(self.eps, str):
            object.__setattr__(self, "eps", _number(self.eps))
        check_fields(self)
        if self.norm in ("linf", "l0") and self.eps > 1:
            unit = (
                "pixels are in [0, 1] (such as 8/255)" if self.norm == "linf" else "it is a share"
            )
            raise ValueError(
                f"threat: eps of {self.norm} must be at most 1, as {unit}, not {self.eps}"
            )

    def size(self, delta: Tensor) -> Tensor:
        """The norm of each perturbation (B, C, H, W), shaped (B,)."""
        flat = delta.flatten(1)
        if self.norm == "l0":
            return (delta != 0).any(1).flatten(1).to(delta).mean(1)
        if self.norm == "l1":
            return flat.abs().sum(1)
        return flat.abs().amax(1) if self.norm == "linf" else flat.norm(dim=1)

    def steepest(self, gradient: Tensor, at: Tensor | None = None) -> Tensor:
        """The unit-norm direction of steepest ascent per image (0 where the gradient is 0).

        NaN entries of the gradient count as 0. In l1, the steepest direction changes a single
        value, which the box [0, 1] would stop at once. Instead, the direction changes the values
        with the largest 5 % of the slopes, as SLIDE does (Tramer and Boneh, 2019), but in
        proportion to the slopes, not by their signs.

        Args:
            gradient: Shaped like images (B, C, H, W).
            at: The images where the step begins. For l1, values at the edge of the box with an
                outward slope are not among the 5 %, do not count in the norm, and stay where they
                are.

        Raises:
            ValueError: The norm is l0, which has no small steps.
        """
        if self.norm == "l0":
            raise ValueError(
                "the norm l0 does not allow gradient steps: use an attack without gradients, such "
                "as salt-and-pepper"
            )
        gradient = gradient.nan_to_num()
        if self.norm == "linf":
            return gradient.sign()
        if self.norm == "l1":
            return self._sparse(gradient, at)
        peak = per_image(gradient.flatten(1).abs().amax(1)).clamp(
            min=torch.finfo(gradient.dtype).tiny
        )
        scaled = gradient / peak  # first, so that squares of tiny gradients do not vanish
        return scaled / per_image(self.size(scaled)).clamp(min=torch.finfo(gradient.dtype).tiny)

    def project(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Project onto the allowed images: the nearest one, except for l2.

        For l2, the image is projected onto the ball and then clipped to the box, which keeps it in
        the ball. For l1, it is the nearest one in the intersection of ball and box (Croce and Hein,
        2021).
        """
        if self.norm == "l0":
            inside = x_adv.clamp(0, 1)
            gain = (x_adv - x).square() - (x_adv - inside).square()
            return torch.where(self._top_pixels(gain.sum(1, keepdim=True)), inside, x)
        delta = x_adv - x
        if self.norm == "l1":
            delta = delta.clamp(-8, 8)  # far outside the box, yet precise enough
            return (x + self._shrunk(x, delta)).clamp(0, 1)
        if self.norm == "linf":
            delta = delta.clamp(-self.eps, self.eps)
        else:
            largest = torch.finfo(delta.dtype).max ** 0.25  # no overflow of squares, and no 0 * inf
            delta = delta.clamp(-largest, largest)
            size = per_image(self.size(delta))
            delta = torch.where(size > self.eps, delta * (self.eps / size.clamp(min=1e-30)), delta)
        return (x + delta).clamp(0, 1)

    def start(self, x: Tensor, noise: Noise) -> Tensor:
        """A random allowed image, uniform in the ball (then clipped to [0, 1]).

        For l0: as many random pixels as the budget allows, with uniform values.
        """
        if self.norm == "l0":
            mask = self._top_pixels(noise.child("places").uniform(x[:, :1]))
            return torch.where(mask, noise.uniform(x), x)
        if self.norm == "linf":
            return self.project(x, x + self.eps * (2 * noise.uniform(x) - 1))
        radius = noise.child("radius").uniform(x[:, :1, :1, :1]) ** (1 / x[0].numel())
        return self.project(x, x + self.eps * radius * self._direction(x, noise))

    def random_at_full_budget(self, x: Tensor, noise: Noise) -> Tensor:
        """A random image at the full budget: random signs for linf, a direction for l2 and l1.

        For l0: salt and pepper, random pixels whose channels all become 1 or all become 0. With the
        same noise, the pixels of a smaller budget are among those of a larger one.
        """
        if self.norm == "l0":
            mask = self._top_pixels(noise.child("places").uniform(x[:, :1]))
            return torch.where(mask, noise.uniform(x[:, :1]).round(), x)
        return self.project(x, x + self.eps * self._direction(x, noise))

    def allows(self, x: Tensor, x_adv: Tensor, slack: float = 1e-5) -> Tensor:
        """Whether each image is within the threat, (B,) of bool; one with a NaN is not."""
        flat = x_adv.flatten(1)
        inside = (flat >= 0).all(1) & (flat <= 1).all(1)
        return inside & (self.size(x_adv - x) <= self.eps + slack * max(1, self.eps))

    def _sparse(self, gradient: Tensor, at: Tensor | None) -> Tensor:
        """The largest slopes, scaled to unit l1 norm, plus those of values that the box stops."""
        slopes = gradient.flatten(1)
        slopes = slopes / slopes.abs().amax(1, keepdim=True).clamp(
            min=torch.finfo(slopes.dtype).tiny
        )
        stopped = torch.zeros_like(slopes, dtype=torch.bool)
        if at is not None:
            stopped = ((at + gradient.sign()).clamp(0, 1) == at).flatten(1)
        free = slopes.masked_fill(stopped, 0)
        best = free.abs().topk(math.ceil(SPARSE_SHARE * free.shape[1]), dim=1).indices
        largest = torch.zeros_like(free).scatter(1, best, free.gather(1, best))
        size = largest.abs().sum(1, keepdim=True).clamp(min=1e-6)
        return (torch.where(stopped, slopes, largest) / size).view_as(gradient)

    def _direction(self, x: Tensor, noise: Noise) -> Tensor:
        """A random unit-norm direction: a corner for linf, else of a uniform point in the ball."""
        if self.norm != "l1":
            return self.steepest(noise.normal(x))
        uniform = 2 * noise.uniform(x) - 1
        # sizes that are Laplace distributed
        sizes = -torch.log1p(-uniform.abs().clamp(max=1 - 1e-6)) * uniform.sign()
        return sizes / per_image(self.size(sizes)).clamp(min=1e-30)

    def _shrunk(self, x: Tensor, delta: Tensor) -> Tensor:
        """The nearest change in l1 and the box: all sizes less one number, cut at 0 and the box."""
        sizes, room = delta.abs(), torch.where(delta > 0, 1 - x, x)
        low = torch.zeros_like(per_image(sizes.flatten(1).amax(1)))
        high = per_image(sizes.flatten(1).amax(1))
        inside = self.size(torch.minimum(sizes, room)) <= self.eps
        for _ in range(50):  # bisection, beyond the precision of float32
            middle = (low + high) / 2
            is_within = per_image(
                self.size(torch.minimum((sizes - middle).clamp(min=0), room)) <= self.eps
            )
            low, high = torch.where(is_within, low, middle), torch.where(is_within, middle, high)
        shrinkage = torch.where(per_image(inside), 0, high)
        return delta.sign() * torch.minimum((sizes - shrinkage).clamp(min=0), room)

    def _top_pixels(self, scores: Tensor) -> Tensor:
        """A mask of as many pixels as l0 allows, those with the largest worth (B, 1, H, W)."""
        flat = scores.flatten(1)
        best = flat.topk(int(min(self.eps, 1) * flat.shape[1] + 1e-6), dim=1).indices
        return torch.zeros_like(flat, dtype=torch.bool).scatter(1, best, True).view_as(scores)


def _number(text: str) -> float:
    """Parse a number, or a fraction such as 8/255."""
    above, _, below = text.partition("/")
    try:
        return float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        raise ValueError(
            f"eps must be a number, or a fraction such as 8/255, not {text!r}"
        ) from None


def per_image(values: Tensor) -> Tensor:
    """Reshape one value per image (B,) to (B, 1, 1, 1), to broadcast over the image's pixels."""
    return values[:, None, None, None]


@dataclass(frozen=True)
class Knowledge:
    """What an attacker knows of the noise that a random defense will draw (Liu et al., 2025).

    Attributes:
        word: `"forward"` (the forward noise: DW-Fwd), `"reverse"` (the noise of the reverse
            process: DW-Rev), `"both"` (all noise: DW-box), `"semi-128"` (the defense uses one of
            128 paths, all of which the attacker knows), or `"semi-128-steps"` (each single draw of
            the defense is one of 128 that the attacker knows); any other number is allowed, too.
    """

    word: str

    def __post_init__(self) -> None:
        if self.word not in ("forward", "reverse", "both") and not self._semi():
            raise ValueError(
                "knows must be forward, reverse, both, semi-N, or semi-N-steps with a number N "
                f"such as 128, not {self.word!r}"
            )

    @property
    def certain(self) -> bool:
        """Whether the attacker knows all noise of the defense."""
        return self.word == "both"

    def reveal(self, noise: Noise, secret: Noise) -> Noise:
        """The noise of an attacker who knows this part of `secret` and draws the rest from `noise`.

        Attacks use this noise, and the defense uses it to answer, in the queries `query_indices`.
        """
        if self.word == "both":
            return noise.with_known_noise(secret)
        if semi := self._semi():
            count, by_steps = int(semi[1]), bool(semi[2])
            return noise.with_known_noise(
                secret, (), 0 if by_steps else count, count if by_steps else 0
            )
        return noise.with_known_noise(secret, (self.word,))

    def query_indices(self, draws: int) -> list[int]:
        """The query numbers of `draws` answers of the defense; only one if nothing is random.

        If the noise comes from a pool of paths, the defense takes them in an order of its own:
        attacks begin with the first paths, which would not be a fair sample of the pool.
        """
        semi = self._semi()
        if semi and not semi[2]:
            order = permutation(int(semi[1]), 0, "verdict")
            return [order[i % len(order)] for i in range(draws)]
        return list(range(1 if self.certain else draws))

    def _semi(self) -> re.Match[str] | None:
        return re.fullmatch(r"semi-([1-9][0-9]*)(-steps)?", self.word)
