"""Tests of attackers who know noise of the defense: they get exactly the noise of the verdict."""

import json

import pytest
import torch

from unfool import Noise, Purified
from unfool import spec as specs
from unfool.analysis.inputs import load_inputs
from unfool.cli.main import run
from unfool.evaluation import run as evaluation
from unfool.evaluation.prepare import prepare
from unfool.report.evaluation_tables import known_noise
from unfool.report.formatting import cell
from unfool.results.run_folder import Run
from unfool.threat import Knowledge

IMAGES = 3


def model_of(sampler: str) -> Purified:
    return defended_by(f"{{name: diffpure, t: 0.3, steps: 4, sampler: {sampler}}}")


def defended_by(purifier: str) -> Purified:
    change = f"purifier={purifier}"
    return load_inputs("blobs", [change], None, images=2, device="cpu").model.model  # pyright: ignore


def pictures() -> torch.Tensor:
    values = Noise.of(5, range(IMAGES)).normal(torch.zeros(IMAGES, 1, 4, 4))
    return (0.5 + 0.2 * values).clamp(0, 1)


def answers(model, word: str, query_indices=range(6), own=1):
    """Return logits (queries, B, K) for an attacker who knows `word`, and those of the defense."""
    x = pictures()
    secret, other = Noise.of(0, range(IMAGES)), Noise.of(own, range(IMAGES))
    told = Knowledge(word).reveal(other, secret)
    return torch.stack(
        [model(x, told.for_query(query_index)) for query_index in query_indices]
    ), model(x, secret)


def test_model_is_deterministic_if_all_noise_is_known():
    logits, secret = answers(model_of("ddpm"), "both")
    assert all(torch.equal(one, secret) for one in logits)


@pytest.mark.parametrize("sampler", ["ddim", "heun", "ode"])
def test_forward_noise_is_all_noise_of_deterministic_samplers(sampler: str):
    model = model_of(sampler)
    forward, secret = answers(model, "forward")
    assert all(torch.equal(one, secret) for one in forward)  # DW-Fwd equals DW-box
    reverse, _ = answers(model, "reverse")
    plain = [model_at(model, query_index) for query_index in range(6)]
    assert all(torch.equal(one, two) for one, two in zip(reverse, plain, strict=True))


def model_at(model, query_index: int):
    """Return logits for an attacker who knows nothing and draws from their own noise."""
    x = pictures()
    return model(x, Noise.of(1, range(IMAGES)).for_query(query_index))


@pytest.mark.parametrize("sampler", ["ddpm", "heun, eta: 1"])
@pytest.mark.parametrize("word", ["forward", "reverse"])
def test_knowing_one_noise_of_ddpm_leaves_the_other_random(word: str, sampler: str):
    logits, secret = answers(model_of(sampler), word)
    assert not torch.equal(logits[0], secret)
    assert not torch.equal(logits[0], logits[1])


def test_pool_of_paths_has_the_stated_size_and_is_the_same_for_all():
    model = model_of("ddpm")
    mine, _ = answers(model, "semi-3", own=1)
    theirs, _ = answers(model, "semi-3", own=2)
    assert torch.equal(mine, theirs)
    assert len({tuple(row.flatten().tolist()) for row in mine}) == 3
    assert torch.equal(mine[:3], mine[3:])


@pytest.mark.parametrize(
    ("purifier", "streams"),  # the streams that the purifier draws from
    [
        ("{name: diffpure, t: 0.3, steps: 4, sampler: sde}", {"forward", "reverse"}),
        ("{name: diffpure, t: 0.3, steps: 4, sampler: ode}", {"forward"}),
        ("{name: coup, t: 0.3, steps: 4}", {"reverse"}),
        ("{name: langevin, t: 0.3, steps: 4}", {"reverse"}),
        ("{name: distribution-transfer, t: 0.3, steps: 4}", {"forward", "reverse"}),
        (
            "{name: gdmp, t: 0.1, steps: 3, scale: 10, reference_batch_size: 2}",
            {"forward", "reverse"},
        ),
        ("{name: one-step, t: 0.3}", {"forward"}),
        ("{name: gradual, passes: [[0.2, 2], [0.1, 1]]}", {"forward", "reverse"}),
        ("{name: likelihood, steps: 2}", {"forward"}),
        ("{name: densepure, t: 0.3, steps: 3}", {"forward", "reverse"}),
        (
            "{name: resized, size: 4, purifier: {name: diffpure, t: 0.3, steps: 2}}",
            {"forward", "reverse"},
        ),
    ],
)
def test_each_kind_of_knowledge_fixes_only_its_noise_in_every_purifier(
    purifier: str, streams: set[str]
):
    model = defended_by(purifier)
    logits, secret = answers(model, "both", range(2))
    assert all(torch.equal(one, secret) for one in logits)
    for word in ("forward", "reverse"):
        logits, secret = answers(model, word, range(2))
        certain = not streams - {word}
        assert certain == torch.equal(logits[0], secret) == torch.equal(*logits)
        if word not in streams:  # nothing is known: the white box
            assert torch.equal(logits[1], model_at(model, 1))


def test_verdict_on_a_pool_does_not_begin_where_the_search_does():
    many = Knowledge("semi-128").query_indices(8)
    assert len(set(many)) == 8
    assert max(many) > 40  # beyond the queries of PGD-10 + EOT-4
    assert sorted(Knowledge("semi-3").query_indices(6)) == [0, 0, 1, 1, 2, 2]
    assert Knowledge("both").query_indices(8) == [0]
    assert (
        Knowledge("semi-4-steps").query_indices(3)
        == Knowledge("forward").query_indices(3)
        == [0, 1, 2]
    )


def test_pool_per_draw_mixes_the_known_draws():
    model = model_of("ddpm")
    one, _ = answers(model, "semi-1-steps")
    assert all(torch.equal(row, one[0]) for row in one)
    assert torch.equal(one, answers(model, "semi-1-steps", own=2)[0])
    few, _ = answers(model, "semi-2-steps", range(40))
    distinct = {tuple(row[0].tolist()) for row in few}
    assert (
        8 < len(distinct) <= 16
    )  # 2 for the forward noise and for each of 3 reverse steps that draw


def test_known_noise_of_an_image_does_not_depend_on_its_batch():
    told = Knowledge("semi-4-steps").reveal(Noise.of(1, range(3)), Noise.of(0, range(3)))
    alone = told.take([1]).for_query(2, 2).child("purify", "forward")
    every = told.for_query(2, 2).child("purify", "forward")
    like = torch.zeros(6, 1, 2, 2)
    assert torch.equal(every.normal(like)[2:4], alone.normal(like[:2]))


@pytest.mark.parametrize("word", ["all", "semi", "semi-0", "semi-x-steps", "forwards"])
def test_unknown_words_are_refused(word: str):
    with pytest.raises(ValueError, match="knows must be forward, reverse, both"):
        Knowledge(word)


ROWS = [
    "{name: pgd, label: white box, loss: margin, steps: 5, eot: 3}",
    "{name: pgd, label: DW-Fwd, knows: forward, loss: margin, steps: 5, eot: 3}",
    "{name: pgd, label: DW-box, knows: both, loss: margin, steps: 5}",
    "{name: pgd, label: semi-4, knows: semi-4, loss: margin, steps: 5, eot: 4}",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("knowing")
    sets = [
        "purifier={name: diffpure, t: 0.3, steps: 4, sampler: ddpm}",
        f"attacks=[{', '.join(ROWS)}]",
    ]
    sets += ["evaluation.images=16", "evaluation.draws=4", "threat.eps=0.1"]
    words = [word for change in sets for word in ("--set", change)]
    assert run(["evaluate", "blobs", *words, "--out", str(made / "run"), "--quiet"]) == 0
    return made / "run"


def test_shards_and_blocks_do_not_change_outcomes_with_known_noise(elsewhere):
    known = {"forward": 2, "both": 1, "semi-4": 2}
    rows = [
        f"{{name: pgd, label: {w}-, knows: {w}, steps: 2, eot: {eot}}}" for w, eot in known.items()
    ]
    words = ["evaluate", "blobs", "--quiet", "--set", "data.size=7", "--set", "purifier.steps=3"]
    words += ["--set", "evaluation.draws=3", "--set", f"attacks=[{', '.join(rows)}]"]
    plans = {"whole": [[]], "parts": [["--shard", f"{i}/2"] for i in range(2)]}
    plans["alone"] = [["--set", "machine.images_per_block=1"]]
    found = {}
    for name, plan in plans.items():
        for more in plan:
            assert run([*words, *more, "--out", str(elsewhere / name)]) == 0
        outcomes = Run.open(elsewhere / name).outcomes()
        found[name] = [{k: c.draws for k, c in o.conditions.items()} for o in outcomes]
    assert len(found["whole"]) == 7
    assert found["whole"] == found["parts"] == found["alone"]


def test_report_compares_known_noise_with_the_white_box(folder):
    told = json.loads((folder / "report.json").read_text())
    rows = {row["name"]: row for row in told["known_noise"]}
    assert list(rows) == ["DW-Fwd", "DW-box", "semi-4"]
    assert [row["name"] for row in told["attacks"]] == ["white box"]
    assert rows["DW-box"]["robust"]["k"] == 1  # more draws would give the same answer
    assert rows["semi-4"]["robust"]["k"] == 4
    white = told["attacks"][0]["robust"]["per_draw"]["accuracy"]
    for row in rows.values():
        gap = white - row["robust"]["per_draw"]["accuracy"]
        assert row["gap"]["mean"] == pytest.approx(gap)
        assert row["gap"]["low"] < row["gap"]["mean"] < row["gap"]["high"]
        assert row["compared_with"] == "white box"
    assert rows["DW-box"]["gap"]["mean"] >= 0
    assert "all noise is fixed and known (DW-box)" in told["threat_model"]["with the noise known"]
    for name in ("report.md", "report.html"):
        assert "With the noise known" in (folder / name).read_text()
    body = known_noise(told).rows
    assert body[0] == [
        "white box",
        "none of the noise is known",
        cell(told["robust"]["per_draw"]),
        "-",
    ]
    assert [row[0] for row in body[1:]] == list(rows)


def test_attacks_with_known_noise_do_not_count_for_robust_accuracy(folder):
    lines = [
        json.loads(line) for path in (folder / "outcomes").glob("*.jsonl") for line in path.open()
    ]
    assert {line["chosen"] for line in lines} <= {"clean", "random", "white box"}


def test_unknown_word_in_a_spec_is_refused(mistake, elsewhere):
    rows = "attacks=[{name: pgd, knows: everything}]"
    assert "attacks.0.knows must be forward" in mistake("evaluate", "blobs", "--set", rows)


DIFFUSION = {"name": "diffusion", "denoiser": {"name": "mixture"}, "draws": 2}


@pytest.mark.parametrize(
    ("changes", "word", "drawn"),
    [
        ({"purifier": {"name": "diffpure", "steps": 2}}, "forward", True),
        ({"purifier": {"name": "diffpure", "steps": 2}}, "reverse", True),
        ({"purifier": {"name": "diffpure", "steps": 2, "sampler": "ddim"}}, "reverse", False),
        ({"purifier": {"name": "diffpure", "steps": 3, "sampler": "heun"}}, "reverse", False),
        (
            {"purifier": {"name": "diffpure", "steps": 3, "sampler": "heun", "eta": 1}},
            "reverse",
            True,
        ),
        ({"purifier": {"name": "coup", "steps": 2}}, "forward", False),
        ({"purifier": {"name": "langevin", "steps": 2}}, "forward", False),
        ({"purifier": {"name": "langevin", "steps": 2}}, "reverse", True),
        ({"classifier": DIFFUSION}, "forward", False),
        ({"classifier": DIFFUSION}, "reverse", False),
        ({"classifier": DIFFUSION}, "both", True),
    ],
)
def test_knowing_noise_that_is_never_drawn_is_reported(changes, word, drawn, capsys):
    spec = {
        "data": {"name": "blobs", "size": 2},
        "classifier": "bayes",
        "denoiser": "mixture",
        "threat": {"norm": "linf", "eps": 0.1},
        "attacks": [{"name": "pgd", "steps": 1, "knows": word}],
    }
    checked = evaluation.check(specs.load(spec | changes))
    prepare(checked)
    said = f"draws no {word} noise, so `knows: {word}`"
    assert (said in capsys.readouterr().err) is not drawn
