"""What an attacker sees is the mean over his draws."""

import pytest
import torch
from torch import nn

from defuse.attacks.losses import LOSSES, cross_entropy, look, margin
from defuse.noise import Noise

SIZE, CLASSES = 4, 5
NOISE = Noise.of(0, range(SIZE))
BLANK = torch.zeros(SIZE, 1, 3, 3, dtype=torch.float64)
X = NOISE.fold("x").uniform(BLANK)
Y = torch.tensor([0, 1, 4, 1])


class Crooked(nn.Module):
    """A nonlinear model whose weights themselves are noise: no two draws have one gradient."""

    def __init__(self, rows: int | None = None):
        super().__init__()
        self.sizes: list[int] = []
        if rows is not None:
            self.rows = rows

    def forward(self, x, noise):
        self.sizes.append(len(x))
        weight = noise.fold("weight").normal(x.new_zeros(len(x), CLASSES, 9))
        return torch.einsum("bkd,bd->bk", weight, torch.sin(3 * x.flatten(1)))


def test_losses_by_hand():
    logits = torch.tensor([[1.0, 2.0, 4.0], [0.0, -1.0, -3.0]], dtype=torch.float64)
    y = torch.tensor([1, 0])
    assert margin(logits, y).tolist() == [2, -1]
    total = logits.exp().sum(1)
    expected = -(logits[[0, 1], y].exp() / total).log()
    assert torch.allclose(cross_entropy(logits, y), expected)


def test_margin_is_positive_just_where_it_is_misclassified():
    logits = NOISE.normal(torch.zeros(SIZE, CLASSES))
    for label in range(CLASSES):
        y = torch.full((SIZE,), label)
        assert ((margin(logits, y) > 0) == (logits.argmax(1) != y)).all()


def test_margin_never_takes_the_true_class_for_the_best_wrong_one():
    logits = torch.tensor([[9.0, -5.0, -7.0]])
    assert float(margin(logits, torch.tensor([0]))) == -14
    assert float(margin(torch.full((1, 3), -1e30), torch.tensor([2]))) == 0


def one_by_one(loss: str, turn: int, draws: int):
    """Loss, error and gradient of every image in every draw, one model call each."""
    copies, model, out = NOISE.draws(turn, draws), Crooked(), []
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
def test_look_is_the_mean_of_single_draws(loss, rows, draws: int):
    model = Crooked(rows)
    seen = look(model, X, Y, loss, NOISE, 3, draws)
    for mine, expected in zip(seen, one_by_one(loss, 3, draws), strict=True):
        assert mine.shape == expected.shape
        assert torch.allclose(mine, expected, atol=1e-13)
    assert sum(model.sizes) == SIZE * draws
    assert max(model.sizes) <= (rows or SIZE * draws)


def test_turns_meet_draws_of_their_own_and_the_same_turn_the_same():
    first, second = (look(Crooked(), X, Y, "ce", NOISE, turn, 2) for turn in (0, 1))
    assert (first.loss != second.loss).all()
    again = look(Crooked(), X, Y, "ce", NOISE, 0, 2)
    assert torch.equal(first.gradient, again.gradient)


def test_more_draws_converge_to_the_expectation():
    """E[margin] of a two-class model with Gaussian logits is known; so is its slope."""

    def model(x, noise):
        z = x.flatten(1).sum(1, keepdim=True) * (1 + 3 * noise.normal(x[:, :, 0, 0]))
        return torch.cat([-z, z], 1)

    y = torch.zeros(SIZE, dtype=torch.long)
    seen = look(model, X, y, "margin", NOISE, 0, 3000)
    assert torch.allclose(seen.gradient, torch.full_like(X, 2.0), atol=4 * 6 / 3000**0.5)
    expected = 2 * X.flatten(1).sum(1)
    assert ((seen.loss - expected).abs() < 4 * 3 * expected / 3000**0.5).all()


def test_without_a_gradient_none_is_computed():
    asked = []

    def model(x, noise):
        asked.append((torch.is_grad_enabled(), x.requires_grad))
        return x.flatten(1)

    with_it = look(model, X, Y, "ce", NOISE, 0, 2)
    without = look(model, X, Y, "ce", NOISE, 0, 2, gradient=False)
    assert asked == [(True, True), (False, False)]
    assert torch.equal(with_it.loss, without.loss)
    assert torch.equal(with_it.wrong, without.wrong)
    assert (without.gradient == 0).all()
    assert without.gradient.shape == X.shape


def test_a_gradient_is_had_even_where_the_caller_has_none_enabled():
    with torch.no_grad():
        seen = look(Crooked(), X, Y, "ce", NOISE, 0, 2)
    assert (seen.gradient.flatten(1).norm(dim=1) > 0).all()


def test_looking_leaves_no_trace():
    x = X.clone().requires_grad_()
    layer = nn.Linear(9, CLASSES).double()
    look(lambda x, noise: layer(x.flatten(1)), x, Y, "ce", NOISE, 0, 2)
    assert x.grad is None
    assert layer.weight.grad is None
    assert torch.equal(x.detach(), X)


@pytest.mark.parametrize(
    "spoil", [torch.round, torch.Tensor.detach, lambda x: torch.where(x > 0.5, 1.0, 0.0)]
)
def test_a_missing_gradient_is_told_rather_than_taken_for_robustness(spoil):
    def model(x, noise):
        with torch.no_grad():
            return spoil(x).flatten(1)

    with pytest.raises(RuntimeError, match="no gradient leads from the model's logits"):
        look(model, X, Y, "ce", NOISE, 0, 2)
    assert look(model, X, Y, "ce", NOISE, 0, 2, gradient=False).loss.isfinite().all()
