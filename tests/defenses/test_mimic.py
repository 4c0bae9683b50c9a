"""Tests of the guide of MimicDiffusion against explicit steps."""

import pytest
import torch
from probe import blobs, world

from unfool.defenses.diffpure import DiffPure
from unfool.defenses.mimic import Mimic
from unfool.diffusion.schedule import VP
from unfool.noise import Noise
from unfool.toy.blobs import mixture

X, NOISE = blobs(), Noise.of(1, range(4))


def scales(t: float):
    return VP()(torch.tensor(t, dtype=torch.float64))


@pytest.mark.parametrize("through", [True, False])
def test_guide_moves_the_ddpm_mean_as_in_the_released_code(through: bool):
    """For one Gaussian pixel, x_hat = gain x_t + rest; the step goes from t = 0.1 to the clean image."""
    guide = Mimic(scale=3.0, reference_batch_size=2, through=through)
    x, noise = torch.full((1, 1, 1, 1), 0.9, dtype=torch.float64), Noise.of(5, [0])
    bare = DiffPure(world(0.5), t=0.1, steps=1, sampler="ddpm")
    purify = DiffPure(world(0.5), t=0.1, steps=1, sampler="ddpm", guide=guide)
    now = scales(0.1)
    gain = now.alpha * 0.25 / (now.alpha**2 * 0.25 + now.sigma**2)
    x_hat = 2 * bare(x, noise) - 1
    slope = torch.sign(x_hat - 0.8) * (gain if through else 1 / now.alpha)
    expected = x_hat - 3.0 / 2 * now.alpha * slope
    with torch.no_grad():
        assert float(2 * purify(x, noise) - 1) == pytest.approx(float(expected), rel=1e-9)


def test_guide_moves_an_intermediate_step_by_the_expected_amount():
    guide = Mimic(scale=3.0, reference_batch_size=2, through=False)
    options = {"t": 0.1, "steps": 2, "sampler": "ddpm"}
    x, noise = torch.full((1, 1, 1, 1), 0.9, dtype=torch.float64), Noise.of(5, [0])
    paths = [
        [state for _, state in DiffPure(world(0.5), guide=one, **options).walk(x, noise)]
        for one in (None, guide)
    ]
    moved = 2 * (paths[1][1] - paths[0][1])
    assert float(moved.abs()) == pytest.approx(3.0 / 2, rel=1e-9)  # alpha times sign / alpha


def test_zero_scale_is_diffpure_and_larger_scale_approaches_the_image():
    bare = DiffPure(mixture(), t=0.5, steps=10, sampler="ddpm")
    none = DiffPure(mixture(), t=0.5, steps=10, sampler="ddpm", guide=Mimic(scale=0))
    some = DiffPure(mixture(), t=0.5, steps=10, sampler="ddpm", guide=Mimic(scale=10))
    assert torch.allclose(none(X, NOISE), bare(X, NOISE), atol=1e-12)
    assert float((some(X, NOISE) - X).abs().mean()) < float((bare(X, NOISE) - X).abs().mean())


def test_heun_refuses_the_guide():
    with pytest.raises(ValueError, match="heun"):
        DiffPure(mixture(), t=0.3, steps=4, sampler="heun", guide=Mimic())(X, NOISE)
