"""Tests of the adjoint from DiffPure's released code: equal outputs, but an inexact gradient."""

import builtins
import importlib

import pytest
import torch
from torch.nn.functional import cosine_similarity

from unfool.defenses.diffpure import DiffPure
from unfool.diffusion.adjoint import reverse_adjoint
from unfool.diffusion.denoiser import Mixture
from unfool.diffusion.reverse import euler_maruyama, even, reverse
from unfool.noise import Noise

CURVED = Mixture(0.15 * Noise.of(3, range(12)).normal(torch.empty(12, 1, 3, 3)).double(), 0.05)
PULL = Noise.of(9, [1]).normal(torch.empty(1, 1, 3, 3)).double()
START = CURVED.means[1:2] + 0.3 * Noise.of(5, [1]).normal(PULL)  # between two of the means


def both(model: Mixture, steps: int, t: float = 0.02):
    """Return outputs and gradients of the exact method and of the adjoint, on the same noise."""
    found = []
    for way in (
        lambda z, times, noise: reverse(model, z, times, noise, step=euler_maruyama),
        lambda z, times, noise: reverse_adjoint(model, z, times, noise),
    ):
        z = START.clone().requires_grad_()
        out = way(z, even(t, steps), Noise.of(1, [1]))
        found += [out.detach(), torch.autograd.grad((out * PULL).sum(), z)[0]]
    return found


def test_adjoint_output_is_equal_and_its_gradient_error_falls_with_step_size():
    pytest.importorskip("torchsde", reason="the adjoint needs torchsde (the extra `adjoint`)")
    errors = []
    for steps in (20, 100):  # steps of 0.001, as in the released code, and of 0.0002
        out, exact, same, adjoint = both(CURVED, steps)
        assert torch.equal(out, same)
        errors.append(1 - float(cosine_similarity(exact.flatten(1), adjoint.flatten(1))))
    assert errors[0] > 0.005
    assert errors[1] < errors[0] / 3


def test_adjoint_gradient_is_nearly_exact_for_one_gaussian():
    """The map is affine, so only the shifted time grid matters, which is first order in the step size."""
    pytest.importorskip("torchsde", reason="the adjoint needs torchsde (the extra `adjoint`)")
    one = Mixture(torch.full((1, 1, 3, 3), 0.2, dtype=torch.float64), 0.5)
    _, exact, _, adjoint = both(one, 50, t=0.05)
    assert torch.allclose(exact, adjoint, rtol=5e-3, atol=0)
    assert not torch.allclose(exact, adjoint, rtol=1e-6, atol=0)


def test_adjoint_of_a_purifier_has_the_same_output():
    pytest.importorskip("torchsde", reason="the adjoint needs torchsde (the extra `adjoint`)")
    purify, x = DiffPure(CURVED, t=0.02, steps=20), (START + 1) / 2
    noise = Noise.of(0, [1])
    assert torch.equal(purify.adjoint()(x, noise), purify(x, noise))


def test_only_the_sde_sampler_has_an_adjoint():
    with pytest.raises(ValueError, match="sampler `sde`"):
        DiffPure(CURVED, sampler="ddpm").adjoint()


def test_missing_torchsde_is_reported_with_the_install_command(monkeypatch):
    def missing(name, *_):
        raise ImportError(name) if name == "torchsde" else builtins.__import__(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ValueError, match=r"pip install 'unfool\[adjoint\]'"):
        DiffPure(CURVED).adjoint()
