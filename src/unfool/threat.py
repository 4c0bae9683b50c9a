"""Threat models: what an attacker may change, and which noise they know."""

import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unfool.noise import Noise, permutation
from unfool.ranges import NotNegative, check_fields

Norm = Literal["linf", "l2", "l0"]


@dataclass(frozen=True)
class Threat:
    """All images of [0, 1] within `eps` of the original.

    Attributes:
        norm: `"linf"` (the largest change of a pixel), `"l2"` (Euclidean length) or `"l0"` (the
            share of places, all channels together, that are changed at all).
        eps: The budget, in units of [0, 1] images (8/255, or the text "8/255", is 0.0314); of l0 a
            share, 0 to 1.

    Raises:
        ValueError: The budget is below 0, or above 1 in linf or l0.
    """

    norm: Norm
    eps: NotNegative

    def __post_init__(self) -> None:
        if isinstance(self.eps, str):
            object.__setattr__(self, "eps", _number(self.eps))
        check_fields(self)
        if self.norm != "l2" and self.eps > 1:
            unit = "pixels are in [0, 1] (8/255, say)" if self.norm == "linf" else "it is a share"
            raise ValueError(f"threat: eps of {self.norm} is at most 1, as {unit}, not {self.eps}")

    def size(self, delta: Tensor) -> Tensor:
        """The norm of each perturbation (B, C, H, W), shaped (B,)."""
        flat = delta.flatten(1)
        if self.norm == "l0":
            return (delta != 0).any(1).flatten(1).to(delta).mean(1)
        return flat.abs().amax(1) if self.norm == "linf" else flat.norm(dim=1)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The direction of unit norm that ascends fastest, per image (0 where the gradient is).

        Where the gradient is not a number it counts for 0.

        Raises:
            ValueError: The norm is l0, where no step is small.
        """
        if self.norm == "l0":
            raise ValueError(
                "the norm l0 has no small steps for a gradient: use an attack that needs none, such "
                "as salt-and-pepper"
            )
        gradient = gradient.nan_to_num()
        if self.norm == "linf":
            return gradient.sign()
        peak = images(gradient.flatten(1).abs().amax(1)).clamp(min=torch.finfo(gradient.dtype).tiny)
        scaled = gradient / peak  # first, lest squares of tiny gradients vanish
        return scaled / images(self.size(scaled)).clamp(min=torch.finfo(gradient.dtype).tiny)

    def project(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """The nearest allowed image (for l2: the ball first, then the box, which is inside it)."""
        if self.norm == "l0":
            inside = x_adv.clamp(0, 1)
            gain = (x_adv - x).square() - (x_adv - inside).square()
            return torch.where(self._places(gain.sum(1, keepdim=True)), inside, x)
        delta = x_adv - x
        if self.norm == "linf":
            delta = delta.clamp(-self.eps, self.eps)
        else:
            far = torch.finfo(delta.dtype).max ** 0.25  # lest squares overflow, or infinity meet 0
            delta = delta.clamp(-far, far)
            size = images(self.size(delta))
            delta = torch.where(size > self.eps, delta * (self.eps / size.clamp(min=1e-30)), delta)
        return (x + delta).clamp(0, 1)

    def start(self, x: Tensor, noise: Noise) -> Tensor:
        """A random allowed image, uniform in the ball (then clipped to [0, 1]).

        Of l0: the whole budget of places, at random, with uniform values.
        """
        if self.norm == "l0":
            places = self._places(noise.child("places").uniform(x[:, :1]))
            return torch.where(places, noise.uniform(x), x)
        if self.norm == "linf":
            return self.project(x, x + self.eps * (2 * noise.uniform(x) - 1))
        radius = noise.child("radius").uniform(x[:, :1, :1, :1]) ** (1 / x[0].numel())
        return self.project(x, x + self.eps * radius * self.steepest(noise.normal(x)))

    def edge(self, x: Tensor, noise: Noise) -> Tensor:
        """A random image of the whole budget: signs for linf, a direction for l2.

        Of l0: salt and pepper, places at random that become all 1 or all 0. With the same noise,
        the places of a smaller budget are among those of a larger one.
        """
        if self.norm == "l0":
            places = self._places(noise.child("places").uniform(x[:, :1]))
            return torch.where(places, noise.uniform(x[:, :1]).round(), x)
        return self.project(x, x + self.eps * self.steepest(noise.normal(x)))

    def allows(self, x: Tensor, x_adv: Tensor, slack: float = 1e-5) -> Tensor:
        """Which images stay within the threat, (B,) of bool; one with a NaN does not."""
        flat = x_adv.flatten(1)
        inside = (flat >= 0).all(1) & (flat <= 1).all(1)
        return inside & (self.size(x_adv - x) <= self.eps + slack)

    def _places(self, worth: Tensor) -> Tensor:
        """As many places as l0 allows, those of the largest worth (B, 1, H, W), as bools."""
        flat = worth.flatten(1)
        best = flat.topk(int(min(self.eps, 1) * flat.shape[1] + 1e-6), dim=1).indices
        return torch.zeros_like(flat, dtype=torch.bool).scatter(1, best, True).view_as(worth)


def _number(text: str) -> float:
    """A number, or a fraction such as 8/255, from text."""
    above, _, below = text.partition("/")
    try:
        return float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        raise ValueError(
            f"eps must be a number, or a fraction such as 8/255, not {text!r}"
        ) from None


def images(per_image: Tensor) -> Tensor:
    """Numbers (B,) shaped (B, 1, 1, 1), to meet images."""
    return per_image[:, None, None, None]


@dataclass(frozen=True)
class Knowledge:
    """What an attacker knows of the noise that a random defense will draw (Liu et al., 2025).

    Attributes:
        word: `"forward"` (the forward noise: DW-Fwd), `"reverse"` (that of the way back: DW-Rev),
            `"both"` (all noise: DW-box), `"semi-128"` (the defense draws one of 128 paths,
            all of which the attacker knows) or `"semi-128-steps"` (it draws each of its numbers from
            128); any number will do.
    """

    word: str

    def __post_init__(self) -> None:
        if self.word not in ("forward", "reverse", "both") and not self._semi():
            raise ValueError(
                "knows is forward, reverse, both, or semi-128 or semi-128-steps with any number, not "
                f"{self.word!r}"
            )

    @property
    def certain(self) -> bool:
        """Whether nothing that the defense draws is unknown."""
        return self.word == "both"

    def reveal(self, noise: Noise, secret: Noise) -> Noise:
        """The noise of who knows this of `secret`, and draws the rest from `noise`.

        Attackers search with it; and the defense answers with its `draws`.
        """
        if self.word == "both":
            return noise.with_known_noise(secret)
        if semi := self._semi():
            count, by_steps = int(semi[1]), bool(semi[2])
            return noise.with_known_noise(
                secret, (), 0 if by_steps else count, count if by_steps else 0
            )
        return noise.with_known_noise(secret, (self.word,))

    def turns(self, draws: int) -> list[int]:
        """The queries by which the defense answers `draws` times: one if nothing is left to chance.

        Of a pool of paths it takes one after the other in an order of its own: an attacker begins
        with the first ones, and these alone would be no sample of the pool.
        """
        semi = self._semi()
        if semi and not semi[2]:
            order = permutation(int(semi[1]), 0, "verdict")
            return [order[i % len(order)] for i in range(draws)]
        return list(range(1 if self.certain else draws))

    def _semi(self) -> re.Match[str] | None:
        return re.fullmatch(r"semi-([1-9][0-9]*)(-steps)?", self.word)
