"""How far a purifier contracts a perturbation with the same noise (Yuezhang and Wei, 2025).

The compression rate is |f(x + d, z) - f(x, z)| / |d|. Below 1, the purifier f moves an image and its
perturbed copy closer together under the noise z; above 1, it drives them apart. No classifier or attack
is needed. A random direction d gives the typical rate. An adversarial direction gives the largest rate
that power iteration finds; for a linear purifier this is its largest singular value.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unfool.attacks.views import Batched
from unfool.noise import Noise
from unfool.protocols import Defended, Purifier
from unfool.ranges import Count, check_arguments
from unfool.results.report_json import share_entry
from unfool.runtime.progress import progress
from unfool.statistics import bounded_mean_interval, mean_rate_interval
from unfool.threat import Threat, per_image

RANDOM, ADVERSARIAL = "random", "adversarial"
KINDS = (RANDOM, ADVERSARIAL)
SIZES = (0.25, 1.0, 4.0)


@dataclass(frozen=True)
class Compression:
    """The compression rates of B images, for D draws of the defense's noise and S perturbation sizes.

    Attributes:
        sizes: The perturbations' l2 lengths, divided by that of the whole budget, (S,).
        lengths: Their l2 lengths in units of [0, 1] pixels, (S,).
        rates: Kind of direction (`"random"` or `"adversarial"`) to rates (B, D, S).
    """

    sizes: tuple[float, ...]
    lengths: tuple[float, ...]
    rates: dict[str, np.ndarray]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all values as arrays; `from_arrays` reverses this."""
        arrays = {"sizes": np.array(self.sizes), "lengths": np.array(self.lengths)}
        return arrays | {f"rates/{kind}": values for kind, values in self.rates.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Compression":
        """Rebuild the object from what `arrays` returned.

        Raises:
            KeyError: An array is missing.
        """
        sizes, lengths = (tuple(map(float, arrays[key])) for key in ("sizes", "lengths"))
        return cls(sizes, lengths, {kind: arrays[f"rates/{kind}"] for kind in KINDS})

    @property
    def budget_index(self) -> int:
        """The index of the size whose ratio to the whole budget is nearest to 1."""
        return int(np.argmin(np.abs(np.log(self.sizes))))

    @property
    def without_gradient(self) -> bool:
        """Whether power iteration never improved on the random direction, as without a gradient."""
        return bool(np.array_equal(self.rates[RANDOM], self.rates[ADVERSARIAL]))

    def summary(self) -> dict[str, Any]:
        """Return means over images with 95 % intervals, and the share of draws that contract."""
        rows = []
        for index, (size, length) in enumerate(zip(self.sizes, self.lengths, strict=True)):
            row: dict[str, Any] = {"size": size, "length": length}
            for kind, rates in self.rates.items():
                rates_at_size = rates[:, :, index]
                share = mean_rate_interval(
                    (rates_at_size < 1).mean(1).tolist(), rates_at_size.shape[1]
                )
                rate = bounded_mean_interval(rates_at_size.mean(1), 0)
                row[kind] = {"rate": rate, "contracts": share_entry(share)}
            rows.append(row)
        count, draws, _ = self.rates[RANDOM].shape
        return {"images": count, "draws": draws, "budget_index": self.budget_index, "sizes": rows}


def compression(
    model: Batched,
    x: Tensor,
    threat: Threat,
    noise: Noise,
    *,
    draws: Count = 4,
    sizes: Sequence[float] = SIZES,
    steps: Count = 5,
    quiet: bool = False,
) -> Compression:
    """Measure the compression rates of a model's purifier.

    A size of 1 is the l2 length of the whole budget: eps in l2, and eps sqrt(CHW), the distance to a
    corner of the cube, in linf. Perturbed images are clipped to [0, 1], and the rate divides by the
    length of the perturbation after clipping.

    Args:
        model: A classifier behind a purifier.
        x: Images (B, C, H, W) in [0, 1].
        threat: What an attacker may change; its budget is the unit of `sizes`.
        noise: Source of random draws.
        draws: Draws of the defense's noise per image.
        sizes: Perturbation sizes, in units of the budget.
        steps: Steps of power iteration from the random direction; each costs one gradient.
        quiet: Show no progress.

    Raises:
        ValueError: A number is out of range, the norm is neither linf nor l2, the budget is 0, or the
            model has no purifier.
    """
    check_arguments(compression, locals())
    if not sizes or not all(0 < size < np.inf for size in sizes):
        raise ValueError(f"sizes must be numbers above 0, not {list(sizes)}")
    defended = model.model
    if not isinstance(defended, Defended):
        raise ValueError("the model has no purifier to measure: name a spec with one")
    unit = budget_length(threat, x[0].numel())
    purify = Batched(defended.purifier, model.batch_size)
    lengths = tuple(size * unit for size in sizes)
    rates: dict[str, list[list[Tensor]]] = {kind: [] for kind in KINDS}
    with progress("measuring compression", draws * len(sizes), 0, quiet) as show:
        for draw in range(draws):
            stream = noise.child("held", draw).child("purify")
            with torch.no_grad():
                purified = purify(x, stream)
            direction = _unit(noise.child("direction", draw).normal(x))
            rates_by_length = []
            for index, length in enumerate(lengths):
                rates_by_length.append(
                    _rates(purify, x, purified, stream, direction, length, steps)
                )
                show(draw * len(lengths) + index + 1, "")
            for kind, pair in zip(KINDS, zip(*rates_by_length, strict=True), strict=True):
                rates[kind].append(list(pair))
    stacked = {
        kind: torch.stack([torch.stack(row, 1) for row in rows], 1).double().cpu().numpy()
        for kind, rows in rates.items()
    }
    return Compression(tuple(map(float, sizes)), lengths, stacked)


def budget_length(threat: Threat, values: int) -> float:
    """Return the largest l2 length of a change to `values` numbers within the threat, unclipped.

    Raises:
        ValueError: The norm is neither linf nor l2, or the budget is 0.
    """
    if threat.norm not in ("linf", "l2"):
        raise ValueError(
            f"sizes are in units of the budget in linf or l2, and the threat is in {threat.norm}: "
            "add --set threat.norm=l2 --set threat.eps=0.5"
        )
    if threat.eps == 0:
        raise ValueError(
            "sizes are multiples of the threat's budget, and threat.eps is 0: set threat.eps above "
            "0"
        )
    return threat.eps * values**0.5 if threat.norm == "linf" else threat.eps


def _rates(
    purify: Purifier,
    x: Tensor,
    purified: Tensor,
    noise: Noise,
    start_direction: Tensor,
    length: float,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """Return the rate along `start_direction`, and the largest that power iteration finds, (B,) each."""
    direction, tiny = start_direction, torch.finfo(x.dtype).tiny
    first = highest = torch.zeros_like(x[:, 0, 0, 0])
    for step in range(steps + 1):
        is_last = step == steps
        with torch.set_grad_enabled(not is_last):
            perturbed = (x + length * direction).clamp(0, 1).requires_grad_(not is_last)
            gap = purify(perturbed, noise) - purified
            size = (perturbed.detach() - x).flatten(1).norm(dim=1).clamp(min=tiny)
            rate = gap.detach().flatten(1).norm(dim=1) / size
            if step == 0:
                first = rate
            highest = torch.maximum(highest, rate)
            if is_last or not gap.requires_grad:  # without a gradient, stop
                break
            (gradient,) = torch.autograd.grad(
                gap.square().sum() / 2, perturbed, allow_unused=True, materialize_grads=True
            )
        is_zero = gradient.flatten(1).abs().amax(1) == 0
        direction = torch.where(per_image(is_zero), direction, _unit(gradient))
    return first, highest


def _unit(direction: Tensor) -> Tensor:
    """Scale each direction of a batch (B, C, H, W) to l2 length 1; a zero direction stays zero."""
    peak = direction.flatten(1).abs().amax(1).clamp(min=torch.finfo(direction.dtype).tiny)
    scaled = direction / per_image(peak)  # avoids underflow in the squares of the norm
    size = scaled.flatten(1).norm(dim=1).clamp(min=torch.finfo(direction.dtype).tiny)
    return scaled / per_image(size)
