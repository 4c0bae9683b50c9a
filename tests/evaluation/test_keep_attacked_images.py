"""Tests of adversarial images that are kept and evaluated again."""

import json
import re

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file

from unfool.attacks.precomputed import PrecomputedAttack, round_toward_clean
from unfool.cli.main import run
from unfool.data import fetch, image_files
from unfool.data.digits import digits
from unfool.data.subset import choose_indices, labels_of
from unfool.evaluation import keep_attacked_images
from unfool.evaluation import run as evaluation
from unfool.evaluation.prepare import prepare
from unfool.noise import Noise
from unfool.results.run_folder import Run
from unfool.spec import load
from unfool.threat import Threat

LINEAR = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 640).sin().view(10, 64) * 40)
    def forward(self, x, noise):
        x = x + 0.1 * noise.child("blur").normal(x)
        return (7 * x).sin().flatten(1) @ self.weight.T / 64
"""
SPEC = {
    "data": "digits",
    "classifier": "plain:Net",
    "threat": {"norm": "linf", "eps": 0.1},
    "attacks": [{"name": "pgd", "steps": 3, "eot": 2, "label": "a/b c"}],
    "evaluation": {"images": 7, "draws": 3, "seed": 4},
    "machine": {"images_per_block": 3},
}


@pytest.fixture
def spec(elsewhere, monkeypatch):
    (elsewhere / "plain.py").write_text(LINEAR)
    monkeypatch.syspath_prepend(elsewhere)

    def write(**changes):
        (elsewhere / "my.yaml").write_text(yaml.safe_dump(SPEC | changes))
        return "my.yaml"

    return write


@pytest.fixture
def kept(spec, elsewhere):
    assert run(["attack", spec(), "--out", "kept", "--png", "--quiet"]) == 0
    return elsewhere / "kept"


def given(*paths, **options):
    rows = [{"name": "images", "path": str(p), "label": str(i)} for i, p in enumerate(paths)]
    return [row | options for row in rows]


def test_kept_images_come_with_labels_indices_and_a_card(kept):
    card = json.loads((kept / "card.json").read_text())
    about = card["attacks"]["a/b c"]
    with np.load(kept / about["file"]) as file:
        found = dict(file)
    assert found["images"].shape == (7, 1, 8, 8)
    assert found["images"].dtype == np.float32
    assert card["threat"] == {"norm": "linf", "eps": 0.1}
    assert card["seed"] == 4
    assert (card["images"], card["requested"]) == (7, 7)
    assert card["command"] == "unfool attack my.yaml --out kept --png --quiet"
    indices = choose_indices(len(digits()), 7, 0, labels=labels_of(digits()))
    assert found["indices"].tolist() == indices
    x, y = fetch(digits(), indices)
    assert found["labels"].tolist() == y.tolist()
    size = np.abs(found["images"] - x.numpy()).max((1, 2, 3))
    assert size.max() == pytest.approx(0.1, abs=1e-5)
    assert about["largest"] == pytest.approx(0.1, abs=1e-5)


def test_dry_run_counts_only_the_attacks_and_writes_nothing(spec, elsewhere, capsys, mistake):
    command = ["attack", spec(), "--out", "r", "--quiet"]
    assert run([*command, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "7 images: " in said
    assert "a/b c" in said
    assert "verdict" not in said
    assert "interval" not in said
    assert not (elsewhere / "r").exists()
    assert run([*command, "--shard", "0/2"]) == 0
    capsys.readouterr()
    assert run([*command, "--dry-run"]) == 0
    assert "with 7 images, of which 4 are done" in capsys.readouterr().out
    assert "the spec has no attacks" in mistake("attack", spec(attacks=[]), "--dry-run")


def test_sheet_shows_each_attack_and_names_classes(kept):
    page = (kept / "a-b-c-sheet.html").read_text("utf-8")
    assert "unfool attack my.yaml --out kept --png --quiet" in page
    heads = re.findall(r'<th scope="col">([^<]+)</th>', page)
    assert heads[:3] == ["image", "before", "attacked"]
    assert page.count("data:image/png;base64") == 7 * 3
    facts = Run.open(kept).read(keep_attacked_images.AttackedImage)
    for fact in facts:
        assert f"no. {fact.index}<br>true: {digits().classes[fact.label]}<br>" in page
        assert f"size {fact.sizes['a/b c']:.3g}" in page


def test_verdict_on_kept_images_equals_that_on_the_attack(spec, kept, elsewhere, facts):
    assert run(["evaluate", spec(), "--out", "made", "--quiet"]) == 0
    spec(attacks=given(kept / "a-b-c.npz", kept / "a-b-c"))
    assert run(["evaluate", "my.yaml", "--out", "given", "--quiet"]) == 0
    for made, again in zip(facts(elsewhere / "made"), facts(elsewhere / "given"), strict=True):
        assert again[3]["0"].draws == made[3]["a/b c"].draws
        assert again[3]["0"].size == made[3]["a/b c"].size
        assert 0 < again[3]["1"].size <= 0.1 + 1e-5
    report = json.loads((elsewhere / "given" / "report.json").read_text())
    assert "images were made elsewhere" in report["threat_model"]["the attacker's view"]
    assert "made elsewhere" in report["threat_model"]["the attacker's randomness"]
    assert "images made elsewhere" in (elsewhere / "given" / "report.md").read_text()


def test_blocks_shards_and_resuming_give_the_same_images(spec, kept, elsewhere, capsys):
    command = ["attack", spec(), "--format", "safetensors", "--quiet", "--out"]
    for part in ("0/2", "1/2"):
        changes = ["--set", "machine.images_per_block=2", "--shard", part]
        assert run([*command, f"part{part[0]}", *changes]) == 0
    capsys.readouterr()
    assert run(["merge", "part0", "part1", "--out", "sum"]) == 0
    assert "a-b-c.npz" in capsys.readouterr().out
    gone, *rest = sorted((elsewhere / "sum" / "outcomes").iterdir())
    gone.unlink()
    before = {path: path.stat().st_mtime_ns for path in rest}
    assert run([*command, "sum"]) == 0
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    found = load_file(elsewhere / "sum" / "a-b-c.safetensors")
    with np.load(kept / "a-b-c.npz") as file:
        for name in ("images", "labels", "indices", "clean_blake2b"):
            assert np.allclose(found[name], file[name], atol=1e-6), name


def test_images_of_a_killed_block_are_ignored(spec, kept, elsewhere, mistake):
    for file in (elsewhere / "kept" / "outcomes").iterdir():  # as if killed between the two files
        file.unlink()
    weaker = spec(
        threat={"norm": "linf", "eps": 0.05}, evaluation={**SPEC["evaluation"], "images": 3}
    )
    assert run(["attack", weaker, "--out", "kept", "--quiet"]) == 0
    with np.load(kept / "a-b-c.npz") as file:
        assert len(file["images"]) == len(file["labels"]) == len(file["clean_blake2b"]) == 3
        clean = torch.stack([digits()[int(index)][0] for index in file["indices"]])
        assert np.abs(file["images"] - clean.numpy()).max() < 0.051


def test_missing_images_are_named(kept, mistake):
    first, *_ = sorted((kept / "examples").iterdir())
    with np.load(first) as file:
        index = file["index"][0]
    first.unlink()
    assert f"image {index} " in mistake("report", kept)


def test_foreign_files_in_other_order_and_layout_are_evaluated(spec, kept, elsewhere, facts):
    with np.load(kept / "a-b-c.npz") as file:
        images, indices = file["images"], file["indices"]
    order = [3, 1, 0, 6, 2, 5, 4]
    last = images.transpose(0, 2, 3, 1)
    np.savez("theirs.npz", x_adv=last[order], indices=indices[order])
    np.savez("in_order.npz", images=images)
    np.savez("whole.npz", x_adv=np.concatenate([images, images[:1]]), indices=[*indices, 1])
    spec(attacks=given(kept / "a-b-c.npz", "theirs.npz", "in_order.npz", "whole.npz"))
    assert run(["evaluate", "my.yaml", "--out", "given", "--quiet"]) == 0
    for row in facts(elsewhere / "given"):
        assert row[3]["0"] == row[3]["1"] == row[3]["2"] == row[3]["3"]


def test_unsuitable_image_files_are_refused(spec, kept, elsewhere, mistake):
    with np.load(kept / "a-b-c.npz") as file:
        made = dict(file)

    def refused(text, **changes):
        table = {name: array for name, array in (made | changes).items() if array is not None}
        np.savez("bad.npz", **table)
        spec(attacks=given("bad.npz"))
        assert text in mistake("evaluate", "my.yaml", "--out", "bad", "--quiet")

    refused("lacks 1 of the run's 7 images", indices=np.array([*made["indices"][:6], 9999]))
    refused("was made from other images", indices=made["indices"][::-1].copy())
    refused("has another label", labels=made["labels"] + 1)
    refused("has 6 images, and the run has 7", images=made["images"][:6], indices=None)
    refused("has 7 images but 3 `labels`", labels=made["labels"][:3])
    rounded = made["images"] + 0.3 / 255
    refused("rounding to 8 bits", images=rounded.clip(0, 1))
    refused("exceeded the threat", images=(made["images"] + 0.2).clip(0, 1))
    refused("must lie in [0, 1]", images=made["images"] * 2)
    refused("neither an array `images` nor `x_adv`", images=None)
    refused("must return images of the shape", images=made["images"][:, :, :4])
    for path, text in (("none.npz", "there is no file"), ("my.yaml", "cannot be read")):
        spec(attacks=given(path))
        assert text in mistake("evaluate", "my.yaml", "--out", "bad", "--quiet")


def test_changed_image_folder_is_refused_for_the_same_run(spec, kept, mistake):
    spec(attacks=given(kept / "a-b-c"))
    command = ["evaluate", "my.yaml", "--out", "given", "--quiet"]
    assert run(command) == 0
    path = sorted((kept / "a-b-c").iterdir())[0]
    image = image_files.read(path, gray=True)
    image_files.write(path, (image + 1 / 255).clamp(max=1))
    assert "other images" in mistake(*command)
    path.unlink()
    assert "has 6 images, and the run has 7" in mistake(*command)


def test_invalid_commands_are_refused(spec, mistake, kept):
    assert "npz or safetensors" in mistake("attack", "my.yaml", "--format", "pt")
    spec(attacks=[])
    assert "no attacks" in mistake("attack", "my.yaml", "--out", "none")
    spec(threat={"norm": "linf", "eps": 0.05})
    assert "another folder" in mistake("attack", "my.yaml", "--out", "kept")
    assert "needs an evaluation" in mistake("compare", "kept", "kept")


def test_precomputed_attack_without_a_data_set_is_refused(kept):
    x, y = fetch(digits(), [0])
    with pytest.raises(ValueError, match="over"):
        PrecomputedAttack(kept / "a-b-c.npz")(
            lambda x, noise: x, x, y, Threat("linf", 1), Noise.of(0, [0])
        )


def test_file_with_an_image_twice_is_refused_and_equal_images_share_one(tmp_path):
    x = torch.tensor([0.5, 0.5, 0.25]).view(3, 1, 1, 1).expand(-1, 1, 4, 4)
    y = torch.tensor([0, 0, 1])

    class Data:
        classes = ("a", "b")

        def __len__(self):
            return 3

        def __getitem__(self, index: int):
            return x[index], int(y[index])

    def stored(indices: list[int]) -> PrecomputedAttack:
        np.savez(tmp_path / "made.npz", images=x_adv.numpy(), indices=np.array(indices))
        return PrecomputedAttack(tmp_path / "made.npz").over(Data(), range(3))

    x_adv = x + torch.linspace(0.1, 0.2, 3).view(3, 1, 1, 1)
    with pytest.raises(ValueError, match="has image 0 of the data set several times"):
        stored([0, 1, 0])
    found = stored([0, 1, 2])(lambda x, _: x, x, y, Threat("linf", 1), Noise.of(0, range(3)))
    assert torch.equal(found, x_adv[[1, 1, 2]])


@pytest.mark.parametrize("norm", ["linf", "l2", "l0"])
def test_rounding_toward_the_clean_image_stays_within_the_threat(norm):
    noise = Noise.of(0, range(40))
    x = (noise.uniform(torch.zeros(40, 3, 5, 5)) * 255).round() / 255
    for eps in (1 / 255, 8 / 255, 0.1003):
        threat = Threat(norm, eps)
        for x_adv in (
            threat.random_at_full_budget(x, noise.child("e")),
            threat.start(x, noise.child("s")),
        ):
            found = round_toward_clean(x, x_adv)
            levels = found.double() * 255
            assert (levels - levels.round()).abs().max() < 1e-4
            assert bool(threat.allows(x, found).all())
            assert (found - x_adv).abs().max() < 1 / 255 + 1e-6
            assert ((found - x).abs() <= (x_adv - x).abs() + 1e-6).all()
    eps = 8 / 255  # an integer number of levels is not lost to rounding errors
    x_adv = Threat("linf", eps).random_at_full_budget(x, noise)
    assert torch.allclose(round_toward_clean(x, x_adv), x_adv, atol=1e-6)


def test_images_that_cannot_be_rounded_within_the_threat_are_not_written(elsewhere, mistake):
    changes = ["data.size=3", "threat.eps=0.001", "attacks=['fgsm']", "purifier=null"]
    words = [word for change in changes for word in ("--set", change)]
    said = mistake("attack", "blobs", *words, "--out", "small", "--png", "--quiet")
    assert "3 of fgsm-exact" in said
    assert (elsewhere / "small" / "fgsm-exact.npz").is_file()
    assert not list((elsewhere / "small").glob("fgsm-exact/*"))
    checked = evaluation.check(load("blobs", changes))
    given = PrecomputedAttack(elsewhere / "small" / "fgsm-exact.npz").over(
        prepare(checked).data, [0]
    )
    assert len(given.digest) == 64


def test_arrays_of_wrong_shape_or_type_are_refused(spec, kept, mistake):
    with np.load(kept / "a-b-c.npz") as file:
        made = dict(file)
    for name in ("indices", "labels"):
        for array in (np.stack([made[name]] * 2, 1), made[name].astype(float)):
            np.savez("bad.npz", **(made | {name: array}))  # pyright: ignore[reportArgumentType]
            spec(attacks=given("bad.npz"))
            assert f"`{name}` must be" in mistake("evaluate", "my.yaml", "--out", "bad", "--quiet")


def test_images_in_another_order_are_refused_with_the_order_of_names(spec, kept, mistake):
    pictures = sorted((kept / "a-b-c").glob("*.png"))
    for picture, name in zip(pictures, reversed(pictures), strict=True):
        (kept / "mixed").mkdir(exist_ok=True)
        (kept / "mixed" / name.name).write_bytes(picture.read_bytes())
    spec(attacks=given(kept / "mixed"))
    said = mistake("evaluate", "my.yaml", "--out", "bad", "--quiet")
    assert "exceeded the threat" in said
    assert "0, 1, 10, 2" in said
