"""Certificates hold, and counts do not depend on batch size, shards, or interruptions."""

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from unfool import spec as specs
from unfool.certification import certify as certification
from unfool.certification.certificate import (
    Certificate,
    ClassCounts,
    certificate,
    certified_at,
    largest_radius,
)
from unfool.certification.certify import Noisy, answers
from unfool.cli.main import run
from unfool.defenses.aggregate import Aggregated
from unfool.defenses.purified_classifier import Purified
from unfool.errors import SpecError
from unfool.evaluation.evaluate import Machine
from unfool.noise import Noise
from unfool.results.run_folder import Run
from unfool.statistics import lower_bound
from whole_run import CERTIFICATION, manifest

TOY = {
    "data": {"name": "blobs", "size": 6},
    "classifier": "bayes",
    "denoiser": "mixture",
    "purifier": "one-step",
    "certification": {"sigma": 0.5, "n0": 10, "n": 40},
}


def linear(x, noise=None):
    """Two classes separated by a plane, at distance |x.sum() - 2| / 2 from x on 4 pixels."""
    score = x.flatten(1).sum(1) - 2
    return torch.stack([-score, score], 1)


def counted(model, x, n0, n, noise, rows=256):
    def votes(draws, stage):
        chosen = [c for part in answers(model, x, draws, noise.child(stage), rows) for c in part]
        return dict(Counter(chosen))

    return ClassCounts(0, 0, votes(n0, "select"), votes(n, "estimate"), 0.0, {})


def counts(folder):
    return [(c.index, c.label, c.selected, c.estimated) for c in Run.open(folder).read(ClassCounts)]


@pytest.mark.parametrize(("hits", "total"), [(0, 10), (1, 10), (7, 10), (10, 10), (9_990, 10_000)])
@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_lower_bound_is_clopper_pearson(hits, total, alpha):
    exact = stats.binomtest(hits, total, alternative="greater").proportion_ci(1 - alpha, "exact")
    assert lower_bound(hits, total, alpha) == pytest.approx(exact.low, abs=1e-12)


def test_radius_by_hand():
    found = certificate(
        ClassCounts(0, 3, {3: 9, 1: 1}, {3: 90, 1: 10}, 0.0, {}), sigma=0.5, alpha=0.05
    )
    low = stats.binomtest(90, 100, alternative="greater").proportion_ci(0.95, "exact").low
    assert found.answer == 3
    assert found.radius == pytest.approx(0.5 * stats.norm.ppf(low))
    # all 100 agree: p^100 = alpha
    assert largest_radius(0.5, 100, 0.05) == pytest.approx(0.5 * stats.norm.ppf(0.05**0.01))


@pytest.mark.parametrize(
    ("selected", "estimated"),
    [
        ({0: 10}, {0: 50, 1: 50}),  # no class leads
        ({0: 10}, {0: 55, 1: 45}),  # class 0 leads, but not significantly
        ({0: 10}, {1: 100}),  # the selection draws were misleading
        ({0: 5, 1: 5}, {1: 100}),  # a tie selects class 0, although class 1 leads
    ],
)
def test_certificate_abstains_without_proof(selected, estimated):
    found = certificate(ClassCounts(0, 1, selected, estimated, 0.0, {}), sigma=0.5, alpha=0.001)
    assert found == Certificate(None, found.rate, 0.0)
    assert found.rate <= 0.5


def test_radius_of_a_linear_classifier_is_nearly_its_distance():
    for distance in (0.1, 0.3, 0.7):
        x = torch.full((1, 1, 2, 2), 0.5 + distance / 2)  # so the sum is 2 + 2 distance
        found = certificate(
            counted(Noisy(linear, 0.5), x, 20, 20_000, Noise.of(0, [1]), rows=5000), 0.5, 0.001
        )
        assert found.answer == 1
        assert 0.93 * distance - 0.01 < found.radius <= distance


def test_certificates_fail_at_most_at_rate_alpha():
    alpha, n, images, failures = 0.1, 60, 1200, 0
    model, places = Noisy(linear, 0.5), Noise.of(5, range(images)).uniform(torch.empty(images, 1))
    for i, place in enumerate(places[:, 0]):
        distance = 0.5 * float(place)
        x = torch.full((1, 1, 2, 2), 0.5 + distance / 2)
        found = certificate(counted(model, x, 8, n, Noise.of(0, [i])), 0.5, alpha)
        failures += found.radius > (distance if found.answer == 1 else 0.0)
    assert stats.binomtest(failures, images, alpha, alternative="greater").pvalue > 0.001
    assert failures > 0.4 * alpha * images, "so rarely that the bound is not the exact one"


class Spy:
    """A purifier that records its inputs and draws its own noise."""

    def __init__(self):
        self.given, self.drawn, self.sigmas = [], [], set()

    def __call__(self, x, noise):
        raise AssertionError("certified images get no further noise")

    def denoise(self, x, sigma, noise):
        self.given.append(x)
        self.drawn.append(noise.normal(x))
        self.sigmas.add(sigma)
        return x


def test_smoothing_noise_is_gaussian_unclipped_and_independent():
    spy, x = Spy(), torch.full((1, 1, 8, 8), 0.9)
    list(answers(Noisy(Purified(linear, spy), 0.3), x, 300, Noise.of(0, [0])))
    noise, own = torch.cat(spy.given) - x, torch.cat(spy.drawn)
    assert spy.sigmas == {0.3}
    assert stats.kstest(noise.flatten().numpy() / 0.3, "norm").pvalue > 0.01
    assert noise.std() == pytest.approx(0.3, rel=0.02)
    assert float(torch.cat(spy.given).max()) > 1.5
    both = torch.stack([noise.flatten(), own.flatten()])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.03
    pairs = np.corrcoef(noise.flatten(1).numpy())[np.triu_indices(len(noise), 1)]
    assert abs(pairs).max() < 0.75, "every draw has noise of its own"


def test_paths_vote_on_the_same_noisy_image():
    spy, x = Spy(), torch.full((1, 1, 2, 2), 0.5)
    model = Aggregated(Purified(linear, spy), paths=3, by="votes")
    list(answers(Noisy(model, 0.3), x, 5, Noise.of(0, [0])))
    assert len(spy.given) == 3
    assert torch.equal(spy.given[0], spy.given[1])
    assert torch.equal(spy.given[0], spy.given[2])
    assert not torch.equal(spy.drawn[0], spy.drawn[1])
    # the noise is that of a single path, so that both models are compared on the same draws
    single = Spy()
    list(answers(Noisy(Purified(linear, single), 0.3), x, 5, Noise.of(0, [0])))
    assert torch.equal(single.given[0], spy.given[0])


class CoinPurifier:
    """Inverts three images in ten, chosen by its own noise."""

    def denoise(self, x, sigma, noise):
        turn = noise.uniform(x[:, :1, :1, :1]) < 0.3
        return torch.where(turn, 1 - x, x)

    def __call__(self, x, noise):
        raise AssertionError("certified images get no further noise")


def test_vote_of_paths_is_part_of_the_smoothed_classifier():
    """If paths are wrong with probability 0.3, a draw is right as often as their majority is."""
    x, noise = torch.full((1, 1, 2, 2), 1.0), Noise.of(0, [0])
    defended = Purified(linear, CoinPurifier())
    for paths in (1, 5):
        model = Noisy(Aggregated(defended, paths=paths, by="votes"), 1e-3)
        right = counted(model, x, 1, 2000, noise).estimated[1]
        truth = float(stats.binom.sf(paths // 2, paths, 0.7))
        assert stats.binomtest(right, 2000, truth).pvalue > 0.001


def test_nan_logits_are_refused():
    model = Noisy(lambda x, noise: linear(x) * torch.nan, 0.1)
    with pytest.raises(RuntimeError, match="not finite"):
        list(answers(model, torch.zeros(1, 1, 2, 2), 4, Noise.of(0, [0])))


def test_certified_accuracy_counts_right_answers_of_sufficient_radius():
    images: list[Any] = [
        {"answer": 1, "label": 1, "radius": 0.5},
        {"answer": 1, "label": 1, "radius": 0.2},
        {"answer": 0, "label": 1, "radius": 0.9},
        {"answer": None, "label": 0, "radius": 0.0},
    ]
    found = [certified_at(r, images).value for r in (0.0, 0.2, 0.3, 0.5, 0.6)]
    assert found == [0.5, 0.5, 0.25, 0.25, 0.0]


def toy(out, *changes, n=40):
    """The command line that certifies the toy spec with these changes."""
    words = ["certify", "toy.yaml", "--out", str(out), "--quiet", "--set", f"certification.n={n}"]
    return [*words, *(word for c in changes for word in ("--set", c))]


@pytest.fixture
def spec(elsewhere):
    (elsewhere / "toy.yaml").write_text(json.dumps(TOY))
    return elsewhere


@pytest.fixture
def whole(spec):
    assert run(toy(spec / "whole")) == 0
    return counts(spec / "whole")


def test_every_draw_is_counted(whole):
    assert [row[0] for row in whole] == list(range(6))
    assert [row[1] for row in whole] == [0, 1] * 3
    assert all(sum(row[2].values()) == 10 for row in whole)
    assert all(sum(row[3].values()) == 40 for row in whole)
    assert len({str(row[3]) for row in whole}) > 1


@pytest.mark.parametrize(
    "change", ["machine.batch_size=1", "machine.batch_size=7", "machine.batch_size=1000"]
)
def test_counts_do_not_depend_on_the_batch_size(spec, whole, change):
    assert run(toy(spec / "other", change)) == 0
    assert counts(spec / "other") == whole


def test_more_draws_start_with_the_same_ones(spec):
    """The noise of an image depends on its index and the seed alone."""
    model, x = Noisy(linear, 0.5), torch.full((1, 1, 2, 2), 0.55)
    few, many = (
        [c for part in answers(model, x, draws, Noise.of(0, [3]), 16) for c in part]
        for draws in (30, 70)
    )
    assert many[:30] == few
    assert len(set(few)) == 2


def test_shards_in_one_or_several_folders_equal_the_whole_run(spec, whole, capsys):
    for i in range(2):
        assert run([*toy(spec / "shared"), "--shard", f"{i}/2"]) == 0
        assert run([*toy(spec / f"part{i}"), "--shard", f"{i}/2"]) == 0
        assert counts(spec / f"part{i}") == whole[i::2]
    assert "not finished: 3 of 6" in (spec / "part0" / "report.md").read_text()
    assert counts(spec / "shared") == whole
    parts = [str(spec / f"part{i}") for i in range(2)]
    assert run(["merge", *parts, "--out", str(spec / "merged")]) == 0
    assert counts(spec / "merged") == whole
    assert json.loads((spec / "merged" / "report.json").read_text())["n"] == 6
    assert run([*toy(spec / "none"), "--shard", "7/9"]) == 0


def test_killed_run_resumes_to_the_same_counts(spec, killed):
    assert run(toy(spec / "calm", n=100)) == 0
    out = spec / "killed"
    before = killed(toy(out, "machine.batch_size=1", n=100), out, 2)
    done = counts(out)
    assert 2 <= len(done) < 6, "it was to be killed in the middle"
    assert run(toy(out, n=100)) == 0
    assert counts(out) == counts(spec / "calm")
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())


def test_folder_of_another_spec_is_refused(spec, whole, mistake):
    assert "another spec" in mistake(*toy(spec / "whole", "certification.sigma=0.4"))
    assert "another spec" in mistake(*toy(spec / "whole", "certification.seed=1"))
    assert "another spec" in mistake(
        "evaluate", "blobs", "--out", spec / "whole", "--set", "data.size=2"
    )
    assert counts(spec / "whole") == whole


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["certification.sigma=0"], "sigma must be above 0"),
        (["certification.sigma=.inf"], "certification.sigma=.inf"),
        (["certification.sigma=much"], "certification.sigma"),
        (["certification={n: 10}"], "certification needs `sigma`"),
        (["certification.sigma=1000"], "1000"),
        (["certification.n=9"], "to 10 or more"),
        (["certification.n=4", "certification.alpha=0.05"], "to 5 or more"),
        (["certification.n0=0"], "n0 must be 1 or more"),
        (["certification.alpha=0"], "certification.alpha must be above 0 and below 0.5"),
        (["certification.alpha=0.6"], "certification.alpha must be above 0 and below 0.5"),
        (["certification.images=7"], "is 7, and the data set has 6"),
        (["certification.image=7"], "did you mean 'images'?"),
        (["machine.batch_size=0"], "batch_size must be 1 or more"),
        (["purifier=diffpure"], "use densepure, one-step"),
        (["purifier={name: one-step, sigma: 0.1}"], "the noise is certification.sigma"),
        (["purifier={name: one-step, t: 0.1}"], "the noise is certification.sigma"),
        (["denoiser=null"], "needs a denoiser"),
        (["threat={norm: linf, eps: 0.1}"], "has no 'threat'"),
        (["data={name: digits}"], "the denoiser was made for 1 x 4 x 4"),
    ],
)
def test_invalid_specs_are_refused_before_the_run_folder_is_created(spec, mistake, changes, said):
    assert said in mistake(*toy(spec / "r", *changes, n=20))
    assert not (spec / "r").exists()


def test_spec_of_another_command_is_refused(spec, mistake):
    assert "unfool certify" in mistake("evaluate", "toy.yaml")
    assert "has no 'threat'" in mistake("certify", "demo")
    with pytest.raises(RuntimeError, match="holds a certification"):
        Run(spec / "x", manifest([], kind="certification")).outcomes()


def test_checking_a_spec_is_idempotent():
    once = certification.check(specs.load(TOY))
    assert certification.check(specs.load(once)) == once
    assert once.get("purifier", {}).get("sigma") == 0.5
    without = certification.check(specs.load(TOY | {"certification": {"sigma": 1, "n": 40}}))
    assert without.get("purifier", {}).get("sigma") == 1
    assert specs.identity(once) != specs.identity(without)


def test_classifier_without_a_purifier_is_certified_up_to_its_distance(spec):
    """A plane separates the blobs, so the radius is nearly the distance from that plane."""
    assert run(toy(spec / "bare", "purifier=null", n=4000)) == 0
    report = json.loads((spec / "bare" / "report.json").read_text())
    from unfool.toy.blobs import Blobs

    for row in report["images"]:
        x = Blobs(size=6)[row["index"]][0]
        distance = abs(float(x.sum()) - 8) / 4  # from the plane of mean 1/2 over 16 pixels
        assert row["radius"] <= distance
        assert row["radius"] > min(0.8 * distance - 0.05, 0.9 * report["reach"])


def test_certify_command_writes_a_complete_report_on_digits(elsewhere, capsys):
    out = elsewhere / "digits"
    changes = ["certification.images=3", "certification.n=30", "certification.n0=10"]
    command = ["certify", "digits-certify", "--out", str(out)]
    assert run([*command, *(word for c in changes for word in ("--set", c))]) == 0
    printed = capsys.readouterr()
    assert "certified to be right" in printed.out
    assert "beyond what 30 draws can prove" in printed.out
    assert "120/120" in printed.err
    report = json.loads((out / "report.json").read_text())
    assert (report["version"], report["kind"], report["n"], report["requested"]) == (
        1,
        "certification",
        3,
        3,
    )
    assert [row["radius"] for row in report["certified"]] == [0, 0.25, 0.5, 0.75, 1]
    right = [row for row in report["images"] if row["answer"] == row["label"]]
    assert report["certified"][0]["accuracy"] == pytest.approx(len(right) / 3)
    assert report["reach"] == pytest.approx(0.25 * stats.norm.ppf(0.001 ** (1 / 30)))
    assert all(row["radius"] <= report["reach"] for row in report["images"])
    assert report["mean_radius"] == pytest.approx(sum(row["radius"] for row in right) / 3)
    assert report["cost"]["nfe_forward"] == report["cost"]["classifier_forward"] == 120
    assert (out / "figures" / "certified.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (out / "report.html").read_text()
    text = (out / "report.md").read_text()
    assert "95 % interval" in text
    again = {path: path.read_bytes() for path in (out / "report.json", out / "report.md")}
    assert run(["report", str(out)]) == 0
    assert all(path.read_bytes() == content for path, content in again.items())


def test_certify_function_counts_every_image(tmp_path):
    from unfool.toy.blobs import Blobs, bayes

    run_ = Run.begin(tmp_path, manifest([0, 1]) | {"kind": "certification", "spec": CERTIFICATION})
    certification.certify(
        Noisy(bayes(), 0.25),
        Blobs(2),
        run_,
        indices=[0, 1],
        n0=5,
        n=20,
        machine=Machine(quiet=True),
    )
    assert [count.index for count in run_.read(ClassCounts)] == [0, 1]


def test_shipped_specs_are_valid():
    for name in ("digits-certify", "cifar10-certify"):
        checked = certification.check(specs.load(name), folder="/nowhere")
        assert checked["certification"]["alpha"] == 0.001
    with pytest.raises(SpecError, match="section 'certification'"):
        certification.check({"data": "blobs", "classifier": "bayes"})
