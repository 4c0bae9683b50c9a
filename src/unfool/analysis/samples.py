"""The distance between generated and real images, in features of the spec's classifier.

This is the Fréchet distance between two Gaussians fitted to features, as in FID (Heusel et al., 2017).
It is not FID: the features are the inputs of the last linear layer of the user's own classifier, not of
Inception. So values are comparable only for the same classifier, real images, and number of images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unfool.attacks.views import Batched
from unfool.diffusion.denoiser import Denoiser
from unfool.diffusion.reverse import Ancestral, reverse, strided
from unfool.diffusion.schedule import chain_length
from unfool.noise import Noise, permutation
from unfool.protocols import Classifier
from unfool.ranges import AtLeastTwo, check_arguments
from unfool.runtime.progress import progress
from unfool.statistics import bounded_mean_interval

REAL = "other real pictures"


@dataclass(frozen=True)
class Samples:
    """Generated images and their distances to real ones, over S sets.

    Attributes:
        distances: `REAL` (other real images) or model to the distance in each set (S,).
        images: Model to its images of the first set (N, C, H, W).
        size: Images on each side of a distance.
    """

    distances: dict[str, list[float]]
    images: dict[str, Tensor]
    size: int

    def summary(self) -> dict[str, Any]:
        """Return means over sets with 95 % intervals."""
        rows = {name: bounded_mean_interval(d, 0) for name, d in self.distances.items()}
        return {"size": self.size, "sets": len(self.distances[REAL]), "frechet": rows}


def samples(
    denoisers: Mapping[str, Denoiser],
    classifier: Classifier,
    x: Tensor,
    y: Tensor,
    noise: Noise,
    *,
    steps: int = 50,
    sets: AtLeastTwo = 3,
    batch_size: int | None = None,
    quiet: bool = False,
) -> Samples:
    """Generate images with each denoiser from the same noise, and compare them with half of `x`.

    Each set splits the real images anew; the distance between the two halves is the floor.

    Args:
        denoisers: Name to denoiser; each must be trained up to t = 1.
        classifier: The classifier whose features are compared.
        x: Real images (2 N, C, H, W) in [0, 1]; if their number is odd, each set leaves one out.
        y: Their labels; a conditional denoiser gets those of the first half.
        noise: Source of random draws, except for the splits.
        steps: Steps of the chain (DDPM) from noise to an image.
        sets: Repetitions behind an interval, 2 or more.
        batch_size: Most images in one call.
        quiet: Show no progress.

    Raises:
        ValueError: A number is out of range, or torchmetrics is not installed.
    """
    size = len(x) // 2
    check_arguments(samples, locals())
    if size < 2:
        raise ValueError(f"half of the images must be 2 or more, not {size}")
    _metric(1)  # report a missing package before the work starts
    distances: dict[str, list[float]] = {name: [] for name in (REAL, *denoisers)}
    first_images: dict[str, Tensor] = {}
    real = features(classifier, x, noise, batch_size)
    with progress("generating", sets * len(denoisers), 0, quiet) as show:
        done = 0
        for set_index in range(sets):
            order = permutation(len(x), set_index, "samples")
            half, other_half = order[:size], order[size : 2 * size]
            stream = noise.take(range(size)).child("samples", set_index)
            distances[REAL].append(frechet(real[half], real[other_half]))
            for name, denoiser in denoisers.items():
                generated = _generated(denoiser, x[half], y[half], stream, steps, batch_size)
                first_images.setdefault(name, generated)
                distances[name].append(
                    frechet(real[half], features(classifier, generated, stream, batch_size))
                )
                done += 1
                show(done, name)
    return Samples(distances, first_images, size)


def frechet(one: Tensor, other: Tensor) -> float:
    """Compute |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) for two sets of features (N, F) and (M, F).

    Raises:
        ValueError: torchmetrics, which computes the distance, is not installed.
    """
    metric = _metric(one.shape[1])
    metric.update(one.cpu().double(), real=True)
    metric.update(other.cpu().double(), real=False)
    return float(metric.compute())


@torch.no_grad()
def features(
    classifier: Classifier, x: Tensor, noise: Noise, batch_size: int | None = None
) -> Tensor:
    """Return the inputs of a classifier's last linear layer (B, F), or its logits if it has none."""
    linear: Sequence[nn.Module] = (
        [part for part in classifier.modules() if isinstance(part, nn.Linear)]
        if isinstance(classifier, nn.Module)
        else []
    )
    collected: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        collected.append(inputs[0].detach().flatten(1))

    hooks = [linear[-1].register_forward_pre_hook(keep)] if linear else []
    try:
        logits = Batched(classifier, batch_size)(x, noise)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(collected) if collected else logits


@torch.no_grad()
def _generated(
    denoiser: Denoiser, x: Tensor, y: Tensor, noise: Noise, steps: int, batch_size: int | None
) -> Tensor:
    """Generate images (B, C, H, W) in [0, 1] from noise by the reverse chain."""
    times = strided(1, steps, chain_length(denoiser.schedule))

    def generate(x: Tensor, noise: Noise, y: Tensor) -> Tensor:
        start = noise.child("start").normal(denoiser.encode(x))
        back = noise.child("reverse")
        z = reverse(denoiser, start, times, back, step=Ancestral(), label=y)
        return denoiser.decode(z).clamp(0, 1)

    block_size = batch_size or len(x)
    blocks = (range(i, min(i + block_size, len(x))) for i in range(0, len(x), block_size))
    return torch.cat(
        [generate(x[b.start : b.stop], noise.take(b), y[b.start : b.stop]) for b in blocks]
    )


def _metric(size: int) -> Any:
    """Return torchmetrics' FID on precomputed features with `size` values each."""
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except (ImportError, RuntimeError) as error:  # a broken torchvision raises RuntimeError
        raise ValueError(
            "the distance of samples needs torchmetrics: pip install 'unfool[metrics]' "
            f"({str(error).splitlines()[0]})"
        ) from error
    extractor = nn.Identity()
    extractor.num_features = size  # pyright: ignore[reportArgumentType]
    return FrechetInceptionDistance(feature=extractor).set_dtype(torch.float64)
