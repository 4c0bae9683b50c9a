"""The geometry of threats."""

import numpy as np
import pytest
import torch
from scipy import optimize, stats

from unfool.noise import Noise
from unfool.threat import Threat, per_image

NORMS = ["linf", "l2"]
SHAPE = (3, 4, 4)


def draw(size: int, name: str = "x") -> torch.Tensor:
    return Noise.of(0, range(size)).child(name).uniform(torch.zeros(size, *SHAPE))


def gauss(size: int, name: str = "g") -> torch.Tensor:
    return Noise.of(0, range(size)).child(name).normal(torch.zeros(size, *SHAPE))


def test_size_is_the_norm():
    delta = torch.zeros(2, 1, 2, 2)
    delta[0, 0, 0, 0], delta[0, 0, 1, 1], delta[1] = 0.3, -0.4, 0.1
    assert Threat("linf", 1).size(delta).tolist() == pytest.approx([0.4, 0.1])
    assert Threat("l2", 1).size(delta).tolist() == pytest.approx([0.5, 0.2])


@pytest.mark.parametrize("norm", [*NORMS, "l1"])
@pytest.mark.parametrize("eps", [0.0, 8 / 255, 0.5, 1.0])
def test_projection_is_allowed_and_idempotent(norm, eps: float):
    threat, x = Threat(norm, eps), draw(50)
    far = x + 2 * gauss(50)
    near = threat.project(x, far)
    assert threat.allows(x, near).all()
    assert torch.allclose(threat.project(x, near), near, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("norm", [*NORMS, "l1"])
def test_projection_leaves_allowed_images_unchanged(norm):
    threat, x = Threat(norm, 0.3), 0.5 * draw(20) + 0.25
    inside = x + 0.2 * gauss(20).clamp(-1, 1) / {"linf": 1, "l2": SHAPE[1] * 2, "l1": 48}[norm]
    assert threat.allows(x, inside, slack=0).all()
    assert torch.allclose(threat.project(x, inside), inside, atol=1e-7)


@pytest.mark.parametrize("norm", NORMS)
def test_projection_is_the_nearest_point_of_the_ball(norm):
    """Away from the box, no random point of the ball is nearer in Euclidean distance."""
    threat, x = Threat(norm, 0.1), torch.full((20, *SHAPE), 0.5)
    far = x + 0.2 * gauss(20)
    near = threat.project(x, far)
    best = (far - near).flatten(1).norm(dim=1)
    for i in range(50):
        other = threat.start(x, Noise.of(i, range(20)))
        assert ((far - other).flatten(1).norm(dim=1) > best).all()
    edge = far - x
    expected = (
        edge.clamp(-0.1, 0.1) if norm == "linf" else edge * 0.1 / per_image(threat.size(edge))
    )
    assert torch.allclose(near - x, expected, atol=1e-6)


def dual(norm: str, gradient: torch.Tensor) -> torch.Tensor:
    flat = gradient.flatten(1)
    return flat.abs().sum(1) if norm == "linf" else flat.norm(dim=1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e-25, 1e-37, 1e25])
def test_steepest_direction_ascends_fastest(norm, scale: float):
    threat, gradient = Threat(norm, 1.0), gauss(20)
    way = threat.steepest(gradient * scale)
    assert torch.allclose(threat.size(way), torch.ones(20), atol=1e-5)
    gain = (gradient * way).flatten(1).sum(1)
    assert torch.allclose(gain, dual(norm, gradient), rtol=1e-5)
    for i in range(100):
        other = gauss(20, f"direction {i}")
        for rival in (other / per_image(threat.size(other)), threat.steepest(other)):
            assert ((gradient * rival).flatten(1).sum(1) < gain).all()


def test_l1_projection_is_the_nearest_image_of_ball_and_box():
    """No allowed image is further along the residual, by scipy's linear program."""
    threat, x, way = Threat("l1", 1.5), draw(8).double(), gauss(8).double()
    near = threat.project(x, x + way)
    for origin, left, delta in zip(x, x + way - near, near - x, strict=True):
        z, cost = origin.flatten().numpy(), -left.flatten().numpy()
        best = optimize.linprog(
            np.concatenate([cost, -cost]),
            A_ub=np.ones((1, 2 * len(z))),
            b_ub=[1.5],
            bounds=[*((0, 1 - v) for v in z), *((0, v) for v in z)],
        )
        assert -best.fun == pytest.approx(float((left * delta).sum()), abs=1e-6)


def test_l1_size_is_a_sum_and_a_step_follows_the_largest_slope():
    delta = torch.tensor([0.3, -0.4, 0.0, 0.1]).view(1, 1, 2, 2)
    assert float(Threat("l1", 1).size(delta)) == pytest.approx(0.8)
    x, gradient = torch.full((1, 1, 2, 2), 0.5), torch.tensor([3.0, -5, 1, 2]).view(1, 1, 2, 2)
    assert Threat("l1", 1).steepest(gradient, x).flatten().tolist() == [0, -1, 0, 0]
    x[0, 0, 0, 1] = 0  # the box stops this value, so another moves
    assert Threat("l1", 1).steepest(gradient, x).flatten()[0] == 1


@pytest.mark.parametrize("norm", NORMS)
def test_steepest_direction_of_a_zero_gradient_is_zero(norm):
    gradient = gauss(3)
    gradient[1] = 0
    way = Threat(norm, 1.0).steepest(gradient)
    assert way.isfinite().all()
    assert (way[1] == 0).all()
    assert (way[[0, 2]] != 0).any(1).all()


@pytest.mark.parametrize("norm", [*NORMS, "l1"])
def test_infinite_values_are_projected_to_the_edge(norm):
    x, threat = draw(5), Threat(norm, 0.1)
    far = x.clone()
    far[0, 0, 0, 0], far[1, 0, 0, 0], far[2] = torch.inf, -torch.inf, torch.inf
    far[3] = x[3] + 1e30
    found = threat.project(x, far)
    assert threat.allows(x, found).all()
    assert float(found[0, 0, 0, 0]) == pytest.approx(min(1, float(x[0, 0, 0, 0]) + 0.1), abs=1e-6)
    assert not torch.equal(found[3], x[3])
    far[4, 0, 0, 0] = torch.nan
    assert not threat.allows(x, threat.project(x, far))[4]


@pytest.mark.parametrize("norm", [*NORMS, "l1"])
@pytest.mark.parametrize("eps", [0.0, 8 / 255, 0.5, 1.0])
def test_random_images_are_allowed(norm, eps: float):
    threat, x, noise = Threat(norm, eps), draw(50), Noise.of(1, range(50))
    x[0], x[1] = 0, 1
    for made in (threat.start(x, noise), threat.random_at_full_budget(x, noise)):
        assert made.shape == x.shape
        assert threat.allows(x, made).all()
        if eps:
            assert (threat.size(made - x) > eps / 100).all()  # and not the image itself


@pytest.mark.parametrize("norm", NORMS)
def test_random_image_at_full_budget_spends_it_where_the_box_allows(norm):
    threat, x = Threat(norm, 0.2), torch.full((50, *SHAPE), 0.5)
    delta = threat.random_at_full_budget(x, Noise.of(1, range(50))) - x
    assert torch.allclose(threat.size(delta), torch.full((50,), 0.2), atol=1e-6)
    if norm == "linf":
        assert torch.allclose(delta.abs(), torch.full_like(delta, 0.2), atol=1e-6)
    assert abs(float(delta.mean())) < 5 * float(delta.std()) / delta.numel() ** 0.5
    assert len(delta.flatten(1).unique(dim=0)) == 50


def test_linf_start_is_uniform_in_the_cube():
    x = torch.full((200, *SHAPE), 0.5)
    delta = Threat("linf", 0.1).start(x, Noise.of(0, range(200))) - x
    assert stats.kstest((delta.flatten() / 0.2 + 0.5).numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("shape", [(1, 1, 2), (1, 2, 2), SHAPE])
def test_l2_start_is_uniform_in_the_ball(shape: tuple[int, int, int]):
    """(r / eps)^d is uniform, the direction is isotropic, and both are uncorrelated."""
    size, eps = 3000, 0.4
    x = torch.full((size, *shape), 0.5, dtype=torch.float64)
    delta = (Threat("l2", eps).start(x, Noise.of(0, range(size))) - x).flatten(1)
    dimension, radius = delta.shape[1], delta.norm(dim=1)
    assert stats.kstest(((radius / eps) ** dimension).numpy(), "uniform").pvalue > 1e-3
    way = delta / radius[:, None]
    assert float(way.mean(0).norm()) < 3 / size**0.5
    second = way.T @ way / size  # the identity / d
    assert torch.allclose(second * dimension, torch.eye(dimension).double(), atol=0.15)
    for feature in (way, way.abs(), way * way.roll(1, 1)):
        both = torch.corrcoef(torch.cat([radius[:, None] ** dimension, feature], 1).T)[0, 1:]
        assert float(both.abs().max()) < 4.5 / size**0.5


@pytest.mark.parametrize("norm", NORMS)
def test_random_images_do_not_depend_on_the_batch(norm):
    threat, x = Threat(norm, 0.1), draw(6)
    for make in (threat.start, threat.random_at_full_budget):
        whole = make(x, Noise.of(0, range(6)))
        order = [3, 0, 5]
        assert torch.equal(make(x[order], Noise.of(0, order)), whole[order])


@pytest.mark.parametrize("norm", NORMS)
def test_allows_checks_the_ball_the_box_and_finite_values(norm):
    threat, x = Threat(norm, 0.1), torch.full((7, *SHAPE), 0.05)
    other = x.clone()
    side = 0.1 if norm == "linf" else 0.1 / (x[0].numel() ** 0.5)
    other[1] = x[1] + side  # on the edge
    other[2] = x[2] + 1.01 * side  # beyond it
    other[3, 0, 0, 0] = -1e-6  # outside the box, though near
    other[4, 2, 3, 3] = float("nan")
    other[5, 0, 0, 0] = float("inf")
    other[6] = float("nan")
    assert threat.allows(x, other).tolist() == [True, True, False, False, False, False, False]
    bright = torch.full((1, *SHAPE), 0.99)
    assert not threat.allows(bright, bright + 0.0101).any()


@pytest.mark.parametrize("norm", NORMS)
def test_projecting_a_nan_does_not_make_it_allowed(norm):
    threat, x = Threat(norm, 0.1), draw(2)
    broken = x.clone()
    broken[0, 0, 0, 0] = float("nan")
    assert threat.allows(x, threat.project(x, broken)).tolist() == [False, True]


def test_invalid_norm_and_eps_are_refused():
    with pytest.raises(ValueError, match="norm must be one of linf, l2, l1, l0, not 'l3'"):
        Threat("l3", 0.1)  # pyright: ignore[reportArgumentType]
    for eps in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="eps must be 0 or more"):
            Threat("linf", eps)


# ------------------------------------------------------------------- l0, shares of pixels


def changed(x: torch.Tensor, x_adv: torch.Tensor) -> torch.Tensor:
    return (x_adv != x).any(1).flatten(1).sum(1)


def test_l0_size_is_the_share_of_changed_pixels():
    delta = torch.zeros(3, 3, 4, 4)
    delta[0, 1, 0, 0], delta[1, :, 2, 2], delta[2, 0] = 1e-9, 0.5, 0.1
    assert Threat("l0", 1).size(delta).tolist() == [1 / 16, 1 / 16, 1]


@pytest.mark.parametrize(("eps", "places"), [(0, 0), (0.06, 0), (1 / 16, 1), (0.3, 4), (1, 16)])
def test_l0_changes_the_allowed_number_of_pixels(eps: float, places: int):
    threat, x = Threat("l0", eps), 0.2 + 0.6 * draw(20)
    noise = Noise.of(3, range(20))
    for x_adv in (
        threat.start(x, noise),
        threat.random_at_full_budget(x, noise),
        threat.project(x, gauss(20)),
    ):
        assert (changed(x, x_adv) == places).all()
        assert threat.allows(x, x_adv, slack=0).all()
    if places < 16:
        more = Threat("l0", (places + 1) / 16).random_at_full_budget(x, noise)
        assert not threat.allows(x, more).any()
        assert (
            (more == threat.random_at_full_budget(x, noise))
            .all(1)[(threat.random_at_full_budget(x, noise) != x).any(1)]
            .all()
        )


def test_l0_projection_is_the_nearest_image():
    """No other choice of 2 of the 16 pixels is nearer."""
    threat, x, far = Threat("l0", 2 / 16), draw(5), draw(5) + gauss(5)
    near = threat.project(x, far)
    assert torch.equal(threat.project(x, near), near)
    best = (far - near).flatten(1).norm(dim=1)
    for one in range(16):
        for two in range(one):
            other = x.clone().flatten(2)
            other[:, :, [one, two]] = far.clamp(0, 1).flatten(2)[:, :, [one, two]]
            assert ((far.flatten(2) - other).flatten(1).norm(dim=1) > best - 1e-6).all()


def test_random_l0_image_has_equal_salt_and_pepper_at_uniform_pixels():
    x = torch.full((4000, *SHAPE), 0.5)
    noise = Noise.of(0, range(4000))
    edge = Threat("l0", 0.25).random_at_full_budget(x, noise)
    salt, pepper = int((edge[:, 0] == 1).sum()), int((edge[:, 0] == 0).sum())
    assert salt + pepper == 4 * 4000
    assert stats.binomtest(salt, salt + pepper).pvalue > 0.01
    where = (edge[:, 0] != 0.5).flatten(1).sum(0).numpy()
    assert stats.chisquare(where).pvalue > 0.01


def test_eps_accepts_a_fraction_as_in_a_spec():
    assert Threat("linf", "8/255") == Threat("linf", 8 / 255)
    with pytest.raises(ValueError, match="'8/0'"):
        Threat("linf", "8/0")
