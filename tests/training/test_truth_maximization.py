"""Truth maximization: its loss, the images kept on disk, and the behavior of the released code."""

import pytest
import torch
from torch import nn

from unfool import spec as specs
from unfool.attacks.pgd import PGD
from unfool.attacks.transfer import Transfer
from unfool.data import fetch
from unfool.data.digits import digits
from unfool.defenses.diffusion_classifier.classifier import DiffusionClassifier
from unfool.diffusion.denoiser import NetworkDenoiser
from unfool.errors import SpecError
from unfool.models import card
from unfool.noise import Noise
from unfool.statistics import wilson
from unfool.threat import Threat
from unfool.toy.blobs import Blobs
from unfool.training import adversarial_images as cache
from unfool.training import run as training
from unfool.training.lr_schedule import Plan
from unfool.training.objectives.truth_maximization import TruthMaximization
from unfool.training.options import TrainingOptions
from unfool.training.spec import check
from unfool.training.train import train

X = Noise.of(0, range(6)).uniform(torch.empty(6, 1, 4, 4))
Y = torch.tensor([0, 1, 0, 1, 1, 0])
NOISE = Noise.of(3, range(6))


class Net(nn.Module):
    """A denoising network with two classes that records its inputs."""

    def __init__(self):
        super().__init__()
        self.map, self.shift = nn.Conv2d(1, 1, 3, padding=1), nn.Embedding(3, 1)
        self.seen = []

    def forward(self, x, time, label):
        self.seen.append((x.detach(), time, label))
        return self.map(x) + self.shift(label)[:, :, None, None]


class Bright(nn.Module):
    """A classifier of two classes: is the mean above 1/2?"""

    edge: torch.Tensor

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.register_buffer("edge", torch.tensor(0.5))

    def forward(self, x, noise):
        self.calls += 1
        score = 20 * (x.flatten(1).mean(1) - self.edge)
        return torch.stack([-score, score], 1)


def model():
    torch.nn.init.normal_((net := Net()).map.weight, generator=torch.Generator().manual_seed(0))
    return NetworkDenoiser(net, classes=2)


def seen_by(denoiser) -> list:
    return denoiser.network.seen


def made(**options):
    return TruthMaximization(**({"source": Bright(), "attack": PGD(steps=3), "eps": 0.1} | options))


def test_loss_matches_the_formula_for_the_true_class():
    denoiser = model()
    loss = made()(denoiser, X, Y, NOISE)
    x_t, _, label = seen_by(denoiser)[0]
    assert torch.equal(label, Y), "the true label, never the null class"
    t = 1e-3 + (1 - 1e-3) * NOISE.child("time").uniform(X[:, :1, :1, :1])
    eps = NOISE.child("noise").normal(X)
    _, alpha, sigma, _ = denoiser.schedule(t)
    assert torch.allclose(x_t, alpha * (2 * X - 1) + sigma * eps)
    wanted = (denoiser.network(x_t, None, Y) - eps).square().flatten(1).mean(1)
    assert torch.allclose(loss, wanted)


@pytest.mark.parametrize("predicts", ["velocity", "edm", "image"])
def test_other_prediction_types_weight_the_noise_error(predicts):
    denoiser = model()
    denoiser.predicts = predicts
    loss = made()(denoiser, X, Y, NOISE)
    t = 1e-3 + (1 - 1e-3) * NOISE.child("time").uniform(X[:, :1, :1, :1])
    eps, z = NOISE.child("noise").normal(X), 2 * X - 1
    _, alpha, sigma, _ = denoiser.schedule(t)
    x_t = alpha * z + sigma * eps
    eps_hat = (x_t - alpha * denoiser(x_t, t, Y)) / sigma
    weight = {
        "velocity": 1 / alpha**2,
        "edm": 1 + 4 * (sigma / alpha) ** 2,
        "image": (sigma / alpha) ** 2,
    }
    wanted = weight[predicts].flatten() * (eps_hat - eps).square().flatten(1).mean(1)
    torch.testing.assert_close(loss, wanted, rtol=1e-3, atol=1e-5)


def test_released_noise_scales_the_input_as_in_the_release():
    """The release uses z + s e instead of alpha (z + s e): sqrt(1 + s^2) times too large."""
    denoiser = model()
    made()(denoiser, X, Y, NOISE)
    made(released=["noise"])(denoiser, X, Y, NOISE)
    (right, t, _), (released, then, _) = seen_by(denoiser)
    assert torch.equal(t, then)
    time = 1e-3 + (1 - 1e-3) * NOISE.child("time").uniform(X[:, :1, :1, :1])
    _, alpha, sigma, _ = denoiser.schedule(time)
    assert torch.allclose(released, right * (1 + (sigma / alpha) ** 2).sqrt(), rtol=1e-5, atol=1e-6)


def test_attack_stays_within_the_threat():
    x_adv = made().attacked(X, Y, NOISE)
    assert bool(Threat("linf", 0.1).allows(X, x_adv).all())
    assert not torch.equal(x_adv, X)
    x_adv = made(norm="l2", eps=0.3).attacked(X, Y, NOISE)
    assert bool(Threat("l2", 0.3).allows(X, x_adv).all())
    with pytest.raises(RuntimeError, match="exceeded the threat"):
        made(attack=lambda model, x, y, threat, noise: 1 - x).attacked(X, Y, NOISE)


def test_released_range_clips_images_even_with_zero_budget():
    """With a budget of 0, half of all pixels become mid-gray; other budgets count only half."""
    many = Noise.of(0, range(64))
    x = many.uniform(torch.empty(64, 1, 8, 8))
    y = (x.flatten(1).mean(1) > 0.5).long()
    idle = made(released=["range"], eps=0.0).attacked(x, y, many)
    assert torch.allclose(idle, x.clamp(min=0.5), atol=1e-6)
    moved = ((2 * idle - 1) - (2 * x - 1)).abs()
    assert float((moved > 0.05).float().mean()) == pytest.approx(0.475, abs=0.02)
    found = made(released=["range"], eps=0.1).attacked(x, y, many)
    assert float((found - idle).abs().max()) <= 0.05 + 1e-6
    assert torch.equal(made(eps=0.0).attacked(x, y, many), x)


def test_released_images_stay_clean_unless_the_attack_fools_the_source():
    source, many = Bright(), Noise.of(0, range(200))
    x = many.uniform(torch.empty(200, 1, 4, 4))
    bright = (x.flatten(1).mean(1) > 0.5).long()
    y = torch.where(many.child("y").uniform(x[:, 0, 0, 0]) < 0.3, 1 - bright, bright)
    plain = made(source=source, eps=0.05).attacked(x, y, many)
    found = made(source=source, eps=0.05, released=["unattacked"]).attacked(x, y, many)
    fooled = (source(x, many).argmax(1) == y) & (source(plain, many).argmax(1) != y)
    assert 0 < int(fooled.sum()) < int((bright == y).sum()) < 200
    assert torch.equal(found[fooled], plain[fooled])
    assert torch.equal(found[~fooled], x[~fooled])


DATA = Blobs(size=70)
ASKED = {"source": "bright", "attack": {"name": "pgd", "steps": 3}, "norm": "linf", "eps": 0.1}


def test_adversarial_images_are_made_once(elsewhere):
    objective = made()
    data = cache.make_adversarial_images(DATA, objective, ASKED, elsewhere, quiet=True)
    calls = objective.source.calls
    assert len(list(data.folder.glob("*.safetensors"))) == 2
    again = cache.make_adversarial_images(DATA, objective, ASKED, elsewhere, quiet=True)
    assert objective.source.calls == calls > 0
    x, y = fetch(DATA, range(70))
    for found in (data, again):
        x_adv, told = fetch(found, range(70))
        assert torch.equal(told, y)
        assert bool(Threat("linf", 0.1).allows(x, x_adv).all())
    facts = data.facts()
    wrong = (objective.source(x_adv, None).argmax(1) != y).double().mean()
    assert facts["source_wrong_after"] == pytest.approx(float(wrong), abs=1e-5)
    assert facts["size_max"] == pytest.approx(0.1, abs=1e-4)
    assert facts["images"] == 70


def test_loss_on_a_fixed_batch_falls_over_20_steps(elsewhere):
    objective = made(images=8)
    data = cache.make_adversarial_images(
        DATA, objective, ASKED | {"images": 8}, elsewhere, quiet=True
    )
    x, y = fetch(data, range(8))
    draws = [Noise.of(seed, range(8)) for seed in range(50, 66)]

    @torch.no_grad()
    def loss(denoiser):
        return float(torch.stack([objective(denoiser, x, y, noise) for noise in draws]).mean())

    denoiser = model()
    before = loss(denoiser)
    settings = {
        "steps": 20,
        "batch_size": 8,
        "learning_rate": 3e-2,
        "warmup": 1,
        "lr_schedule": "none",
        "ema_decay": 0,
    }
    ended = train(
        denoiser, objective, data, elsewhere / "run", TrainingOptions(**settings), quiet=True
    )
    assert loss(ended) < 0.7 * before


def test_gradient_is_clipped_to_the_given_norm(elsewhere):
    norms = []
    for clip in (1.0, 1e9):
        denoiser = model()
        settings = {"steps": 2, "batch_size": 4, "grad_clip": clip}
        options = TrainingOptions(**settings)
        train(denoiser, made(), DATA, elsewhere / str(clip), options, quiet=True)
        grads = [p.grad.flatten() for p in denoiser.parameters() if p.grad is not None]
        norms.append(float(torch.cat(grads).norm()))  # gradient of the last step
    assert norms[0] <= 1 + 1e-6
    assert norms[1] > 1, "there was something to clip"


def test_killed_attack_resumes_where_it_stopped(elsewhere, monkeypatch):
    whole = cache.make_adversarial_images(DATA, made(), ASKED, elsewhere / "whole", quiet=True)
    real = cache.attack_block

    def dies(data, places, *rest):
        if places[0] > 0:
            raise KeyboardInterrupt
        return real(data, places, *rest)

    monkeypatch.setattr(cache, "attack_block", dies)
    with pytest.raises(KeyboardInterrupt):
        cache.make_adversarial_images(DATA, made(), ASKED, elsewhere / "killed", quiet=True)
    blocks = []
    monkeypatch.setattr(
        cache, "attack_block", lambda d, p, *r: blocks.append(p[0]) or real(d, p, *r)
    )
    resumed = cache.make_adversarial_images(DATA, made(), ASKED, elsewhere / "killed", quiet=True)
    assert blocks == [64]
    for index in (0, 63, 64, 69):
        assert torch.equal(whole[index][0], resumed[index][0])


def test_images_are_attacked_in_parts_that_fit_into_memory(elsewhere, capsys):
    class Large(Bright):
        def forward(self, x, noise):
            if len(x) > 20:
                raise torch.OutOfMemoryError
            return super().forward(x, noise)

    whole = cache.make_adversarial_images(DATA, made(), ASKED, elsewhere / "whole", quiet=True)
    large = made(source=Large())
    parts = cache.make_adversarial_images(DATA, large, ASKED, elsewhere / "parts", quiet=True)
    for index in (0, 15, 16, 63, 69):
        assert torch.equal(whole[index][0], parts[index][0])
    assert whole.facts()["source_wrong_after"] == parts.facts()["source_wrong_after"]
    assert capsys.readouterr().err.count("out of memory") == 2, "64, then 32, and only once"


def test_cache_key_covers_all_that_the_images_depend_on(elsewhere):
    def key(data=DATA, source=None, images=None, **asked):
        objective = made(images=images, source=source or Bright())
        options = ASKED | asked | {"images": images}
        return cache.make_adversarial_images(
            data, objective, options, elsewhere, quiet=True
        ).folder.name

    other = Bright()
    other.edge += 1e-3
    keys = [
        key(),
        key(data=Blobs(size=70, side=3)),
        key(source=other),
        key(attack={"name": "pgd", "steps": 4}),
        key(norm="l2"),
        key(eps=0.2),
        key(seed=1),
        key(images=20),
        key(released=["range"]),
        key(label="another"),
    ]
    assert keys[-1] == keys[0], "what the images do not depend on"
    assert len(set(keys[:-1])) == len(keys) - 1


def test_damaged_block_is_refused(elsewhere):
    data = cache.make_adversarial_images(DATA, made(), ASKED, elsewhere, quiet=True)
    (data.folder / "00001.safetensors").write_bytes(b"none")
    with pytest.raises(ValueError, match="damaged or missing: delete it"):
        data[66]
    assert data[3][0].shape == (1, 4, 4)


def test_images_option_limits_the_set(elsewhere):
    data = cache.make_adversarial_images(
        DATA, made(images=10), ASKED | {"images": 10}, elsewhere, quiet=True
    )
    assert len(data) == 10
    with pytest.raises(SpecError, match="71, and the data set has 70"):
        cache.make_adversarial_images(DATA, made(images=71), ASKED, elsewhere, quiet=True)


@pytest.mark.parametrize(
    "bad", [{"released": ["all"]}, {"norm": "l7"}, {"eps": -1.0}, {"images": 0}, {"t_max": 2.0}]
)
def test_bad_options_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad)).removesuffix("s")):
        made(**bad)


def test_denoiser_without_classes_is_refused():
    with pytest.raises(ValueError, match="class-conditional"):
        made()(NetworkDenoiser(nn.Conv2d(1, 1, 1)), X, Y, NOISE)


SPEC = {
    "data": {"name": "digits", "split": "train"},
    "denoiser": {"name": "trained", "weights": "digits-conditional"},
    "objective": {
        "name": "truth-maximization",
        "source": "digits-classifier",
        "attack": {"name": "pgd", "steps": 2},
        "images": 8,
        "t_max": 0.5,
    },
    "training": {"steps": 2, "batch_size": 4},
}


def test_source_may_be_a_trained_model_or_the_denoiser_itself(elsewhere):
    objective = check(specs.load(SPEC))["objective"]
    assert objective["source"] == {
        "name": "trained",
        "weights": "digits-classifier",
        "trust": False,
    }
    own = check(
        specs.load(SPEC, ["objective.source={name: diffusion, draws: 2, elimination: paired}"])
    )
    assert own["objective"]["source"]["denoiser"] == own.get("denoiser")
    seen = specs.build("objective", own["objective"]).attacked_model()
    assert isinstance(seen.model, DiffusionClassifier)
    assert seen.model.rule is None, "an attack climbs the whole classifier"
    folder = training.run(own, elsewhere / "runs" / "own", quiet=True)
    told = card.read_card(str(folder))[1]
    assert told["adversaries"]["images"] == 8
    assert (elsewhere / "runs" / "adversaries" / told["adversaries"]["key"]).is_dir()
    with pytest.raises(SpecError, match="no folder 'nowhere'"):
        training.run(check(specs.load(SPEC, ["objective.source=nowhere"])), elsewhere)


def test_weights_are_saved_at_the_requested_steps(elsewhere):
    """They equal the weights of a run that ends there, as both are still in the same warm-up."""
    asks = check(
        specs.load(SPEC, ["training.steps=4", "training.save_steps=[1, 3]", "training.ema_decay=0"])
    )
    folder = training.run(asks, elsewhere / "run", quiet=True)
    objective = specs.build("objective", asks["objective"])
    home = elsewhere / "adversaries"
    data = cache.make_adversarial_images(
        digits("train"), objective, asks["objective"], home, quiet=True
    )
    for step in (1, 3):
        kept = card.trained_denoiser(str(folder / "steps" / str(step))).state_dict()
        begun = card.trained_denoiser("digits-conditional").requires_grad_(True)
        own = elsewhere / f"own{step}"
        ended = train(
            begun,
            objective,
            data,
            own,
            TrainingOptions(step, batch_size=4, ema_decay=0),
            quiet=True,
        )
        for name, value in ended.state_dict().items():
            assert torch.equal(value, kept[name]), name
    with pytest.raises(SpecError, match="save_steps must list steps from 1 to 2, not 7"):
        check(specs.load(SPEC, ["training.save_steps=[1, 7]"]))


def test_times_and_noise_are_new_at_each_step_even_if_attacks_seed_torch(tmp_path):
    """The release's attacks seed torch at every call, and so repeat the draws that follow."""

    def reseeding(model, x, y, threat, noise):
        torch.manual_seed(2024)  # noqa: TID251
        return x

    class Same:
        classes = ("dark", "bright")

        def __len__(self):
            return 8

        def __getitem__(self, index):
            return X[0], 0

    truth = made(attack=reseeding)

    def objective(model, x, y, noise):
        return truth(model, truth.attacked(x, y, noise), y, noise)

    denoiser = model()
    train(denoiser, objective, Same(), tmp_path, TrainingOptions(3, batch_size=4), quiet=True)
    given = [seen for seen in seen_by(denoiser) if len(seen[0]) == 4]
    assert len(given) == 3
    t = torch.cat([time for _, time, _ in given]).double()
    _, alpha, sigma, _ = denoiser.schedule(((t + 1) / 1000)[:, None, None, None])
    eps = (torch.cat([x_t for x_t, _, _ in given]) - alpha * (2 * X[0] - 1)) / sigma
    assert len(t.unique()) == 12, "of each image and step"
    alike = torch.corrcoef(eps.flatten(1)) - torch.eye(12)
    assert float(alike.abs().max()) < 0.95


def test_schedule_none_keeps_the_learning_rate_constant():
    plan = Plan(9, warmup=4, lr_schedule="none")
    assert [plan.rate(step) for step in (0, 1, 3, 4, 8)] == [0.25, 0.5, 1, 1, 1]
    assert Plan(9, warmup=4).rate(8) < 0.2


def test_transfer_attack_never_queries_the_model():
    def model(x, noise):
        raise AssertionError

    source, threat = Bright(), Threat("linf", 0.1)
    x_adv = Transfer(source, PGD(steps=3))(model, X, Y, threat, NOISE)
    assert torch.equal(x_adv, PGD(steps=3)(source, X, Y, threat, NOISE))


def test_short_training_raises_accuracy_on_its_attack(elsewhere):
    """The diffusion classifier, on images made against a small CNN: 45 % before, 75 % after."""
    source = card.trained_classifier("digits-classifier")
    objective = TruthMaximization(source, PGD(steps=5), eps=0.3, images=100)
    data = cache.make_adversarial_images(digits("train"), objective, {}, elsewhere, quiet=True)
    x_adv, y = fetch(data, range(100))
    denoiser = card.trained_denoiser("digits-conditional")

    def right(denoiser):
        judged = DiffusionClassifier(denoiser.eval().requires_grad_(False), draws=4, policy="fixed")
        with torch.no_grad():
            return int((judged(x_adv, Noise.of(1, range(100))).argmax(1) == y).sum())

    before = right(denoiser)
    denoiser.requires_grad_(True)
    settings = {"steps": 50, "batch_size": 32, "learning_rate": 1e-3, "warmup": 5, "ema_decay": 0.9}
    after = right(
        train(denoiser, objective, data, elsewhere / "run", TrainingOptions(**settings), quiet=True)
    )
    assert wilson(after, 100).low > wilson(before, 100).high
