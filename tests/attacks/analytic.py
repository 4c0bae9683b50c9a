"""Models whose best attack is known, for the tests in this folder."""

import torch
from scipy import stats
from torch import nn

from unfool.noise import Noise
from unfool.threat import Threat, per_image

SIZE, SHAPE = 6, (3, 4, 4)
NOISE = Noise.of(0, range(SIZE))
WEIGHT = Noise.of(9, [0]).normal(torch.zeros(1, *SHAPE, dtype=torch.float64))[0] / 5
X = 0.35 + 0.3 * NOISE.child("x").uniform(torch.zeros(SIZE, *SHAPE, dtype=torch.float64))
Y = (((X - 0.5) * WEIGHT).flatten(1).sum(1) > 0).long()  # the right class without noise
THREATS = {"linf": Threat("linf", 0.1), "l2": Threat("l2", 0.3)}


class Linear(nn.Module):
    """Classes 0 and 1 have the logits -w (x - 0.5) and w (x - 0.5), the others low constants."""

    def __init__(self, classes: int = 2):
        super().__init__()
        self.classes = classes

    def score(self, x, noise):
        return ((x - 0.5) * WEIGHT.to(x)).flatten(1).sum(1)

    def forward(self, x, noise):
        half = self.score(x, noise)
        low = [torch.full_like(half, -9.0 - k) for k in range(self.classes - 2)]
        return torch.stack([-half, half, *low], 1)


class Blurred(Linear):
    """`Linear` with Gaussian noise of known width on its score."""

    width = 0.3

    def score(self, x, noise):
        return super().score(x, noise) + self.width * noise.child("blur").normal(x[:, 0, 0, 0])


class Bent(Linear):
    """Nonlinear, with many local maxima; `luck` scales noise that does not depend on the pixels."""

    def __init__(self, classes: int = 2, luck: float = 0.0):
        super().__init__(classes)
        self.luck = luck

    def score(self, x, noise):
        bent = (torch.sin(9 * x) * WEIGHT.to(x)).flatten(1).sum(1)
        return bent + self.luck * noise.child("luck").normal(x[:, 0, 0, 0]) if self.luck else bent


class Shaken(nn.Module):
    """A nonlinear model of three classes, in which no two draws have the same gradient."""

    def forward(self, x, noise):
        x = x + 0.1 * noise.child("blur").normal(x)
        return torch.stack([torch.sin((7 + k) * x).flatten(1).sum(1) for k in range(3)], 1)


class Drifting(nn.Module):
    """A model plus noise that shifts all logits alike: draws differ, but their answers do not."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, noise):
        return self.model(x, noise) + noise.child("drift").normal(x[:, 0, 0, :1])


class Coin(nn.Module):
    """Predicts class 0 with probability `p`, whatever the image."""

    def __init__(self, p: float, classes: int = 4):
        super().__init__()
        self.p, self.classes, self.rows_seen = p, classes, 0

    def forward(self, x, noise):
        self.rows_seen += len(x)
        right = noise.child("coin").uniform(x[:, 0, 0, 0]) < self.p
        logits = x.new_zeros(len(x), self.classes) + 0 * x.flatten(1).sum(1, keepdim=True)
        logits[:, 0] += torch.where(right, 1.0, -1.0)
        return logits


def lead(x, y):
    """Half of the margin by which the true class leads."""
    return (2 * y - 1) * ((x - 0.5) * WEIGHT).flatten(1).sum(1)


def worst(threat, x, y):
    """The worst image of a linear model, if the box does not interfere."""
    up = per_image((1 - 2 * y).to(x))
    way = WEIGHT.sign() if threat.norm == "linf" else WEIGHT / WEIGHT.norm()
    return x + threat.eps * up * way


def progress(found, threat):
    """The decrease in lead as a share of that of the worst image; 1 is optimal."""
    return (lead(X, Y) - lead(found, Y)) / (lead(X, Y) - lead(worst(threat, X, Y), Y))


def accuracy(at, y):
    """The expected accuracy of `Blurred`."""
    return float(stats.norm.cdf((lead(at, y) / Blurred.width).numpy()).mean())


def many(size):
    """Images with the labels that `Linear` gives them, and their noise."""
    noise = Noise.of(1, range(size))
    x = 0.35 + 0.3 * noise.child("x").uniform(torch.zeros(size, *SHAPE, dtype=torch.float64))
    return x, (((x - 0.5) * WEIGHT).flatten(1).sum(1) > 0).long(), noise
