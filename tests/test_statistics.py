"""Confidence intervals agree with closed forms and have their nominal coverage."""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import stats

from unfool.noise import Noise
from unfool.statistics import lower_bound, mcnemar, mean_rate_interval, resubmissions, wilson

Z = 1.959963984540054


def by_hand(p: float, n: float) -> tuple[float, float]:
    """Wilson's interval: the roots of (p - q)^2 = z^2 q (1 - q) / n."""
    roots = np.roots([1 + Z**2 / n, -(2 * p + Z**2 / n), p**2])
    return float(roots.min()), float(roots.max())


@pytest.mark.parametrize(("hits", "total"), [(0, 10), (3, 10), (10, 10), (1, 1), (412, 512)])
def test_wilson_matches_the_closed_form(hits: int, total: int):
    share = wilson(hits, total)
    assert share.value == hits / total
    assert (share.low, share.high) == pytest.approx(by_hand(hits / total, total), abs=1e-7)
    assert 0 <= share.low <= share.value <= share.high <= 1


@pytest.mark.parametrize(("hits", "total"), [(0, 9), (1, 9), (9, 9), (7, 20), (412, 512)])
def test_intervals_and_tests_of_counts_match_scipy(hits: int, total: int):
    test = stats.binomtest(hits, total)
    near = {"rel": 1e-12, "abs": 0}
    interval = test.proportion_ci(0.95, "wilson")
    assert wilson(hits, total)[1:] == pytest.approx((interval.low, interval.high), **near)
    assert mcnemar(hits, total - hits) == pytest.approx(test.pvalue, **near)
    bound = stats.beta.ppf(0.001, hits, total - hits + 1) if hits else 0
    assert lower_bound(hits, total, 0.001) == pytest.approx(bound, **near)


def test_wilson_matches_a_published_example():
    # Newcombe (1998), table I, method 3: 81 of 263
    share = wilson(81, 263)
    assert (share.low, share.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert str(share) == "30.8 % [25.5, 36.6]"


def test_mean_rate_interval_with_one_draw_per_image_is_wilson():
    rates = [1.0] * 30 + [0.0] * 12
    assert mean_rate_interval(rates, 1) == pytest.approx(wilson(30, 42), abs=1e-9)
    for hits in (0, 42):
        assert mean_rate_interval([float(hits > 0)] * 42, 1) == pytest.approx(
            wilson(hits, 42), abs=1e-9
        )


def test_images_that_do_not_vary_among_draws_count_once():
    """Further draws of a deterministic model add no information."""
    rates = [1.0] * 30 + [0.0] * 12
    for draws in (1, 8, 1000):
        assert mean_rate_interval(rates, draws) == pytest.approx(wilson(30, 42), abs=1e-9)


def test_images_with_equal_rates_count_every_draw():
    """If n images share one rate, k draws of each count as nearly n k trials."""
    n, k = 4000, 8
    throws = Noise.of(0, range(n)).uniform(torch.zeros(n, k)) < 0.7
    share = mean_rate_interval(throws.double().mean(1).tolist(), k)
    low, high = by_hand(share.value, n * k)
    assert share.high - share.low == pytest.approx(high - low, rel=0.05)


def test_interval_follows_the_scatter_of_the_rates():
    """The variance is that of the four images and four more with the variance of a coin."""
    rates = [0.2, 0.4, 0.9, 0.3]
    variance = (sum((r - 0.45) ** 2 for r in rates) + 4 * 0.45 * 0.55) / 8
    n = 0.45 * 0.55 / variance * 4 / 1
    share = mean_rate_interval(rates, 100)
    assert 4 < n < 400
    assert (share.low, share.high) == pytest.approx(by_hand(0.45, n), abs=1e-9)


@pytest.mark.parametrize("draws", [1, 4, 32])
def test_interval_width_is_between_those_for_images_and_for_draws(draws: int):
    n = 50
    for a in (0.05, 1.0, 30.0, 3000.0):
        noise = Noise.of(0, range(n)).child(str(a))
        p = stats.beta.ppf(noise.uniform(torch.zeros(n, 1)).double().numpy(), a, a)
        throws = noise.child("throws").uniform(torch.zeros(n, draws)).double().numpy() < p
        share = mean_rate_interval(throws.mean(1).tolist(), draws)
        widest, tightest = by_hand(share.value, n), by_hand(share.value, n * draws)
        assert share.value == pytest.approx(throws.mean())
        assert widest[0] - 1e-9 <= share.low <= tightest[0] + 1e-9
        assert tightest[1] - 1e-9 <= share.high <= widest[1] + 1e-9


WORLDS = {
    "mostly all or nothing": (0.2, 0.2),
    "high and mixed": (4.0, 1.0),
    "flat": (1.0, 1.0),
    "nearly one coin": (60.0, 40.0),
    "low": (0.3, 2.0),
}


@pytest.mark.parametrize(("n", "draws"), [(50, 4), (200, 10)])
@pytest.mark.parametrize("world", WORLDS)
def test_interval_has_nominal_coverage(world: str, n: int, draws: int):
    """Rates of images are Beta-distributed, with `draws` draws each: 95 % of intervals cover."""
    runs, (a, b) = 400, WORLDS[world]
    table = stats.beta.ppf(np.linspace(0, 1, 20_001), a, b)  # a table of quantiles, for speed
    noise = Noise.of(7, range(runs)).child(world)
    u = noise.uniform(torch.zeros(runs, n)).double().numpy()
    p = np.interp(u, np.linspace(0, 1, len(table)), table)
    throws = noise.child("throws").uniform(torch.zeros(runs, n, draws)).double().numpy()
    rates = (throws < p[..., None]).mean(2)

    truth, covered, naive = a / (a + b), 0, 0
    for row in rates:
        share = mean_rate_interval(row.tolist(), draws)
        covered += share.low <= truth <= share.high
        low, high = by_hand(share.value, n * draws)
        naive += low <= truth <= high
    assert 0.92 <= covered / runs <= 0.99
    if world == "mostly all or nothing":  # an interval that counts draws as images fails
        assert naive / runs < 0.85


def test_interval_of_extreme_rates_stays_in_bounds_and_is_not_empty():
    for rates in ([0.0] * 20, [1.0] * 20, [0.5], [1.0]):
        share = mean_rate_interval(rates, 8)
        assert 0 <= share.low <= share.value <= share.high <= 1
        assert share.high - share.low > 0.1


def test_empty_counts_are_refused():
    with pytest.raises(ValueError, match="no trials"):
        wilson(0, 0)
    with pytest.raises(ValueError, match="no images"):
        mean_rate_interval([], 4)


def test_resubmissions_average_over_every_set_of_draws():
    draws = [[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]
    curve = resubmissions([sum(row) for row in draws], 5)
    for m in range(1, 6):
        sets = [[all(chosen) for chosen in combinations(row, m)] for row in draws]
        assert curve[m - 1].value == pytest.approx(np.mean(sets))


def test_resubmissions_go_from_the_mean_rate_to_all_draws():
    hits = [8, 8, 5, 0, 7, 8, 3]
    curve = resubmissions(hits, 8)
    assert curve[0] == pytest.approx(mean_rate_interval([right / 8 for right in hits], 8))
    assert curve[-1] == pytest.approx(wilson(3, 7))


def test_resubmissions_are_unbiased_and_their_intervals_cover():
    """With rates from Beta(2, 1), all of m draws are right with probability 2 / (m + 2)."""
    n, k, runs = 60, 6, 300
    noise = Noise.of(5, range(runs))
    chance = noise.uniform(torch.empty(runs, n, 1)).sqrt()
    hits = (noise.child("draws").uniform(torch.empty(runs, n, k)) < chance).sum(2).tolist()
    curves = [resubmissions(row, k) for row in hits]
    for m in range(1, k + 1):
        shares, truth = [curve[m - 1] for curve in curves], 2 / (m + 2)
        assert np.mean([s.value for s in shares]) == pytest.approx(truth, abs=0.012)
        assert np.mean([s.low <= truth <= s.high for s in shares]) > 0.92
