"""Paths of attacks with and without known noise, and the loss landscape around them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from unfool.analysis.inputs import load_inputs
from unfool.analysis.landscape import Landscape, landscape
from unfool.analysis.trajectories import (
    DW,
    EOT,
    WHITE,
    Runs,
    Trajectories,
    stack_iterates,
    trajectories,
)
from unfool.argument_checks import images_of_any_range
from unfool.attacks.losses import LOSSES
from unfool.cli.main import run
from unfool.report.document import Drawing
from unfool.report.figures import style
from unfool.report.figures import trajectories as report

SPEC = ["purifier={name: diffpure, t: 0.3, steps: 4, sampler: ddpm}", "threat.eps=0.2"]
DIGITS = ["purifier.steps=2"]
SMALL = {"steps": 5, "eot": 4, "draws": 8, "quiet": True}


def seen(images=4):
    return load_inputs("blobs", SPEC, None, images=images, device="cpu")


def digits():
    return load_inputs("demo", DIGITS, None, images=2, device="cpu")


def follow(at, which=slice(None), **options):
    noise = at.noise.take(range(len(at.x))[which])
    settings: dict[str, Any] = SMALL | {"runs": 3} | options
    return trajectories(at.model, at.x[which], at.y[which], at.threat, noise, **settings)


def test_attack_that_knows_the_noise_is_best_on_that_noise():
    """It uses digits, because all three attacks reach the same corner on blobs."""
    found = follow(load_inputs("demo", DIGITS, None, images=6, device="cpu"))
    known = {name: runs.losses["known"].mean() for name, runs in found.runs.items()}
    assert known[DW] > known[WHITE] + 5  # about 10, compared with -3 and -1
    assert known[DW] > known[EOT] + 5
    fresh = {name: runs.losses["fresh"].mean() for name, runs in found.runs.items()}
    assert fresh[EOT] > fresh[DW]


def test_paths_have_the_expected_shapes_starts_and_bounds():
    at = seen()
    found = follow(at, shown=2)
    pixels = at.x[0].numel()
    for name, runs in found.runs.items():
        count = 1 if name == DW else 3
        assert runs.ends.shape == (4, count, pixels)
        assert runs.paths.shape == (2, count, 6, pixels)
        assert np.abs(runs.ends).max() <= 0.2 + 1e-6
        assert not runs.paths[:, :, 0].any()  # all start at the image
        assert np.array_equal(runs.paths[:, :, -1], runs.ends[:2])
        for kind in ("known", "fresh"):
            assert np.allclose(runs.heights[kind][:, :, -1], runs.losses[kind][:2])
            first = runs.heights[kind][:, :, 0]
            assert np.allclose(first, first[:, :1])  # the same image, the same draws
    points, where = stack_iterates(found.runs, 0)
    assert len(points) == 7 * 6
    assert [name for name, _, _ in where] == [DW, *[WHITE] * 3, *[EOT] * 3]


def test_paths_do_not_depend_on_the_batch():
    at = seen()
    every, alone = follow(at), follow(at, slice(1, 2))
    for name in (DW, WHITE, EOT):
        assert np.allclose(every.runs[name].ends[1], alone.runs[name].ends[0], atol=1e-6), name


def test_cosines_are_those_of_the_end_points():
    told = follow(seen()).summary()
    pairs = {tuple(row["between"]): row["cosine"]["mean"] for row in told["cosines"]}
    assert len(pairs) == 5  # DW-box has one run, which is not compared with itself
    assert all(-1 <= value <= 1.0001 for value in pairs.values())
    runs = follow(seen()).runs
    within, between = [], []
    for image in range(4):
        ends = {name: runs[name].ends[image] for name in (EOT, WHITE)}
        within += [[cosine(ends[EOT][i], ends[EOT][j]) for i in range(3) for j in range(i)]]
        between += [[cosine(one, other) for one in ends[EOT] for other in ends[WHITE]]]
    assert pairs[EOT, EOT] == pytest.approx(np.mean(within), abs=1e-5)
    assert pairs[WHITE, EOT] == pytest.approx(np.mean(between), abs=1e-5)


def cosine(one, other):
    return one @ other / np.linalg.norm(one) / np.linalg.norm(other)


def around(at, **options):
    noise = at.noise.take([0])
    return landscape(
        at.model,
        at.x[:1],
        at.y[:1],
        at.threat,
        noise,
        **SMALL | {"grid": 3, "reach": 2.0} | options,
    )


def test_landscape_has_the_attacks_and_losses_at_their_coordinates():
    at = digits()
    found = around(at, clip=False)
    assert found.along.tolist() == [0, 1, 2]
    assert np.allclose(found.paths[DW][-1], [1, 0], atol=1e-5)
    assert found.paths[EOT][-1][1] == pytest.approx(1, abs=1e-5)
    assert found.outside[DW] < 1e-4
    secret = at.noise.take([0]).child("defense")
    u = torch.from_numpy(found.directions[0])
    for a, b in ((0, 0), (1, 0), (2, 0)):
        with torch.no_grad(), images_of_any_range():
            logits = at.model(at.x[:1] + a * u.to(at.x), secret)
        loss = float(LOSSES["margin"](logits, at.y[:1]))
        assert found.known[b, a] == pytest.approx(loss, rel=1e-3)
    assert found.known[0, 1] > found.known[0, 0]  # DW-box raised the loss
    assert abs(float((found.directions[0] * found.directions[1]).sum())) < 1e-4


@pytest.mark.parametrize(
    ("options", "said"),
    [({"grid": 1}, "grid must be 2"), ({"draws": 0}, "draws must be 1")],
)
def test_invalid_grid_and_draws_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        around(seen(2), **options)


def test_landscape_is_refused_if_all_attacks_agree():
    with pytest.raises(ValueError, match="the same image"):
        around(seen(2))  # two classes along one line: all attacks agree


def test_commands_write_their_results_and_refuse_invalid_options(elsewhere, mistake):
    sets = [word for change in SPEC for word in ("--set", change)]
    few = ["--steps", "3", "--eot", "2", "--draws", "2", "--quiet", "--device", "cpu"]
    words = ["analyze", "trajectories", "blobs", *sets, *few, "--images", "3", "--runs", "2"]
    assert run([*words, "--out", "t"]) == 0
    told = json.loads((elsewhere / "t" / "trajectories.json").read_text())
    assert [row["setting"] for row in told["settings"]] == [DW, WHITE, EOT]
    for name in ("trajectories.png", "trajectories-tsne.png"):
        assert (elsewhere / "t" / name).read_bytes()[1:4] == b"PNG"
    arrays = np.load(elsewhere / "t" / "trajectories.npz")
    assert "DW-box/ends" in arrays
    rows = {row["setting"]: row for row in told["settings"]}
    for name in (DW, WHITE, EOT):
        assert arrays[f"{name}/loss-fresh"].mean() == pytest.approx(
            rows[name]["loss"]["fresh"]["mean"]
        )
        assert arrays[f"{name}/accuracy-known"].shape == arrays[f"{name}/loss-known"].shape
    for figure in ("trajectories", "trajectories-tsne"):
        drawn = arrays[f"{figure}/{DW}/0"]
        assert drawn.shape == (arrays[f"{DW}/paths"].shape[2], 2)
    words = ["analyze", "landscape", "demo", "--set", *DIGITS, *few, "--grid", "3", "--image", "1"]
    assert run([*words, "--compare-with", "purifier.t=0.1", "--out", "l"]) == 0
    told = json.loads((elsewhere / "l" / "landscape.json").read_text())
    assert list(told["models"]) == ["the model", "the changed model"]
    assert "the changed model/known" in np.load(elsewhere / "l" / "landscape.npz")
    assert "runs must be 1" in mistake("analyze", "trajectories", "blobs", "--runs", "0")
    assert "--image" in mistake("analyze", "landscape", "demo", "--image", "-1")


def test_interval_stays_within_the_range_of_a_cosine():
    ends = np.array([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])  # cosines 1 and 0
    runs = Runs(ends, ends, {}, {"known": ends[:, :, 0]}, {"known": ends[:, :, 0]})
    (row,) = Trajectories({EOT: runs}, 1).summary()["cosines"]
    assert row["cosine"] == {"mean": pytest.approx(0.5), "low": -1, "high": 1}


def test_landscape_refuses_invalid_options_before_it_computes(elsewhere, mistake, monkeypatch):
    at = "unfool.analysis.landscape.landscape"
    monkeypatch.setattr(at, lambda *args, **options: pytest.fail("drawn"))
    words = ["analyze", "landscape", "demo", "--device", "cpu"]
    assert "'purifier'" in mistake(*words, "--compare-with", "purifer.t=0.1")
    said = mistake(*words, "--image", "99", "--set", "evaluation.images=80")
    assert "--image must be from 0 to 79" in said


def test_single_image_is_loaded_as_in_a_batch():
    one, many = (load_inputs("blobs", SPEC, None, n, device="cpu", position=1) for n in (None, 3))
    assert one.indices == many.indices[1:2]
    assert torch.equal(one.x, many.x[1:2])
    assert torch.equal(one.y, many.y[1:2])
    assert torch.equal(one.noise.normal(one.x), many.noise.take([1]).normal(one.x))


def test_attacks_of_the_spec_are_ignored():
    changes = ["purifier=null", "attacks=[{name: pgd, view: bpda}]"]
    assert load_inputs("blobs", changes, None, 2, device="cpu").spec["attacks"] == []


def test_labels_of_attacks_do_not_overlap_their_paths(monkeypatch):
    ends = {DW: (1, 0), EOT: (1.5, 1)}
    paths = {name: np.linspace((0, 0), end, 9) for name, end in ends.items()}
    plane = np.arange(9.0).reshape(3, 3)
    along = np.array([0, 0.8, 1.6])
    found = Landscape(along, plane, plane, paths, {}, np.zeros((2, 1, 1, 1)))
    figures = []
    monkeypatch.setattr(report, "draw", lambda figure: figures.append(figure) or Drawing(b"", ""))
    report.surfaces({"the model": found})
    style.draw_png(figures[0])  # drawing computes the layout
    names = 0
    for axes in figures[0].axes:
        for text in axes.texts:
            if text.get_text() in paths:
                names += 1
                box, shown = text.get_window_extent(), axes.transData.transform
                many = np.linspace((0, 0), ends[text.get_text()], 500)
                assert not any(box.contains(*point) for point in shown(many)), text.get_text()
                assert axes.bbox.x0 < box.x0 < box.x1 < axes.bbox.x1
                assert text.get_path_effects(), "white on yellow is faint"
    assert names == 4


def test_figure_of_the_docs_has_the_current_colors():
    path = Path(__file__).parents[2] / "docs" / "trajectories.png"
    assert path.stat().st_size < 250_000
    pixels = np.asarray(Image.open(path).convert("RGB"), dtype=int)
    for name, color in report.COLORS.items():
        gap = np.abs(pixels - 255 * np.array(to_rgb(color))).max(2)
        assert (gap < 12).sum() > 200, name
