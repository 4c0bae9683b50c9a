"""`NormalizedClassifier`: networks as classifiers of images in [0, 1]."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unfool.models.classifiers import NormalizedClassifier
from unfool.noise import Noise, seed_torch


class Says(nn.Module):
    """A network that returns `answer` for any input."""

    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> object:
        return self.answer


X = torch.linspace(0, 1, 2 * 3 * 4 * 4).view(2, 3, 4, 4)
NOISE = Noise.of(0, range(2))


def test_input_is_normalized_per_channel_or_by_one_value():
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 4.0])
    expected = (X - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    assert torch.equal(
        NormalizedClassifier(nn.Flatten(), (0.1, 0.2, 0.3), (1, 2, 4))(X, NOISE),
        expected.flatten(1),
    )
    assert torch.equal(
        NormalizedClassifier(nn.Flatten(), (0.5,), (0.5,))(X, NOISE), ((X - 0.5) / 0.5).flatten(1)
    )


@pytest.mark.parametrize(
    "make",
    [
        list,
        np.array,
        torch.tensor,
        lambda values: np.array(values, np.float32),
        lambda values: torch.tensor(values).view(3, 1, 1),
        lambda values: torch.tensor(values, dtype=torch.float64)[None, :, None, None],
    ],
)
def test_mean_and_std_accept_all_numeric_types(make):
    given = NormalizedClassifier(nn.Flatten(), make([0.1, 0.2, 0.3]), make([1.0, 2.0, 4.0]))
    assert torch.equal(
        given(X, NOISE),
        NormalizedClassifier(nn.Flatten(), (0.1, 0.2, 0.3), (1, 2, 4))(X, NOISE),
    )
    for one in (np.float32(0.5), np.float64(0.5), torch.tensor(0.5), 0.5):
        assert torch.equal(
            NormalizedClassifier(nn.Flatten(), one, one)(X, NOISE), ((X - 0.5) / 0.5).flatten(1)
        )
    for odd in (0.0, -1.0, [1.0, 0.0, 1.0]):
        with pytest.raises(ValueError, match=r"std must be above 0.*0\.0|-1\.0"):
            NormalizedClassifier(nn.Flatten(), std=odd)
    with pytest.raises(ValueError, match=r"mean must be finite.*nan"):
        NormalizedClassifier(nn.Flatten(), mean=np.array([torch.nan]))


def test_default_dtype_of_torch_does_not_change_constants():
    seed_torch(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    expected = NormalizedClassifier(network, 0.5, 0.5)(X, NOISE)
    torch.set_default_dtype(torch.float64)
    try:
        model = NormalizedClassifier(network, 0.5, 0.5)
    finally:
        torch.set_default_dtype(torch.float32)
    assert model.mean.dtype == torch.float32
    assert torch.equal(model(X, NOISE), expected)


def test_input_is_not_normalized_by_default():
    assert torch.equal(NormalizedClassifier(nn.Flatten())(X, NOISE), X.flatten(1))


def test_pixel_gradient_includes_normalization():
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(
        NormalizedClassifier(nn.Flatten(), std=(0.25,))(x, NOISE).sum(), x
    )
    assert torch.equal(gradient, torch.full_like(x, 4))


def test_mean_and_std_move_with_model_and_are_not_in_state_dict():
    seed_torch(0)
    model = NormalizedClassifier(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), (0.5,), (0.5,))
    assert set(model.state_dict()) == {"network.1.weight", "network.1.bias"}
    assert model.double()(X.double(), NOISE).dtype == torch.float64
    assert model.to("meta").mean.is_meta


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (torch.zeros(2, 3, 1), r"\(2, 3, 1\)"),
        (torch.zeros(2), r"\(2,\)"),
        (torch.zeros(1, 3), r"\(1, 3\)"),
        ({"logits": torch.zeros(2, 3)}, "dict"),
    ],
)
def test_output_that_is_not_logits_is_refused(answer: object, found: str):
    with pytest.raises(
        ValueError, match=rf"must return logits of shape \(2, K\), and returned {found}"
    ):
        NormalizedClassifier(Says(answer))(X, NOISE)


def test_single_mean_and_std_apply_to_all_channels():
    for mean, std in ((0.5, 0.25), ([0.5], [0.25]), ([0.5] * 3, [0.25] * 3)):
        assert torch.equal(
            NormalizedClassifier(nn.Flatten(), mean, std)(X, NOISE), ((X - 0.5) / 0.25).flatten(1)
        )


def test_invalid_mean_and_std_are_refused():
    with pytest.raises(ValueError, match=r"mean must .* 1 channels, not 3"):
        NormalizedClassifier(nn.Flatten(), mean=(0.1, 0.2, 0.3))(X[:, :1], NOISE)
    with pytest.raises(ValueError, match=r"std must .* 3 channels, not 2"):
        NormalizedClassifier(nn.Flatten(), std=(0.1, 0.2))(X, NOISE)
    with pytest.raises(ValueError, match="std must be above 0"):
        NormalizedClassifier(nn.Flatten(), std=(0.1, 0.0, 0.1))


def test_images_are_resized_and_gradients_keep_input_size():
    x = X.clone().requires_grad_()
    model = NormalizedClassifier(nn.Flatten(), size=6)
    logits = model(x, NOISE)
    assert logits.shape == (2, 3 * 6 * 6)
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    assert gradient.shape == x.shape
    assert (gradient != 0).float().mean() > 0.9
    flat = torch.full((1, 3, 5, 7), 0.25)
    assert torch.allclose(NormalizedClassifier(nn.Flatten(), size=(2, 3))(flat), torch.tensor(0.25))
    same = NormalizedClassifier(nn.Flatten(), size=4)(X, NOISE)
    assert torch.equal(same, X.flatten(1))
    with pytest.raises(ValueError, match=r"size must be 1 or more, .* not \(0, 4\)"):
        NormalizedClassifier(nn.Flatten(), size=(0, 4))


def test_labels_select_and_reorder_logits():
    model = NormalizedClassifier(nn.Flatten(), labels=[5, 0])
    assert torch.equal(model(X, NOISE), X.flatten(1)[:, [5, 0]])
    with pytest.raises(ValueError, match=r"labels go up to 48, .* 48 classes"):
        NormalizedClassifier(nn.Flatten(), labels=[48])(X, NOISE)
    with pytest.raises(ValueError, match=r"labels must be .* not \[-1\]"):
        NormalizedClassifier(nn.Flatten(), labels=[-1])
