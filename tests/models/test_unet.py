"""The U-Net of the package."""

from typing import Any

import pytest
import torch
from torch import nn

from unfool.models import card
from unfool.models.unet import unet
from unfool.noise import Noise, seed_torch
from unfool.spec import Part

TINY: dict[str, Any] = {"size": 8, "widths": (8, 16), "groups": 4}
NOISE = Noise.of(0, range(2))


def make(**options):
    seed_torch(0)
    return unet(**{**TINY, **options}).eval()


def images(channels: int = 3, size: int = 8) -> torch.Tensor:
    return NOISE.normal(torch.zeros(2, channels, size, size))


@pytest.mark.parametrize(
    "options",
    [{}, {"channels": 1}, {"patch": 2}, {"attention": (1,)}, {"layers": 2}, {"widths": (8,)}],
)
def test_output_has_shape_of_images_and_depends_on_each(options):
    model, channels = make(**options), options.get("channels", 3)
    x = images(channels).requires_grad_()
    out = model(x, torch.tensor(0.1))
    assert out.shape == x.shape
    assert model.shape == (channels, 8, 8)
    (gradient,) = torch.autograd.grad(out.square().sum(), x)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()


def test_images_of_a_batch_are_independent():
    model, x = make(attention=(1,)), images()
    together = model(x, torch.tensor(0.1))
    alone = torch.cat([model(x[i : i + 1], torch.tensor(0.1)) for i in range(2)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_output_depends_on_time_and_label():
    model, x = make(classes=3), images()
    t = torch.tensor(0.1)
    none, zero, one = (model(x, t, y) for y in (None, torch.zeros(2).long(), torch.ones(2).long()))
    null = model(x, t, torch.full((2,), 3))
    assert torch.equal(none, null)
    assert not torch.allclose(none, zero)
    assert not torch.allclose(one, zero)
    assert not torch.allclose(model.predict(x, t), model.predict(x, torch.tensor(0.5)))


def test_multi_head_network_predicts_all_labels_in_one_call():
    model, x, t = make(classes=3, multi_head=True), images(), torch.tensor([0.1, 0.4])
    t = t[:, None, None, None]
    labels = torch.tensor([[2, 0, 3], [1, 1, 0]])
    together = model(x, t, labels)
    assert together.shape == (2, 3, 3, 8, 8)
    for i in range(3):
        assert torch.allclose(together[:, i], model(x, t, labels[:, i]), atol=1e-6)
    assert torch.equal(model(x, t), model(x, t, torch.full((2,), 3)))
    assert not torch.allclose(together[0, 0], together[0, 1])


def test_multi_head_network_starts_as_copies_of_its_source(tmp_path):
    one, many = make(), make(classes=3, multi_head=True)
    part: Part = {"name": "unet", "size": 8, "widths": (8, 16), "groups": 4}
    card.save(tmp_path, "denoiser", part, one)
    assert card.initialize_from(many, str(tmp_path)) == []
    x, t = images(), torch.tensor(0.1)
    for label in (None, torch.tensor([0, 2])):
        assert torch.allclose(many(x, t, label), one(x, t), atol=1e-6)


def test_multi_head_requires_classes():
    with pytest.raises(ValueError, match="multi_head"):
        make(multi_head=True)


def test_attention_is_only_at_requested_levels():
    def heads(model: nn.Module) -> int:
        return sum("Attention" in type(part).__name__ for part in model.modules())

    assert heads(make()) == 0
    assert heads(make(attention=(1,))) > 0
    assert heads(make(attention=(0, 1))) > heads(make(attention=(1,)))


def test_initial_weights_depend_only_on_the_seed():
    one, other = make(), make()
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_invalid_sizes_are_refused():
    with pytest.raises(ValueError, match="multiple of patch x 2"):
        unet(size=10, widths=(8, 16, 32), groups=4)
    with pytest.raises(ValueError, match="multiple of groups = 32"):
        unet(widths=(48, 64))
