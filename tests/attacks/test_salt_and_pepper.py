"""Salt-and-pepper noise: what it changes, and what it finds."""

import pytest
import torch

from unfool.attacks.pgd import PGD
from unfool.attacks.salt_and_pepper import SaltAndPepper
from unfool.noise import Noise
from unfool.threat import Threat

NOISE = Noise.of(0, range(4))
X = Noise.of(1, range(4)).uniform(torch.zeros(4, 3, 8, 8)) * 0.8 + 0.1
Y = torch.zeros(4, dtype=torch.long)


def counts(x, noise):
    """Logits that favor class 1 once 7 or more pixels are black or white in all channels."""
    extreme = ((x == 0) | (x == 1)).all(1).flatten(1).sum(1)
    return torch.stack([torch.full_like(extreme, 6.5, dtype=torch.float), extreme.float()], 1)


def test_pixels_turn_black_or_white_within_the_budget():
    threat = Threat("l0", 0.25)
    x_adv = SaltAndPepper()(counts, X, Y, threat, NOISE)
    changed = (x_adv != X).any(1)
    assert threat.allows(X, x_adv, slack=0).all()
    assert (changed.flatten(1).sum(1) == 16).all()  # the whole budget, as each raises the loss
    for image, where in zip(x_adv, changed, strict=True):
        levels = image[:, where]
        assert set(levels.flatten().tolist()) == {0.0, 1.0}
        assert (levels == levels[:1]).all()  # the same value in all channels of a pixel


@pytest.mark.parametrize(("share", "broken"), [(6 / 64, False), (7 / 64, True), (0.5, True)])
def test_image_is_broken_exactly_if_the_budget_suffices(share: float, broken: bool):
    x_adv = SaltAndPepper()(counts, X, Y, Threat("l0", share), NOISE)
    assert ((counts(x_adv, NOISE).argmax(1) == 1) == broken).all()


def test_worst_share_is_returned_instead_of_the_last():
    """The model is wrong only at about half of the budget."""

    def middle(x, noise):
        extreme = ((x == 0) | (x == 1)).all(1).flatten(1).sum(1)
        falls = ((extreme > 9) & (extreme < 16)).float()
        return torch.stack([1 - falls, falls], 1)

    x_adv = SaltAndPepper(tries=1, shares=5)(middle, X, Y, Threat("l0", 0.4), NOISE)
    assert middle(x_adv, NOISE).argmax(1).tolist() == [1] * 4
    assert ((x_adv != X).any(1).flatten(1).sum(1) == 10).all()  # two fifths of 25 pixels


def test_unbroken_image_is_returned_unchanged():
    def better(x, noise):
        flat = (x - 0.5).abs().flatten(1).sum(1)  # more extreme pixels favor the true class
        return torch.stack([flat, torch.zeros_like(flat)], 1)

    assert torch.equal(SaltAndPepper()(better, X, Y, Threat("l0", 0.3), NOISE), X)


def test_attack_does_not_depend_on_other_images():
    def noisy(x, noise):
        logits = torch.stack([x[:, 0].flatten(1).mean(1), x[:, 1].flatten(1).mean(1)], 1)
        return logits + 0.05 * noise.normal(logits)

    attack, threat = SaltAndPepper(tries=2, eot=2), Threat("l0", 0.2)
    whole = attack(noisy, X, Y, threat, NOISE)
    order = [2, 0, 3]
    part = attack(noisy, X[order], Y[order], threat, NOISE.take(order))
    assert torch.equal(part, whole[order])
    assert not torch.equal(attack(noisy, X, Y, threat, Noise.of(9, range(4))), whole)


def test_unsupported_norms_are_refused():
    with pytest.raises(ValueError, match=r"threat\.norm to l0 instead of linf"):
        SaltAndPepper()(counts, X, Y, Threat("linf", 0.1), NOISE)
    with pytest.raises(ValueError, match="salt-and-pepper"):
        PGD()(lambda x, noise: x.flatten(1)[:, :2], X, Y, Threat("l0", 0.1), NOISE)
