"""Tests of text representations of objects."""

from xml.etree import ElementTree

import pytest
import torch

import unfool
from unfool.defenses.aggregate import Aggregated
from unfool.networks.cnn import small_cnn
from unfool.noise import Noise


@pytest.fixture(scope="module")
def demo():
    return unfool.load("demo", ["purifier.steps=1"], device="cpu")


def test_repr_of_a_model_is_one_short_line(demo):
    for thing in (demo, Aggregated(demo, paths=3), demo.purifier, demo.purifier.denoiser):
        text = repr(thing)
        assert "\n" not in text
        assert len(text) < 350
    assert repr(demo).startswith("Purified(classifier=NormalizedClassifier(network=Sequential(")
    assert "t=0.2, steps=1, sampler='ddpm'" in repr(demo)
    assert "forward" not in repr(demo)


def test_notebook_shows_nested_tables(demo):
    page = demo._repr_html_()
    assert page.startswith("<b>Purified</b><table>")
    assert page.count("<table>") == page.count("</table>") > 2
    assert "<tr><th>steps</th><td>1</td></tr>" in page
    ElementTree.fromstring(f"<div>{page}</div>")
    assert "2 images" in Noise.of(0, [1, 2])._repr_html_()


def test_repr_omits_options_at_their_defaults():
    model = unfool.NormalizedClassifier(small_cnn(), 0.5)
    assert repr(model).endswith("weights), mean=[0.5], std=[1])")
    assert "t=" not in repr(unfool.DiffPure(unfool.load_denoiser("digits-denoiser", device="cpu")))


def test_repr_of_noise_shows_its_size():
    assert repr(Noise.of(0, [1])) == "<Noise for 1 image>"
    known = Noise.of(0, [1, 2]).with_known_noise(Noise.of(1, [1, 2]))
    assert repr(known) == "<Noise for 2 images, known to an attacker>"


def test_model_called_without_noise_draws_afresh(demo):
    x = torch.full((2, 1, 8, 8), 0.5)
    voting = Aggregated(demo, paths=2)
    for model in (demo, voting, unfool.load("digits-rdc", ["purifier=null"], device="cpu")):
        assert model(x).shape == (2, 10)
        assert not torch.equal(model(x), model(x))
        noise = Noise.of(0, range(2))
        assert torch.equal(model(x, noise), model(x, noise))
    assert torch.equal(demo.classifier(x), demo.classifier(x))
