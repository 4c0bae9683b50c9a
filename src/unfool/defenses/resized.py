"""A purifier that resizes images to the size of its denoiser, and back."""

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional as F

from unfool.argument_checks import check_images
from unfool.defenses.purified_classifier import image_shape
from unfool.noise import Noise
from unfool.protocols import Purifier
from unfool.ranges import Count, check_arguments
from unfool.runtime.text import html_repr, short_repr


class Resized(nn.Module):
    """A purifier that resizes images, purifies them, and resizes back (bilinear).

    DiffPure's release does so on ImageNet: 224, 256, 224 pixels. The gradient goes through
    both resizings.

    Args:
        purifier: Any purifier.
        size: Height and width in pixels to which images are resized; None takes the size of the
            purifier's denoiser.

    Raises:
        ValueError: The denoiser takes another size, or takes any size and `size` is None.
    """

    __repr__, _repr_html_ = short_repr, html_repr

    def __init__(self, purifier: Purifier, *, size: Count | None = None):
        super().__init__()
        check_arguments(Resized, locals())
        shape = image_shape(purifier)
        if size is None:
            if shape is None:
                raise ValueError("set `size`, for the denoiser has no image size of its own")
            self.size = shape[1:]
        else:
            self.size = (size, size)
        if shape is not None and shape[1:] != self.size:
            size_text = " x ".join(map(str, shape[1:]))
            raise ValueError(
                f"the denoiser takes images of {size_text}: leave `size` out, or set it to that"
            )
        self.purifier = purifier
        if hasattr(purifier, "walk"):
            self.walk = self._walk

    def forward(self, x: Tensor, noise: Noise) -> Tensor:
        """Purified images, shaped like `x` (B, C, H, W) in [0, 1]."""
        check_images(x)
        return _resize(x.shape[2:], self.purifier(_resize(self.size, x), noise))

    def adjoint(self) -> Purifier:
        """This purifier with the adjoint gradient of the one inside.

        Raises:
            ValueError: The purifier inside has no adjoint gradient.
        """
        if not hasattr(self.purifier, "adjoint"):
            raise ValueError("the purifier inside has no adjoint gradient: use the view `exact`")
        return self._around(self.purifier.adjoint())  # pyright: ignore

    def with_fewer_steps(self, steps: int | None = None, matched: bool = True) -> Purifier:
        """This purifier with the one inside in fewer steps.

        Raises:
            ValueError: The purifier inside does not support fewer steps, or has fewer than `steps`.
        """
        if not hasattr(self.purifier, "with_fewer_steps"):
            raise ValueError(
                "the purifier inside does not support fewer steps: use the view `exact`"
            )
        return self._around(self.purifier.with_fewer_steps(steps, matched))  # pyright: ignore

    def _around(self, purifier: Purifier) -> "Resized":
        """The same resizing around another purifier."""
        resized = Resized(purifier, size=self.size[0])
        resized.size = self.size  # height and width may differ
        return resized

    def _walk(self, x: Tensor, noise: Noise) -> Iterator[tuple[float, Tensor]]:
        """Yield the path of the purifier inside, at the size of `x`."""
        for t, state in self.purifier.walk(_resize(self.size, x), noise):  # pyright: ignore
            yield t, _resize(x.shape[2:], state)


def _resize(size: tuple[int, ...], x: Tensor) -> Tensor:
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
