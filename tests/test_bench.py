"""The benchmarks: exact variants agree on the gradient, and pages change between their marks."""

import sys
from pathlib import Path

import pytest
import torch

from unfool.diffusion.reverse import euler_maruyama, even

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
import bayes
import deploy
import measuring
import speed
import variants


@pytest.mark.parametrize("guided", [False, True])
def test_exact_variants_compute_the_same_gradient(guided: bool):
    case = variants.Case(
        variants.pair(), 2, even(0.1, 4), euler_maruyama, guided, dtype=torch.float64
    )
    true = case.gradient(case.plain)
    assert float(true.norm()) > 0
    for name, chain in case.ways().items():
        if "adjoint" not in name:
            assert measuring.error(case.gradient(chain), true) < 1e-12, name


def test_error_of_the_adjoint_gradient_is_detected():
    """The error column shows that torchsde's adjoint is not the exact gradient."""
    pytest.importorskip("torchsde")
    case = variants.Case(variants.pair(), 2, even(0.1, 4), euler_maruyama)
    assert measuring.error(case.gradient(case.adjoint), case.gradient(case.plain)) > 0.01


def test_variants_alternate_and_ratios_are_taken_within_a_round(monkeypatch):
    asked = []
    clock = {"floor": iter([1.0, 2.0]), "other": iter([3.0, 2.0])}
    monkeypatch.setattr(measuring, "seconds", lambda run, device: next(clock[run()]))
    runs = {name: lambda name=name: asked.append(name) or name for name in clock}
    took = measuring.interleaved(runs, "cpu", 2, warm=False)
    assert asked == ["other", "floor", "floor", "other"]
    assert measuring.over(took, "other", "floor") == (1.0, 2.0, 3.0)


def test_page_changes_only_between_its_marks():
    begin, end = speed.MARKS
    page = f"above\n{begin}\nold\n{end}\nbelow\n"
    assert (
        measuring.between(page, speed.MARKS, ["new"]) == f"above\n{begin}\n\nnew\n\n{end}\nbelow\n"
    )
    with pytest.raises(SystemExit):
        measuring.between("no marks", speed.MARKS, ["new"])


def test_section_on_public_code_is_kept_when_it_is_not_measured():
    docs = Path(__file__).parents[1] / "docs" / "speed.md"
    section = speed.public_section(docs.read_text("utf-8"))
    assert section[0] == speed.PUBLIC
    assert any(line.startswith("| DiffHammer, commit ") for line in section)
    begin, end = speed.MARKS
    page = f"above\n{begin}\nold\n\n" + "\n".join(section) + f"\n\n{end}\nbelow\n"
    new = measuring.between(page, speed.MARKS, ["new", "", *speed.public_section(page)])
    assert new == page.replace("old", "\nnew")
    assert speed.public_section(new) == section
    assert speed.public_section(f"{begin}\nold\n{end}\n{speed.PUBLIC}") == [], (
        "below the marks it is not ours"
    )


def test_agreement_with_bayes_rule_is_measured(monkeypatch, capsys):
    assert bayes.measure(200, 60, 0, (0.05, 0.6))[0].value > 0.98
    faint = bayes.measure(200, 20, 0, (0.0, 0.02))  # here the noise hides the class
    assert faint[0].value < 0.95
    asked = ["--points", "200", "--draws", "20", "--span", "0", "0.02"]
    monkeypatch.setattr(sys, "argv", ["bayes.py", *asked])
    bayes.main()
    *_, row = capsys.readouterr().out.splitlines()
    assert row == f"| 20 | {' | '.join(map(str, faint))} | 200 | 0 |"


def test_deployment_costs_are_measured_in_a_separate_process(monkeypatch, capsys):
    asked = ["--spec", "demo", "--set", "purifier.steps=1", "--images", "2", "--seconds", "0"]
    monkeypatch.setattr(sys, "argv", ["deploy.py", *asked])
    deploy.main()
    *_, row, _ = capsys.readouterr().out.split("\n")[:-1]
    name, images, *numbers = (cell.strip() for cell in row.strip("|").split("|"))
    assert (name, images) == ("demo purifier.steps=1", "2")
    load, memory, wall, cpu, rate = (float(number.replace(",", "")) for number in numbers)
    assert 50 < memory < 5000
    assert min(load, wall, cpu) > 0
    assert rate == pytest.approx(2 / (cpu / 1000), rel=0.02)
    with pytest.raises(RuntimeError, match="nowhere"):
        deploy.in_a_process("nowhere", (), 1, "cpu", 0, 1)
