"""A data set as a denoiser: the exact one of its images."""

from unfool.data import fetch
from unfool.diffusion.schedule import Schedule
from unfool.noise import permutation
from unfool.protocols import Dataset
from unfool.ranges import Count, NotNegative, check_arguments
from unfool.toy.empirical import Empirical


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
        images: How many of them, chosen by `seed`; None for all.
        spread: The standard deviation of what may lie around an image, in units of [0, 1] pixels; 0 is
            the empirical distribution itself.
        schedule: The noise schedule; `VP()` if None.
        seed: Of the choice.

    Raises:
        ValueError: There are not so many images, or a class has none.
    """
    check_arguments(empirical, locals())
    if images is not None and images > len(data):
        raise ValueError(f"images must be from 1 to {len(data)}, not {images}")
    x, y = fetch(data, sorted(permutation(len(data), seed, "points")[:images]))
    return Empirical(2 * x - 1, y, 2 * spread, schedule)
