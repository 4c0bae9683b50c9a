"""The three readings of a verdict, compared with counts made by hand."""

from typing import Any

import pytest

from unfool.results.outcome import Condition, Outcome
from unfool.results.run_folder import Run
from unfool.results.summary import flip_rate, judge, summarize_run


def outcome(index, label, draws):
    return Outcome(index, label, {"clean": Condition(draws, None, 0.0, 0.0)}, "clean", 0.0, {})


OUTCOMES = [
    outcome(0, 4, [4, 4, 4, 4]),  # right by every reading
    outcome(1, 4, [4, 4, 4, 7]),
    outcome(2, 4, [4, 4, 7, 7]),  # a tie is wrong, whichever class has the lower index
    outcome(3, 9, [9, 9, 7, 7]),
    outcome(4, 4, [4, 4, 7, 8]),  # more than any other class, though not more than half
    outcome(5, 4, [7, 7, 7, 7]),
]


def test_readings_match_hand_counts():
    judged = judge("clean", OUTCOMES, lambda o: o.conditions["clean"])
    assert judged.per_draw.value == pytest.approx((4 + 3 + 2 + 2 + 2 + 0) / 24)
    assert judged.majority.value == pytest.approx(3 / 6)
    assert judged.all_draws.value == pytest.approx(1 / 6)
    assert judged.k == 4
    assert judged.undefended is None


def test_flip_rate_matches_hand_count():
    assert flip_rate(OUTCOMES).value == pytest.approx((0 + 1 + 2 + 2 + 2 + 0) / 24)


def two_attacks(folder):
    """Make a run of ten images: `cheap` breaks four, `dear` is tried on the rest and breaks two."""
    spec = {
        "data": {"name": "mine:Data"},
        "classifier": {"name": "mine:Net"},
        "threat": {"norm": "linf", "eps": 0.1},
        "attacks": [{"name": "pgd", "view": "exact", "label": name} for name in ("cheap", "dear")],
        "evaluation": {"images": 10, "subset_seed": 0, "seed": 0, "draws": 4, "skip_broken": True},
    }
    asked: Any = {"identity": "x", "spec": spec, "indices": list(range(10)), "classes": ["a", "b"]}
    run = Run.begin(folder, asked | {"versions": {}, "images": "0" * 64, "code": "0" * 64})
    right, half, wrong = [0, 0, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1]
    outcomes = []
    for i in range(10):
        cheap = Condition(wrong, None, 0.1, 1.0) if i < 4 else Condition(half, None, 0.1, 0.5)
        dear = Condition(wrong if i < 6 else right, None, 0.1, 1.0 if i < 6 else 0.25)
        if i < 4:
            dear = Condition(wrong, None, 0.1, 1.0, same_image_as="cheap")
        plain = Condition([0, 0, 0, 1] if i == 9 else right, None, 0.0, 0.0)
        conditions = {"clean": plain, "random": plain, "cheap": cheap, "dear": dear}
        chosen = "dear" if i in (4, 5) else "cheap"
        outcomes.append(Outcome(i, 0, conditions, chosen, 0.0, {}))
    run.add(outcomes, {})
    return run


def test_by_attack_lists_robust_accuracy_after_each_attack(tmp_path):
    told = summarize_run(two_attacks(tmp_path))
    cheap, dear = told["by_attack"]
    assert (cheap["name"], cheap["attacked"], dear["name"], dear["attacked"]) == (
        "cheap",
        10,
        "dear",
        6,
    )
    assert cheap["robust"]["per_draw"]["accuracy"] == pytest.approx(6 * 0.5 / 10)
    assert dear["robust"]["per_draw"]["accuracy"] == pytest.approx(4 * 0.5 / 10)
    assert dear["robust"] == told["robust"]
    assert [row["broken"] for row in told["attacks"]] == [8, 2]
    assert "already wrong on all of these" in told["threat_model"]["the verdict"]


def test_resubmission_curve_includes_clean_images(tmp_path):
    curve = summarize_run(two_attacks(tmp_path))["resubmission"]
    assert curve["submissions"] == [1, 2, 3, 4]
    clean = [share["accuracy"] for share in curve["clean"]]
    assert clean == pytest.approx([0.975, 0.95, 0.925, 0.9])
    assert curve.get("random") == curve["clean"]
    robust = [share["accuracy"] for share in curve.get("robust", [])]
    assert robust == pytest.approx([0.2, 4 / 60, 0, 0])
