"""Joint energy-based models (JEM), from files in the layout of the authors' release."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unfool import spec as specs
from unfool.errors import SpecError
from unfool.evaluation.cost import CallCounter
from unfool.evaluation.prepare import build_model
from unfool.evaluation.spec import check_model
from unfool.models.jem import JEM
from unfool.noise import Noise, seed_torch

# layers of the smallest network, under the names of the release
BLOCK = ["conv1", "conv2", "shortcut.0"]
LAYERS = [
    "f.conv1",
    *(f"f.layer{stage}.0.{layer}" for stage in (1, 2, 3) for layer in BLOCK),
    "f.linear",
    "energy_output",
    "class_output",
]
X = Noise.of(3, range(2)).uniform(torch.empty(2, 3, 32, 32))
NOISE = Noise.of(4, range(2))


@pytest.fixture
def state():
    """Return the weights of a WRN-10-2, created independently of our network."""
    shapes = {"f.conv1": (16, 3, 3, 3)}
    before = 16
    for stage, after in ((1, 32), (2, 64), (3, 128)):
        at = f"f.layer{stage}.0."
        shapes |= {at + "conv1": (after, before, 3, 3), at + "conv2": (after, after, 3, 3)}
        shapes[at + "shortcut.0"] = (after, before, 1, 1)
        before = after
    shapes |= {"f.linear": (10, 128), "energy_output": (1, 128), "class_output": (10, 128)}
    made = {}
    for i, (name, shape) in enumerate(shapes.items()):
        source = Noise.of(9, [i])
        fan = shape[1] * (shape[2] * shape[3] if len(shape) == 4 else 1)
        made[f"{name}.weight"] = source.normal(torch.empty(1, *shape))[0] * (2 / fan) ** 0.5
        made[f"{name}.bias"] = 0.1 * source.child("bias").normal(torch.empty(1, shape[0]))[0]
    return made


@pytest.fixture
def file(tmp_path, state):
    """Write a file as the function `checkpoint` of the release does."""
    torch.save(
        {"model_state_dict": state, "replay_buffer": torch.zeros(4, 3, 32, 32)},
        tmp_path / "CIFAR10_MODEL.pt",
    )
    return tmp_path / "CIFAR10_MODEL.pt"


def part(file, **options) -> Any:
    return {"name": "jem", "depth": 10, "width": 2, "weights": str(file), **options}


def build(file, **options):
    return build_model(check_model({"classifier": part(file, **options)}), "cpu")


def written_out(state, x):
    """Compute the forward pass of the release, layer by layer."""

    def conv(name, z, stride=1, padding=1):
        return F.conv2d(z, state[f"{name}.weight"], state[f"{name}.bias"], stride, padding)

    z = conv("f.conv1", (x - 0.5) / 0.5)
    for stage, stride in ((1, 1), (2, 2), (3, 2)):
        at = f"f.layer{stage}.0."
        inner = conv(at + "conv1", F.leaky_relu(z, 0.2))
        inner = conv(at + "conv2", F.leaky_relu(inner, 0.2), stride)
        z = inner + conv(at + "shortcut.0", z, stride, 0)
    z = F.avg_pool2d(F.leaky_relu(z, 0.2), 8).flatten(1)
    return F.linear(z, state["class_output.weight"], state["class_output.bias"])


def test_published_file_reproduces_logits_and_density_of_release(file, state):
    model, wanted = build(file), written_out(state, X)
    torch.testing.assert_close(model(X, NOISE), wanted, rtol=1e-4, atol=1e-4)
    assert isinstance(model, JEM)
    torch.testing.assert_close(model.density(X), wanted.logsumexp(1), rtol=1e-4, atol=1e-4)


def test_weight_names_and_sizes_match_release():
    seed_torch(0)
    names = JEM(10, 2).state_dict()
    assert list(dict.fromkeys(name.rpartition(".")[0] for name in names)) == LAYERS
    assert not any(isinstance(m, nn.BatchNorm2d) for m in JEM(10, 1).modules())
    assert "f.layer1.0.shortcut.0.weight" not in JEM(10, 1).state_dict(), "16 channels to 16"
    with torch.device("meta"):
        deep = JEM()
    assert "f.layer3.3.conv2.bias" in deep.state_dict()
    assert JEM(10, 1, classes=100).f.linear.out_features == 10, "as train_wrn_ebm.py builds it"


def test_bare_state_dict_is_accepted(tmp_path, state):
    torch.save(state, tmp_path / "old.pt")
    torch.testing.assert_close(
        build(tmp_path / "old.pt")(X, NOISE), written_out(state, X), rtol=1e-4, atol=1e-4
    )


def test_logits_are_averaged_over_noisy_chains(file, state):
    model = build(file, chains=2, sigma=0.015)
    each = []
    for i in range(2):
        eps = NOISE.child("jem", i).child("start").normal(X)
        each.append(written_out(state, X + 0.015 * eps))
    torch.testing.assert_close(model(X, NOISE), sum(each) / 2, rtol=1e-3, atol=1e-3)


def test_refinement_step_raises_density_and_has_exact_gradient(state):
    model = JEM(10, 2, refine=1).double()
    model.load_state_dict(state)
    model.requires_grad_(False)
    with torch.no_grad():  # smaller gradients, so that the step does not overshoot
        model.class_output.weight *= 0.2
    plain = JEM(10, 2).double()
    plain.load_state_dict(model.state_dict())

    def logits(z):
        return plain((z + 1) / 2, NOISE)

    x = X.double()
    z = (2 * x - 1).requires_grad_()
    (slope,) = torch.autograd.grad(logits(z).logsumexp(1).sum(), z)
    moved = z.detach() + slope + 0.01 * NOISE.child("jem", 0, "step", 0).normal(z.detach())
    torch.testing.assert_close(model(x, NOISE), logits(moved))
    assert bool((model.density(x + slope / 2) > model.density(x)).all())
    x_ = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x_, NOISE)[:, 0].sum(), x_)
    way = NOISE.child("way").normal(x)
    with torch.no_grad():
        up, down = (model(x + h * way, NOISE)[:, 0].sum() for h in (1e-7, -1e-7))
    found = float((gradient * way).sum())
    assert found == pytest.approx(float((up - down) / 2e-7), rel=1e-3), "but for kinks"
    there = moved.requires_grad_()
    (as_identity,) = torch.autograd.grad(logits(there)[:, 0].sum(), there)
    assert float((2 * as_identity * way).sum()) != pytest.approx(found, rel=4e-3)


def test_invalid_options_and_files_are_refused(file, tmp_path):
    with pytest.raises(SpecError, match=r"f\.layer1.*depth, width"):
        build(file, width=1)
    with pytest.raises(SpecError, match="there is no file"):
        build(tmp_path / "none.pt")
    for options, said in (({"depth": 11}, "6n"), ({"chains": 0}, "chains must be 1 or more")):
        with pytest.raises(ValueError, match=said):
            JEM(**options)
    with pytest.raises(SpecError, match="did you mean 'refine'"):
        specs.check("classifier", part(file, refin=1))


def test_calls_of_all_chains_and_steps_are_counted(file):
    model = specs.build("classifier", part(file, chains=2, refine=1, sigma=0.01)).eval()
    ledger, x = CallCounter(), X.clone().requires_grad_()
    with ledger.watching(model.requires_grad_(False)):
        model(x, NOISE).sum().backward()
    made = ledger.take()
    assert made["classifier_forward"] == 2 * 2 * len(x)  # 2 chains, each with a step and the logits
    assert made["classifier_vjp"] >= 2 * 2 * len(x)
