"""Adapters: unfool's models for attacks of other libraries, and such attacks for unfool.

torchattacks, foolbox, ART and the public AutoAttack expect a model that is a function f(x) of the
images. A random defense is not, so its caller must choose the noise of each call.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from itertools import count
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from unfool.argument_checks import check_evaluating, check_finite, checked_attack
from unfool.attacks.views import Batched
from unfool.noise import Noise, seeded
from unfool.protocols import Classifier
from unfool.ranges import Count, check_arguments
from unfool.threat import Threat


def as_module(
    model: Classifier, noise: Literal["fresh"] | int | Noise = "fresh", votes: Count = 1
) -> nn.Module:
    """Wrap a model as a differentiable module from images (B, C, H, W) in [0, 1] to logits (B, K).

    The module and the networks inside stay in evaluation mode: `train()` has no effect.

    Args:
        model: Any classifier, defended or not.
        noise: `"fresh"` draws new noise in every call, which cannot be repeated. A whole number is
            a seed: all images of all calls get the same draw, so that the logits depend on the
            image alone. With a `Noise`, the image at position i always gets stream i; use it if
            every call passes the whole batch in the same order.
        votes: If above 1, a call takes this many draws of each image and returns the logarithm of
            their mean probability, at that many times the memory and time.

    Raises:
        ValueError: `noise` is none of these, `votes` is below 1, or a network inside is in training
            mode.
        RuntimeError: During a call, logits are not finite, so that no class is the highest.
    """
    check_arguments(as_module, {"votes": votes})
    check_evaluating(model)
    if isinstance(noise, Noise):
        return Module(model, lambda size: _check_size(noise, size), votes, finite=True)
    if isinstance(noise, str) and noise == "fresh":
        return Module(model, Noise.fresh, votes, finite=True)
    try:
        Noise.of(noise, [])  # pyright: ignore[reportArgumentType]
    except TypeError as error:
        raise ValueError(f"noise must be 'fresh', a seed, or a Noise, not {noise!r}") from error
    return Module(model, lambda size: Noise.of(noise, [0] * size), votes, finite=True)


class Module(nn.Module):
    """A classifier with a function that returns the noise for a call of a given number of images.

    With `finite`, logits that are not finite are refused, because the caller may take their argmax.
    """

    def __init__(
        self,
        model: Classifier,
        draw: Callable[[int], Noise],
        votes: int = 1,
        finite: bool = False,
    ):
        super().__init__()
        self.model, self.draw, self.votes, self.finite = model, draw, votes, finite
        # A submodule whose weights show the device.
        self.inner = model.model if isinstance(model, Batched) else None
        self.training = False

    def train(self, mode: bool = True) -> Self:
        """Do nothing: other libraries switch modes, but an answer must not depend on the batch."""
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W) in [0, 1]."""
        noise = self.draw(len(x))
        if self.votes == 1:
            return self._check_finite(self.model(x, noise))
        copies = self.model(x.repeat_interleave(self.votes, 0), noise.repeat(self.votes))
        logits = self._check_finite(copies)
        log_probabilities = logits.view(len(x), self.votes, -1).log_softmax(2)
        return log_probabilities.logsumexp(1) - math.log(self.votes)

    def _check_finite(self, logits: Tensor) -> Tensor:
        if self.finite:
            check_finite(logits)
        return logits


@dataclass(frozen=True)
class ExternalAttack:
    """A function `f(model, x, y)` as an attack; it may have parameters `threat` and `noise`, too.

    The function gets the model as a plain module (`as_module`) that uses the attacker's own noise,
    fresh in every call. The attacker's noise also seeds the global generators of torch, NumPy, and
    Python, so that the same batch gives the same images again. Unlike in other attacks, the result
    for an image may depend on the other images of its batch.

    Attributes:
        function: The function; it returns adversarial images, a tensor or an array shaped like `x`
            (B, C, H, W) in [0, 1].
    """

    function: Callable[..., Any]

    @checked_attack
    def __call__(
        self, model: Classifier, x: Tensor, y: Tensor, threat: Threat, noise: Noise
    ) -> Tensor:
        """Adversarial images, shaped like `x`.

        Raises:
            ValueError: The function returned neither a tensor nor an array.
        """
        query_indices = count()

        def draw(size: int) -> Noise:
            if noise.known_noise is not None:
                _check_size(noise, size)  # the known noise belongs to these images, in this order
            copies = -(-size // len(noise))
            return noise.for_query(next(query_indices), copies).take(range(size))

        parameters = signature(self.function).parameters
        extra_arguments = {
            k: v for k, v in (("threat", threat), ("noise", noise)) if k in parameters
        }
        with seeded(noise):
            x_adv = self.function(Module(model, draw), x.clone(), y.clone(), **extra_arguments)
        try:
            return torch.as_tensor(x_adv).detach().to(x)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"an attack returned a {type(x_adv).__name__} instead of images: return one tensor "
                "or array of the same shape as x, and nothing else"
            ) from error


def _check_size(noise: Noise, size: int) -> Noise:
    """Return the noise of a call after a check that it is for `size` images."""
    if size != len(noise):
        raise ValueError(
            f"the model was called with {size} images, and its noise is fixed for {len(noise)} "
            "images by position: call it with all of them in order, or fix the noise by a seed (a "
            "whole number), which all images share"
        )
    return noise
