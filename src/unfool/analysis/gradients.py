"""A comparison of the gradients an attacker may use, with each other and with finite differences.

All gradients are computed on the same images and the same draws of the defense's noise.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unfool.argument_checks import images_of_any_range
from unfool.attacks import views
from unfool.attacks.losses import Loss, query_model
from unfool.diffusion.gradient import keep_graphs
from unfool.noise import Noise
from unfool.protocols import Classifier
from unfool.ranges import Count, check_arguments
from unfool.runtime.memory import count_graph_memory
from unfool.runtime.progress import progress
from unfool.statistics import bounded_mean_interval
from unfool.threat import per_image

EXACT = "exact"
ALL = 10**9  # more steps than any chain has


@dataclass(frozen=True)
class GradientVariant:
    """A way to compute a gradient of the defense.

    Attributes:
        name: The name.
        meaning: A short description.
        view: The view of the model to differentiate.
        kept_steps: How many of a chain's last steps keep their graph; the others are replayed.
    """

    name: str
    meaning: str
    view: Callable[..., Classifier]
    kept_steps: int = 0


VARIANTS = (
    GradientVariant(EXACT, "the exact gradient, recomputed step by step", views.exact),
    GradientVariant("exact, whole graph", "the exact gradient by plain autograd", views.exact, ALL),
    GradientVariant("adjoint", "the adjoint method of DiffPure's release", views.adjoint),
    GradientVariant(
        "surrogate-same-noise", "fewer steps, with the same noise path", views.surrogate_same_noise
    ),
    GradientVariant("surrogate", "fewer steps, with noise of its own", views.surrogate),
    GradientVariant("bpda", "the identity in place of the purifier's gradient", views.bpda),
    GradientVariant(
        "classifier-only", "the classifier without its purifier", views.classifier_only
    ),
)


@dataclass(frozen=True)
class Gradients:
    """The gradients of V variants and their cost. The first variant is the exact gradient.

    Attributes:
        variants: The variants that the model supports.
        missing: Name of an unsupported variant to the reason.
        gradients: Gradients of the mean loss over the draws (V, B, C, H, W).
        directions: Random unit vectors (D, B, C, H, W).
        slopes: Finite-difference slopes of the loss along the directions (B, D).
        in_float64: Whether the finite differences are in float64.
        seconds: Time per image and draw (V,), the minimum over repetitions.
        forward_seconds: The same for a forward pass without a gradient.
        graph_bytes: Peak memory of the graphs in bytes, per image and draw (V,).
    """

    variants: tuple[GradientVariant, ...]
    missing: dict[str, str]
    gradients: np.ndarray
    directions: np.ndarray
    slopes: np.ndarray
    in_float64: bool
    seconds: np.ndarray
    forward_seconds: float
    graph_bytes: np.ndarray

    def cosines(self) -> np.ndarray:
        """Return the cosine between every two gradients (V, V, B); 0 where a gradient is zero."""
        flat = self._flat()
        length = np.linalg.norm(flat, axis=2)
        dots = np.einsum("ibp,jbp->ijb", flat, flat)
        return dots / np.maximum(length[:, None] * length[None], 1e-30)

    def signs(self) -> np.ndarray:
        """Return the share of pixel values whose sign agrees with the exact gradient (V, B)."""
        flat = np.sign(self._flat())
        return (flat == flat[:1]).mean(2)

    def errors(self) -> np.ndarray:
        """Return each gradient's distance to the exact one over the longer of their lengths (V, B)."""
        flat = self._flat()
        return _relative_distances(flat, flat[:1])

    def slope_errors(self) -> np.ndarray:
        """Return the relative error of predicted slopes against finite differences (V, B)."""
        vectors = self.directions.reshape(*self.directions.shape[:2], -1)
        return _relative_distances(
            np.einsum("wbp,dbp->wbd", self._flat(), vectors), self.slopes[None]
        )

    def summary(self) -> dict[str, Any]:
        """Return means over images with 95 % intervals for each variant."""
        cosines, signs = self.cosines(), self.signs()
        errors, slopes = self.errors(), self.slope_errors()
        rows = []
        for i, variant in enumerate(self.variants):
            rows.append(
                {
                    "variant": variant.name,
                    "meaning": variant.meaning,
                    "cosine": bounded_mean_interval(cosines[i, 0], -1, 1),
                    "sign": bounded_mean_interval(signs[i], 0, 1),
                    "error": bounded_mean_interval(errors[i], 0),
                    "slope_error": bounded_mean_interval(slopes[i], 0),
                    "seconds": float(self.seconds[i]),
                    "forwards": float(self.seconds[i] / self.forward_seconds),
                    "graph_bytes": float(self.graph_bytes[i]),
                }
            )
        return {
            "images": self.gradients.shape[1],
            "variants": rows,
            "missing": self.missing,
            "cosines": cosines.mean(2).tolist(),
            "directions": len(self.directions),
            "in_float64": self.in_float64,
            "forward_seconds": self.forward_seconds,
        }

    def _flat(self) -> np.ndarray:
        return self.gradients.reshape(*self.gradients.shape[:2], -1)


def compare_gradients(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    noise: Noise,
    *,
    loss: Loss = "margin",
    draws: Count = 4,
    directions: Count = 8,
    repeats: Count = 3,
    coarse: Count | None = None,
    variants: Sequence[GradientVariant] = VARIANTS,
    quiet: bool = False,
) -> Gradients:
    """Compute, time, and check a defense's gradient in several variants.

    Args:
        model: A classifier, behind a purifier or not.
        x: Images (B, C, H, W) in [0, 1].
        y: Labels (B,).
        noise: The source of the directions and of the draws, which all variants share.
        loss: The loss to differentiate, averaged over `draws`.
        draws: Draws of the defense's noise per image.
        directions: Random directions for finite differences.
        repeats: Runs of each variant, interleaved with the others; the shortest time counts.
        coarse: Steps of the surrogates; None keeps their defaults.
        variants: The variants to try, the exact gradient first; the result lists unsupported ones.
        quiet: Show no progress.

    Raises:
        ValueError: A number is out of range, or no gradient leads through the model.
    """
    check_arguments(compare_gradients, locals())
    supported, missing = [], {}
    for variant in variants:
        view = (
            partial(variant.view, steps=coarse)
            if variant.name in ("surrogate-same-noise", "surrogate")
            else variant.view
        )
        try:
            supported.append((variant, view(model)))
        except ValueError as error:
            missing[variant.name] = str(error)
    rounds = repeats * (1 + len(supported))
    gradients: dict[str, Tensor] = {}
    seconds: dict[str, list[float]] = {variant.name: [] for variant, _ in supported} | {"": []}
    graph_bytes: dict[str, int] = {}
    done = 0
    with progress("comparing gradients", rounds + 1, 0, quiet) as show:
        for _ in range(repeats):
            _, duration = _timed(query_model, model, x, y, loss, noise, 0, draws, gradient=False)
            seconds[""].append(duration)
            for variant, viewed in supported:
                counting: AbstractContextManager[Any] = (
                    nullcontext() if variant.name in graph_bytes else count_graph_memory(model)
                )
                with keep_graphs(variant.kept_steps), counting as counter:
                    out, duration = _timed(query_model, viewed, x, y, loss, noise, 0, draws)
                if counter is not None:
                    graph_bytes[variant.name], gradients[variant.name] = counter.peak, out.gradient
                if counter is None or repeats == 1:
                    seconds[variant.name].append(duration)  # a run that counts memory is slower
                done += 1
                show(done, variant.name)
        vectors = torch.stack(
            [_unit(noise.child("direction", i).normal(x)) for i in range(directions)]
        )
        slopes, in_float64 = _slopes(model, x, y, noise, loss, draws, vectors)
    evaluations = len(x) * draws
    return Gradients(
        tuple(variant for variant, _ in supported),
        missing,
        torch.stack([gradients[variant.name] for variant, _ in supported]).double().cpu().numpy(),
        vectors.double().cpu().numpy(),
        slopes.double().cpu().numpy(),
        in_float64,
        np.array([min(seconds[variant.name]) / evaluations for variant, _ in supported]),
        min(seconds[""]) / evaluations,
        np.array([graph_bytes[variant.name] / evaluations for variant, _ in supported]),
    )


def _slopes(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    noise: Noise,
    loss: Loss,
    draws: int,
    directions: Tensor,
) -> tuple[Tensor, bool]:
    """Return central differences of the loss along each direction (B, D), and whether in float64."""
    double = _convert_to_float64(model, x, noise)
    step = 1e-5 if double else 1e-2
    exact, x = (double, x.double()) if double else (model, x)
    slopes = []
    for direction in directions.to(x):
        with images_of_any_range():  # a step from a black pixel leaves the box
            sides = [
                query_model(
                    exact, x + side * step * direction, y, loss, noise, 0, draws, gradient=False
                ).loss
                for side in (1, -1)
            ]
        slopes.append((sides[0] - sides[1]) / (2 * step))
    return torch.stack(slopes, 1), double is not None


@torch.no_grad()
def _convert_to_float64(model: Classifier, x: Tensor, noise: Noise) -> Classifier | None:
    inner = model.model if isinstance(model, views.Batched) else model
    if not isinstance(inner, nn.Module):
        return None
    try:
        double = views.Batched(deepcopy(inner).double(), getattr(model, "batch_size", None))
        return double if double(x[:1].double(), noise.take([0])).dtype == torch.float64 else None
    except (RuntimeError, TypeError, ValueError):  # a user's own part may support float32 only
        return None


def _timed(call: Callable[..., Any], *args: Any, **options: Any) -> tuple[Any, float]:
    began = time.perf_counter()
    out = call(*args, **options)
    float(out.loss.sum())  # waits for the device
    return out, time.perf_counter() - began


def _unit(x: Tensor) -> Tensor:
    return x / per_image(x.flatten(1).norm(dim=1))


def _relative_distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    length = np.maximum(np.linalg.norm(one, axis=2), np.linalg.norm(other, axis=2))
    return np.linalg.norm(one - other, axis=2) / np.maximum(length, 1e-30)
