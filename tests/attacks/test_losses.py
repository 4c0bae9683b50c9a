"""Losses, and queries that average losses, errors, and gradients over an attacker's draws."""

import pytest
import torch
from torch import nn

from unfool.attacks.losses import (
    LOSSES,
    TARGETED,
    Loss,
    cross_entropy,
    dlr,
    margin,
    query_logits,
    query_model,
    runner_up_classes,
    toward_cross_entropy,
    toward_dlr,
    toward_margin,
)
from unfool.noise import Noise

SIZE, CLASSES = 4, 5
NOISE = Noise.of(0, range(SIZE))
BLANK = torch.zeros(SIZE, 1, 3, 3, dtype=torch.float64)
X = NOISE.child("x").uniform(BLANK)
Y = torch.tensor([0, 1, 4, 1])


class Crooked(nn.Module):
    """A nonlinear model with random weights: no two draws have the same gradient."""

    def __init__(self, rows: int | None = None):
        super().__init__()
        self.sizes: list[int] = []
        if rows is not None:
            self.batch_size = rows

    def forward(self, x, noise):
        self.sizes.append(len(x))
        weight = noise.child("weight").normal(x.new_zeros(len(x), CLASSES, 9))
        return torch.einsum("bkd,bd->bk", weight, torch.sin(3 * x.flatten(1)))


def test_losses_by_hand():
    logits = torch.tensor([[1.0, 2.0, 4.0], [0.0, -1.0, -3.0]], dtype=torch.float64)
    y = torch.tensor([1, 0])
    assert margin(logits, y).tolist() == [2, -1]
    total = logits.exp().sum(1)
    expected = -(logits[[0, 1], y].exp() / total).log()
    assert torch.allclose(cross_entropy(logits, y), expected)


def test_margin_is_positive_exactly_on_misclassified_images():
    logits = NOISE.normal(torch.zeros(SIZE, CLASSES))
    for label in range(CLASSES):
        y = torch.full((SIZE,), label)
        assert ((margin(logits, y) > 0) == (logits.argmax(1) != y)).all()


def test_margin_never_compares_the_true_class_with_itself():
    logits = torch.tensor([[9.0, -5.0, -7.0]])
    assert float(margin(logits, torch.tensor([0]))) == -14
    assert float(margin(torch.full((1, 3), -1e30), torch.tensor([2]))) == 0


def one_by_one(loss: Loss, query_index: int, draws: int):
    """Mean loss, error, and gradient of every image over draws, with one model call per draw."""
    copies, model, out = NOISE.for_query(query_index, draws), Crooked(), []
    for i in range(SIZE):
        for c in range(draws):
            x = X[i : i + 1].clone().requires_grad_()
            logits = model(x, copies.take([i * draws + c]))
            value = LOSSES[loss](logits, Y[i : i + 1])
            (gradient,) = torch.autograd.grad(value.sum(), x)
            out.append((value.detach(), logits.argmax(1) != Y[i : i + 1], gradient))
    stacked = [torch.stack(part).squeeze(1) for part in zip(*out, strict=True)]
    return [part.double().view(SIZE, draws, *part.shape[1:]).mean(1) for part in stacked]


@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("rows", [None, 1, 3, 7, 8, 1000])
@pytest.mark.parametrize("draws", [1, 6])
def test_query_is_the_mean_of_single_draws(loss, rows, draws: int):
    model = Crooked(rows)
    seen = query_model(model, X, Y, loss, NOISE, 3, draws)
    for mine, expected in zip(seen, one_by_one(loss, 3, draws), strict=True):
        assert mine.shape == expected.shape
        assert torch.allclose(mine, expected, atol=1e-13)
    assert sum(model.sizes) == SIZE * draws
    assert max(model.sizes) <= (rows or SIZE * draws)


def test_each_query_index_has_its_own_reproducible_draws():
    first, second = (
        query_model(Crooked(), X, Y, "ce", NOISE, query_index, 2) for query_index in (0, 1)
    )
    assert (first.loss != second.loss).all()
    again = query_model(Crooked(), X, Y, "ce", NOISE, 0, 2)
    assert torch.equal(first.gradient, again.gradient)


def test_more_draws_converge_to_the_expectation():
    """E[margin] of a two-class model with Gaussian logits is known, and so is its gradient."""

    def model(x, noise):
        z = x.flatten(1).sum(1, keepdim=True) * (1 + 3 * noise.normal(x[:, :, 0, 0]))
        return torch.cat([-z, z], 1)

    y = torch.zeros(SIZE, dtype=torch.long)
    seen = query_model(model, X, y, "margin", NOISE, 0, 3000)
    assert torch.allclose(seen.gradient, torch.full_like(X, 2.0), atol=4 * 6 / 3000**0.5)
    expected = 2 * X.flatten(1).sum(1)
    assert ((seen.loss - expected).abs() < 4 * 3 * expected / 3000**0.5).all()


def test_query_without_gradient_computes_none():
    asked = []

    def model(x, noise):
        asked.append((torch.is_grad_enabled(), x.requires_grad))
        return x.flatten(1)

    with_it = query_model(model, X, Y, "ce", NOISE, 0, 2)
    without = query_model(model, X, Y, "ce", NOISE, 0, 2, gradient=False)
    assert asked == [(True, True), (False, False)]
    assert torch.equal(with_it.loss, without.loss)
    assert torch.equal(with_it.error_rate, without.error_rate)
    assert (without.gradient == 0).all()
    assert without.gradient.shape == X.shape


def test_query_computes_gradients_under_no_grad():
    with torch.no_grad():
        seen = query_model(Crooked(), X, Y, "ce", NOISE, 0, 2)
    assert (seen.gradient.flatten(1).norm(dim=1) > 0).all()


def test_query_has_no_side_effects():
    x = X.clone().requires_grad_()
    layer = nn.Linear(9, CLASSES).double()
    query_model(lambda x, noise: layer(x.flatten(1)), x, Y, "ce", NOISE, 0, 2)
    assert x.grad is None
    assert layer.weight.grad is None
    assert torch.equal(x.detach(), X)


@pytest.mark.parametrize(
    "spoil", [torch.round, torch.Tensor.detach, lambda x: torch.where(x > 0.5, 1.0, 0.0)]
)
def test_missing_gradient_is_refused(spoil):
    def model(x, noise):
        with torch.no_grad():
            return spoil(x).flatten(1)

    with pytest.raises(RuntimeError, match="logits have no gradient"):
        query_model(model, X, Y, "ce", NOISE, 0, 2)
    assert query_model(model, X, Y, "ce", NOISE, 0, 2, gradient=False).loss.isfinite().all()


# ------------------------------------------------------------------------- DLR and targeted losses

LOGITS = torch.tensor([[1.0, 2.0, 4.0, 0.0], [0.0, -1.0, -3.0, -7.0]], dtype=torch.float64)
TRUE, AIM = torch.tensor([1, 0]), torch.tensor([0, 2])


def test_dlr_by_hand():
    assert torch.allclose(dlr(LOGITS, TRUE), torch.tensor([2 / 3, -1 / 3]).double())
    assert toward_margin(LOGITS, TRUE, AIM).tolist() == [-1, -3]
    expected = torch.tensor([-1 / 3.5, -3 / 5]).double()
    assert torch.allclose(toward_dlr(LOGITS, TRUE, AIM), expected)
    assert torch.equal(toward_cross_entropy(LOGITS, TRUE, AIM), -cross_entropy(LOGITS, AIM))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_dlr_is_invariant_to_scale_and_shift(scale: float):
    other = scale * LOGITS + 5
    assert torch.allclose(dlr(other, TRUE), dlr(LOGITS, TRUE), atol=1e-8)
    assert torch.allclose(toward_dlr(other, TRUE, AIM), toward_dlr(LOGITS, TRUE, AIM), atol=1e-8)


def test_dlr_of_too_few_classes_is_refused():
    with pytest.raises(ValueError, match=r"dlr .*3 classes.* 2"):
        dlr(LOGITS[:, :2], TRUE)
    with pytest.raises(ValueError, match=r"targeted dlr .*4 classes.* 3"):
        toward_dlr(LOGITS[:, :3], TRUE, AIM)


@pytest.mark.parametrize("loss", TARGETED)
def test_targeted_query_uses_the_target_of_each_image(loss):
    aims = torch.tensor([2, 3, 0, 0])
    seen = query_model(Crooked(3), X, Y, loss, NOISE, 3, 4, target=aims)
    for i in range(SIZE):
        x = X[i : i + 1].repeat_interleave(4, 0).requires_grad_()
        logits = Crooked()(x, NOISE.for_query(3, 4).take(range(4 * i, 4 * i + 4)))
        value = TARGETED[loss](logits, Y[i].expand(4), aims[i].expand(4)).mean()
        (gradient,) = torch.autograd.grad(value, x)
        assert torch.allclose(seen.loss[i], value)
        assert torch.allclose(seen.gradient[i], gradient.sum(0))
    assert torch.equal(seen.error_rate, query_model(Crooked(), X, Y, "ce", NOISE, 3, 4).error_rate)


def test_query_logits_returns_the_logits_of_each_draw():
    for rows in (None, 1, 5):
        logits = query_logits(Crooked(rows), X, NOISE, 2, 3)
        assert logits.shape == (SIZE, 3, CLASSES)
        wrong = (logits.argmax(2) != Y[:, None]).double().mean(1)
        assert torch.equal(wrong, query_model(Crooked(), X, Y, "ce", NOISE, 2, 3).error_rate)


def test_runner_up_classes_are_the_wrong_classes_by_logit():
    def model(x, noise):
        return torch.tensor([3.0, 9.0, 1.0, 5.0]).expand(len(x), 4)

    y = torch.tensor([1, 0, 3, 2])
    expected = [[3, 0, 2], [1, 3, 2], [1, 0, 2], [1, 3, 0]]
    assert runner_up_classes(model, X, y, NOISE, 2, 9).tolist() == expected
    assert runner_up_classes(model, X, y, NOISE, 2, 2).tolist() == [row[:2] for row in expected]


class SometimesNan(Crooked):
    """Its gradient is NaN at half of the draws, where the logits are finite."""

    def forward(self, x, noise):
        logits = super().forward(x, noise)
        none = 0 * x.flatten(1).sum(1, keepdim=True)
        is_bad = noise.child("bad").uniform(none) < 0.5
        return logits + torch.where(is_bad, none, none + 1).sqrt()


@pytest.mark.parametrize("weigh", [None, lambda losses, gradients: torch.ones_like(losses)])
def test_draws_with_nan_gradients_do_not_hide_the_others(weigh):
    result = query_model(SometimesNan(), X, Y, "margin", NOISE, 0, 16, weigh=weigh)
    assert bool(result.gradient.isfinite().all())
    copies, images = NOISE.for_query(0, 16), X.repeat_interleave(16, 0)
    is_bad = copies.child("bad").uniform(images[:, 0, 0, :1]) < 0.5
    assert bool(is_bad.view(SIZE, 16).any(1).all())
    points = images.clone().requires_grad_()
    loss = margin(Crooked()(points, copies), Y.repeat_interleave(16))
    (gradients,) = torch.autograd.grad(loss.sum(), points)
    good = (~is_bad).to(X).view(SIZE, 16, 1, 1, 1)
    mean = (gradients.view(SIZE, 16, *X.shape[1:]) * good).sum(1) / good.sum(1)
    assert torch.allclose(
        result.gradient / result.gradient.flatten(1).norm(dim=1)[:, None, None, None],
        mean / mean.flatten(1).norm(dim=1)[:, None, None, None],
    )
