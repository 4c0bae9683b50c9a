"""The exact denoiser of a finite set of images, which is the optimum of any training on them."""

from typing import cast

import torch
from torch import Tensor, nn

from unfool.data import fetch
from unfool.diffusion.denoiser import Denoiser, _exact
from unfool.diffusion.schedule import VP, Schedule
from unfool.noise import permutation
from unfool.protocols import Dataset
from unfool.ranges import Count, NotNegative, check_arguments


class Empirical(Denoiser):
    """E[x_0 | x_t] in closed form, when x_0 is uniformly distributed over the given images.

    It is the mean of the images, weighted by a softmax of -|x_t - alpha x_i|^2 / (2 sigma^2). Given
    a label, the mean is over the images of that class (the optimal diffusion classifier of Chen et
    al., 2024, whose release divides by 2 sigma). With a spread, x_0 is a Gaussian around one of the
    images, as in a kernel density estimate.

    Args:
        points: The images (N, C, H, W), in [-1, 1].
        labels: Their classes (N,), numbered from 0, each with at least one image.
        spread: The standard deviation around an image, in [-1, 1] units.
        schedule: The noise schedule; `VP()` if None.

    Raises:
        ValueError: A class has no image, or an option is out of range.
    """

    points: Tensor
    labels: Tensor

    def __init__(
        self,
        points: Tensor,
        labels: Tensor,
        spread: NotNegative = 0.0,
        schedule: Schedule | None = None,
    ):
        super().__init__()
        check_arguments(Empirical, locals())
        if len(points) != len(labels) or not len(points):
            raise ValueError(
                f"each image needs one label, and there are {len(points)} images and {len(labels)} "
                "labels"
            )
        classes = labels.unique().tolist()
        if classes != list(range(len(classes))):
            raise ValueError(
                f"every class needs at least one image, and there are only images of {classes}"
            )
        self.register_buffer("points", points)
        self.register_buffer("labels", labels)
        self.spread, self.schedule = spread, schedule or VP()
        _, *shape = points.shape
        self.shape, self.classes = (shape[0], shape[1], shape[2]), len(classes)

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """E[x_0 | x_t], in closed form."""
        alpha, variance = self._scales(x_t, t)
        log = self._log(x_t, alpha, variance)
        if label is not None:
            label = label[:, None]
            of_others = (label != self.labels) & (label != self.classes)  # the null class has all
            log = log.masked_fill(of_others, -torch.inf)
        flat = (log.softmax(1).to(self.points) @ self.points.flatten(1)).view_as(x_t).to(x_t)
        share = (alpha * self.spread**2 / variance).to(x_t)[..., None, None]
        return flat + share * (x_t - alpha.to(x_t)[..., None, None] * flat)

    def evidence(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The log-likelihoods (B, K) in float64, log p(x_t | c) up to a term that classes share.

        Args:
            x_t: Noisy images (B, C, H, W), in the denoiser's space.
            t: Times in [0, 1], shaped () or (B, 1, 1, 1); above 0 if there is no spread.
        """
        log = self._log(x_t, *self._scales(x_t, t))
        member = nn.functional.one_hot(self.labels, self.classes).T.bool()
        log_sums = log[:, None].masked_fill(~member, -torch.inf).logsumexp(2)
        return log_sums - member.sum(1).log()

    def _scales(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha, and the variance of x_t around a point, (1, 1) or (B, 1) in float64."""
        _, alpha, sigma, _ = (s.double().reshape(-1, 1) for s in self.schedule(_exact(t, x_t)))
        variance = (alpha * self.spread) ** 2 + sigma**2
        return alpha, variance.clamp(min=torch.finfo(torch.float64).tiny ** 0.5)

    def _log(self, x_t: Tensor, alpha: Tensor, variance: Tensor) -> Tensor:
        """-|x_t - alpha x_i|^2 / (2 variance), up to a term that all points share, (B, N)."""
        points = self.points.flatten(1).double()
        near = x_t.flatten(1).double() @ points.T - alpha * points.square().sum(1) / 2
        return cast(Tensor, alpha * near / variance)


def empirical(
    data: Dataset,
    images: Count | None = None,
    spread: NotNegative = 0.0,
    schedule: Schedule | None = None,
    seed: int = 0,
) -> Empirical:
    """The exact class-conditional denoiser of a data set's images.

    Args:
        data: Images with labels.
        images: The number of images to use, chosen by `seed`; None for all.
        spread: The standard deviation around an image, in units of [0, 1] pixels; 0 is the
            empirical distribution itself.
        schedule: The noise schedule; `VP()` if None.
        seed: The seed of that choice.

    Raises:
        ValueError: There are fewer images than `images`, or a class has none.
    """
    check_arguments(empirical, locals())
    if images is not None and images > len(data):
        raise ValueError(f"images must be from 1 to {len(data)}, not {images}")
    x, y = fetch(data, sorted(permutation(len(data), seed, "points")[:images]))
    return Empirical(2 * x - 1, y, 2 * spread, schedule)
