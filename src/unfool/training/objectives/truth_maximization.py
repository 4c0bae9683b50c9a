"""Truth maximization (TMDC): fine-tuning a diffusion classifier's denoiser on adversarial images.

The loss is the error of the network's prediction for adversarial images under their true labels, so
that the true labels explain them better; other classes do not enter the loss. The images are computed
once, before training (see `adversarial_images`).
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from unfool.argument_checks import images_of_any_range
from unfool.attacks.views import without_elimination
from unfool.defenses.purified_classifier import predict
from unfool.diffusion.denoiser import NetworkDenoiser
from unfool.noise import Noise
from unfool.protocols import Classifier
from unfool.ranges import Count, NotNegative, ShareAboveZero, checked_dataclass
from unfool.threat import Threat, per_image
from unfool.training.objectives.denoising import Denoising, Times, denoising_loss, time_and_label

Released = Literal["range", "noise", "unattacked"]


@checked_dataclass
class TruthMaximization:
    """The denoiser's error on adversarial images with their true label (TMDC, equation 8).

    Call it with the adversarial images that `attacked` returns. The equation is for a network that
    predicts noise. Any other network is trained on its own target, which weights the squared error
    of the noise by 1 / alpha^2 (`"velocity"`), 1 + 4 s^2 (`"edm"`) or s^2 (`"image"`), with
    s = sigma / alpha.

    Attributes:
        source: The classifier that is attacked.
        attack: The attack on the source.
        norm: `"linf"` or `"l2"`.
        eps: The budget, in units of [0, 1] images.
        images: The number of images of the data set that are attacked and trained on, chosen by
            `seed`; None for all.
        seed: Seed of the attack and of the choice of images.
        released: Deviations of the released code to reproduce. `"range"`: the attack runs on 2x - 1
            as if that were in [0, 1], so values below mid-gray become mid-gray. `"noise"`: the
            noised image lacks its factor alpha, as in a variance-exploding process. `"unattacked"`:
            an image stays clean if the source misclassifies it before the attack, or classifies it
            correctly after the attack.
        t_min, t_max, times: See `Denoising`.
    """

    source: Any
    attack: Any
    norm: Literal["linf", "l2"] = "linf"
    eps: NotNegative = 8 / 255
    images: Count | None = None
    seed: int = 0
    released: Sequence[Released] = ()
    t_min: ShareAboveZero = 1e-3
    t_max: ShareAboveZero = 1.0
    times: Times = "uniform"

    def __post_init__(self) -> None:
        Denoising(self.t_min, self.t_max, 0.0, self.times)
        Threat(self.norm, self.eps)
        for name in self.released:
            if name not in get_args(Released):
                raise ValueError(f"released may list {', '.join(get_args(Released))}, not {name!r}")

    def __call__(self, model: NetworkDenoiser, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """The loss of each image (B,).

        Raises:
            ValueError: The denoiser is not conditional on classes.
        """
        if not model.classes:
            raise ValueError(
                "truth maximization needs a class-conditional denoiser: train one with the option "
                "`classes`"
            )
        plain = Denoising(self.t_min, self.t_max, 0.0, self.times)
        t, label = time_and_label(plain, model, x, y, noise)
        z = model.encode(x)
        eps = noise.child("noise").normal(z)
        if "noise" not in self.released:
            return denoising_loss(model, z, t, label, eps)
        _, alpha, sigma, _ = model.schedule(t)
        out = model.predict(z + sigma / alpha * eps, t, label)
        return (out.to(z) - model.target(z, eps, t)).square().flatten(1).mean(1)

    def attacked(self, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """Attack `x`, and return adversarial images of the same shape in [0, 1].

        Args:
            x: Images (B, C, H, W) in [0, 1].
            y: Their labels (B,).
            noise: The randomness of the attack.

        Raises:
            RuntimeError: The attack exceeded the threat.
        """
        model, threat, start = self.attacked_model(), Threat(self.norm, self.eps), x
        allowed_range: AbstractContextManager[None] = nullcontext()
        if "range" in self.released:
            model, start = _of_model_space(model), 2 * x - 1
            allowed_range = images_of_any_range()  # allows the mistake that is reproduced here
        with allowed_range:
            x_adv = self.attack(model, start, y, threat, noise.child("attack"))
        if "range" in self.released:
            x_adv = x_adv.clamp(0, 1)
        elif getattr(self.attack, "bounded", True) and not bool(threat.allows(x, x_adv).all()):
            raise RuntimeError(
                "the attack exceeded the threat, so its images are not used for training: let it "
                "end with threat.project(x, x_adv)"
            )
        if "unattacked" in self.released:
            stream = noise.child("unattacked")
            with torch.no_grad():
                fooled = (predict(model, start, stream) == y) & (predict(model, x_adv, stream) != y)
            x_adv = torch.where(per_image(fooled), x_adv, start)
        return (x_adv + 1) / 2 if "range" in self.released else x_adv

    def attacked_model(self) -> Classifier:
        """The source as the attack sees it: a diffusion classifier does not eliminate classes."""
        source: Any = self.source
        if isinstance(source, nn.Module):
            source.eval().requires_grad_(False)
        return without_elimination(source)


def _of_model_space(model: Classifier) -> Classifier:
    """Wrap a classifier so that it takes images in [-1, 1]."""
    return lambda z, noise: model((z + 1) / 2, noise)
