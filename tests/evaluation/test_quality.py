"""Tests of distances to the clean images: known values, and what a run records."""

import json
import sys

import pytest
import torch

from unfool import distances
from unfool.cli.main import run
from unfool.evaluation import image_quality as quality
from unfool.evaluation.image_quality import measure
from unfool.noise import Noise
from unfool.results.quality_means import Quality, summarize
from unfool.results.run_folder import Run

CLEAN = 0.5 + 0.1 * Noise.of(0, range(3)).normal(torch.empty(3, 1, 12, 12))


def test_constant_shift_has_known_distances():
    told = measure(CLEAN + 0.1, CLEAN)
    assert [image["psnr"] for image in told] == pytest.approx([20.0] * 3, abs=1e-3)
    assert [image["l2"] for image in told] == pytest.approx([1.2] * 3, abs=1e-3)  # 0.1 sqrt(144)
    assert [image["linf"] for image in told] == pytest.approx([0.1] * 3, abs=1e-3)
    assert all(0.9 < image["ssim"] < 1 for image in told)


def test_identical_images_have_no_distance():
    assert measure(CLEAN, CLEAN) == [{"psnr": 100.0, "ssim": 1.0, "l2": 0.0, "linf": 0.0}] * 3


def test_each_image_is_measured_independently():
    other = CLEAN + 0.05 * Noise.of(1, range(3)).normal(CLEAN)
    alone = [measure(other[i : i + 1], CLEAN[i : i + 1])[0] for i in range(3)]
    assert measure(other, CLEAN) == alone


def test_means_have_student_t_intervals():
    told: list[dict[str, Quality]] = [
        {"a": {"before": dict.fromkeys(("psnr", "ssim", "l2", "linf"), v)}} for v in (1.0, 3.0)
    ]
    (row,) = summarize(told, ["a", "unmeasured"])
    assert row["name"] == "a"
    assert "after" not in row
    l2 = row.get("before", {})["l2"]
    assert l2["mean"] == 2
    assert l2["high"] == pytest.approx(
        2 + 12.7062, abs=1e-3
    )  # Student's t with 1 degree of freedom
    (row,) = summarize(told[:1], ["a"])
    assert row.get("before", {})["l2"] == {"mean": 1.0, "low": None, "high": None}


TOY = [
    *("evaluate", "blobs", "--quiet", "--set", "data.size=12", "--set", "purifier.steps=3"),
    *("--set", "evaluation.draws=2", "--set", "evaluation.examples=2"),
]
CORRUPTIONS = [
    "{name: corruption, kind: contrast, label: contrast, severity: 5}",
    "{name: corruption, kind: brightness, label: brightness}",
]


def evaluated(folder, *changes: str) -> tuple[Run, dict]:
    words = [word for change in changes for word in ("--set", change)]
    assert run([*TOY, "--out", str(folder), *words]) == 0
    return Run.open(folder), json.loads((folder / "report.json").read_text())


def test_run_records_distances_before_and_after_purification(elsewhere):
    done, report = evaluated(elsewhere / "run", "attacks=[{name: pgd, steps: 2, label: pgd}]")
    for outcome in done.outcomes():
        assert set(outcome.quality) == {"clean", "random", "pgd"}
        assert set(outcome.quality["clean"]) == {"after"}
        assert set(outcome.quality["pgd"]) == {"before", "after"}
        assert outcome.quality["pgd"]["before"]["linf"] == pytest.approx(
            outcome.conditions["pgd"].size, abs=1e-4
        )
    assert [row["name"] for row in report["quality"]] == ["clean", "random", "pgd"]
    text = (elsewhere / "run" / "report.md").read_text()
    assert "## Distance to the clean images" in text
    assert "| clean | - |" in text


def test_outcomes_without_distances_can_still_be_read(elsewhere, edited):
    done, _ = evaluated(elsewhere / "run", "attacks=[{name: pgd, steps: 1}]", "data.size=3")

    def without_quality(text):
        tables = [json.loads(line) for line in text.splitlines()]
        return "".join(json.dumps({**t, "quality": {}}) + "\n" for t in tables).replace(
            ', "quality": {}', ""
        )

    for path in list((done.folder / "outcomes").glob("*.jsonl")):
        edited(path, without_quality)
    assert all(outcome.quality == {} for outcome in done.outcomes())
    assert run(["report", str(done.folder)]) == 0
    assert "Distance to the clean" not in (done.folder / "report.html").read_text()


def test_only_the_examples_are_measured_without_attacks(elsewhere):
    done, _ = evaluated(elsewhere / "run", "attacks=[]")
    assert [bool(outcome.quality) for outcome in done.outcomes()] == [True] * 2 + [False] * 10


# ------------------------------------------------------------------------------- LPIPS

ATTACKED = ("attacks=[{name: pgd, steps: 1, label: pgd}]", "data.size=3")


def test_lpips_is_recorded_if_requested(elsewhere, monkeypatch):
    """A stand-in replaces the network, which needs torchvision; its value must reach the report."""
    monkeypatch.setattr(quality, "lpips", lambda x, y: 2 * distances.l1(x, y))
    done, report = evaluated(elsewhere / "run", *ATTACKED, "evaluation.lpips=true")
    first = done.outcomes()[0].quality["pgd"]
    assert 0 < first["before"]["lpips"] <= 2 * first["before"]["linf"] + 1e-4
    assert first["after"]["lpips"] > 0
    mean = report["quality"][2]["after"]["lpips"]["mean"]
    assert mean == pytest.approx(
        sum(o.quality["pgd"]["after"]["lpips"] for o in done.outcomes()) / 3
    )
    assert f"| {mean:.3f} \\[" in (done.folder / "report.md").read_text()
    assert "LPIPS, purified" in (done.folder / "report.html").read_text()
    plain, report = evaluated(elsewhere / "plain", *ATTACKED)
    assert (
        plain.manifest["identity"] == done.manifest["identity"]
    )  # the same run, with more recorded
    assert "lpips" not in report["quality"][2]["after"]
    assert "LPIPS, purified" not in (plain.folder / "report.html").read_text()


def test_missing_lpips_and_too_small_images_are_refused(elsewhere, mistake, monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    distances.lpips_network.cache_clear()
    asked = (*TOY, "--set", "evaluation.lpips=true", "--out", elsewhere / "run")
    assert "pip install 'unfool[lpips]'" in mistake(*asked)
    assert not (elsewhere / "run").exists()

    def network(x, y):
        raise RuntimeError("Output size is too small")

    monkeypatch.setattr(quality, "lpips", network)
    assert "not 1 x 4 x 4" in mistake(*asked)


def test_lpips_is_zero_for_equal_images_and_independent_of_the_batch():
    gray = 0.5 + 0.1 * Noise.of(0, range(2)).normal(torch.empty(2, 1, 32, 32))
    try:
        told = measure(0.9 * gray, gray, perceptual=True)
    except ValueError as error:
        pytest.skip(str(error))
    assert all(0 < image["lpips"] < 1 for image in told)
    assert measure(gray, gray, perceptual=True)[0]["lpips"] == 0
    assert measure(0.9 * gray[:1], gray[:1], perceptual=True) == told[:1]


# --------------------------------------------------------------------------- corruptions


def test_corruptions_beside_an_attack_do_not_count_in_robust_accuracy(elsewhere):
    attacks = ", ".join(["{name: pgd, steps: 2, label: pgd}", *CORRUPTIONS])
    done, report = evaluated(elsewhere / "run", f"attacks=[{attacks}]")
    assert [row["name"] for row in report["attacks"]] == ["pgd"]
    assert [row["name"] for row in report["corruptions"]] == ["contrast", "brightness"]
    for outcome in done.outcomes():
        assert outcome.chosen in ("clean", "random", "pgd")
        assert outcome.conditions["brightness"].size > 0
    sizes = [outcome.conditions["contrast"].size for outcome in done.outcomes()]
    assert max(sizes) > 0.1 + 1e-3, "beyond the threat, and recorded as it is"
    alone = report["corrupted"]["per_draw"]["accuracy"]
    parts = [row["robust"]["per_draw"]["accuracy"] for row in report["corruptions"]]
    assert alone == pytest.approx(sum(parts) / 2)
    assert report["corrupted"]["per_draw"]["low"] < alone < report["corrupted"]["per_draw"]["high"]
    assert "corruption (kind contrast, severity 5)" in report["threat_model"]["not by an attacker"]
    assert "contrast" not in report["threat_model"]["the attacker's view"]
    text = (elsewhere / "run" / "report.md").read_text()
    assert "exceed the threat: contrast, brightness." in (text.replace("\\", ""))


def test_report_of_corruptions_alone_makes_no_claim_about_attacks(elsewhere):
    done, report = evaluated(elsewhere / "run", f"attacks=[{', '.join(CORRUPTIONS)}]")
    assert report["attacks"] == []
    assert {o.chosen for o in done.outcomes()} <= {"clean", "random", "contrast", "brightness"}
    assert "the attacker may change" not in report["threat_model"]
    assert "no-adaptive-attack" not in {doubt["name"] for doubt in report["doubts"]}
    text = (elsewhere / "run" / "report.md").read_text()
    assert text.startswith("# Under 2 corruptions the model is right ")
    assert "they say nothing about robustness to one" in text
    assert "differentiates through the defense" not in text
    assert "corrupted, on average" in text


def test_saved_spec_with_corruptions_can_be_run_again(elsewhere):
    done, _ = evaluated(elsewhere / "run", f"attacks=[{', '.join(CORRUPTIONS)}]", "data.size=3")
    (elsewhere / "spec.yaml").write_text(json.dumps(done.manifest["spec"]))
    assert run(["evaluate", "spec.yaml", "--quiet", "--out", str(done.folder)]) == 0


def test_corruption_that_leaves_the_range_stops_the_run(elsewhere, mistake):
    (elsewhere / "mine.py").write_text(
        "class Loud:\n"
        "    bounded = False\n"
        "    def __call__(self, model, x, y, threat, noise):\n"
        "        return x + 1\n"
    )
    said = mistake(*TOY, "--set", "attacks=['mine:Loud']", "--out", elsewhere / "run")
    assert "images in [0, 1]" in said
