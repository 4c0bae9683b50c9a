"""FAB on linear models, where the shortest step across the boundary is known."""

import pytest
import torch
from analytic import NOISE, THREATS, WEIGHT, Blurred, Linear, X, Y, accuracy, lead, many, worst
from scipy.optimize import linprog, minimize

from unfool.attacks.fab import FAB, STEP_LENGTH, stretched, to_plane
from unfool.threat import Threat

GAIN = torch.tensor([0.3, -0.3, 1.0, -1.0, 0.05, 0.0], dtype=torch.float64)


def shortest(x, normal, gain, norm):
    """The length of the shortest allowed step to the plane, by a solver."""
    x, normal, box = x.numpy(), normal.numpy(), [(-a, 1 - a) for a in x.tolist()]
    if norm == "l2":
        fits = {"type": "eq", "fun": lambda d: normal @ d - gain}
        return minimize(lambda d: d @ d, 0 * x, bounds=box, constraints=fits).fun ** 0.5
    rows = [[*(s * (i == j) for j in range(len(x))), -1] for i in range(len(x)) for s in (1, -1)]
    cost, limit = [0] * len(x) + [1], [0] * 2 * len(x)
    return linprog(cost, rows, limit, [[*normal, 0]], [gain], [*box, (0, None)]).fun


@pytest.mark.parametrize("norm", THREATS)
def test_step_to_a_plane_is_the_shortest_in_the_box(norm):
    x = NOISE.child("p").uniform(X[:, :1, :2, :3])
    normal = NOISE.child("w").normal(x)
    way = to_plane(x, normal, GAIN, THREATS[norm])
    assert float((x + way).min()) >= 0
    assert float((x + way).max()) <= 1
    assert torch.allclose((normal * way).flatten(1).sum(1), GAIN, atol=1e-12)
    for i, size in enumerate(THREATS[norm].size(way)):
        best = shortest(x[i].flatten(), normal[i].flatten(), float(GAIN[i]), norm)
        assert float(size) == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("norm", THREATS)
def test_step_to_an_unreachable_plane_goes_as_far_as_the_box_allows(norm):
    far = torch.full_like(GAIN, 1e6)
    normal = NOISE.child("w").normal(X)
    corner = (normal > 0).to(X)
    assert torch.allclose(X + to_plane(X, normal, far, THREATS[norm]), corner)
    still = to_plane(X, torch.zeros_like(X), far, THREATS[norm])
    assert (still == 0).all()


@pytest.mark.parametrize("norm", THREATS)
def test_step_to_a_plane_does_not_depend_on_the_scale(norm):
    normal = NOISE.child("w").normal(X)
    way = to_plane(X, normal, GAIN, THREATS[norm])
    tiny = to_plane(X.float(), 1e-30 * normal.float(), 1e-30 * GAIN.float(), THREATS[norm])
    assert torch.allclose(tiny.double(), way, atol=1e-5)


@pytest.mark.parametrize("norm", THREATS)
def test_nearest_adversarial_image_is_found(norm):
    threat = THREATS[norm]
    nearest = FAB(8).nearest(Linear(), X, Y, threat, NOISE)
    assert (lead(nearest, Y) < 0).all()
    slope = (lead(X, Y) - lead(worst(threat, X, Y), Y)) / threat.eps
    least = lead(X, Y) / slope
    assert (threat.size(nearest - X) <= STEP_LENGTH * least + 1e-9).all()


@pytest.mark.parametrize("norm", THREATS)
def test_misclassified_image_is_moved_further_across(norm):
    threat, wrong = THREATS[norm], 1 - Y
    found = FAB(6)(Linear(), X, wrong, threat, NOISE)
    assert (lead(found, wrong) < lead(X, wrong) - 0.1).all()


def test_nearest_of_all_target_classes_is_found_beyond_eps():
    class Corner(Linear):
        """Class 1 is near in logits, and class 2 in distance, because its slope is larger."""

        def forward(self, x, noise):
            half = self.score(x, noise)
            return torch.stack([0 * half, -0.3 - half, -0.5 - 8 * half], 1)

    x, threat = X[Y == 1], Threat("l2", 1e-3)
    y, noise = torch.zeros(len(x), dtype=torch.long), NOISE.take((Y == 1).nonzero()[:, 0])
    found = FAB(30, targets=2).nearest(Corner(), x, y, threat, noise)
    half = Linear().score(x, noise)
    by_hand = torch.minimum(half + 0.3, half + 0.5 / 8) / WEIGHT.norm()
    assert (by_hand > 10 * threat.eps).all()
    assert torch.allclose(threat.size(found - x), by_hand, rtol=0.01)


@pytest.mark.parametrize("norm", THREATS)
def test_result_is_within_eps_or_the_image_itself(norm):
    near = Threat(norm, 0.02)
    for threat in (near, THREATS[norm]):
        found = FAB(6)(Linear(), X, Y, threat, NOISE)
        assert threat.allows(X, found).all()
        assert torch.equal(lead(found, Y) < 0, lead(worst(threat, X, Y), Y) < 0)

    def out_of_reach(x, noise):
        labels = Y.repeat_interleave(len(x) // len(Y))
        return Linear()(x, noise) + 1e3 * torch.eye(2).to(x)[labels]

    assert torch.equal(FAB(3)(out_of_reach, X, Y, THREATS[norm], NOISE), X)


def test_stretched_uses_the_whole_budget():
    for threat in THREATS.values():
        longer = stretched(X, X + 1e-3 * NOISE.normal(X), threat)
        assert torch.allclose(threat.size(longer - X), torch.full_like(GAIN, threat.eps))
        assert torch.equal(stretched(X, X, threat), X)


def test_optimum_of_a_noisy_linear_model_is_reached():
    """An image just across the boundary would still be classified correctly half of the time."""
    threat = Threat("l2", 0.3)
    x, y, noise = many(24)
    found = FAB(8, eot=8, selection_draws=20)(Blurred(), x, y, threat, noise.child("search"))
    best = accuracy(worst(threat, x, y), y)
    assert best < 0.4
    assert accuracy(found, y) < best + 0.01


def test_unsupported_norm_is_refused():
    with pytest.raises(ValueError, match=r"FAB .*linf and l2.* l0"):
        FAB(1)(Linear(), X, Y, Threat("l0", 0.1), NOISE)
