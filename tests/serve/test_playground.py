"""The playground computes what the library gives for the same seed, and enforces the limits."""

import asyncio
import base64
import io
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from unfool import spec as specs
from unfool.api.apply import Loaded, noise_to_classify, noise_to_purify
from unfool.attacks.pgd import PGD
from unfool.attacks.views import classifier_only
from unfool.data import image_files
from unfool.defenses.diffpure import DiffPure
from unfool.defenses.purified_classifier import predict_draws
from unfool.evaluation import spec as evaluation
from unfool.evaluation import sweep
from unfool.serve.defense import load_defense
from unfool.serve.limits import Limits, Refused
from unfool.serve.playground import pictures
from unfool.serve.playground.choices import samples_of
from unfool.serve.playground.lab import Attacked, AttackStep, Lab, Picture, Votes
from unfool.serve.playground.settings import Settings, to_seed
from unfool.threat import Threat

PAGE = (Path(__file__).parents[2] / "docs" / "playground.md").read_text()
CHANGES = ("purifier.steps=2",)
ASKED = Settings(sample=30, votes=6, seed=5, eps=0.2, steps=4, eot=2, purifiers=("own", "ddim"))


@cache
def lab(spec="demo", changes=CHANGES, **limits):
    defense = load_defense(spec, changes, None, spec, "cpu", 64, Limits(**limits))
    return Lab(defense, specs.load(spec, changes))


def attack(at, picture, settings) -> list[Any]:
    async def collect():
        return [each async for each in at.attack(picture, settings)]

    return asyncio.run(collect())


def defended_model(at) -> Any:
    return at.defended_model


def compare(at, picture, settings):
    async def collect():
        return [each async for each in at.compare(picture, settings)]

    return asyncio.run(collect())


def counts(model, x, draws, seed=5):
    chosen = predict_draws(model, x, noise_to_classify(seed, 0, 1), draws)
    return torch.bincount(chosen[0], minlength=10).tolist()


def picture_file(height, width, channels=3):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_purification_matches_the_library_for_the_same_seed():
    at = lab()
    picture, model = at.sample(30), defended_model(at)
    found: Any = asyncio.run(at.purify(picture, ASKED))
    pure = model.purifier(picture.x, noise_to_purify(5, 0, 1))
    assert torch.equal(found.purified, pure)
    assert torch.equal(found.path[-1][1], pure[0])
    assert [t for t, _ in found.path] == pytest.approx([t for t in model.purifier.times.tolist()])
    assert found.defended.counts == counts(model, picture.x, 6)
    assert found.defended.random
    assert found.undefended.counts == counts(model.classifier, picture.x, 1)
    assert not found.undefended.random, "a classifier that draws no noise is asked once"


@pytest.mark.parametrize("gradient", ["exact", "classifier-only"])
def test_attack_matches_the_library_for_the_same_seed(gradient):
    at, settings = lab(), replace(ASKED, gradient=gradient)
    picture, model = at.sample(30), defended_model(at)
    *steps, last = attack(at, picture, settings)
    assert isinstance(last, Attacked)
    assert all(isinstance(step, AttackStep) for step in steps)
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))
    assert len(steps) > settings.steps, "the candidates are compared"
    view = model if gradient == "exact" else classifier_only(model)
    noise = noise_to_classify(5, 0, 1).child("attack")
    y = torch.tensor([picture.label])
    x_adv = PGD(4, 2, loss="margin")(view, picture.x, y, Threat("linf", 0.2), noise)
    assert torch.equal(last.x, x_adv)
    assert last.size == pytest.approx(float((x_adv - picture.x).abs().max()))
    assert last.defended.counts == counts(model, x_adv, 6)
    assert last.undefended is not None
    assert last.undefended.counts == counts(model.classifier, x_adv, 1)
    assert last.before.counts == counts(model, picture.x, 6)


def test_comparison_matches_the_library_for_the_same_seed():
    at = lab()
    picture, model = at.sample(30), defended_model(at)
    own, ddim = compare(at, picture, ASKED)
    built = DiffPure(model.purifier.denoiser, sampler="ddim", t=0.2, steps=5)
    for found, purifier in ((own, model.purifier), (ddim, built)):
        assert torch.equal(found.purified, purifier(picture.x, noise_to_purify(5, 0, 1)))
        assert found.defended.counts == counts(model.with_purifier(purifier), picture.x, 6)
        change = (found.purified - picture.x).square().mean().sqrt()
        assert found.distance == pytest.approx(float(change))
        assert found.seconds > 0


@pytest.mark.parametrize("spec", ["demo", "cifar10-demo"])
def test_every_offered_purifier_can_be_compared(spec):
    at = lab(spec, seconds=240.0)
    assert len(at.choices.purifiers) > 5
    settings = replace(ASKED, votes=1, purifiers=tuple(at.choices.purifiers))
    found = compare(at, at.sample(30), settings)
    assert [each.key for each in found] == list(at.choices.purifiers)
    assert all(bool(each.purified.isfinite().all()) for each in found)


def test_noise_is_fresh_without_a_seed():
    at, fresh = lab(), replace(ASKED, seed=None, votes=1)
    one, other = (asyncio.run(at.purify(at.sample(0), fresh)).purified for _ in range(2))
    assert one is not None
    assert other is not None
    assert not torch.equal(one, other)


def test_uploaded_image_is_resized_and_attacked_in_its_predicted_class():
    at = lab()
    picture = asyncio.run(at.read(picture_file(20, 20)))
    assert picture.x.shape == (1, 1, 8, 8)
    assert picture.label is None
    assert any("8 x 8" in note for note in picture.notes)
    votes = counts(at.defended_model, picture.x, 6)
    assert attack(at, picture, ASKED)[-1].label == votes.index(max(votes))


@pytest.mark.parametrize(
    ("content", "limits", "status"),
    [
        (b"no picture", {}, 400),
        (picture_file(9, 9)[:60], {}, 400),
        (picture_file(9, 9), {"pixels": 80}, 413),
        (picture_file(9, 9), {"body": 80}, 413),
    ],
)
def test_invalid_and_too_large_files_are_refused(content, limits, status):
    with pytest.raises(Refused) as error:
        asyncio.run(lab(**limits).read(content))
    assert error.value.status == status


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"votes": 65}, "64"),
        ({"votes": 0}, "votes"),
        ({"steps": 51}, "50"),
        ({"eot": 17}, "16"),
        ({"eps": 0.9}, "eps"),
        ({"eps": -0.1}, "eps"),
        ({"eps": float("nan")}, "eps"),
        ({"gradient": "none"}, "classifier-only"),
    ],
)
def test_settings_out_of_range_are_refused(change, word):
    with pytest.raises(Refused, match=word):
        attack(lab(), lab().sample(0), replace(ASKED, **change))


def test_limits_hold_for_seeds_samples_and_time():
    with pytest.raises(Refused, match="seed"):
        asyncio.run(lab(seeds=False).purify(lab().sample(0), ASKED))
    with pytest.raises(Refused, match="100"):
        lab().sample(100)
    with pytest.raises(Refused, match=r"0\.001 seconds"):
        attack(lab(seconds=0.001), lab().sample(0), ASKED)
    assert lab(seconds=0.001).defense.batcher.accepting


def test_samples_are_ten_of_each_class():
    labels = [sample.label for sample in lab().samples]
    assert labels == [label for label in range(10) for _ in range(10)]


def test_shipped_cifar10_sample_is_used_without_the_data():
    loaded = Loaded(lambda x, noise: x, (), (3, 32, 32), None)
    found = samples_of(loaded, specs.load({"data": {"name": "cifar10"}}))
    assert len(found) == 100
    assert found[35].classes[found[35].label] == "cat"
    assert samples_of(loaded, specs.load({"data": {"name": "imagenet"}})) == []


@pytest.mark.parametrize("seed", [None, 7])
def test_link_round_trips_the_settings(seed):
    settings = replace(ASKED, seed=seed, gradient="classifier-only")
    query = dict(re.findall(r"[?&](\w+)=([^&]*)", settings.to_query()))
    assert Settings().from_query(query, Limits()) == settings


@pytest.mark.parametrize("number", ["x", "nan", "1e999", "9" * 5000])
def test_invalid_values_in_a_link_are_ignored(number):
    query = {
        "votes": "9999",
        "seed": number,
        "steps": "3",
        "nothing": "1",
        "gradient": "<b>",
        "eps": number,
    }
    assert ASKED.from_query(query, Limits()) == replace(ASKED, steps=3)
    closed = Limits(seeds=False)
    assert replace(ASKED, seed=None).from_query({"seed": "1"}, closed).seed is None


@pytest.mark.parametrize("value", [1.5, 2**60, float("inf"), float("nan"), "1e999", "x"])
def test_fractional_huge_and_infinite_seeds_are_refused(value):
    with pytest.raises(Refused, match="whole number"):
        to_seed(value)


def test_spec_on_the_page_encodes_the_settings():
    one = yaml.safe_load(lab().choices.spec(replace(ASKED, purifiers=("own",))))
    checked = evaluation.check(specs.load(one))
    (entry,) = checked["attacks"]
    assert (entry["steps"], entry["eot"], entry["view"]) == (4, 2, "exact")
    assert checked["threat"]["eps"] == pytest.approx(0.2)
    assert checked["evaluation"]["draws"] == 6
    assert checked["evaluation"]["seed"] == 5
    assert checked.get("purifier", {}).get("steps") == 2
    several = specs.load(yaml.safe_load(lab().choices.spec(ASKED)))
    cells = sweep.check(several, None)
    assert [cell.spec.get("purifier", {}).get("sampler") for cell in cells] == ["ddpm", "ddim"]


def test_budgets_for_color_images_are_in_255ths():
    at = lab("cifar10-demo")
    assert (at.choices.eps, at.choices.unit) == (8, 255)
    assert at.threat(replace(ASKED, eps=4)).eps == pytest.approx(4 / 255)
    told = yaml.safe_load(at.choices.spec(replace(ASKED, eps=4)))
    assert told["threat"]["eps"] == "4/255"


def test_spec_reveals_no_server_paths():
    at = lab()
    table = specs.load("demo", ["classifier.weights=/srv/secret/net.pt", "data.folder=/srv/secret"])
    told = at.choices._replace(table=table).spec(ASKED)
    assert "/srv" not in told
    assert "net.pt" in told


def test_model_without_a_purifier_is_supported():
    at = lab("demo", ("purifier=null", "denoiser=null"))
    picture = at.sample(30)
    found = asyncio.run(at.purify(picture, ASKED))
    assert (found.purified, found.path, found.undefended) == (None, [], None)
    assert attack(at, picture, ASKED)[-1].undefended is None
    with pytest.raises(Refused, match="exact"):
        attack(at, picture, replace(ASKED, gradient="classifier-only"))
    with pytest.raises(Refused, match="no purifier"):
        compare(at, picture, ASKED)


def test_images_have_alt_text_and_names_are_escaped():
    at = lab()
    picture = at.sample(30)._replace(name="<script>'\"")
    *steps, last = attack(at, picture, ASKED)
    losses = [step.loss for step in steps]
    made = [
        pictures.picture_html(at, picture),
        pictures.purification_html(at, picture, asyncio.run(at.purify(picture, ASKED))),
        pictures.step_html(at, picture, steps[1], losses[:2]),
        pictures.attacked_html(at, picture, last, losses),
        pictures.compared_html(at, picture, compare(at, picture, ASKED), ASKED.purifiers),
        pictures.thumbnail_html(at, 3),
        pictures.error_html("<script> is no image"),
    ]
    for html in made:
        assert "<script>" not in html
        for image in re.findall(r"<img[^>]*>", html):
            assert re.search(r"alt='[^']+'", image), image


def test_bars_show_votes_with_their_interval():
    at = lab()
    html = pictures.purification_html(
        at, at.sample(30), asyncio.run(at.purify(at.sample(30), ASKED))
    )
    found = asyncio.run(at.purify(at.sample(30), ASKED)).defended
    share = found.share(found.winner)
    assert f"{found.counts[found.winner]} of 6" in html
    assert f"[{100 * share.low:.0f}, {100 * share.high:.0f}] %" in html


def test_verdict_states_success_failure_and_earlier_mistakes():
    at, right, wrong = lab(), Votes([0] * 3 + [6], True), Votes([6] + [0] * 3, True)
    picture = at.sample(30)
    last = attack(at, picture, ASKED)[-1]

    def told(before, after):
        found = last._replace(before=before, defended=after)
        return re.sub("<[^>]*>", "", pictures.attacked_html(at, picture, found, []))

    assert "succeeds: the model now answers 0, not 3" in told(right, wrong)
    assert "fails: the model still answers 3" in told(right, right)
    assert "answered 0 before the attack" in told(wrong, wrong)
    assert "undecided" in told(right, Votes([3, 0, 0, 3], True))


def test_perturbation_is_magnified_to_the_full_range():
    at = lab()
    picture = at.sample(30)
    last = attack(at, picture, ASKED)[-1]
    html = pictures.attacked_html(at, picture, last, [])
    change = last.x[0] - picture.x[0]
    factor = 0.5 / float(change.abs().max())
    assert f"magnified {factor:.3g} times" in html
    shown = re.findall(r"base64,([^']+)'", html)[2]
    assert base64.b64decode(shown) == image_files.png(0.5 + factor * change)


def test_code_in_the_docs_gives_what_the_page_shows():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    names = {}
    exec(code, names)
    at, settings = lab("demo", ()), Settings(votes=16, seed=0, eps=0.2, steps=10)
    picture = Picture(names["x"], "the first test digit", names["label"])
    found, attacked = asyncio.run(at.purify(picture, settings)), attack(at, picture, settings)[-1]
    assert found.purified is not None
    assert torch.equal(found.purified, names["pure"])
    assert found.defended.counts == torch.bincount(names["votes"][0], minlength=10).tolist()
    assert torch.equal(attacked.x, names["x_adv"])
