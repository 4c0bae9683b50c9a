"""Paths of attacks with the noise known and not, and the landscape they run over."""

import json

import numpy as np
import pytest
import torch

from defuse.analysis.landscape import landscape
from defuse.analysis.opened import opened
from defuse.analysis.trajectories import DW, EOT, WHITE, flat, trajectories
from defuse.attacks.losses import LOSSES
from defuse.cli import run

SPEC = ["purifier={name: diffpure, t: 0.3, steps: 4, sampler: ddpm}", "threat.eps=0.2"]
DIGITS = ["purifier.steps=2"]
SMALL = {"steps": 5, "eot": 4, "draws": 8, "quiet": True}


def seen(images=4):
    return opened("blobs", SPEC, None, images=images, device="cpu")


def digits():
    return opened("demo", DIGITS, None, images=2, device="cpu")


def follow(at, which=slice(None), **options):
    noise = at.noise.take(range(len(at.x))[which])
    settings = SMALL | {"runs": 3} | options
    return trajectories(at.model, at.x[which], at.y[which], at.threat, noise, **settings)


def test_known_noise_is_attacked_best_on_that_noise():
    found = follow(seen(8))
    losses = {name: runs.losses["known"].mean() for name, runs in found.runs.items()}
    assert losses[DW] > losses[WHITE]
    assert losses[DW] > losses[EOT]
    fresh = {name: runs.losses["fresh"].mean() for name, runs in found.runs.items()}
    assert fresh[EOT] >= fresh[WHITE] - 0.05


def test_shapes_starts_and_bounds():
    at = seen()
    found = follow(at, shown=2)
    pixels = at.x[0].numel()
    for name, runs in found.runs.items():
        count = 1 if name == DW else 3
        assert runs.ends.shape == (4, count, pixels)
        assert runs.paths.shape == (2, count, 6, pixels)
        assert np.abs(runs.ends).max() <= 0.2 + 1e-6
        assert not runs.paths[:, :, 0].any()  # all begin at the image
        assert np.array_equal(runs.paths[:, :, -1], runs.ends[:2])
        for kind in ("known", "fresh"):
            assert np.allclose(runs.heights[kind][:, :, -1], runs.losses[kind][:2])
            first = runs.heights[kind][:, :, 0]
            assert np.allclose(first, first[:, :1])  # the same image, the same draws
    points, where = flat(found.runs, 0)
    assert len(points) == 7 * 6
    assert [name for name, _, _ in where] == [DW, *[WHITE] * 3, *[EOT] * 3]


def test_an_image_alone_has_the_same_paths():
    at = seen()
    every, alone = follow(at), follow(at, slice(1, 2))
    for name in (DW, WHITE, EOT):
        assert np.allclose(every.runs[name].ends[1], alone.runs[name].ends[0], atol=1e-6), name


def test_cosines_are_those_of_the_ends():
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


def test_the_landscape_has_the_attacks_where_it_says():
    at = digits()
    found = around(at, clip=False)
    assert found.along.tolist() == [0, 1, 2]
    assert np.allclose(found.paths[DW][-1], [1, 0], atol=1e-5)
    assert found.paths[EOT][-1][1] == pytest.approx(1, abs=1e-5)
    assert found.outside[DW] < 1e-4
    secret = at.noise.take([0]).fold("defence")
    u = torch.from_numpy(found.directions[0])
    for a, b in ((0, 0), (1, 0), (2, 0)):
        with torch.no_grad():
            logits = at.model(at.x[:1] + a * u.to(at.x), secret)
        loss = float(LOSSES["margin"](logits, at.y[:1]))
        assert found.known[b, a] == pytest.approx(loss, rel=1e-3)
    assert found.known[0, 1] > found.known[0, 0]  # DW-box climbed
    assert abs(float((found.directions[0] * found.directions[1]).sum())) < 1e-4


@pytest.mark.parametrize(
    ("options", "said"),
    [({"grid": 1}, "grid must be 2"), ({"draws": 0}, "draws must be 1")],
)
def test_a_wrong_number_is_told(options, said):
    with pytest.raises(ValueError, match=said):
        around(seen(2), **options)


def test_one_direction_is_no_landscape():
    with pytest.raises(ValueError, match="no second direction"):
        around(seen(2))  # two classes apart along one line: all attacks agree


def test_the_commands_write_pages(elsewhere, mistake):
    sets = [word for change in SPEC for word in ("--set", change)]
    few = ["--steps", "3", "--eot", "2", "--draws", "2", "--quiet", "--device", "cpu"]
    words = ["analyze", "trajectories", "blobs", *sets, *few, "--images", "3", "--runs", "2"]
    assert run([*words, "--out", "t"]) == 0
    told = json.loads((elsewhere / "t" / "trajectories.json").read_text())
    assert [row["setting"] for row in told["settings"]] == [DW, WHITE, EOT]
    assert "--eot 2" in told["command"]
    for name in ("trajectories.png", "trajectories-tsne.png"):
        assert (elsewhere / "t" / name).read_bytes()[1:4] == b"PNG"
    arrays = np.load(elsewhere / "t" / "trajectories.npz")
    assert "DW-box/ends" in arrays
    rows = {row["setting"]: row for row in told["settings"]}
    for name in (DW, WHITE, EOT):
        assert arrays[f"{name}/loss-fresh"].mean() == pytest.approx(
            rows[name]["loss"]["fresh"]["mean"]
        )
        assert arrays[f"{name}/right-known"].shape == arrays[f"{name}/loss-known"].shape
    for figure in ("trajectories", "trajectories-tsne"):
        drawn = arrays[f"{figure}/{DW}/0"]
        assert drawn.shape == (arrays[f"{DW}/paths"].shape[2], 2)
    words = ["analyze", "landscape", "demo", "--set", *DIGITS, *few, "--grid", "3", "--image", "1"]
    assert run([*words, "--beside", "purifier.t=0.1", "--out", "l"]) == 0
    told = json.loads((elsewhere / "l" / "landscape.json").read_text())
    assert list(told["models"]) == ["the model", "beside"]
    assert "--beside purifier.t=0.1" in told["command"]
    assert "beside/known" in np.load(elsewhere / "l" / "landscape.npz")
    assert "runs must be 1" in mistake("analyze", "trajectories", "blobs", "--runs", "0")
    assert "--image" in mistake("analyze", "landscape", "demo", "--image", "-1")
