"""Tests of COUP: closed forms, finite differences, costs, and options."""

from typing import Any

import pytest
import torch
from probe import Probe, blobs, curved, mean_and_deviation, world
from torch import nn

from unfool.argument_checks import images_of_any_range
from unfool.defenses.coup import COUP, Confidence
from unfool.defenses.diffpure import DiffPure
from unfool.defenses.purified_classifier import Purified
from unfool.diffusion.reverse import euler_maruyama, even, flow, reverse
from unfool.diffusion.schedule import VP
from unfool.errors import SpecError
from unfool.evaluation.cost import CallCounter
from unfool.evaluation.prepare import build_model, build_purifier
from unfool.evaluation.spec import check_model
from unfool.models.classifiers import NormalizedClassifier
from unfool.noise import Noise
from unfool.toy.blobs import bayes, mixture

SAMPLERS = ["sde", "ddpm", "ddim", "ode", "heun"]
NOISE = Noise.of(0, range(4))


def linear(slope: float, dtype: torch.dtype = torch.float64) -> NormalizedClassifier:
    """Return a classifier of one-pixel images z in [-1, 1] into two classes, with log-odds slope * z."""
    layer = nn.Linear(1, 2, bias=False).to(dtype).requires_grad_(False)
    layer.weight.copy_(torch.tensor([[0.0], [slope]]))
    return NormalizedClassifier(nn.Sequential(nn.Flatten(), layer), mean=(0.5,), std=(0.5,))


def scales(t: float):
    return VP()(torch.tensor(t, dtype=torch.float64))


def term(guide: Confidence, x_t: torch.Tensor, noise: Noise | None = None) -> torch.Tensor:
    noise = noise or Noise.of(0, range(len(x_t)))
    return guide(x_t, torch.zeros_like(x_t), scales(0.1), scales(0.09), noise)


# --------------------------------------------------------------------- closed forms


def test_unguided_output_matches_closed_form_without_forward_noise():
    """For x = 0.8, data N(0.2, 0.5^2), and t* = 0.1, the output is N(0.639632, 0.282649^2)."""
    purify, probe = COUP(world(0.5), linear(3.0), t=0.1, steps=100, weight=0), Probe()
    found = mean_and_deviation(lambda z, noise: 2 * purify((z + 1) / 2, noise) - 1, probe, 100)
    assert found == pytest.approx((0.639632, 0.282649), abs=6e-7)
    assert probe.drawn == [("reverse", i) for i in range(100)]  # no forward noise


def test_unguided_output_equals_the_reverse_sde_exactly():
    x = blobs()
    expected = reverse(
        mixture(), 2 * x - 1, even(0.1, 7), NOISE.child("reverse"), step=euler_maruyama
    )
    assert torch.equal(COUP(mixture(), curved(), steps=7, weight=0)(x, NOISE), (expected + 1) / 2)
    zero = Confidence(curved(), mixture(), weight=0)  # the guide itself, with weight 0
    guided = reverse(
        mixture(), 2 * x - 1, even(0.1, 7), NOISE.child("reverse"), step=euler_maruyama, guide=zero
    )
    assert torch.allclose(guided, expected, atol=1e-14)


@pytest.mark.parametrize("weight", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("slope", [0.7, 5.0])
def test_guidance_term_matches_closed_form(weight: float, slope: float):
    """For log-odds a z, the term is lambda sign(z) a / (1 + exp(a |z|)), in the denoiser's units."""
    z = torch.tensor([-0.9, -0.1, 0.3, 0.8]).double().view(4, 1, 1, 1)
    found = term(Confidence(linear(slope), mixture(1), weight=weight), z)
    assert torch.allclose(found, weight * z.sign() * slope / (1 + (slope * z.abs()).exp()))


@pytest.mark.parametrize(("sampler", "share"), [("sde", 1.0), ("ode", 0.5)])
def test_drift_is_the_score_plus_the_guidance_term(sampler, share: float):
    """A step differs from the unguided one by h beta lambda grad log max p at x_t (equation 5)."""
    x, weight, steps = blobs(), 2.0, 20
    guided = COUP(mixture(), curved(), steps=steps, weight=weight, sampler=sampler)
    plain = COUP(mixture(), curved(), steps=steps, weight=0, sampler=sampler)
    (_, start), (_, after), *_ = guided.walk(x, NOISE)
    (_, same), (_, other), *_ = plain.walk(x, NOISE)
    assert torch.equal(start, x)
    assert torch.equal(same, x)
    z = (2 * x - 1).requires_grad_()
    sure = curved()((z + 1) / 2, NOISE).softmax(1).amax(1).log().sum()
    (gradient,) = torch.autograd.grad(sure, z)
    change = 2 * (after - other)  # in [-1, 1]
    h, beta = 0.1 / steps, 0.1 + 0.1 * 19.9
    assert torch.allclose(change, share * h * beta * weight * gradient, rtol=1e-9, atol=1e-14)


def test_guidance_raises_confidence():
    """Guidance raises the confidence at the purified image for more than 90 % of the images."""
    x, noise = blobs(64), Noise.of(0, range(64))

    def sure(weight: float) -> torch.Tensor:
        out = COUP(mixture(), curved(), steps=10, weight=weight)(x, noise)
        return curved()(out, noise).softmax(1).amax(1)

    assert float((sure(5) > sure(0)).double().mean()) > 0.9


# ------------------------------------------------------------------------ gradient


def slopes(go, x: torch.Tensor, way: torch.Tensor, step: float = 1e-5) -> float:
    return float((go(x + step * way) - go(x - step * way)) / (2 * step))


def test_detached_gradient_treats_guidance_as_constant():
    """Compare with central differences of the chain with the guidance recorded at the image."""
    x, way = blobs(), Noise.of(5, range(4)).normal(blobs())
    look, times, back = Noise.of(6, range(4)).normal(x), even(0.1, 5), NOISE.child("reverse")
    guide, frozen = Confidence(curved(), mixture(), weight=4.0), []

    def recorded(*seen):
        frozen.append(guide(*seen))
        return frozen[-1]

    with torch.no_grad():
        reverse(mixture(), 2 * x - 1, times, back, step=euler_maruyama, guide=recorded)

    def held(x: torch.Tensor) -> torch.Tensor:
        terms = iter(frozen)
        z = 2 * x - 1
        z = reverse(mixture(), z, times, back, step=euler_maruyama, guide=lambda *_: next(terms))
        return (look * (z + 1) / 2).sum()

    def gradient(**options) -> torch.Tensor:
        purify, seen = COUP(mixture(), curved(), steps=5, **options), x.clone().requires_grad_()
        return torch.autograd.grad((look * purify(seen, NOISE)).sum(), seen)[0]

    detached, through = gradient(weight=4.0, detach=True), gradient(weight=4.0)
    assert float((detached * way).sum()) == pytest.approx(slopes(held, x, way), rel=1e-6)
    assert float((detached - through).norm() / through.norm()) > 1e-2
    assert torch.equal(gradient(weight=0, detach=True), gradient(weight=0))


def test_detach_does_not_change_the_output():
    x = blobs()
    for grad in (False, True):
        seen = x.clone().requires_grad_(grad)
        through = COUP(mixture(), curved(), steps=5)(seen, NOISE)
        detached = COUP(mixture(), curved(), steps=5, detach=True)(seen, NOISE)
        assert torch.equal(through, detached)


def test_weights_get_no_gradient_and_unneeded_graphs_are_not_built():
    classifier = curved().requires_grad_(True)
    purify, x = COUP(mixture(), classifier, steps=3), blobs()
    seen = x.clone().requires_grad_()
    purify(seen, NOISE).sum().backward()
    assert seen.grad is not None
    assert all(weight.grad is None for weight in classifier.parameters())
    assert not purify(x, NOISE).requires_grad
    with torch.no_grad():
        out = purify(seen, NOISE)
        assert not out.requires_grad
        assert not term(Confidence(classifier, mixture()), seen).requires_grad
    assert not term(Confidence(classifier, mixture(), detach=True), seen).requires_grad


# ----------------------------------------------------------------------- properties


@pytest.mark.parametrize("clamp", ["none", "released", "straight"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_walk_ends_where_forward_ends(sampler, clamp):
    purify = COUP(mixture(), curved(), steps=6, sampler=sampler, clamp=clamp)
    x = 3 * blobs() - 1
    states = list(purify.walk(x, NOISE))
    assert [t for t, _ in states] == purify.times.tolist()
    first = x if clamp == "none" else x.clamp(0, 1)
    assert torch.allclose(states[0][1], first, atol=1e-15)
    with images_of_any_range():
        assert torch.equal(states[-1][1], purify(x, NOISE))


def test_clamp_modes_differ_in_the_gradient_outside_the_range():
    x = (3 * blobs() - 1).requires_grad_()  # far outside [0, 1]

    def go(clamp) -> tuple[torch.Tensor, torch.Tensor]:
        with images_of_any_range():
            out = COUP(mixture(), curved(), t=0.01, steps=3, clamp=clamp)(x, NOISE)
        return out.detach(), torch.autograd.grad(out.sum(), x)[0]

    (bare, _), (hard, cut), (soft, kept) = go("none"), go("released"), go("straight")
    outside = (x < 0) | (x > 1)
    assert bool(outside.any())
    assert bool((bare[outside] < 0).any() | (bare[outside] > 1).any())
    assert torch.equal(hard, soft)
    assert float(hard.min()) == 0
    assert float(hard.max()) == 1
    assert not cut[outside].any()
    assert kept[outside].abs().min() > 0.1


def test_guided_step_costs_one_denoiser_call_and_one_classifier_gradient():
    model, ledger, x = (
        Purified(curved(), COUP(mixture(), curved(), steps=7)),
        CallCounter(),
        blobs(),
    )
    with ledger.watching(model), torch.no_grad():
        model.purifier(x, NOISE)
    assert ledger.take() == {
        "nfe_forward": 28,
        "classifier_forward": 28,
        "classifier_vjp": 28,
    }
    plain = COUP(mixture(), curved(), steps=7, weight=0)
    with ledger.watching(Purified(curved(), plain)), torch.no_grad():
        plain(x, NOISE)
    assert ledger.take() == {"nfe_forward": 28}


def test_classifier_sees_the_current_image_and_its_own_noise_stream():
    seen = []

    def classifier(x: torch.Tensor, noise: Noise) -> torch.Tensor:
        seen.append((x.detach(), noise))
        return curved()(x + 0.1 * noise.normal(x), noise)

    purify = COUP(mixture(), classifier, steps=3)
    states = [image for _, image in purify.walk(blobs(), NOISE)]
    assert len(seen) == 3
    for i, (image, noise) in enumerate(seen):
        assert torch.equal(image, states[i])
        assert noise == NOISE.child("reverse", i, "guide", "classify")


@pytest.mark.parametrize("odds", [30.0, 80.0, 1e4, 1e30])
def test_guidance_of_a_saturated_classifier_is_finite_and_accurate(odds: float):
    """In float32 at log-odds 30, the softmax rounds to exactly 1, but the term is still accurate."""
    z = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1)
    found = term(Confidence(linear(odds, torch.float32), mixture(1)), z)
    assert found.isfinite().all()
    expected = torch.tensor([-odds, odds]).double() / (1 + torch.tensor(odds).double().exp())
    assert found.flatten().tolist() == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-30)


def test_guidance_is_computed_in_float32_or_better():
    x_t = blobs() - 0.5
    double = term(Confidence(curved(), mixture()), x_t)
    guide = Confidence(curved(torch.float32), mixture())
    single = term(guide, x_t.float())
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), double, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(term(guide, x_t.float()), single)
    half = term(guide, x_t.bfloat16())  # bfloat16 in and out, but computed in float32
    exact = term(guide, x_t.bfloat16().float())
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), exact, rtol=2**-8, atol=0)
    x = blobs()
    pure = COUP(mixture(), curved(torch.float32), steps=20)(x.float(), NOISE)
    assert pure.dtype == torch.float32
    assert torch.allclose(pure.double(), COUP(mixture(), curved(), steps=20)(x, NOISE), atol=1e-5)


def test_samplers_match_those_of_diffpure():
    ways: list[dict[str, Any]] = [{}, {"sampler": "ode"}, {"sampler": "ddpm", "variance": "large"}]
    for options in ways:
        one = COUP(mixture(), curved(), t=0.2, steps=9, **options)
        other = DiffPure(mixture(), t=0.2, steps=9, **options)
        assert one.step == other.step
        assert torch.equal(one.times, other.times)
    assert COUP(mixture(), curved()).step is euler_maruyama
    assert COUP(mixture(), curved(), sampler="ode").step is flow


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampler": "ddpm", "steps": 101}, "steps must be at most 100"),
        ({"classifier": None}, "the guide needs the classifier .* there is none"),
    ],
)
def test_invalid_options_are_refused(options, words: str):
    with pytest.raises(ValueError, match=words):
        COUP(mixture(), **{"classifier": curved(), **options})


def test_classifier_without_gradient_is_refused():
    purify = COUP(mixture(), lambda x, noise: curved()(x.detach(), noise), steps=2)
    for grad in (False, True):
        with pytest.raises(ValueError, match=r"the gradient .*classifier's logits"):
            purify(blobs().requires_grad_(grad), NOISE)


# ------------------------------------------------------------------------ from a spec


def spec(**changes):
    purifier = {"name": "coup", "t": 0.1, "steps": 3, "weight": 2}
    return {"classifier": "bayes", "denoiser": "mixture", "purifier": purifier} | changes


def test_spec_uses_the_protected_classifier_as_guide():
    model = build_model(check_model(spec()), "cpu")
    assert model.purifier.guide.classifier is model.classifier  # pyright: ignore
    assert not any(weight.requires_grad for weight in model.parameters())  # pyright: ignore
    expected = COUP(mixture(), bayes(), t=0.1, steps=3, weight=2)
    x, noise = blobs().float(), NOISE
    assert torch.equal(model.purifier(x, noise), expected(x, noise))  # pyright: ignore


def test_spec_with_missing_parts_or_unknown_options_is_refused():
    with pytest.raises(SpecError, match="coup needs a denoiser"):
        check_model(spec(denoiser=None))
    with pytest.raises(SpecError, match=r"purifier coup: .*classifier"):
        build_purifier(check_model(spec()), "cpu", None)
    with pytest.raises(SpecError, match="there is no option 'lambda'"):
        check_model(spec(purifier={"name": "coup", "lambda": 1}))
