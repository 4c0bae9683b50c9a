"""Attacks within a perceptual distance: closed forms, optimality conditions, and known filters."""

import pytest
import torch
from analytic import NOISE, SIZE, Blurred, Linear, X, Y, progress
from torch.nn import functional as F

from unfool.attacks.low_frequency import LowFrequency, filtered
from unfool.attacks.perceptual import PerceptualPGD, within
from unfool.distances import INPUT
from unfool.threat import Threat, per_image

NONE = Threat("linf", 0.0)  # the threat bounds none of these attacks
LARGE = 0.3 + 0.4 * NOISE.child("large").uniform(torch.zeros(SIZE, 3, 12, 12, dtype=torch.float64))


@pytest.mark.parametrize(("model", "eot"), [(Linear(), 1), (Blurred(), 8)])
def test_ppgd_with_mse_finds_the_worst_image_of_an_l2_ball(model, eot):
    found = PerceptualPGD(30, eot, "mse", bound=0.3**2 / X[0].numel())(model, X, Y, NONE, NOISE)
    threat = Threat("l2", 0.3)
    assert threat.allows(X, found).all()
    assert (progress(found, threat) > 0.98).all()


def plane(x, noise):
    """A linear model of larger images, with a fixed pseudo-random plane."""
    way = torch.arange(x[0].numel(), dtype=x.dtype).mul(7.3).sin().view(x.shape[1:])
    lead = (x * way).flatten(1).sum(1)
    return torch.stack([lead, -lead], 1)


def test_ppgd_with_ssim_moves_along_the_bound_beyond_a_gradient_step():
    y, distance = torch.zeros(SIZE, dtype=torch.long), INPUT["ssim"]

    def looked(at):
        """The lead, the cosine of its descent and the distance's gradient, and the lead's gradient."""
        at = at.clone().requires_grad_()
        (out,) = torch.autograd.grad(distance(LARGE, at).sum(), at)
        lead = plane(at, NOISE)[:, 0]
        (up,) = torch.autograd.grad(lead.sum(), at)
        return lead.detach(), F.cosine_similarity(out.flatten(1), -up.flatten(1)), up

    start, _, up = looked(LARGE)
    straight, before, _ = looked(within(distance, LARGE, LARGE - up, 0.05))
    found = PerceptualPGD(100, bound=0.05)(plane, LARGE, y, NONE, NOISE)
    far = distance(LARGE, found)
    assert ((far > 0.045) & (far <= 0.05 + 1e-9)).all()
    lead, after, _ = looked(found)
    assert (start - lead > 3 * (start - straight)).all()
    assert (after > before + 0.2).all()  # at 1, no step along the bound helps


def test_image_without_a_gradient_is_returned_unchanged():
    def flat(x, noise):
        return torch.stack([1 + 0 * x.flatten(1).sum(1), 0 * x.flatten(1).sum(1)], 1)

    for attack in (PerceptualPGD(3), LowFrequency(3)):
        assert torch.allclose(attack(flat, LARGE, Y, NONE, NOISE), LARGE, atol=1e-6)


def test_filters_by_hand():
    x, uniform = LARGE[:1, :1, :6, :6], torch.zeros(1, 1, 9, 6, 6)
    box = F.avg_pool2d(F.pad(x, [1] * 4, mode="replicate"), 3, 1)
    assert torch.allclose(filtered(x, uniform.to(x), 1e6), box)
    twice = F.avg_pool2d(F.pad(box, [1] * 4, mode="replicate"), 3, 1)
    assert torch.allclose(filtered(x, uniform.to(x).repeat(1, 2, 1, 1, 1), 1e6), twice)
    edge = torch.cat([torch.zeros(1, 1, 6, 3), torch.ones(1, 1, 6, 3)], 3)
    assert torch.allclose(filtered(edge, uniform, 0.05), edge)  # different colors are not mixed
    still = uniform.clone()
    still[:, :, 4] = 50
    assert torch.allclose(filtered(x, still.to(x), 1e6), x)


def test_low_frequency_attack_smooths_away_fine_detail():
    """The lead depends only on the strength of a checkerboard, which a filter can remove."""
    board = (torch.arange(12)[:, None] + torch.arange(12)) % 2 * 2.0 - 1
    x = (0.5 + 0.05 * board).expand(2, 3, 12, 12).contiguous()

    def model(x, noise):
        lead = 100 * ((x - 0.5) * board).flatten(1).mean(1) - 1
        return torch.stack([lead, -lead], 1)

    y = torch.zeros(2, dtype=torch.long)
    attack = LowFrequency(60, distance="mse", bound=1.0)
    found = attack(model, x, y, NONE, NOISE.take([0, 1]))
    assert (model(found, NOISE).argmax(1) == 1).all()
    assert float(found.min()) >= float(x.min()) - 1e-6  # no values outside the image's range
    assert float(found.max()) <= float(x.max()) + 1e-6
    little = LowFrequency(60, distance="mse", bound=1e-4)
    near = little(model, x, y, NONE, NOISE.take([0, 1]))
    assert (INPUT["mse"](x, near) <= 1e-4 + 1e-9).all()
    assert (model(near, NOISE)[:, 0] < model(x, NOISE)[:, 0] - 0.5).all()


def test_images_of_one_color_cannot_be_changed():
    gray = torch.full_like(LARGE, 0.4) + per_image(Y.to(LARGE)) * 0.1
    found = LowFrequency(5)(plane, gray, torch.zeros_like(Y), NONE, NOISE)
    assert torch.allclose(found, gray)


def test_even_kernel_width_is_refused():
    with pytest.raises(ValueError, match=r"width must be odd.*not 4"):
        LowFrequency(width=4)
