"""Tests of execution modes of a network: equal outputs, and a cached choice of the fastest."""

import json
from copy import deepcopy
from typing import Any

import pytest
import torch
from diffusers.models.upsampling import Upsample2D
from torch import nn
from torch._decomp import core_aten_decompositions
from torch._dynamo.backends.common import aot_autograd
from torch._functorch._aot_autograd.utils import make_boxed_func

from unfool.diffusion import execution
from unfool.diffusion.denoiser import NetworkDenoiser
from unfool.diffusion.execution import Trial, choose, execute, run_as, trials
from unfool.diffusion.gradient import keep_graphs, twice_differentiable
from unfool.diffusion.reverse import even, flow, reverse
from unfool.errors import SpecError
from unfool.models.unet import unet
from unfool.noise import Noise, seed_torch


class Wave(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 1)

    def forward(self, x, time):
        return self.second(torch.sin(self.first(x)) + time[:, None, None, None] / 1000)


def make() -> NetworkDenoiser:
    seed_torch(0, "wave")
    return NetworkDenoiser(Wave(), shape=(3, 8, 8)).eval().requires_grad_(False)


X, T = Noise.of(0, range(2)).normal(torch.empty(2, 3, 8, 8)), torch.tensor(0.1)


@pytest.fixture
def backend(monkeypatch):
    """Replace the backend of `torch.compile`, which takes minutes, by one that only captures graphs."""
    compile_, seen = torch.compile, []

    def compiled(forward, options):
        fast = compile_(forward, backend="aot_eager")

        def run(*args):
            seen.append(options)
            return fast(*args)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    return seen


def test_channels_last_changes_the_layout_but_not_the_output():
    plain, other = make(), make()
    run_as(other, "channels_last")
    network: Any = other.network
    assert network.first.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(plain(X, T), other(X, T), atol=1e-6)


def test_compiled_network_has_equal_outputs_and_second_derivatives(backend):
    plain, other = make(), make()
    execute(nn.ModuleDict({"denoiser": other}), "compiled", rows=2)
    assert len(backend) == 1  # one call of a copy, to compare its output
    assert torch.allclose(plain(X, T), other(X, T), atol=1e-6)
    assert backend == [{"freezing": True, "max_autotune": True}], "gradients are on"
    with torch.no_grad():
        assert torch.allclose(plain(X, T), other(X, T), atol=1e-6)
        assert len(backend) == 2
        copy, before = deepcopy(other), other(X, T)
        network: Any = copy.network
        network.second.bias.add_(1)
        assert not torch.equal(copy(X, T), before), "a copy has its own weights"
        assert torch.equal(other(X, T), before)
    assert len(backend) == 4, "and is executed as it is written"
    gradients = []
    for model in (plain, other):
        x = X.clone().requires_grad_()
        first = torch.autograd.grad(model(x, T).square().sum(), x)[0]
        with twice_differentiable():
            slope = torch.autograd.grad(model(x, T).square().sum(), x, create_graph=True)[0]
        gradients.append((first, torch.autograd.grad(slope.square().sum(), x)[0]))
    for one, two in zip(*gradients, strict=True):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-4)
    assert list(plain.state_dict()) == list(other.state_dict())


def test_chain_that_needs_a_gradient_is_not_compiled(backend):
    model, found = make(), []
    run_as(model, "compiled")
    for graphs in (0, 2, 3):
        x = X.clone().requires_grad_()
        with keep_graphs(graphs):
            out = reverse(model, x, even(0.1, 3), Noise.of(0, range(2)), step=flow)
        found.append(torch.autograd.grad(out.square().sum(), x)[0])
    assert not backend
    assert all(torch.equal(found[0], one) for one in found)
    with torch.no_grad():
        reverse(model, X, even(0.1, 3), Noise.of(0, range(2)), step=flow)
    assert len(backend) == 3


@pytest.mark.parametrize("ours", [True, False])
def test_replaced_upsampling_is_equal_and_scatters_no_gradient(ours):
    seed_torch(0, "up")
    doubling = [nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3)]
    plain = nn.Sequential(*doubling) if ours else Upsample2D(4, use_conv=True)
    plain.requires_grad_(False)
    other = deepcopy(plain)
    execution.replace_upsampling(other)
    execution.replace_upsampling(other)  # a second call changes nothing
    outs, gradients, scattered = [], [], []
    for module in (plain, other):
        torch._dynamo.reset()
        traced = torch.compile(nn.Sequential(module), backend=aot_autograd(**watch(scattered)))
        for call in (module, traced):
            x = Noise.of(0, range(2)).normal(torch.empty(2, 4, 3, 3)).requires_grad_()
            outs.append(call(x))
            gradients.append(torch.autograd.grad(outs[-1].square().sum(), x)[0])
    assert scattered == [True, False]
    for found in (outs, gradients):
        assert all(torch.allclose(found[0], one, rtol=1e-5, atol=1e-5) for one in found)


def watch(scattered: list[bool]) -> dict:
    """Return compilers of a backend that notes whether a backward pass uses `index_put`."""

    def back(graph, _):
        scattered.append(any("index_put" in str(node.target) for node in graph.graph.nodes))
        return make_boxed_func(graph.forward)

    def there(graph, _):
        return make_boxed_func(graph.forward)

    return {"fw_compiler": there, "bw_compiler": back, "decompositions": core_aten_decompositions()}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_compiled_unet_matches_output_and_gradient_of_the_plain_one():
    seed_torch(0, "unet")
    model = unet(size=16, widths=(16, 16, 16), groups=4, patch=2, predicts="edm")
    plain = model.eval().requires_grad_(False)
    assert execution.relative_error_of(plain, "compiled", 2) < 1e-4
    compiled = deepcopy(plain)
    execution.compile_network(compiled.network)  # as on a GPU and in training
    found = []
    for model in (plain, compiled):
        x = Noise.of(0, range(2)).normal(torch.empty(2, 3, 16, 16)).requires_grad_()
        out = model(x, torch.tensor(0.3))
        found.append((out, torch.autograd.grad(out.square().sum(), x)[0]))
    for one, other in zip(*found, strict=True):
        assert float((one - other).norm() / one.norm()) < 1e-4


def test_trials_skip_modes_that_fail(monkeypatch):
    def broken(forward, **options):
        raise RuntimeError("there is no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    found = trials(make(), 2, repetitions=3)
    assert list(found) == ["plain", "channels_last"]
    for trial in found.values():
        assert len(trial.forward) == len(trial.gradient) == 3
        assert min(trial.forward + trial.gradient) > 0
        assert trial.error < 1e-5


def test_fastest_accurate_mode_is_chosen_and_cached(monkeypatch, tmp_path, capsys):
    asked = []
    speeds = {"plain": (3.0, 0.0), "channels_last": (2.0, 1e-6), "compiled": (1.0, 0.5)}

    def tried(denoiser, rows):
        asked.append(rows)
        return {way: Trial([s], [s], error, 0.0) for way, (s, error) in speeds.items()}

    monkeypatch.setattr(execution, "trials", tried)
    memory = tmp_path / "deep" / "execution.json"
    for _ in range(2):  # the compiled mode is faster, but its error is too large
        assert choose(make(), 8, memory) == "channels_last"
    assert choose(make(), 4, memory) == "channels_last"
    assert asked == [8, 4]
    assert len(json.loads(memory.read_text())) == 2
    assert capsys.readouterr().err.count("finding the fastest way") == 2
    memory.write_text("no json")
    assert choose(make(), 8, memory) == "channels_last"
    assert asked == [8, 4, 8]


def test_cuda_graphs_need_a_gpu():
    if not torch.cuda.is_available():
        with pytest.raises(SpecError, match="needs a GPU"):
            run_as(make(), "cuda_graphs")
    execute(lambda x: x, "compiled", rows=2)  # objects without a network stay unchanged


def test_mode_with_different_outputs_is_refused(monkeypatch):
    def wrong(denoiser, way):
        with torch.no_grad():
            next(denoiser.parameters()).mul_(1.1)

    monkeypatch.setattr(execution, "run_as", wrong)
    with pytest.raises(SpecError, match=r"compiled .*than plain"):
        execute(nn.ModuleDict({"denoiser": make()}), "compiled", rows=2)
