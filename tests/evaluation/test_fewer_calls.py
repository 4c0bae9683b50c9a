"""Tests of verdicts in fewer calls: curtailed ones, and those on models without noise."""

import json
from itertools import product

import numpy as np
import pytest
import torch

from unfool.attacks.views import Batched
from unfool.cli.main import run
from unfool.defenses.purified_classifier import predict_draws
from unfool.evaluation.draw_caller import DrawCaller, curtailed
from unfool.noise import Noise
from unfool.results.outcome import Condition
from unfool.results.run_folder import Run

SMALL = [
    "data.size=16",
    "purifier.steps=2",
    "evaluation.draws=5",
    "threat.eps=0.1",
    "attacks=[{name: pgd, steps: 3, eot: 2, loss: margin}]",
]
X = torch.zeros(4, 1, 2, 2)


def command(out, *changes: str) -> list[str]:
    sets = [word for change in [*SMALL, *changes] for word in ("--set", change)]
    return ["evaluate", "blobs", "--out", str(out), "--quiet", *sets]


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 6])
def test_curtailed_verdict_agrees_with_all_draws(k: int):
    table = torch.tensor(list(product(range(3), repeat=k)))
    asked = 0

    def answer(which, first, draws):
        nonlocal asked
        asked += len(which) * draws
        return table[which][:, first : first + draws]

    found = curtailed(answer, [0] * len(table), k)
    for (draws, further), whole in zip(found, table.tolist(), strict=True):
        short = Condition(draws, None, 0.0, 0.0, curtailed=further)
        full = Condition(whole, None, 0.0, 0.0)
        assert short.taken == whole[: len(short.taken)]
        assert len(draws) == -(-k // 2)  # the same for every image, so their mean is unbiased
        assert short.k == full.k == k
        assert short.won(0) == full.won(0)
        assert short.always(0) == full.always(0)
        assert short.complete(0)
        for shorter in range(-(-k // 2), len(short.taken)):
            rest = [
                Condition([*short.taken[:shorter], *more], None, 0.0, 0.0)
                for more in product(range(3), repeat=k - shorter)
            ]
            assert (
                len({(each.won(0), each.always(0)) for each in rest}) > 1
            )  # the verdict was still open there
    assert asked == sum(len(draws) + len(further["further"]) for draws, further in found)
    assert asked < len(table) * k or k == 1


def test_curtailed_run_has_the_same_majorities_in_fewer_calls(elsewhere, facts):
    assert run(command(elsewhere / "whole")) == 0
    assert run(command(elsewhere / "short", "evaluation.curtail=true")) == 0
    whole, short = (
        json.loads((elsewhere / name / "report.json").read_text()) for name in ("whole", "short")
    )
    assert whole["run"] != short["run"]
    for section in ("clean", "random", "robust"):
        for reading in ("majority", "all_draws", "k"):
            assert short[section][reading] == whole[section][reading]
        assert short[section]["draws"] == 3
        assert "draws" not in whole[section]
    assert 0 < short["robust"]["all_draws"]["accuracy"] < 1
    assert short["cost"]["nfe_forward"] < whole["cost"]["nfe_forward"]
    assert short["cost"]["nfe_vjp"] == whole["cost"]["nfe_vjp"]
    halves = [np.equal(o[3][o[2]].draws[:3], o[1]).mean() for o in facts(elsewhere / "whole")]
    assert short["robust"]["per_draw"]["accuracy"] == pytest.approx(np.mean(halves))
    assert "of the first 3" in (elsewhere / "short" / "report.md").read_text()


def test_curtailed_runs_merge_and_compare_only_with_each_other(elsewhere, facts, mistake, edited):
    short = "evaluation.curtail=true"
    assert run(command(elsewhere / "whole", short)) == 0
    for i in range(2):
        part = command(elsewhere / f"part{i}", short, "machine.images_per_block=5")
        assert run([*part, "--shard", f"{i}/2"]) == 0
    parts = [str(elsewhere / f"part{i}") for i in range(2)]
    assert run(["merge", *parts, "--out", str(elsewhere / "merged")]) == 0
    assert facts(elsewhere / "merged") == facts(elsewhere / "whole")
    assert run(["compare", str(elsewhere / "whole"), str(elsewhere / "merged")]) == 0
    assert "another spec" in mistake(*command(elsewhere / "part0"))
    assert run(command(elsewhere / "plain")) == 0
    said = mistake("compare", elsewhere / "whole", elsewhere / "plain")
    assert "evaluation.curtail True and False" in said
    assert "other" in mistake("merge", *parts, elsewhere / "plain", "--out", elsewhere / "all")

    def cut_short(text: str) -> str:
        lines = [json.loads(line) for line in text.splitlines()]
        clean = lines[0]["conditions"]["clean"]
        clean["curtailed"]["further"] = clean["curtailed"]["further"][:-1]
        return "".join(json.dumps(line) + "\n" for line in lines)

    edited(next((elsewhere / "whole" / "outcomes").glob("0000000*.jsonl")), cut_short)
    with pytest.raises(RuntimeError, match=r"image 0 .*'clean': 0"):
        Run.open(elsewhere / "whole").outcomes()


class Told(torch.nn.Module):
    """A model of two classes that draws from its noise, from torch's generator, or not at all."""

    def __init__(self, source: str):
        super().__init__()
        self.source, self.calls = source, 0

    def forward(self, x, noise):
        self.calls += len(x)
        luck = torch.zeros(len(x))
        if self.source == "noise":
            luck = noise.child("coin").uniform(luck)
        if self.source == "torch":
            luck = torch.rand(len(x))  # noqa: TID251
        return torch.stack([luck, 1 - luck], 1)


def test_model_without_noise_is_called_for_two_draws_only():
    noise = Noise.of(0, range(len(X)))
    still, random, foreign = (Told(source) for source in ("none", "noise", "torch"))
    answers = DrawCaller(Batched(still, 16))
    assert answers.noise_free is None
    assert torch.equal(answers(X, noise, 8), predict_draws(still, X, noise, 8))
    assert answers.noise_free
    assert still.calls == (2 + 8) * len(X)
    answers = DrawCaller(Batched(random, 16))
    assert torch.equal(answers(X, noise, 8), predict_draws(random, X, noise, 8))
    assert torch.equal(answers(X, noise, 3, 5), predict_draws(random, X, noise, 8)[:, 5:])
    assert answers.noise_free is False
    assert random.calls == (8 + 8 + 3 + 8) * len(X)
    answers = DrawCaller(Batched(foreign, 16))
    assert len({tuple(row) for row in answers(X, noise, 40).T.tolist()}) > 1
    assert answers.noise_free is False
    assert foreign.calls == 40 * len(X)


@pytest.mark.parametrize("curtail", ["false", "true"])
def test_verdict_on_a_model_without_noise_takes_two_calls_per_image(elsewhere, facts, curtail):
    plain = ["purifier=null", "evaluation.draws=8", f"evaluation.curtail={curtail}"]
    attack = "{name: random-search, tries: 3}"
    assert run(command(elsewhere / "run", f"attacks=[{attack}]", *plain)) == 0
    assert run(command(elsewhere / "idle", "attacks=[]", *plain)) == 0
    for outcome in Run.open(elsewhere / "idle").outcomes():
        assert outcome.cost["classifier_forward"] == 2
    told = Run.open(elsewhere / "run").outcomes()
    assert {len(o.conditions["clean"].draws) for o in told} == {4 if curtail == "true" else 8}
    for outcome in told:
        for condition in outcome.conditions.values():
            right = condition.taken[0] == outcome.label
            assert condition.k == 8
            assert condition.won(outcome.label) == condition.always(outcome.label) == right
            assert condition.attacker_error_rate == 1 - right
