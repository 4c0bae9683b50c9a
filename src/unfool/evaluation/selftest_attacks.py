"""Self-test checks of sparse, perceptual, minimum-norm, and unbounded attacks, and `per-step`."""

from collections.abc import Iterator

import torch
from torch import Tensor

from unfool.attacks.apgd import APGD
from unfool.attacks.carlini_wagner import CarliniWagner
from unfool.attacks.deepfool import DeepFool
from unfool.attacks.low_frequency import LowFrequency
from unfool.attacks.perceptual import PerceptualPGD
from unfool.attacks.pgd import PGD
from unfool.attacks.views import per_step
from unfool.data import fetch
from unfool.defenses.diffpure import DiffPure
from unfool.defenses.purified_classifier import Purified
from unfool.evaluation.selftest_check import Check, reaches
from unfool.noise import Noise
from unfool.protocols import Attack
from unfool.threat import Threat
from unfool.toy import linear_models
from unfool.toy.blobs import Blobs, bayes, mixture

IMAGES = 48
NOISY, PLANES = "plane behind noise", "five planes"
SPARSE: dict[str, Attack] = {"PGD": PGD(20, 10, step_size=1), "APGD": APGD(20, 10)}


def sparse(device: str = "cpu", attacks: dict[str, Attack] | None = None) -> Iterator[Check]:
    """Check the accuracy per draw under attacks in l1 against the lowest possible."""
    threat, (x, y) = Threat("l1", 0.8), _points(device)
    model = linear_models.noisy_plane().to(device)
    best = float(linear_models.accuracy(linear_models.worst_case(x, y, threat), y).mean())
    for name, attack in (attacks or SPARSE).items():
        x_adv = attack(model, x, y, threat, Noise.of(0, range(len(x))))
        accuracy = float(linear_models.accuracy(x_adv, y).mean())
        inside = bool(threat.allows(x, x_adv).all())
        yield reaches(NOISY, f"{name}, l1", best, accuracy if inside else float("nan"))


def perceptual(device: str = "cpu", attack: Attack | None = None) -> Iterator[Check]:
    """Check a perceptual attack on the mean squared distance: it equals l2, whose best is known."""
    threat, (x, y) = Threat("l2", 0.2), _points(device)
    model = linear_models.noisy_plane().to(device)
    best = float(linear_models.accuracy(linear_models.worst_case(x, y, threat), y).mean())
    attack = attack or PerceptualPGD(20, 10, "mse", bound=threat.eps**2 / x[0].numel())
    x_adv = attack(model, x, y, threat, Noise.of(0, range(len(x))))
    accuracy = float(linear_models.accuracy(x_adv, y).mean())
    inside = bool(threat.allows(x, x_adv).all())
    yield reaches(NOISY, "perceptual PGD, mse", best, accuracy if inside else float("nan"))


def boundaries(
    device: str = "cpu", deepfool: DeepFool | None = None, wagner: CarliniWagner | None = None
) -> Iterator[Check]:
    """Check the distance to the nearest adversarial image, at worst over images."""
    model, noise = linear_models.MultiPlaneClassifier().to(device), Noise.of(0, range(16))
    x = 0.35 + 0.3 * noise.child("x").uniform(torch.zeros(16, *linear_models.SHAPE, device=device))
    y = model(x, noise).argmax(1)
    deepfool = deepfool or DeepFool(20, targets=4)
    wagner = wagner or CarliniWagner(60, searches=7, learning_rate=0.005, targets=4)
    cases = [("DeepFool", "linf", deepfool), ("DeepFool", "l2", deepfool)]
    for name, norm, attack in [*cases, ("Carlini-Wagner", "l2", wagner)]:
        threat = Threat(norm, 0.1)
        x_adv = attack.nearest(model, x, y, threat, noise)
        ratio = threat.size(x_adv - x) / model.distances(x, norm)
        worst = float(ratio[(ratio - 1).abs().argmax()])
        what = f"{name}, {norm}: distance, at worst"
        yield Check(PLANES, what, "times", 1, worst, 1 - 1e-4, 1.05)


def low_frequency(device: str = "cpu", attack: Attack | None = None) -> Iterator[Check]:
    """Check an attack by filters: a faint checkerboard, which they remove, determines the class.

    The norm's budget is 0, which allows no other change.
    """
    side = torch.arange(12, device=device)
    board = (side[:, None] + side) % 2 * 2.0 - 1
    x = (0.5 + 0.05 * board).expand(4, 3, 12, 12).contiguous()
    y = torch.zeros(4, dtype=torch.long, device=device)

    def model(x: Tensor, noise: Noise) -> Tensor:
        lead = 100 * ((x - 0.5) * board).flatten(1).mean(1) - 1
        return torch.stack([lead, -lead], 1)

    noise = Noise.of(0, range(4))
    attack = attack or LowFrequency(60, distance="mse", bound=1.0)
    x_adv = attack(model, x, y, Threat("linf", 0.0), noise)
    right = int((model(x_adv, noise).argmax(1) == y).sum())
    yield Check("checkerboard", f"lf: right of {len(x)}", "images", 0, right, 0, 0)


def per_step_gradient(device: str = "cpu", weight: float = 30.0) -> Iterator[Check]:
    """Check the gradient of `per-step` against plain autograd through all states at once."""
    noise, blobs = Noise.of(0, range(4)), Blobs(4)
    x = torch.stack([blobs[i][0] for i in range(4)]).double().to(device).requires_grad_()
    classifier, purifier = bayes().double().to(device), DiffPure(mixture(), t=0.2, steps=5)
    model = per_step(Purified(classifier, purifier.to(device)), weight)
    (gradient,) = torch.autograd.grad(model(x, noise)[:, 0].sum(), x)

    purifier_noise, denoiser = noise.child("purify"), purifier.denoiser
    z, (_, *states) = denoiser.encode(x), [image for _, image in purifier.walk(x, purifier_noise)]
    eps, distance = purifier_noise.child("forward").normal(z), x.new_zeros(())
    for image, t in zip(states, purifier.times[1:], strict=True):
        at = denoiser.schedule(t)
        gap = denoiser.encode(image) - (at.alpha * z + at.sigma * eps)
        distance = distance + gap.square().sum() / (x[0].numel() * len(states))
    logits = classifier(states[-1], noise.child("classify"))
    (autograd_gradient,) = torch.autograd.grad(logits[:, 0].sum() + weight * distance, x)
    error = float((gradient - autograd_gradient).norm() / autograd_gradient.norm())
    what = "the gradient of per-step is plain autograd's"
    yield Check("mixture behind diffpure", what, "yes", 1, float(error < 1e-6), 1, 1)


def _points(device: str) -> tuple[Tensor, Tensor]:
    x, y = fetch(linear_models.Points(IMAGES), range(IMAGES))
    return x.to(device), y.to(device)
