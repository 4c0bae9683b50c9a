"""A user's own purifier, attack, data set, and network: under 20 lines each, from a spec alone."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from unfool.cli.main import run
from unfool.defenses.purified_classifier import Purified
from unfool.evaluation.prepare import build_model
from unfool.evaluation.spec import check_model
from unfool.noise import Noise
from unfool.results.spec import ModelSpec
from unfool.spec import argument_names, check, load, menu
from unfool.toy.blobs import Blobs

PURIFIER = '''
from torch.nn import functional as F
class Blur:
    """Purify by looking at the average of neighbors, with a little noise."""
    def __init__(self, size: int = 3, strength: float = 0.02):
        self.size, self.strength = size, strength
    def __call__(self, x, noise):
        x = x + self.strength * noise.normal(x)
        return F.avg_pool2d(x, self.size, 1, self.size // 2).clamp(0, 1)
'''
FUNCTION = '''
def halve(x, noise, bits: int = 3):
    """Purify by keeping few bits; a function is a purifier as it is."""
    return x + ((x * 2**bits).round() / 2**bits - x).detach()
'''
DATA = """
import numpy as np, torch
class Mine:
    classes = ("left", "right")
    def __init__(self, path: str):
        self.images = torch.from_numpy(np.load(path)).float() / 255
    def __len__(self):
        return len(self.images)
    def __getitem__(self, index):
        return self.images[index], index % 2
"""
NETWORK = '''
import torch
from torch import nn
class Tiny(nn.Module):
    """A noise predictor: (x_t, time) to noise."""
    def __init__(self, width: int = 8):
        super().__init__()
        self.enter, self.leave = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 1, 3, padding=1)
    def forward(self, x, time):
        return self.leave(torch.tanh(self.enter(x) + time[:, None, None, None] / 1000))
'''
CLASSIFIER = """
from torch import nn
class Net(nn.Sequential):
    def __init__(self, classes: int = 2):
        super().__init__(nn.Flatten(), nn.Linear(16, classes))
"""
ATTACK = '''
from dataclasses import dataclass
import torch
@dataclass(frozen=True)
class Dice:
    """The best of some random images: an attack that needs no gradient."""
    tries: int = 5
    def __call__(self, model, x, y, threat, noise):
        best, least = x, torch.full((len(x),), torch.inf)
        for i in range(self.tries):
            x_adv = threat.start(x, noise.child("try", i))
            with torch.no_grad():
                sure = model(x_adv, noise.for_query(i)).log_softmax(1).gather(1, y[:, None])[:, 0]
            best = torch.where((sure < least)[:, None, None, None], x_adv, best)
            least = torch.minimum(sure, least)
        return best
'''
OUTSIDE = """
import torch
from torch.nn import functional as F
def descend(model, x, y, eps: float, steps: int = 3):
    start = x + eps * (2 * torch.rand_like(x) - 1)
    x_adv = start.clamp(0, 1)
    for _ in range(steps):
        x_adv.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x_adv), y), x_adv)
        x_adv = (x_adv + eps * gradient.sign()).detach()
        x_adv = (x + (x_adv - x).clamp(-eps, eps)).clamp(0, 1)
    return x_adv
"""

PAGE = (Path(__file__).parents[1] / "docs" / "extend.md").read_text()


def of_page(heading: str) -> list[str]:
    """The Python code blocks below a heading of the page."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.S)


GUIDE, PULL = of_page("A guide")
(CORRECTION,) = of_page("A correction of the estimate")
(LEVEL,) = of_page("The level and the shape of the noise")
(STEP,) = of_page("A sampler step")
(REVERSE,) = of_page("A purifier on the reverse process")
SEAMS = {
    "guide of a function": "{name: diffpure, steps: 3, guide: {name: 'seams:shrink', weight: 0.2}}",
    "guide of the image": "{name: diffpure, steps: 3, guide: {name: 'seams:Pull', weight: 0.5}}",
    "guide of the menu": "{name: diffpure, steps: 3, guide: {name: confidence, weight: 0.5}}",
    "correction": "{name: diffpure, steps: 3, correction: {name: 'seams:low_from_image', size: 2}}",
    "noise level": "{name: diffpure, steps: 3, noise_level: {name: 'seams:by_contrast', least: 0.1}}",
    "shaping": "{name: diffpure, steps: 3, shaping: {name: 'seams:on_bright', share: 0.2}}",
    "step": "{name: diffpure, steps: 3, sampler: {name: 'seams:fresh', scale: 0.9}}",
    "step of another purifier": "{name: coup, steps: 3, sampler: 'seams:fresh'}",
    "all": "{name: diffpure, steps: 3, sampler: 'seams:fresh', guide: 'seams:Pull', "
    "correction: {name: 'seams:low_from_image', size: 2}, noise_level: 'seams:by_contrast', "
    "shaping: 'seams:on_bright'}",
    "purifier": "{name: 'seams:TVPure', steps: 3, weight: 0.05}",
}


@pytest.fixture
def strangers(elsewhere, monkeypatch):
    files = {
        "purifiers": PURIFIER + FUNCTION,
        "mydata": DATA,
        "mynet": NETWORK + CLASSIFIER,
        "dice": ATTACK,
        "theirs": OUTSIDE,
        "seams": "\n".join([GUIDE, PULL, CORRECTION, LEVEL, STEP, REVERSE]),
    }
    for name, text in files.items():
        (elsewhere / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(elsewhere)
    images = (np.arange(6 * 16).reshape(6, 1, 4, 4) * 2).astype(np.uint8)
    np.save(elsewhere / "images.npy", images)
    return elsewhere


def test_docs_page_lists_every_option_of_every_data_set():
    rows = dict(re.findall(r"^\| `([\w-]+)` \|(.*)\|$", PAGE, re.M))
    for name in menu.MENU["data"]:
        for option in inspect.signature(menu.find("data", name)).parameters:
            assert option == "folder" or re.search(rf"`{option}\b", rows[name]), (name, option)


def test_each_example_is_under_twenty_lines():
    strangers = (PURIFIER, FUNCTION, DATA, NETWORK, CLASSIFIER, ATTACK, OUTSIDE)
    for text in (*strangers, GUIDE, PULL, CORRECTION, STEP, REVERSE):
        assert len(text.strip().splitlines()) < 20


def test_user_parts_of_every_kind_work_from_a_spec(strangers, facts):
    spec = {
        "data": {"name": "mydata:Mine", "path": "images.npy"},
        "classifier": {"name": "network", "network": {"name": "mynet:Net", "classes": 2}},
        "denoiser": {"name": "network", "network": {"name": "mynet:Tiny", "width": 4}},
        "purifier": {"name": "diffpure", "steps": 3},
        "threat": {"norm": "l2", "eps": 0.5},
        "attacks": [{"name": "dice:Dice", "tries": 2}, {"name": "pgd", "steps": 2}],
        "evaluation": {"draws": 2},
    }
    (strangers / "mine.yaml").write_text(yaml.safe_dump(spec))
    assert run(["evaluate", "mine.yaml", "--out", "out"]) == 0
    outcomes = facts(strangers / "out")
    assert len(outcomes) == 6
    assert set(outcomes[0][3]) == {"clean", "random", "Dice-exact", "pgd-exact"}
    assert (strangers / "out" / "report.html").stat().st_size > 1000


@pytest.mark.parametrize(
    "purifier", ["{name: 'purifiers:Blur', size: 3}", "{name: 'purifiers:halve', bits: 2}"]
)
def test_purifier_can_be_a_class_or_a_function(strangers, facts, purifier):
    arguments = [
        "evaluate",
        "blobs",
        "--out",
        "out",
        "--set",
        f"purifier={purifier}",
        "--set",
        "data.size=4",
    ]
    assert run(arguments) == 0
    assert len(facts(strangers / "out")) == 4


def test_misspelled_option_of_a_user_part_is_refused(strangers, mistake):
    said = mistake("evaluate", "blobs", "--set", "purifier={name: 'purifiers:Blur', sizes: 3}")
    assert "no option 'sizes'; did you mean 'size'" in said


def test_attack_that_exceeds_the_threat_is_refused(strangers, mistake):
    (strangers / "cheat.py").write_text(
        "def shift(model, x, y, threat, noise):\n    return x + 2 * threat.eps\n"
    )
    said = mistake("evaluate", "blobs", "--set", "attacks=[{name: 'cheat:shift'}]", "--out", "out")
    assert "exceeded the threat" in said
    assert "threat.project" in said


def test_function_of_a_model_and_images_works_as_an_attack(strangers, facts, mistake):
    row = "attacks=[{name: 'theirs:descend', eps: 0.1}]"
    command = ["evaluate", "blobs", "--set", row, "--set", "data.size=6", "--quiet"]
    command += ["--set", "purifier.steps=2", "--out"]
    torch.rand(3)  # noqa: TID251  (other draws must not matter)
    assert run([*command, "out"]) == 0
    assert run([*command, "again"]) == 0
    assert facts(strangers / "out") == facts(strangers / "again")
    sizes = [row[3]["descend-exact"].size for row in facts(strangers / "out")]
    assert min(sizes) == pytest.approx(0.1, abs=1e-4)
    said = mistake(*command, "more", "--set", "attacks.0.epss=1")
    assert "no option 'epss'; did you mean 'eps'" in said
    assert "'eps' is missing" in mistake(*command, "more", "--set", "attacks=['theirs:descend']")
    assert "exceeded the threat" in mistake(*command, "more", "--set", "attacks.0.eps=0.2")


def test_external_attack_that_does_not_return_images_is_refused(strangers, mistake):
    text = "def pair(model, x, y):\n    return x, y\n\n\ndef whole(model, x, y, threat):\n"
    text += "    return (x + threat.eps).clamp(max=1).numpy()\n"
    (strangers / "pairs.py").write_text(text)
    command = ["evaluate", "blobs", "--set", "data.size=4", "--set", "purifier.steps=2", "--quiet"]
    said = mistake(*command, "--set", "attacks=['pairs:pair']", "--out", "out")
    assert "returned a tuple instead of images" in said
    assert run([*command, "--set", "attacks=['pairs:whole']", "--out", "out2"]) == 0


def test_callable_object_works_as_an_attack_but_needs_the_right_arguments(strangers, mistake):
    text = "class Lift:\n    def __init__(self, by: float = 0.05):\n        self.by = by\n"
    text += "    def __call__(self, model, x, y):\n        return (x + self.by).clamp(0, 1)\n\n\n"
    text += "def odd(model, images, labels):\n    return images\n"
    (strangers / "lifts.py").write_text(text)
    command = ["evaluate", "blobs", "--set", "data.size=4", "--set", "purifier.steps=2", "--quiet"]
    row = "attacks=[{name: 'lifts:Lift', by: 0.02}]"
    assert run([*command, "--set", row, "--out", "out"]) == 0
    said = mistake(*command, "--set", "attacks=['lifts:odd']", "--out", "out2")
    assert "not model images labels" in said


@pytest.mark.parametrize("seam", SEAMS)
def test_examples_of_the_page_run_from_a_spec_with_any_block_size(strangers, facts, seam):
    command = ["evaluate", "blobs", "--quiet", "--set", f"purifier={SEAMS[seam]}"]
    command += ["--set", "data.size=4", "--set", "attacks=[{name: pgd, steps: 2}]", "--out"]
    assert run([*command, "out"]) == 0
    assert run([*command, "again", "--set", "machine.images_per_block=1"]) == 0
    assert len(facts(strangers / "out")) == 4
    assert facts(strangers / "out") == facts(strangers / "again")


def double(checked: ModelSpec) -> Purified:
    model = build_model(checked, "cpu")
    assert isinstance(model, Purified)
    return model.double()


@pytest.mark.parametrize("seam", SEAMS)
def test_gradient_through_examples_of_the_page_matches_finite_differences(strangers, seam):
    checked = check_model({**load("blobs"), "purifier": yaml.safe_load(SEAMS[seam])})
    purify = double(checked).purifier
    noise, x = Noise.of(0, range(2)), torch.stack([Blobs(2)[i][0] for i in range(2)]).double()
    weigh, along = (noise.child(name).normal(x) for name in ("weigh", "along"))

    def value(at):
        return (weigh * purify(at, noise)).sum()

    at = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(value(at), at)
    with torch.no_grad():
        slope = (value(x + 1e-6 * along) - value(x - 1e-6 * along)) / 2e-6
    assert float(slope) == pytest.approx(float((found * along).sum()), rel=1e-6)


def test_misspelled_guides_corrections_and_samplers_are_refused(strangers, mistake):
    def said(purifier: str) -> str:
        return mistake("evaluate", "blobs", "--set", f"purifier={purifier}", "--out", "out")

    told = said("{name: diffpure, guide: {name: 'seams:Pull', weigth: 1}}")
    assert "no option 'weigth'; did you mean 'weight'" in told
    assert "did you mean 'confidence'" in said("{name: diffpure, guide: confidense}")
    assert "no 'clamp'" in said("{name: diffpure, correction: clamp}")
    assert "did you mean 'ddpm'" in said("{name: diffpure, sampler: dppm}")
    assert "sampler ddim" in said("{name: diffpure, sampler: {name: ddim, eta: 1}}")


def test_surrogate_supports_user_steps_and_same_noise_view_refuses_them(strangers, mistake):
    command = ["evaluate", "blobs", "--quiet", "--set", "purifier.sampler=seams:fresh"]
    command += ["--set", "data.size=4", "--set", "purifier.steps=10", "--set"]
    row = "attacks=[{name: pgd, steps: 1, view: %s}]"
    assert run([*command, row % "surrogate", "--out", "out"]) == 0
    said = mistake(*command, row % "surrogate-same-noise", "--out", "out2")
    assert "step of your own" in said
    assert "`surrogate`" in said


def test_null_parts_do_not_change_the_spec(strangers):
    plain = check_model(load("blobs"))
    null = check_model(load("blobs", ["purifier.guide=null", "purifier.correction=null"]))
    assert null == plain


def test_numeric_option_named_guide_is_not_treated_as_a_part(strangers):
    text = (
        "class Weighed:\n    def __init__(self, guide: float = 1.0):\n        self.guide = guide\n"
    )
    (strangers / "weighed.py").write_text(text)
    assert check("purifier", {"name": "weighed:Weighed", "guide": 2})["guide"] == 2.0


def test_guide_function_or_class_receives_the_classifier(strangers):
    text = "from unfool.diffusion.reverse import ascent\n\n\n"
    text += "def sure(x_t, x_hat, now, then, noise, classifier, denoiser, weight: float = 1.0):\n"
    text += "    def surest(z):\n"
    text += "        return classifier(denoiser.decode(z), noise).log_softmax(1).max(1).values\n"
    text += "    return weight * ascent(surest, x_t)\n"
    (strangers / "sure.py").write_text(text)
    noise, x = Noise.of(0, [0]), torch.full((1, 1, 4, 4), 0.5).double()  # at the boundary

    def purified(guide):
        part = {"name": "diffpure", "steps": 3, "guide": guide}
        checked = check_model({**load("blobs"), "purifier": part})
        names = argument_names("purifier", checked.get("purifier", {"name": "none"}))
        assert guide is None or "classifier" in names
        return double(checked).purifier(x, noise)

    mine = purified({"name": "sure:sure", "weight": 1e5})
    shipped = purified({"name": "confidence", "weight": 1e5})
    assert torch.allclose(mine, shipped, atol=1e-6)
    assert not torch.allclose(mine, purified(None), atol=1e-4)
