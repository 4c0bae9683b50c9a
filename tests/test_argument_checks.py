"""The public functions refuse invalid arguments, and nothing else."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import unfool
from unfool import argument_checks as checks
from unfool.attacks.pgd import PGD, fgsm
from unfool.attacks.views import Batched, classifier_only
from unfool.data import fetch
from unfool.data.arrays import Arrays
from unfool.data.digits import digits
from unfool.defenses.diffpure import DiffPure
from unfool.defenses.flowpure import FlowPure
from unfool.defenses.gradual import Gradual
from unfool.defenses.purified_classifier import Purified, majority_vote, predict_draws
from unfool.models.classifiers import NormalizedClassifier
from unfool.noise import Noise, seed_torch
from unfool.threat import Threat
from unfool.toy.blobs import Blobs, bayes, mixture

X, Y = fetch(Blobs(6), range(6))
NOISE, LINF, L0 = Noise.of(0, range(6)), Threat("linf", 0.1), Threat("l0", 0.2)
ATTACKS = {
    "apgd": unfool.APGD(2, loss="margin"),
    "apgd-t": unfool.APGD(2, loss="margin", targets=1),
    "autoattack": unfool.AutoAttack(steps=2, queries=10, eot=1, draws=4),
    "corruption": unfool.Corruption("brightness", 1),
    "fab": unfool.FAB(2, targets=1),
    "fgsm": fgsm(),
    "outside": unfool.ExternalAttack(lambda model, x, y: x),
    "pgd": PGD(2),
    "pgd-early": PGD(2, early_stop=4),
    "random-search": unfool.RandomSearch(2),
    "salt-and-pepper": unfool.SaltAndPepper(1, 1),
    "square": unfool.Square(3),
    "stadv": unfool.StAdv(2),
    "transfer": unfool.Transfer(bayes(), PGD(1)),
}
PURIFIERS = {
    "coup": lambda: unfool.COUP(mixture(), bayes(), steps=2),
    "densepure": lambda: unfool.DensePure(mixture(), sigma=0.1, steps=2),
    "diffpure": lambda: DiffPure(mixture(), steps=2),
    "flowpure": lambda: FlowPure(mixture(), steps=2),
    "gdmp": lambda: unfool.GDMP(mixture(), steps=2, passes=1),
    "gradual": lambda: Gradual(mixture(), passes=[(0.1, 2), (0.1, 1)]),
    "langevin": lambda: unfool.Langevin(mixture(), steps=2),
    "likelihood": lambda: unfool.LikelihoodMaximization(mixture(), steps=2),
    "one-step": lambda: unfool.OneStep(mixture(), sigma=0.1),
    "resized": lambda: unfool.Resized(DiffPure(mixture(), steps=2), size=4),
    "transfer": lambda: unfool.DistributionTransfer(mixture(), bayes(), steps=2),
}


def threat_of(name):
    return L0 if name == "salt-and-pepper" else LINF


def broken(x, y, noise):
    """Invalid arguments (x, y, noise), each with a pattern that its message must match."""
    hole = x.clone()
    hole[0, 0, 0, 0] = torch.nan
    return {
        "normalized": ((2 * x - 1, y, noise), "NormalizedClassifier"),
        "bytes": ((255 * x, y, noise), "NormalizedClassifier"),
        "a NaN": ((hole, y, noise), "nan"),
        "uint8": (((255 * x).byte(), y, noise), "uint8"),
        "the channels last": ((torch.full((6, 8, 9, 3), 0.5), y, noise), r"permute\(0, 3, 1, 2\)"),
        "one image": ((x[0], y, noise), r"\(1, 4, 4\)"),
        "float labels": ((x, y.float(), noise), "float32"),
        "one-hot labels": ((x, F.one_hot(y, 2), noise), r"\(6, 2\)"),
        "labels of more images": ((x, y.repeat(2), noise), r"\(12,\)"),
        "a label below 0": ((x, y - 1, noise), "-1"),
        "noise of more images": ((x, y, Noise.of(0, range(9))), "9 images"),
        "a seed": ((x, y, 3), "Noise.of"),
    }


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("mistake", broken(X, Y, NOISE))
def test_attack_refuses_invalid_arguments(name, mistake):
    (x, y, noise), word = broken(X, Y, NOISE)[mistake]
    with pytest.raises((ValueError, TypeError), match=word):
        ATTACKS[name](bayes(), x, y, threat_of(name), noise)


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_on_an_empty_batch_returns_no_images(name):
    none = ATTACKS[name](bayes(), X[:0], Y[:0], threat_of(name), NOISE.take([]))
    assert none.shape == (0, *X.shape[1:])


@pytest.mark.parametrize("name", PURIFIERS)
def test_purifier_refuses_images_of_other_ranges_and_types(name):
    purify = PURIFIERS[name]()
    assert purify(X, NOISE).shape == X.shape
    for x in (2 * X - 1, 255 * X):
        with pytest.raises(ValueError, match="NormalizedClassifier"):
            purify(x, NOISE)
    with pytest.raises(ValueError, match="uint8"):
        purify((255 * X).byte(), NOISE)


@pytest.mark.parametrize("vote", ["draws", "majority"])
def test_vote_refuses_invalid_arguments_and_invalid_logits(vote):
    def judge(model, x, noise):
        if vote == "draws":
            return predict_draws(model, x, noise, 2)
        return majority_vote(model, x, [noise])

    assert judge(bayes(), X[:0], NOISE.take([])).numel() == 0
    for (x, y, noise), word in broken(X, Y, NOISE).values():
        if y is Y:
            with pytest.raises((ValueError, TypeError), match=word):
                judge(bayes(), x, noise)
    with pytest.raises(RuntimeError, match="not finite on 2 of"):
        judge(lambda x, noise: torch.where(torch.arange(len(x)) < 2, torch.nan, 0.0)[:, None]
              .expand(-1, 2), X, NOISE)  # fmt: skip
    with pytest.raises(ValueError, match="zeros_like"):
        judge(lambda x, noise: x[:, 0, 0, :1], X, NOISE)


def test_verdict_refuses_the_noise_of_an_attacker():
    told = NOISE.with_known_noise(Noise.of(1, range(6)))
    with pytest.raises(ValueError, match="attacker"):
        predict_draws(bayes(), X, told, 2)


def test_search_and_verdict_share_no_draws_even_with_the_same_noise():
    met = []

    def model(x, noise):
        met.append(set(noise.keys))
        return torch.stack([x.flatten(1).sum(1), 0 * x.flatten(1).sum(1)], 1)

    x_adv = PGD(4, eot=3)(model, X, Y, LINF, NOISE)
    searched = set().union(*met)
    met.clear()
    predict_draws(model, x_adv, NOISE, 16)
    assert len(searched) > 6
    assert len(met[0]) == 6 * 16
    assert not searched & met[0]


def test_budget_beyond_the_pixel_range_is_refused():
    for norm in ("linf", "l0"):
        Threat(norm, 1)
        with pytest.raises(ValueError, match="at most 1"):
            Threat(norm, 8)
    with pytest.raises(ValueError, match=r"128.* 4"):  # 1 x 4 x 4 pixels
        PGD(1)(bayes(), X, Y, Threat("l2", 128), NOISE)
    PGD(1)(bayes(), X, Y, Threat("l2", 4), NOISE)
    with pytest.raises(TypeError, match=r"0\.1"):
        PGD(1)(bayes(), X, Y, 0.1, NOISE)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ATTACKS)
def test_label_beyond_the_classes_of_the_model_is_refused(name):
    if name in ("corruption", "outside"):  # these ignore the model's outputs
        return
    with pytest.raises(ValueError, match="2"):
        ATTACKS[name](bayes(), X, Y + 1, threat_of(name), NOISE)


def test_model_with_a_single_logit_is_refused():
    single = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    for model in (NormalizedClassifier(single), lambda x, noise: single(x)):
        with pytest.raises(ValueError, match="zeros_like"):
            PGD(1)(model, X, 0 * Y, LINF, NOISE)
    two = lambda x, noise: torch.cat([0 * single(x), single(x)], 1)  # noqa: E731
    assert PGD(1)(two, X, 0 * Y, LINF, NOISE).shape == X.shape


def test_model_in_training_mode_is_refused_by_attacks_and_verdicts():
    seed_torch(0)
    layers = [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Dropout(0.5)]
    inner = nn.Sequential(*layers, nn.Linear(8, 2))
    plain = NormalizedClassifier(inner)
    defended = Purified(plain, DiffPure(mixture(), steps=1))

    class Wrapped:
        def __init__(self):
            self.network = inner

        def __call__(self, x, noise):
            return self.network(x)

    ways = [plain, defended, Batched(defended, 4), lambda x, noise: inner(x), Wrapped()]
    ways += [partial(lambda net, x, noise: net(x), inner), plain.forward, classifier_only(defended)]
    mean = layers[1].running_mean.clone()
    for module, kind in ((layers[1], "BatchNorm2d"), (layers[3], "Dropout")):
        inner.eval()
        module.train()
        for model in ways:
            with pytest.raises(ValueError, match=rf"{kind}.*model\.eval\(\)"):
                PGD(1)(model, X, Y, LINF, NOISE)
            with pytest.raises(ValueError, match=kind):
                predict_draws(model, X, NOISE, 1)
    inner.eval()
    assert torch.equal(layers[1].running_mean, mean)
    for model in ways:
        assert PGD(1)(model, X, Y, LINF, NOISE).shape == X.shape
    defended.train()
    inner.eval()  # the other modules behave the same in both modes
    PGD(1)(defended, X, Y, LINF, NOISE)
    layers[3].p = 0.0
    layers[3].train()
    PGD(1)(defended, X, Y, LINF, NOISE)


def test_purifier_in_training_mode_is_refused():
    purifier = DiffPure(mixture(), steps=1)
    purifier.denoiser.extra = nn.Dropout(0.1)
    with pytest.raises(ValueError, match="Dropout"):
        predict_draws(Purified(bayes(), purifier), X, NOISE, 1)


def test_images_outside_the_range_by_rounding_errors_are_accepted():
    PGD(1)(bayes(), X.clamp(0, 1) + 1e-6, Y, LINF, NOISE)
    assert checks.check_images(X.double()) is None


def test_pgd_under_inference_mode_finds_the_same_images():
    expected = PGD(3)(bayes(), X, Y, LINF, NOISE)
    model = bayes()
    with torch.inference_mode():
        x, y = X.clone(), Y.clone()
        found = PGD(3)(model, x, y, LINF, NOISE)
    assert torch.equal(found, expected)


class Normalized:
    """A user's data set whose loader normalizes the images."""

    classes = ("0", "1")

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return 2 * X[index] - 1, int(Y[index])


@pytest.mark.parametrize("function", ["evaluate", "certify"])
def test_evaluate_and_certify_refuse_normalized_images(function):
    options = {"threat": LINF, "attacks": {}} if function == "evaluate" else {"sigma": 0.1}
    for data in (Normalized(), (2 * X - 1, Y)):
        with pytest.raises(ValueError, match="NormalizedClassifier"):
            getattr(unfool, function)(bayes(), data, **options)


@pytest.mark.parametrize("label", [1.5, 2, -1, "1"])
def test_label_that_is_no_class_index_is_refused(label):
    class Labeled(Blobs):
        def __getitem__(self, index):
            return super().__getitem__(index)[0], label

    with pytest.raises(ValueError, match=str(label)):
        fetch(Labeled(2), [0])


def trained():
    """A small network trained on normalized images of handwritten digits."""
    seed_torch(0)
    x, y = fetch(digits("train"), range(1000))
    layers = [nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10)]
    network = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(network((x - 0.13) / 0.31), y).backward()
        optimizer.step()
    return network.eval()


def test_normalization_outside_the_model_looks_robust_and_is_refused():
    network = trained()
    x, y = fetch(digits("test"), range(128))
    threat, noise, z = Threat("linf", 0.3), Noise.of(1, range(128)), (x - 0.13) / 0.31

    def right(model, images):
        return float((model(images).argmax(1) == y).float().mean())

    inside = NormalizedClassifier(network, 0.13, 0.31)
    x_adv = PGD(20)(inside, x, y, threat, noise)
    assert right(network, z) > 0.9
    assert right(inside, x_adv) < 0.02  # the true robust accuracy
    bare = NormalizedClassifier(network)
    with checks.images_of_any_range():  # the result without the check
        told = PGD(20)(bare, z, y, threat, noise)
    assert right(bare, told) > right(inside, x_adv) + 0.3
    for use in (
        lambda: PGD(20)(bare, z, y, threat, noise),
        lambda: predict_draws(bare, z, noise, 1),
        lambda: unfool.evaluate(bare, (z, y), attacks={"pgd": PGD(20)}, threat=threat),
    ):
        with pytest.raises(ValueError, match=r"NormalizedClassifier\(network, mean, std\)"):
            use()


def test_arrays_refuse_images_outside_the_unit_range():
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        Arrays(2 * X - 1, Y, ("0", "1"))


@pytest.mark.parametrize("by", ["logits", "softmax", "votes"])
def test_aggregate_refuses_logits_that_are_not_finite(by):
    model = unfool.Aggregated(
        Purified(lambda x, noise: x.new_full((len(x), 2), torch.nan), lambda x, noise: x),
        paths=2,
        by=by,
    )
    with pytest.raises(RuntimeError, match=r"not finite on (12 of 12|6 of 6)"):
        predict_draws(model, X, NOISE, 2)
