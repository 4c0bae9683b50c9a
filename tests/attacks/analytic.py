"""Models whose best attack is known, for the tests of this folder."""

import torch
from scipy import stats
from torch import nn

from unfool.noise import Noise
from unfool.threat import Threat, per_image

SIZE, SHAPE = 6, (3, 4, 4)
NOISE = Noise.of(0, range(SIZE))
WEIGHT = Noise.of(9, [0]).normal(torch.zeros(1, *SHAPE, dtype=torch.float64))[0] / 5
X = 0.35 + 0.3 * NOISE.child("x").uniform(torch.zeros(SIZE, *SHAPE, dtype=torch.float64))
Y = (((X - 0.5) * WEIGHT).flatten(1).sum(1) > 0).long()  # which noise aside is right
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
    """With noise on the input, of which the logits see a Gaussian of known width."""

    width = 0.3

    def score(self, x, noise):
        return super().score(x, noise) + self.width * noise.child("blur").normal(x[:, 0, 0, 0])


class Bent(Linear):
    """Nonlinear, with many local maxima; `luck`, if any, is noise that all images of a draw share."""

    def __init__(self, classes: int = 2, luck: float = 0.0):
        super().__init__(classes)
        self.luck = luck

    def score(self, x, noise):
        bent = (torch.sin(9 * x) * WEIGHT.to(x)).flatten(1).sum(1)
        return bent + self.luck * noise.child("luck").normal(x[:, 0, 0, 0]) if self.luck else bent


class Shaken(nn.Module):
    """Three classes, nonlinear, and no two draws have the same gradient."""

    def forward(self, x, noise):
        x = x + 0.1 * noise.child("blur").normal(x)
        return torch.stack([torch.sin((7 + k) * x).flatten(1).sum(1) for k in range(3)], 1)


class Drifting(nn.Module):
    """The model, with noise that moves all logits alike: no two draws are equal, but all answers are."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, noise):
        return self.model(x, noise) + noise.child("drift").normal(x[:, 0, 0, :1])


class Coin(nn.Module):
    """Right with probability `p`, whatever the image; of a class for every label of `Y`."""

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
    """By how much the true class leads, over 2."""
    return (2 * y - 1) * ((x - 0.5) * WEIGHT).flatten(1).sum(1)


def worst(threat, x, y):
    """The best attack on a linear model, where the box allows it."""
    up = per_image((1 - 2 * y).to(x))
    way = WEIGHT.sign() if threat.norm == "linf" else WEIGHT / WEIGHT.norm()
    return x + threat.eps * up * way


def progress(found, threat):
    """How far towards the worst image, by the lead it takes; 1 is all the way."""
    return (lead(X, Y) - lead(found, Y)) / (lead(X, Y) - lead(worst(threat, X, Y), Y))


def accuracy(at, y):
    """The expected accuracy of `Blurred`."""
    return float(stats.norm.cdf((lead(at, y) / Blurred.width).numpy()).mean())


def many(size):
    """Images with labels, most of them right, and their noise."""
    noise = Noise.of(1, range(size))
    x = 0.35 + 0.3 * noise.child("x").uniform(torch.zeros(size, *SHAPE, dtype=torch.float64))
    return x, (((x - 0.5) * WEIGHT).flatten(1).sum(1) > 0).long(), noise
