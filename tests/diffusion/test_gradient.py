"""Tests of the gradient through the chain: exact, complete, and with one step in memory."""

import pytest
import torch
from torch import nn

from unfool.diffusion import gradient
from unfool.diffusion.denoiser import NetworkDenoiser
from unfool.diffusion.gradient import chain, keep_graphs
from unfool.diffusion.reverse import (
    DDIM,
    Ancestral,
    Heun,
    ascent,
    churned,
    euler_maruyama,
    even,
    flow,
    karras,
    reverse,
    scales_along,
    strided,
)
from unfool.diffusion.schedule import VP, Discrete
from unfool.noise import Noise, seed_torch

SHAPE = (2, 4, 4)
NOISE = Noise.of(0, range(3))
BLANK = torch.zeros(3, *SHAPE, dtype=torch.float64)


class Small(nn.Module):
    """A nonlinear network of two convolutions that depends on the time and, if given, the label."""

    def __init__(self, width: int = 4):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, width, 3, padding=1), nn.Conv2d(width, 2, 1)
        self.label = nn.Parameter(torch.linspace(-1, 1, 3))

    def forward(self, x, time, label=None):
        shift = time[:, None, None, None] / 100
        if label is not None:
            shift = shift + self.label[label][:, None, None, None]
        return self.second(torch.tanh(self.first(x) + shift))


def make(schedule=None, trained: bool = False, classes: int = 0, width: int = 4) -> NetworkDenoiser:
    seed_torch(0, "small", width)
    network = Small(width).double().requires_grad_(trained)
    return NetworkDenoiser(network, schedule=schedule, classes=classes)


def first_of(model: NetworkDenoiser) -> nn.Conv2d:
    assert isinstance(model.network, Small)
    return model.network.first


SAMPLERS = {
    "sde": (euler_maruyama, VP()),
    "ddpm small": (Ancestral("small"), Discrete()),
    "ddpm large": (Ancestral("large"), Discrete()),
    "ddim": (DDIM(0.0), Discrete()),
    "ddim half": (DDIM(0.5), VP()),
    "ode": (flow, VP()),
    "heun": (Heun, VP()),
}


def way_of(name: str, steps: int):
    """Return a step, its schedule, and the times."""
    step, schedule = SAMPLERS[name]
    if step is not Heun:
        return step, schedule, times_of(schedule, steps)
    times = karras(schedule, 0.1, steps)
    return Heun(schedule, churned(schedule, times, 1.0)), schedule, times


def times_of(schedule, steps: int) -> torch.Tensor:
    return strided(0.1, steps, 1000) if isinstance(schedule, Discrete) else even(0.1, steps)


def plainly(model, x, times, step, guide=None, label=None, correct=None):
    """The loop of `reverse` written plainly, for autograd to follow."""
    scales = scales_along(model, times)
    for i in range(len(times) - 1):
        now, then, noise = scales[i], scales[i + 1], NOISE.child(i)

        def estimate(x, at, then=then, noise=noise):
            x_hat = model(x, at.t, label)
            if correct is not None:
                x_hat = correct(x_hat, at)
            if guide is None:
                return x_hat
            term = guide(x, x_hat, at, then, noise.child("guide"))
            return x_hat + at.sigma**2 / at.alpha * term

        if isinstance(step, Heun):
            x = step.solve(estimate, x, now, then, noise)
        else:
            x = step(x, estimate(x, now), now, then, noise)
    return x


def same(one, other) -> bool:
    return float((one - other).norm()) <= 1e-12 * float(other.norm()) and float(other.norm()) > 0


@pytest.mark.parametrize("steps", [1, 5, 20])
@pytest.mark.parametrize("name", SAMPLERS)
def test_gradient_matches_plain_backpropagation(name: str, steps: int):
    """Check gradients for the image, the trained weights, the label embedding, and an input of the
    guide that is computed from the first image, as in COUP."""
    step, schedule, times = way_of(name, steps)
    model = make(schedule, trained=True, classes=2)
    start, weigh = NOISE.child("x").normal(BLANK), NOISE.child("weigh").normal(BLANK)
    label = torch.tensor([0, 1, 2])

    def run(go, inside: bool):
        x = start.clone().requires_grad_()
        z, anchor = 1.5 * x, torch.tanh(x)

        def guide(x_t, x_hat, now, then, noise):
            return 3 * torch.sin(anchor - x_t) * (1 + now.t) + 0.1 * noise.normal(x_t)

        options = {"other_inputs": (anchor,)} if inside else {}
        out = go(z, guide, options)
        wanted = [x, anchor, *model.parameters()]
        gradients = torch.autograd.grad((weigh * out + out**2).sum(), wanted)
        return [out.detach(), *gradients]

    mine = run(
        lambda z, guide, options: reverse(
            model, z, times, NOISE, step=step, guide=guide, label=label, **options
        ),
        inside=True,
    )
    plain = run(lambda z, guide, _: plainly(model, z, times, step, guide, label), inside=False)
    assert torch.equal(mine[0], plain[0])
    assert len(mine) == len(plain) == 3 + 5
    for one, other in zip(mine, plain, strict=True):
        assert same(one, other)


class Toward:
    """A guide that computes an anchor from the image and differentiates the estimate."""

    deep = True

    def for_images(self, x):
        anchor = torch.tanh(x)

        def guide(x_t, x_hat, now, then, noise):
            return -ascent(lambda at: (x_hat - anchor + 0.1 * at).square().sum((1, 2, 3)), x_t)

        return guide


def swap(x_hat, x, now):
    """A correction that mixes pixels of image and estimate in proportion to the noise."""
    return torch.tanh(x_hat) + now.sigma * (x * x_hat).roll(1, -1)


@pytest.mark.parametrize("graphs", [0, 2, 5])
@pytest.mark.parametrize("name", SAMPLERS)
def test_gradient_through_corrections_and_guides_of_the_image_is_exact(name: str, graphs: int):
    step, schedule, times = way_of(name, 5)
    model, start = make(schedule, trained=True), NOISE.child("x").normal(BLANK)
    guide = Toward()

    def run(go):
        x = start.clone().requires_grad_()
        image = x.sin()
        out = go(1.5 * x, image)
        wanted = [x, image, *first_of(model).parameters()]
        return [out.detach(), *torch.autograd.grad((out**2).sum(), wanted)]

    def mine(x_t, image):
        with keep_graphs(graphs):
            return reverse(
                model, x_t, times, NOISE, step=step, guide=guide, correction=swap, image=image
            )

    def plain(x_t, image):
        return plainly(
            model,
            x_t,
            times,
            step,
            guide.for_images(image),
            correct=lambda x_hat, at: swap(x_hat, image, at),
        )

    found, wanted = run(mine), run(plain)
    assert torch.equal(found[0], wanted[0])
    for one, other in zip(found, wanted, strict=True):
        assert same(one, other)


def test_correction_is_applied_before_the_guide_at_the_current_scales():
    model, seen, times = make(), [], even(0.1, 3)

    def correct(x_hat, x, now):
        seen.append((float(now.t), x))
        return 0 * x_hat + 7

    def guide(x_t, x_hat, now, then, noise):
        assert (x_hat == 7).all()
        return torch.ones_like(x_t)

    def step(x_t, x_hat, now, then, noise):
        assert torch.allclose(x_hat, 7 + now.sigma**2 / now.alpha)
        return x_t

    image = NOISE.normal(BLANK)
    reverse(model, BLANK, times, NOISE, step=step, guide=guide, correction=correct, image=image)
    assert [t for t, _ in seen] == times[:-1].tolist()
    assert all(x is image for _, x in seen)


@pytest.mark.parametrize("looks", [{"correction": swap}, {"guide": Toward()}])
def test_corrections_and_guides_that_need_the_image_require_it(looks):
    with pytest.raises(ValueError, match="image"):
        reverse(make(), BLANK, even(0.1, 3), NOISE, step=flow, **looks)


@pytest.mark.parametrize(
    "wrong",
    [{"correction": lambda x_hat, x, now: x_hat[:, :1]}, {"guide": lambda *_: torch.ones(3)}],
)
def test_corrections_and_guides_of_wrong_shape_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        reverse(make(), BLANK, even(0.1, 3), NOISE, step=flow, image=BLANK, **wrong)


@pytest.mark.parametrize("name", SAMPLERS)
def test_gradient_matches_finite_differences(name: str):
    """Central differences in float64, along random directions of image, weights, and guide."""
    step, schedule, times = way_of(name, 6)
    model = make(schedule, trained=True)
    anchor = NOISE.child("anchor").normal(BLANK).requires_grad_()
    x = NOISE.child("x").normal(BLANK).requires_grad_()
    weigh = NOISE.child("weigh").normal(BLANK)
    wanted = [x, anchor, *first_of(model).parameters()]

    def value():
        def guide(x_t, x_hat, now, then, noise):
            return torch.sin(anchor - x_t)

        out = reverse(model, x, times, NOISE, step=step, guide=guide, other_inputs=(anchor,))
        return (weigh * out).sum()

    gradients = torch.autograd.grad(value(), wanted)
    h = 1e-5
    for j, (tensor, found) in enumerate(zip(wanted, gradients, strict=True)):
        way = Noise.of(j, range(len(tensor))).normal(tensor)
        with torch.no_grad():
            tensor += h * way
            above = value()
            tensor -= 2 * h * way
            below = value()
            tensor += h * way
        slope = float((above - below) / (2 * h))
        assert slope == pytest.approx(float((found * way).sum()), rel=1e-6)


def test_backward_accumulates_weight_gradients_through_the_chain():
    """backward() accumulates in .grad, so a second call doubles it."""
    model = make(trained=True)
    totals = []
    for _ in range(2):
        reverse(model, BLANK + 0.1, even(0.1, 3), NOISE, step=flow).square().sum().backward()
        learned = first_of(model).weight.grad
        assert learned is not None
        assert learned.abs().sum() > 0
        totals.append(learned.clone())
    assert torch.allclose(totals[1], 2 * totals[0])


def test_frozen_weights_get_no_gradient():
    model = make(trained=False)
    x = (BLANK + 0.1).requires_grad_()
    reverse(model, x, even(0.1, 3), NOISE, step=flow).sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in model.parameters())


def test_image_that_the_guide_also_uses_gets_both_gradients():
    """`other_inputs` may contain the chain's own image, and both gradients are added."""
    model, times = make(), even(0.1, 4)

    def run(go):
        x = NOISE.child("x").normal(BLANK).requires_grad_()
        return torch.autograd.grad(go(x, lambda x_t, *_: torch.sin(x - x_t)).sum(), x)[0]

    mine = run(lambda x, g: reverse(model, x, times, NOISE, step=flow, guide=g, other_inputs=(x,)))
    assert same(mine, run(lambda x, g: plainly(model, x, times, flow, g)))


def test_tensor_that_is_listed_twice_is_counted_once():
    """This happens if a guide uses a trained weight of the denoiser."""
    model, times = make(trained=True), even(0.1, 3)
    assert isinstance(model.network, Small)
    bias = model.network.second.bias
    assert bias is not None

    def run(go):
        x = NOISE.child("x").normal(BLANK)
        guide = lambda x_t, *_: bias[:, None, None] * x_t  # noqa: E731
        return torch.autograd.grad(go(x, guide).sum(), bias)[0]

    mine = run(
        lambda x, g: reverse(model, x, times, NOISE, step=flow, guide=g, other_inputs=(bias,))
    )
    assert same(mine, run(lambda x, g: plainly(model, x, times, flow, g)))


def test_unused_tensors_get_no_gradient():
    x, unused = BLANK.clone().requires_grad_(), torch.ones(1, requires_grad=True)
    out = chain(lambda i, x_t: x_t + i, x, 4, other_inputs=(unused, torch.ones(2)))
    assert torch.equal(out, BLANK + 6)
    one, other = torch.autograd.grad(out.sum(), (x, unused), allow_unused=True)
    assert torch.equal(one, torch.ones_like(x))
    assert other is None


def test_zero_steps_are_the_identity():
    x = BLANK.clone().requires_grad_()
    out = chain(lambda i, x_t: x_t * (1 / 0), x, 0)
    assert torch.equal(torch.autograd.grad(out.sum(), x)[0], torch.ones_like(x))


def test_steps_run_in_order_and_are_replayed_once_in_reverse():
    asked = []

    def advance(i, x_t):
        asked.append((i, torch.is_grad_enabled()))
        return torch.sin(x_t)

    x = (BLANK + 0.3).requires_grad_()
    out = chain(advance, x, 3)
    assert asked == [(0, False), (1, False), (2, False)]
    out.sum().backward()
    assert asked[3:] == [(2, True), (1, True), (0, True)]
    asked.clear()
    with torch.no_grad():
        chain(advance, x, 3)
    chain(advance, BLANK, 2)  # no gradient is needed
    assert [i for i, _ in asked] == [0, 1, 2, 0, 1]


def test_second_derivatives_raise_an_error():
    x = (BLANK + 0.3).requires_grad_()
    out = chain(lambda i, x_t: torch.sin(x_t), x, 3)
    (first,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(first.sum(), x)


class Meter(torch.autograd.graph.saved_tensors_hooks):
    """Count the bytes that autograd keeps: currently, and at the peak."""

    class Kept:
        def __init__(self, meter: "Meter", tensor: torch.Tensor):
            self.meter, self.tensor = meter, tensor
            self.size = tensor.numel() * tensor.element_size()
            meter.now += self.size
            meter.peak = max(meter.peak, meter.now)

        def __del__(self):
            self.meter.now -= self.size

    def __init__(self):
        self.now = self.peak = 0
        super().__init__(lambda t: Meter.Kept(self, t), lambda kept: kept.tensor)


def kept(go, steps: int, width: int) -> tuple[int, int]:
    """Return the bytes kept between forward and backward, and the peak."""
    model, meter = make(width=width), Meter()
    x = NOISE.child("x").normal(BLANK).requires_grad_()
    torch.autograd.grad(
        go(model, x, even(0.1, 1)).sum(), x
    )  # the first gradient measures the memory of a step
    with keep_graphs(0), meter:
        out = go(model, x, even(0.1, steps))
        between = meter.now
        torch.autograd.grad(out.sum(), x)
    assert meter.now == 0
    return between, meter.peak


def test_memory_grows_by_only_one_image_per_step():
    image = BLANK.numel() * BLANK.element_size()

    def cheap(model, x, times):
        return reverse(model, x, times, NOISE, step=euler_maruyama)

    def dear(model, x, times):
        return plainly(model, x, times, euler_maruyama)

    for width in (4, 64):
        between = {n: kept(cheap, n, width)[0] for n in (1, 5, 20)}
        assert between == {n: n * image for n in between}  # for networks of any width
        peaks = {n: kept(cheap, n, width)[1] for n in (1, 5, 20)}
        assert peaks[5] - peaks[1] == 4 * image
        assert peaks[20] - peaks[5] == 15 * image
    # control: plain backpropagation keeps every activation
    few, many = kept(dear, 5, 64)[0], kept(dear, 20, 64)[0]
    assert many - few > 15 * 10 * image
    assert kept(dear, 20, 64)[1] > 5 * kept(cheap, 20, 64)[1]


@pytest.mark.parametrize("graphs", [1, 3, 5, 9])
def test_kept_graphs_give_the_same_gradient(graphs: int):
    denoiser, times = make(), times_of(VP(), 5)
    calls = []
    denoiser.network.register_forward_hook(lambda *_: calls.append(1))

    def slope():
        x = BLANK.clone().requires_grad_()
        out = reverse(denoiser, x, times, NOISE, step=euler_maruyama)
        return torch.autograd.grad(out.square().sum(), x)[0]

    replayed = slope()
    assert len(calls) == 10
    calls.clear()
    with keep_graphs(graphs):
        kept = slope()
    assert len(calls) == 5 + max(0, 5 - graphs)
    assert torch.allclose(kept, replayed, rtol=1e-12, atol=0)


def test_second_derivatives_work_if_all_graphs_are_kept():
    denoiser, times = make(), times_of(VP(), 3)
    x = BLANK.clone().requires_grad_()
    with keep_graphs(3):
        out = reverse(denoiser, x, times, NOISE, step=euler_maruyama).square().sum()
    (first,) = torch.autograd.grad(out, x, create_graph=True)
    assert torch.autograd.grad(first.square().sum(), x)[0].abs().max() > 0


def test_as_many_graphs_are_kept_as_fit_into_memory(monkeypatch):
    denoiser, times = make(), times_of(VP(), 6)
    calls = []
    denoiser.network.register_forward_hook(lambda *_: calls.append(1))

    def forwards() -> int:
        calls.clear()
        x = BLANK.clone().requires_grad_()
        reverse(denoiser, x, times, NOISE, step=euler_maruyama).square().sum().backward()
        return len(calls)

    assert forwards() == 12  # the size of the graphs is not known yet
    assert forwards() == 6  # all graphs fit
    (size,) = gradient.graph_bytes[denoiser].values()
    free = (2.5 * size * len(BLANK)) / gradient.FREE_SHARE
    monkeypatch.setattr(gradient, "free_bytes", lambda device: free)
    assert forwards() == 6 + 4  # two graphs fit
    monkeypatch.setattr(gradient, "free_bytes", lambda device: None)
    assert forwards() == 12


def test_chains_share_the_memory_limit_for_graphs(monkeypatch):
    """Paths of a vote and passes of a gradual purifier all run before the first backward pass."""
    denoiser, times = make(), times_of(VP(), 6)
    calls = []
    denoiser.network.register_forward_hook(lambda *_: calls.append(1))

    def forwards(chains: int) -> int:
        calls.clear()
        starts = [BLANK.clone().requires_grad_() for _ in range(chains)]
        outs = [reverse(denoiser, x, times, NOISE, step=euler_maruyama) for x in starts]
        torch.stack([out.square().sum() for out in outs]).sum().backward()
        return len(calls)

    assert forwards(1) == 12
    (size,) = gradient.graph_bytes[denoiser].values()
    monkeypatch.setattr(gradient, "CPU_LIMIT", 8.5 * size * len(BLANK))
    assert forwards(1) == 6
    assert forwards(3) == 3 * 12 - 8, "six of the first, and two of the second"
    assert forwards(1) == 6, "what is gone back is free again"
    out = reverse(denoiser, BLANK.clone().requires_grad_(), times, NOISE, step=euler_maruyama)
    del out
    assert forwards(1) == 6, "and what never will be, too"


def test_largest_graph_size_is_recorded_if_steps_differ():
    """Heun's last step calls the network once, and the others twice."""
    step, _, times = way_of("heun", 4)
    learned = []
    for end in (None, -1):  # all steps, and all but the last
        denoiser, x = make(), BLANK.clone().requires_grad_()
        reverse(denoiser, x, times[:end], NOISE, step=step).sum().backward()
        learned.extend(gradient.graph_bytes[denoiser].values())
    assert learned[0] == learned[1] > 0


def test_step_may_change_the_precision():
    x = BLANK.float().requires_grad_()

    def go(graphs: int):
        with keep_graphs(graphs):
            out = chain(lambda i, x_t: torch.sin(x_t.double() + i), x, 3)
        return torch.autograd.grad(out.sum(), x)[0]

    assert torch.equal(go(0), go(3))


def test_replay_uses_the_precision_of_the_forward_pass():
    """The chain runs under autocast, which has ended when the backward pass begins."""
    model, times = make().float(), even(0.1, 3)
    x = NOISE.child("x").normal(BLANK.float())

    def slope(graphs: int, cast: bool = True):
        at = x.clone().requires_grad_()
        with keep_graphs(graphs), torch.autocast("cpu", dtype=torch.bfloat16, enabled=cast):
            out = reverse(model, at, times, NOISE, step=euler_maruyama)
        return torch.autograd.grad(out.square().sum(), at)[0]

    assert torch.equal(slope(0), slope(2))  # the kept graphs are made under autocast
    assert torch.equal(slope(0), slope(3))
    assert not torch.equal(slope(0), slope(0, cast=False))
