"""Tests of evaluations: outcomes do not depend on the machine, and no finished work is lost."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from unfool.api.evaluate import evaluate
from unfool.attacks.pgd import PGD
from unfool.cli.main import run
from unfool.data import image_files
from unfool.defenses.diffpure import DiffPure
from unfool.evaluation.evaluate import Machine, evaluate_into
from unfool.evaluation.prepare import AttackOnView
from unfool.results.run_folder import Run, merge, seal
from unfool.threat import Knowledge, Threat
from unfool.toy.blobs import Blobs
from whole_run import manifest

TOY = [
    "evaluate",
    "blobs",
    "--set",
    "data.size=24",
    "--set",
    "purifier.steps=4",
    "--set",
    "evaluation.draws=4",
]


def toy(out: Path, *changes: str) -> list[str]:
    return [*TOY, "--out", str(out), "--quiet", *(word for c in changes for word in ("--set", c))]


@pytest.fixture
def whole(elsewhere, facts):
    assert run(toy(elsewhere / "whole")) == 0
    return facts(elsewhere / "whole")


def test_every_image_is_evaluated_under_every_condition(whole):
    assert [row[0] for row in whole] == list(range(24))
    for _, label, chosen, conditions in whole:
        assert list(conditions) == ["clean", "random", "pgd-classifier-only", "pgd-exact"]
        assert chosen in conditions
        assert label in (0, 1)
        assert all(len(condition.draws) == 4 for condition in conditions.values())
        assert conditions["clean"].size == 0
        assert max(c.size for c in conditions.values()) <= 0.1 + 1e-5


@pytest.mark.parametrize(
    "change",
    ["machine.batch_size=7", "machine.images_per_block=5", "machine.images_per_block=1"],
)
def test_batch_and_block_sizes_do_not_change_outcomes(elsewhere, facts, whole, change):
    assert run(toy(elsewhere / "other", change)) == 0
    assert facts(elsewhere / "other") == whole


def test_out_of_memory_does_not_change_outcomes_or_examples(elsewhere, facts, monkeypatch, capsys):
    """The run continues with fewer images per call, and gives the same outcomes and examples."""
    small = "evaluation.images=6", "machine.images_per_block=6", "evaluation.examples=6"
    assert run(toy(elsewhere / "roomy", *small)) == 0
    plain = DiffPure.walk

    def crowded(self, x, noise):
        if len(x) > 4:
            raise torch.OutOfMemoryError("there is no room")
        return plain(self, x, noise)

    monkeypatch.setattr(DiffPure, "walk", crowded)
    assert run(toy(elsewhere / "narrow", *small)) == 0
    assert "out of memory with 6 images in one call; continuing with 3" in capsys.readouterr().err
    assert facts(elsewhere / "narrow") == facts(elsewhere / "roomy")
    found = [
        {name: table[name] for name in table.files}
        for out in ("roomy", "narrow")
        for table in [np.load(next((elsewhere / out / "examples").glob("*.npz")))]
    ]
    assert found[0].keys() == found[1].keys() >= {"times", "clean", "attacked_sure"}
    for name, wanted in found[0].items():
        np.testing.assert_allclose(found[1][name], wanted, atol=1e-5)


def test_shards_in_one_folder_or_merged_equal_the_whole_run(elsewhere, facts, whole):
    for i in range(3):
        assert run([*toy(elsewhere / "shared"), "--shard", f"{i}/3"]) == 0
        assert run([*toy(elsewhere / f"part{i}"), "--shard", f"{i}/3"]) == 0
        assert len(facts(elsewhere / f"part{i}")) == 8
    assert facts(elsewhere / "shared") == whole
    parts = [str(elsewhere / f"part{i}") for i in range(3)]
    assert run(["merge", *parts, "--out", str(elsewhere / "merged")]) == 0
    assert facts(elsewhere / "merged") == whole
    report = json.loads((elsewhere / "merged" / "report.json").read_text())
    assert report["n"] == 24


def test_rank_and_world_size_select_a_shard(elsewhere, facts, whole, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert run(toy(elsewhere / "half")) == 0
    assert facts(elsewhere / "half") == whole[1::2]


def test_killed_run_resumes_and_keeps_finished_work(elsewhere, facts, whole, killed):
    out = elsewhere / "killed"
    before = killed(toy(out, "machine.images_per_block=1"), out, 3)
    done = facts(out)
    assert 3 <= len(done) < 24, "it was to be killed in the middle"
    assert done == [row for row in whole if row[0] in {d[0] for d in done}]
    assert run(toy(out)) == 0
    assert facts(out) == whole
    assert all(path.stat().st_mtime_ns == then for path, then in before.items()), (
        "done work is kept"
    )


def test_merging_other_runs_or_conflicting_outcomes_is_refused(elsewhere, mistake, whole, edited):
    one, two = elsewhere / "whole", elsewhere / "two"
    assert run(toy(two, "evaluation.seed=1")) == 0
    assert "another spec" in mistake("merge", one, two, "--out", elsewhere / "sum")
    three = elsewhere / "three"
    assert run(toy(three)) == 0
    file = next((three / "outcomes").glob("*.jsonl"))
    edited(file, lambda text: text.replace('"label": 0', '"label": 1'))
    assert "disagree about image" in mistake("merge", one, three, "--out", elsewhere / "sum2")


def test_folder_of_another_spec_is_refused_and_left_unchanged(elsewhere, mistake, facts, whole):
    said = mistake(*toy(elsewhere / "whole", "threat.eps=0.2"))
    assert "another spec" in said
    assert "--out" in said
    assert facts(elsewhere / "whole") == whole


def test_resuming_with_other_images_or_other_code_is_refused(elsewhere, mistake, monkeypatch):
    monkeypatch.syspath_prepend(elsewhere)
    for place, level in (("a", 40), ("b", 200)):
        for label in ("x", "y"):
            picture = torch.full((1, 4, 4), level / 255)
            image_files.write(elsewhere / place / label / "1.png", picture)
    (elsewhere / "own.py").write_text("def shift(x, noise):\n    return x\n")
    command = [
        "evaluate",
        "blobs",
        "--out",
        "run",
        "--quiet",
        "--set",
        "purifier={name: 'own:shift'}",
    ]
    command += ["--set", "data={name: folder, gray: true}", "--data"]
    assert run([*command, "a"]) == 0
    assert "other images" in mistake(*command, "b")
    assert run([*command, "a"]) == 0
    (elsewhere / "own.py").write_text("def shift(x, noise):\n    return x * 1\n")
    assert "other code" in mistake(*command, "a")


def test_run_can_grow_to_more_images_and_keeps_finished_work(elsewhere, mistake, facts, whole):
    out = elsewhere / "grown"
    assert run(toy(out, "evaluation.images=5")) == 0
    before = {path: path.stat().st_mtime_ns for path in (out / "outcomes").iterdir()}
    assert len(facts(out)) == 5
    assert run(toy(out, "evaluation.images=9")) == 0
    assert len(facts(out)) == 9
    assert json.loads((out / "report.json").read_text())["requested"] == 9
    assert run(toy(out)) == 0
    assert facts(out) == whole
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    five = elsewhere / "five"
    assert run(toy(five, "evaluation.images=5")) == 0
    said = mistake("merge", five, out, "--out", elsewhere / "sum")
    assert "one is a run on another number of images" in said
    said = mistake(*toy(out, "evaluation.images=9"))
    assert "holds a run on 24 images, and this spec asks for only 9" in said
    assert "of another spec" in mistake(
        *toy(out, "evaluation.images=9", "evaluation.subset_seed=1")
    )


def test_run_does_not_grow_with_other_images(elsewhere, mistake, monkeypatch):
    out = elsewhere / "grown"
    assert run(toy(out, "evaluation.images=5")) == 0
    asked = json.loads((out / "run.json").read_text())
    asked["images"] = "0" * 64
    (out / "run.json").write_text(json.dumps(asked | {"sha256": seal(asked)}))
    assert "on other images" in mistake(*toy(out, "evaluation.images=9"))


def test_failed_run_leaves_the_folder_usable(elsewhere, mistake):
    assert "steps must be 1 or more" in mistake(*toy(elsewhere / "r", "attacks.0.steps=0"))
    assert run(toy(elsewhere / "r")) == 0


@pytest.mark.parametrize(
    ("rank", "size"), [("1", None), (None, "2"), ("2", "2"), ("one", "2"), ("0", "0")]
)
def test_invalid_ranks_are_refused(elsewhere, mistake, monkeypatch, rank, size):
    for name, value in (("RANK", rank), ("WORLD_SIZE", size)):
        if value is not None:
            monkeypatch.setenv(name, value)
    assert "RANK" in mistake(*toy(elsewhere / "r"))


def test_shard_without_images_succeeds(elsewhere):
    assert run([*toy(elsewhere / "r", "data.size=2"), "--shard", "3/4"]) == 0


def test_damaged_outcome_file_is_named_and_can_be_redone(elsewhere, mistake, facts, whole):
    out = elsewhere / "whole"
    file = sorted((out / "outcomes").glob("*.jsonl"))[0]
    file.write_bytes(file.read_bytes()[:-20])
    said = mistake(*toy(out))
    assert file.name in said
    assert "delete the file" in said
    file.unlink()
    assert run(toy(out)) == 0
    assert facts(out) == whole


def test_full_disk_loses_no_finished_work(elsewhere, facts, whole):
    """A limit on the size of files stands in for a full disk."""
    out = elsewhere / "full"
    assert run([*toy(out, "machine.images_per_block=4"), "--shard", "0/2"]) == 0
    done = facts(out)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))

    command = [
        sys.executable,
        "-c",
        "from unfool.cli.main import main; main()",
        *toy(out, "machine.images_per_block=12"),
    ]
    full = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, check=False)
    assert full.returncode == 2
    assert "file too large" in full.stderr
    assert "run the same command again" in full.stderr
    assert "Traceback" not in full.stderr
    assert facts(out) == done
    assert not list(out.rglob("*.tmp"))
    assert run(toy(out)) == 0
    assert facts(out) == whole


def test_folder_that_cannot_be_created_is_reported(elsewhere, mistake):
    (elsewhere / "file").write_text("in the way")
    assert "not a directory" in mistake(*toy(elsewhere / "file" / "run"))


def test_worst_attack_is_not_chosen_by_the_verdict_draws(elsewhere):
    """The model is right on 90 % of its draws, whatever the image. A verdict that chose the worst
    attack by its own draws would report less."""

    def coin(x, noise):
        right = noise.uniform(x)[:, 0, 0, 0] < 0.9
        even = (x.mean((1, 2, 3)) < 0.5).long()  # the class of the image in this data set
        answer = torch.where(right, 1 - even, even)
        return torch.nn.functional.one_hot(answer, 2).float() * 4 + 0 * x.sum((1, 2, 3))[:, None]

    def dark_stays_dark(name):
        return lambda model, x, y, threat, noise: threat.random_at_full_budget(
            x, noise.child(name)
        ).clamp(min=0)

    attacks = {f"a{i}": dark_stays_dark(i) for i in range(12)}
    run_ = Run.begin(elsewhere / "coin", asked(300, 4, attacks))
    data = Blobs(size=300)
    evaluate_into(
        coin, data, attacks, Threat("linf", 0.01), run_, draws=4, machine=Machine(quiet=True)
    )
    outcomes = run_.outcomes()
    kept = [o for o in outcomes if o.conditions["clean"].draws.count(o.label) >= 2]
    right = np.mean([o.conditions[o.chosen].draws.count(o.label) / 4 for o in kept])
    greedy = np.mean([min(c.draws.count(o.label) for c in o.conditions.values()) / 4 for o in kept])
    assert abs(right - 0.9) < 0.03
    assert greedy <= right


@pytest.mark.parametrize("knows", [None, Knowledge("both")])
def test_evaluation_scores_on_noise_that_the_search_has_not_seen(knows):
    """The model records all its random numbers. Only an attacker who knows them meets them again."""
    drawn: dict[str, set[float]] = {"search": set(), "scoring": set()}
    phase = ["scoring"]

    def model(x, noise):
        drawn[phase[0]].update(noise.child("forward").normal(x[:, 0, 0, 0]).tolist())
        return torch.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3))], 1)

    def attack(model, x, y, threat, noise):
        phase[0] = "search"
        x = PGD(steps=3, eot=2)(model, x, y, threat, noise)
        phase[0] = "scoring"
        return x

    viewed = AttackOnView(attack, lambda model: model, knows)
    evaluate(model, Blobs(size=4), attacks={"PGD": viewed}, threat=Threat("linf", 0.1), draws=4)
    assert all(len(numbers) >= 4 for numbers in drawn.values())
    assert bool(drawn["search"] & drawn["scoring"]) == bool(knows)


def test_merge_can_be_called_from_python(elsewhere, whole, facts):
    merged = merge([elsewhere / "whole"], elsewhere / "copy")
    assert facts(merged.folder) == whole


def asked(images, draws, attacks):
    """Return the `run.json` of a run with attacks from Python."""
    rows = [{"name": "mine:attack", "view": "exact", "label": label} for label in attacks]
    return manifest(range(images), {"attacks": rows, "evaluation": {"draws": draws}})


def survivors(folder, facts, block: int = 32, **options):
    """Run two attacks on a deterministic model: `half` breaks dark images only, `all` every image."""
    seen = {"half": [], "all": []}

    def sure(x, noise):
        level = 20 * (x.mean((1, 2, 3)) - 0.5)
        return torch.stack([-level, level], 1)  # dark images have class 0

    def attack(name):
        def reach(model, x, y, threat, noise):
            seen[name] += noise.keys
            up = (1 - 2 * y.double())[:, None, None, None] * threat.eps
            moved = threat.project(x, x + up.to(x))
            return torch.where(((y == 0) | (name == "all"))[:, None, None, None], moved, x)

        return reach

    run_, data = Run.begin(folder, asked(12, 2, seen)), Blobs(size=12)
    attacks = {name: attack(name) for name in seen}
    machine = Machine(quiet=True, images_per_block=block)
    evaluate_into(
        sure, data, attacks, Threat("linf", 0.4), run_, draws=2, machine=machine, **options
    )
    return facts(folder), seen


def test_skip_broken_attacks_only_surviving_images(elsewhere, facts):
    whole, seen = survivors(elsewhere / "whole", facts)
    assert len(seen["half"]) == len(seen["all"]) == 12
    short, seen = survivors(elsewhere / "short", facts, skip_broken=True)
    early = {i for i, (_, _, chosen, _) in enumerate(short) if chosen in ("clean", "random")}
    assert len(seen["half"]) == 12 - len(early)
    assert len(seen["all"]) == sum(y == 1 and i not in early for i, y, _, _ in short)
    assert 0 < len(seen["all"]) < len(seen["half"])
    for (_, label, chosen, made), (_, _, _, other) in zip(short, whole, strict=True):
        assert (made["clean"], made["random"]) == (other["clean"], other["random"])
        assert made[chosen].draws == [1 - label] * 2
        assert made[chosen].same_image_as == ""
        # Later attacks are not tried: the image that broke the model is kept.
        for name in list(made)[list(made).index(chosen) + 1 :]:
            assert made[name].same_image_as == (chosen if name in seen else "")
            if name in seen:
                assert (made[name].draws, made[name].size) == (
                    made[chosen].draws,
                    made[chosen].size,
                )
        if chosen == "all":
            assert made["all"] == other["all"]


def test_skip_broken_outcomes_do_not_depend_on_block_size(elsewhere, facts):
    one, _ = survivors(elsewhere / "one", facts, skip_broken=True)
    other, _ = survivors(elsewhere / "other", facts, block=5, skip_broken=True)
    assert one == other


def test_skip_broken_is_part_of_the_run_identity():
    from unfool import spec as specs
    from unfool.evaluation import run as evaluation

    plain, off, on = (
        evaluation.check(specs.load("blobs", changes))
        for changes in ([], ["evaluation.skip_broken=false"], ["evaluation.skip_broken=true"])
    )
    assert plain == off
    assert specs.identity(on) != specs.identity(plain)


def test_one_wrong_draw_does_not_mark_an_image_as_broken(elsewhere):
    tried = []

    def coin(x, noise):
        """A model that is right on half of its draws."""
        side = noise.child("coin").normal(x).mean((1, 2, 3)) + 1e-6 * x.mean((1, 2, 3))
        return torch.stack([side, -side], 1)

    def attack(model, x, y, threat, noise):
        tried.extend(noise.keys)
        return x

    run_, data = Run.begin(elsewhere / "run", asked(40, 1, "a")), Blobs(size=40)
    threat, machine = Threat("linf", 0.1), Machine(quiet=True)
    evaluate_into(
        coin, data, {"a": attack}, threat, run_, draws=1, machine=machine, skip_broken=True
    )
    assert len(tried) >= 38, "of 40; 8 wrong draws in a row are 1 in 256"
