"""The example of two Gaussians, and statistical tests of the two propositions of COUP."""

import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from unfool.defenses.coup import COUP
from unfool.defenses.diffpure import DiffPure
from unfool.diffusion.denoiser import Denoiser, Mixture
from unfool.diffusion.reverse import even
from unfool.diffusion.schedule import VP
from unfool.noise import Noise
from unfool.statistics import wilson

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from two_gaussians import Line, ends, figure_of, label_flips, main

GRID = np.linspace(-3, 3, 601)


def drift(x, t: float, weight: float, mean: float = 1.0, spread: float = 0.5):
    """Drift of the guided SDE in reversed time: beta (x / 2 + score + lambda grad log max p)."""
    alpha = math.exp(-(19.9 * t * t / 4 + 0.1 * t / 2))
    variance = (alpha * spread) ** 2 + 1 - alpha**2
    score = (alpha * mean * np.tanh(alpha * mean * x / variance) - x) / variance
    odds = 2 * mean / spread**2 * x
    surest = np.sign(x) * 2 * mean / spread**2 / (1 + np.exp(np.abs(odds)))
    return (0.1 + 19.9 * t) * (x / 2 + score + weight * surest)


def transition(t: float, h: float, weight: float):
    """The density of one Euler-Maruyama step on the grid, (from, to); each row sums to 1."""
    mean = GRID + h * drift(GRID, t, weight)
    rows = stats.norm.pdf(GRID[None], mean[:, None], math.sqrt((0.1 + 19.9 * t) * h))
    return rows / rows.sum(1, keepdims=True)


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_flip_probability_matches_quadrature_of_the_chain(weight: float):
    """20,000 runs of 20 steps agree with the chained transition densities (binomial test)."""
    times = even(0.1, 20).tolist()
    density = (np.abs(GRID - 0.2) < 1e-9).astype(float)
    for now, then in itertools.pairwise(times):
        density = density @ transition(now, now - then, weight)
    flipped = density[GRID < -1e-9].sum() + density[np.abs(GRID) < 1e-9].sum() / 2
    found = int((ends(weight, steps=20, runs=20000).end < 0).sum())
    assert stats.binomtest(found, 20000, flipped).pvalue > 0.01
    assert (0.15 < flipped < 0.25) if weight == 0 else (0.03 < flipped < 0.1)


def test_line_denoiser_equals_a_mixture_of_one_pixel():
    exact = Mixture(torch.tensor([-1.0, 1.0]).double().view(2, 1, 1, 1), 0.5)
    z = torch.linspace(-3, 3, 13).double()
    for t in (0.001, 0.1, 0.5):
        time = torch.tensor(t).double()
        expected = exact(z.view(-1, 1, 1, 1), time).flatten()
        assert torch.allclose(Line()(z.view(1, 1, 1, -1), time).flatten(), expected)


def test_proposition_1_guidance_reduces_label_flips():
    """If guidance raises the drift above 0, and a step is increasing in x, fewer labels flip.

    P(some x_k < 0) is strictly smaller with guidance. With the same draws, every run that crosses 0
    with guidance also crosses without, and some cross only without (sign test on these runs).
    """
    h = 0.001
    for t in even(0.1, 100).tolist():
        above = GRID[GRID > 1e-9]
        assert (drift(above, t, 1) > drift(above, t, 0)).all()
        assert (drift(above, t, 4) > drift(above, t, 1)).all()
        for weight in (0, 1, 4):  # the premise excludes x < 0, where guidance points away from 0
            assert (np.diff(above + h * drift(above, t, weight)) > 0).all()
    plain, guided, more = (ends(weight, runs=2000).crossed for weight in (0, 1, 4))
    assert not (guided & ~plain).any()
    assert not (more & ~guided).any()
    for fewer, many in ((guided, plain), (more, guided)):
        lost = int((many & ~fewer).sum())
        assert stats.binomtest(0, lost).pvalue < 1e-6


class Pushed(Denoiser):
    """A denoiser whose score at any time is `push` times a direction in [-1, 1] of each pixel."""

    def __init__(self, push: float, direction=torch.ones_like):
        super().__init__()
        self.push, self.direction, self.schedule = push, direction, VP()

    def forward(self, x_t, t, label=None):
        scales = self.schedule(t.double())
        return (x_t + scales.sigma**2 * self.push * self.direction(x_t)) / scales.alpha


def surest(slope: float):
    """A classifier of each pixel z in [-1, 1] into two classes, with log-odds slope * z."""

    def classifier(x, noise):
        odds = slope * (2 * x - 1).flatten()
        return torch.stack([-odds / 2, odds / 2], 1)

    return classifier


def gone(denoiser: Denoiser, weight: float, t: float, start: float):
    """The displacements of 4000 runs of COUP from `start`."""
    purify = COUP(denoiser, surest(1.0), t=t, steps=100, weight=weight)
    x = torch.full((1, 1, 1, 4000), (start + 1) / 2, dtype=torch.float64)
    with torch.no_grad():
        return 2 * (purify(x, Noise.of(0, [0])) - x).flatten().numpy()


def growth(t: float) -> float:
    """e^gamma with gamma = 1/2 int_0^t beta."""
    return math.exp(0.1 * t / 2 + 19.9 * t * t / 4)


@pytest.mark.parametrize("t", [0.05, 0.2])
def test_proposition_2_bounds_the_displacement(t: float):
    """If |score| <= C_s and |grad log max p| <= C_p, an image x moves by at most

        (e^gamma - 1) (|x| + 2 C_s + 2 lambda C_p) + sqrt(e^(2 gamma) - 1) q

    unless the noise exceeds q. This follows from the solution of the linear SDE, driven by score
    and guide; its noise counts once, as there is no forward noise. The bound grows with t*.
    """
    e, q = growth(t), stats.norm.isf(0.025)
    push, weight, slope = 2.0, 3.0, 0.5  # the guide is at most half of the slope 1
    for direction, start in ((torch.sign, 0.8), (torch.cos, -0.3)):
        far = np.abs(gone(Pushed(push, direction), weight, t, start))
        bound = (e - 1) * (abs(start) + 2 * push + 2 * weight * slope)
        bound += math.sqrt(e * e - 1) * q
        beyond = int((far > bound).sum())
        assert stats.binomtest(beyond, 4000, 0.05, alternative="greater").pvalue > 0.01


@pytest.mark.parametrize("t", [0.05, 0.1])
def test_proposition_2_is_sharp(t: float):
    """With a constant outward score, x moves by N((e^gamma - 1) (x + 2 C_s), e^(2 gamma) - 1)."""
    e = growth(t)
    expected = stats.norm((e - 1) * (0.8 + 2 * 2.0), math.sqrt(e * e - 1))
    assert stats.kstest(gone(Pushed(2.0), 0, t, 0.8), expected.cdf).pvalue > 0.01


def test_forward_noise_doubles_the_variance():
    """Without a score, DiffPure's variance is twice that of COUP, 2 (e^(2 gamma) - 1)."""
    x = torch.full((1, 1, 1, 4000), 0.9, dtype=torch.float64)
    e = growth(0.1)
    both = DiffPure(Pushed(0), t=0.1, steps=100)(x, Noise.of(0, [0]))
    for out, times in ((2 * both.flatten().numpy(), 2), (gone(Pushed(0), 0, 0.1, 0.8), 1)):
        ratio = 3999 * out.var(ddof=1) / (times * (e * e - 1))
        assert stats.chi2(3999).ppf(0.005) < ratio < stats.chi2(3999).ppf(0.995)


def test_guidance_prevents_fewer_flips_as_the_classifier_gets_worse():
    """Guidance prevents label flips, but fewer the larger the error of the classifier is."""
    runs = 3000
    shares = label_flips([0, 4], [0, 1, 6], runs=runs)
    assert shares.shape == (3, 2)
    assert (shares[:, 0] == shares[0, 0]).all()  # without guidance, the classifier is not used
    noise = 3 * math.sqrt(0.25 / runs)
    assert shares[0, 1] < shares[1, 1] - noise
    assert shares[1, 1] < shares[0, 0] - noise
    assert shares[2, 1] > shares[1, 1] + noise
    assert float((ends(0, runs=runs).end < 0).double().mean()) == shares[0, 0]


def test_guidance_by_a_wrong_classifier_causes_more_flips():
    """In paired runs, guidance causes more label flips than it prevents."""
    plain, guided = (ends(weight, 6, runs=6000, steps=50).end < 0 for weight in (0, 8))
    harmed, saved = int((guided & ~plain).sum()), int((plain & ~guided).sum())
    assert stats.binomtest(harmed, harmed + saved, alternative="greater").pvalue < 0.01


@pytest.mark.parametrize("options", [{"start": 0}, {"runs": 0}, {"level": -1}])
def test_invalid_options_are_refused(options):
    with pytest.raises(ValueError, match=r"start .*runs .*level"):
        ends(1, **options)


def test_label_flips_are_drawn_with_intervals():
    shares = np.array([[0.2, 0.1, 0.0], [0.2, 0.25, 0.3]])
    (axes,) = figure_of([0, 1, 2], [0, 4], shares, 400).axes
    for line, band, row in zip(axes.lines, axes.collections, shares, strict=True):
        assert line.get_ydata() == pytest.approx(100 * row)
        edges = np.asarray(band.get_paths()[0].vertices)[:, 1]
        intervals = [wilson(round(400 * share), 400) for share in row]
        assert edges.min() == pytest.approx(100 * min(share.low for share in intervals))
        assert edges.max() == pytest.approx(100 * max(share.high for share in intervals))
    assert [line.get_label() for line in axes.lines] == ["noise level 0", "noise level 4"]


def test_example_writes_a_png(elsewhere):
    main(["--runs", "50", "--out", "f.png"])
    assert Path("f.png").read_bytes().startswith(b"\x89PNG")
