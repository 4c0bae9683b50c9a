"""Tests of distances against their definitions."""

import sys

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d
from scipy.special import rel_entr
from scipy.stats import entropy as scipy_entropy

from unfool.distances import INPUT, OUTPUT, lpips, ssim
from unfool.noise import Noise

NOISE = Noise.of(0, range(4))
X = NOISE.child("x").uniform(torch.zeros(4, 3, 16, 14, dtype=torch.float64))
Y = (X + 0.1 * NOISE.child("y").normal(X)).clamp(0, 1)
A, B = (NOISE.child(name).normal(torch.zeros(4, 5, dtype=torch.float64)) for name in "ab")


def reference_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Return SSIM of one channel by Wang et al.'s formula, for windows that lie inside the image."""
    window = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def mean(image):
        smooth = correlate1d(correlate1d(image, window, axis=0), window, axis=1)
        return smooth[5:-5, 5:-5]

    c1, c2 = 0.01**2, 0.03**2
    m_x, m_y = mean(x), mean(y)
    v_x, v_y = mean(x * x) - m_x**2, mean(y * y) - m_y**2
    v_xy = mean(x * y) - m_x * m_y
    top = (2 * m_x * m_y + c1) * (2 * v_xy + c2)
    return float((top / ((m_x**2 + m_y**2 + c1) * (v_x + v_y + c2))).mean())


def test_ssim_matches_the_formula_of_wang_et_al():
    for i in range(4):
        channels = [reference_ssim(X[i, c].numpy(), Y[i, c].numpy()) for c in range(3)]
        assert float(ssim(X, Y)[i]) == pytest.approx(np.mean(channels), abs=1e-12)


def test_ssim_of_constant_images_matches_closed_form():
    x, y = (torch.full((1, 1, 12, 12), v, dtype=torch.float64) for v in (0.3, 0.5))
    expected = (2 * 0.3 * 0.5 + 1e-4) / (0.3**2 + 0.5**2 + 1e-4)
    assert float(ssim(x, y)) == pytest.approx(expected, rel=1e-9)
    assert torch.allclose(ssim(4 * X, 4 * Y, span=4), ssim(X, Y), atol=1e-12)


@pytest.mark.parametrize("side", [1, 4, 8, 10])
def test_ssim_works_on_images_smaller_than_its_window(side: int):
    x, y = X[:, :1, :side, :side], Y[:, :1, :side, :side]
    assert torch.allclose(ssim(x, x), torch.ones(4).double())
    assert (ssim(x, y) < 1).all()


@pytest.mark.parametrize("name", ["mse", "l1", "ssim"])
def test_image_distances_match_definitions_and_have_exact_gradients(name: str):
    far = INPUT[name](X, Y)
    gap = (X - Y).numpy()
    expected = {"mse": (gap**2).mean((1, 2, 3)), "l1": np.abs(gap).mean((1, 2, 3))}
    if name in expected:
        assert far.numpy() == pytest.approx(expected[name])
    assert far.shape == (4,)
    assert torch.allclose(INPUT[name](X, X), torch.zeros(4).double(), atol=1e-12)
    assert torch.allclose(INPUT[name](X[2:3], Y[2:3]), far[2:3], atol=1e-14)
    small = [X[:2, :1, :4, :4].clone().requires_grad_(), Y[:2, :1, :4, :4]]
    assert torch.autograd.gradcheck(INPUT[name], small)


def test_output_distances_match_scipy():
    p, r = A.softmax(1).numpy(), B.softmax(1).numpy()
    expected = {
        "kl": rel_entr(r, p).sum(1),
        "l2": ((p - r) ** 2).sum(1),
        "confidence": -np.log(p.max(1)),
        "entropy": scipy_entropy(p, axis=1),
        "repel": -rel_entr(r, p).sum(1),
    }
    assert expected.keys() == OUTPUT.keys()
    for name, values in expected.items():
        assert OUTPUT[name](A, B).numpy() == pytest.approx(values)


def test_kl_gradient_does_not_vanish_for_a_saturated_classifier():
    """The log of a softmax would have no gradient if float32 rounds the largest probability to 1."""
    logits = torch.tensor([[80.0, 0.0, -3.0]], requires_grad=True)
    reference = torch.tensor([[-80.0, 0.0, 3.0]])
    (slope,) = torch.autograd.grad(OUTPUT["kl"](logits, reference).sum(), logits)
    assert float(slope.abs().max()) > 0.9


def test_missing_lpips_is_reported_with_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"pip install 'unfool\[lpips\]'"):
        lpips(X, Y)
