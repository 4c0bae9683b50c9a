"""Checks, for the doctor, whether a denoiser denoises."""

import math
from collections.abc import Sequence

from torch import Tensor

from unfool.cli.doctor_finding import Finding
from unfool.diffusion.denoiser import Denoiser
from unfool.diffusion.denoising_error import (
    TIMES,
    DenoisingError,
    better_setting,
    clean_images,
    denoising_errors,
    ratios,
)

DOUBTFUL = 0.7  # above this share of the linear estimate's error, other settings are tried
_IMAGES = ((32, 32), (64, 8))  # (height, n): up to this height, n images are noised
_LARGE = 2  # the number for larger images


def check_denoiser(
    denoiser: Denoiser, x: Tensor, y: Tensor, classes: int, times: Sequence[float] = TIMES
) -> list[Finding]:
    """Test a denoiser on images, and compare it with the best pixelwise linear estimate.

    Args:
        denoiser: In evaluation mode.
        x: Images (B, C, H, W) in [0, 1], on its device. The first few are noised; all give
            the mean and variance of each pixel.
        y: Their labels (B,). A denoiser with as many classes is also tested with them.
        classes: Number of classes in the data.
        times: Times to test.
    """
    shape = denoiser.shape
    if shape is not None and not denoiser.resizes and tuple(x.shape[1:]) != tuple(shape):
        actual, expected = (" x ".join(map(str, size)) for size in (x.shape[1:], shape))
        what = f"its denoising was not tested: the images are {actual}, and it expects {expected}"
        return [Finding("note", what)]
    if len(x) < 2:
        return [Finding("note", "its denoising was not tested: it takes 2 images or more")]
    count = next((n for height, n in _IMAGES if x.shape[2] <= height), _LARGE)
    conditional = denoiser.classes == classes > 0
    cases: list[tuple[str, Tensor | None]] = []
    if not denoiser.classes or getattr(denoiser, "null", True):
        cases.append((" without labels" if denoiser.classes else "", None))
    if conditional:
        cases.append((" with labels", y))
    if not cases:
        what = f"its denoising was not tested: it needs labels of its {denoiser.classes} classes"
        return [Finding("note", what)]
    findings: list[Finding] = []
    for suffix, label in cases:
        clean = clean_images(denoiser, x, count, label)
        errors = denoising_errors(denoiser, clean, times)
        worst = max(ratios(errors), key=lambda r: math.inf if math.isnan(r) else r)
        text = f"x_hat{suffix}: {_listed(errors)}"
        if worst <= DOUBTFUL:
            findings.append(Finding("ok", text))
            continue
        wrong = not worst <= 1  # also true of NaN
        other = better_setting(denoiser, clean)
        if other is not None:
            setting, ratio = other
            text += f"; with {setting} it is {ratio:.2f} on average, so set that in the spec"
        elif wrong:
            text += (
                "; no other time, prediction, or schedule helps: check that these weights are "
                "trained (and averaged), and for such images"
            )
        findings.append(Finding("FAIL" if wrong or other is not None else "ok", text))
    return findings


def _listed(errors: Sequence[DenoisingError]) -> str:
    """Describe the errors at each time, relative to those of estimates without a network."""
    times = ", ".join(f"{error.t:g}" for error in errors)
    linear = ", ".join(f"{ratio:.2f}" for ratio in ratios(errors))
    nothing = ", ".join(f"{error.x_hat / error.nothing:.2f}" for error in errors)
    return (
        f"at t = {times} its error is {linear} of the best pixelwise linear estimate's (above 1 "
        f"something is wrong), and {nothing} of the error of the noisy image itself"
    )
