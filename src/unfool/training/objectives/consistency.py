"""Consistency distillation (Song et al., 2023): the whole reverse process in one call of a network.

The network learns to give the same output at two neighboring states of one trajectory of a teacher's
probability flow, which ends at the clean image. It then purifies in one call instead of many steps.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from unfool import distances
from unfool.diffusion.denoiser import NetworkDenoiser
from unfool.diffusion.reverse import karras
from unfool.diffusion.schedule import Scales
from unfool.noise import Noise
from unfool.ranges import AtLeastTwo, Share, ShareAboveZero, checked_dataclass
from unfool.training.freeze import frozen
from unfool.training.objectives.denoising import label_or_null

Distance = Literal["huber", "l2", "l1", "lpips"]
Solver = Literal["heun", "euler"]
HUBER = (
    0.00054  # times the square root of the number of values (Song and Dhariwal, 2024, section 3.3)
)


@checked_dataclass
class ConsistencyDistillation:
    """The distance between a network's outputs at two neighboring states of its teacher's flow.

    The loss is d(f(x_t, t), f'(x_u, u)), where x_t is a noised image, and one step of the teacher's
    solver leads from x_t to x_u (Song et al., 2023, algorithm 2, weight 1). t and u < t are adjacent
    among EDM's times from `t_max` to 0; at time 0, f returns its input. f' is f itself without
    gradient and in evaluation mode, which is a running average with decay 0.

    f is the estimate of `NetworkDenoiser`, whose network may predict `"consistency"` (as published;
    start from the weights of an `"edm"` teacher) or anything but `"image"`, with which f would not
    return its input at time 0. Use the result in one call (the purifier `one-step`): it is not
    E[x_0 | x_t], which samplers with several steps need.

    Attributes:
        denoiser: The teacher, with the same schedule as the network; its weights do not change. It
            gets labels if the network does, and its own null class where the network gets one.
        levels: The number of times, including `t_max` and excluding 0; 18 as published.
        t_max: The largest time; a purifier cannot use the model at a larger one.
        solver: The solver of the teacher's step: `"heun"` (two calls of the teacher; published) or
            `"euler"` (one call).
        distance: `"huber"` (pseudo-Huber; Song and Dhariwal, 2024, equation 7), which needs no other
            network; `"l2"` (squared) or `"l1"`; or `"lpips"` (Song et al., 2023), with the extra `lpips`.
        label_dropout: The probability of replacing a label by the null class, for a conditional
            denoiser.
    """

    denoiser: Any
    levels: AtLeastTwo = 18
    t_max: ShareAboveZero = 1.0
    solver: Solver = "heun"
    distance: Distance = "huber"
    label_dropout: Share = 0.1

    def __call__(self, model: NetworkDenoiser, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """The loss of each image (B,).

        Raises:
            ValueError: The teacher has another schedule, the network predicts images, the schedule
                has fewer than `levels` noise levels, or images are too small for `"lpips"`.
        """
        times = self._times(model).to(x)
        label, told = (
            label_or_null(which, y, self.label_dropout, noise) for which in (model, self.denoiser)
        )
        level = (noise.child("time").uniform(x[:, :1, :1, :1]) * self.levels).long()
        now, then = model.schedule(times[level]), model.schedule(times[level + 1])
        z = model.encode(x)
        x_t = now.alpha * z + now.sigma * noise.child("noise").normal(z)
        with torch.no_grad(), frozen(model):
            x_u = self._step(x_t, now, then, told if model.classes else None)
            at_end = then.sigma == 0  # there, networks that take the logarithm of the noise fail
            target = model.estimate(x_u, torch.where(at_end, now.t, then.t), label).to(x_u)
            target = torch.where(at_end, x_u, target)
        output = model.estimate(x_t, now.t, label).to(x_t)
        if self.distance == "lpips":
            if min(x.shape[2:]) < 31:
                raise ValueError(
                    f"distance lpips needs images of 31 pixels or more, not {x.shape[-1]}"
                )
            return distances.lpips(model.decode(output), model.decode(target))
        return DISTANCES[self.distance](output - target)

    def _times(self, model: NetworkDenoiser) -> Tensor:
        """The decreasing times (levels + 1,), of which the last is 0."""
        if model.schedule != self.denoiser.schedule:
            raise ValueError(
                f"objective.denoiser: its schedule is {self.denoiser.schedule}, and that of the "
                f"denoiser that is trained is {model.schedule}: both must be the same"
            )
        if model.predicts == "image":
            raise ValueError(
                "a denoiser that predicts images does not return its input at time 0, which "
                "consistency training needs: let it predict consistency, edm, noise, or velocity"
            )
        times = karras(model.schedule, self.t_max, self.levels)
        if not bool((times.diff() < 0).all()):
            raise ValueError(
                f"the schedule has fewer than levels = {self.levels} levels of noise below t_max = "
                f"{self.t_max}: take fewer levels"
            )
        return times

    def _step(self, x_t: Tensor, now: Scales, then: Scales, label: Tensor | None) -> Tensor:
        """Step to `then` along the teacher's flow, in EDM's variables x / alpha and sigma / alpha."""
        teacher = self.denoiser.to(x_t.device).eval().requires_grad_(False)
        size, next_size = now.sigma / now.alpha, then.sigma / then.alpha
        state = x_t / now.alpha
        slope = (state - teacher(x_t, now.t, label).to(x_t)) / size
        ahead = state + (next_size - size) * slope
        if self.solver == "heun":
            at_end = next_size == 0
            x_hat = teacher(then.alpha * ahead, torch.where(at_end, now.t, then.t), label).to(x_t)
            second = (ahead - x_hat) / torch.where(at_end, size, next_size)
            ahead = torch.where(at_end, ahead, state + (next_size - size) / 2 * (slope + second))
        return then.alpha * ahead


def pseudo_huber(gap: Tensor) -> Tensor:
    """sqrt(|gap|^2 + c^2) - c per image (B,), c = 0.00054 sqrt(dimension) (Song and Dhariwal, 2024)."""
    c = HUBER * gap[0].numel() ** 0.5
    return (gap.square().flatten(1).sum(1) + c**2).sqrt() - c


DISTANCES: dict[str, Callable[[Tensor], Tensor]] = {
    "huber": pseudo_huber,
    "l2": lambda gap: gap.square().flatten(1).mean(1),
    "l1": lambda gap: gap.abs().flatten(1).mean(1),
}
