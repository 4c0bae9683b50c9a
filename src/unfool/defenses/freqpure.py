"""FreqPure (Pei et al., 2025): the low frequencies of each estimate come from the image."""

import torch
from torch import Tensor

from unfool.diffusion.schedule import Scales
from unfool.ranges import NotNegative, checked_dataclass


@checked_dataclass
class FreqPure:
    """A correction that gives low frequencies of x_hat the image's amplitudes and nearby phases.

    In each channel, for pixels in [0, 1], the amplitude of x_hat within `amplitude_radius` becomes
    that of the image, and its phase within `phase_radius` moves to the nearest one that is at most
    `delta` away from the image's, around the circle. Other frequencies do not change
    (arXiv 2505.01267, amplitude spectrum exchange and phase spectrum projection). The gradient is
    exact, with respect to x_hat and to the image.

    The released code differs (`released`). It rounds both images down to 256 levels through
    integers, which have no gradient, so that its attacks see only how x_t enters the step besides
    x_hat. It replaces the phases of x_hat with the image's and clips them afterwards, without
    effect, so that `delta` does nothing. And it takes magnitudes of the result and clips them to
    [0, 1].

    Attributes:
        amplitude_radius: Frequencies up to this radius get the image's amplitudes, in cycles per
            image; 3 is the release's. None changes no amplitude.
        phase_radius: Frequencies up to this radius get phases close to the image's, in cycles per
            image; 3 is the release's. None changes no phase.
        delta: How far a phase may be from the image's, in radians; 0.3 is the release's. pi or more
            leaves all phases.
        released: Whether to do what the released code does (see above). Such a defense masks its
            gradient.

    Raises:
        ValueError: An option is out of range.
    """

    amplitude_radius: NotNegative | None = 3.0
    phase_radius: NotNegative | None = 3.0
    delta: NotNegative = 0.3
    released: bool = False

    def __call__(self, x_hat: Tensor, x: Tensor, now: Scales) -> Tensor:
        """The corrected x_hat, shaped like `x_hat` (B, C, H, W) in [-1, 1]; nothing is clipped."""
        if self.released:
            return self._as_released(x_hat, x)
        dtype = torch.promote_types(x_hat.dtype, torch.float32)  # FFTs need at least float32
        estimate, image = (torch.fft.fft2((z.to(dtype) + 1) / 2) for z in (x_hat, x))
        radius = _radius(x_hat)
        amplitude, phase, image_phase = estimate.abs(), _direction(estimate), _direction(image)
        if self.amplitude_radius is not None:
            amplitude = torch.where(radius <= self.amplitude_radius, image.abs(), amplitude)
        if self.phase_radius is not None:
            phase_change = _angle(phase * image_phase.conj()).clamp(-self.delta, self.delta)
            clipped_phase = image_phase * torch.polar(torch.ones_like(phase_change), phase_change)
            phase = torch.where(radius <= self.phase_radius, clipped_phase, phase)
        return (2 * torch.fft.ifft2(amplitude * phase).real - 1).to(x_hat)

    def _as_released(self, x_hat: Tensor, x: Tensor) -> Tensor:
        levels = (((z.detach().float() + 1) / 2 * 255).clamp(0, 255).floor() for z in (x_hat, x))
        estimate, image = (torch.fft.fft2(level) for level in levels)
        radius, amplitude, phase = _radius(x_hat), estimate.abs(), estimate.angle()
        if self.amplitude_radius is not None:
            amplitude = torch.where(radius <= self.amplitude_radius, image.abs(), amplitude)
        if self.phase_radius is not None:
            phase = torch.where(radius <= self.phase_radius, image.angle(), phase)
        pixels = torch.fft.ifft2(torch.polar(amplitude, phase)).abs().clamp(0, 255)
        return (2 * pixels / 255 - 1).to(x_hat)


def _radius(like: Tensor) -> Tensor:
    """The radius of each frequency (H, W), in cycles per image."""
    down, across = (torch.fft.fftfreq(n, 1 / n, device=like.device) for n in like.shape[-2:])
    return torch.hypot(down[:, None], across)


def _direction(spectrum: Tensor) -> Tensor:
    """Unit complex numbers with the phases of a spectrum; 1, without gradient, where it is 0."""
    size = spectrum.abs()
    is_nonzero = size > 0
    return torch.where(is_nonzero, spectrum, 1) / torch.where(is_nonzero, size, 1)


def _angle(rotation: Tensor) -> Tensor:
    """The angles of unit complex numbers, in (-pi, pi]."""
    return torch.atan2(rotation.imag, rotation.real)
