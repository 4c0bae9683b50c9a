"""`unfool doctor` on files of weights: it identifies them, and detects denoisers that do not denoise."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from published_files import edm_pickle, fixture, state_of
from safetensors.torch import save_file

import unfool
from published_rule import weight
from unfool import spec as specs
from unfool.cli.doctor_denoiser import check_denoiser
from unfool.cli.main import run
from unfool.data import fetch
from unfool.data.digits import digits
from unfool.data.sample import cifar10_sample
from unfool.diffusion.denoiser import Mixture, NetworkDenoiser
from unfool.diffusion.denoising_error import better_setting, clean_images, denoising_errors, ratios
from unfool.diffusion.schedule import Discrete
from unfool.models.identify import identify
from unfool.networks.wide_resnet import WideResNet
from unfool.noise import Noise
from unfool.toy.blobs import Blobs, mixture

CLASSIFIERS = Path(__file__).parents[1] / "fixtures" / "classifiers"
FILES = {  # published layout: its file name, and the part that loads it
    "score_sde_vp_ddpmpp": ("checkpoint_8.pth", "score-sde"),
    "guided_diffusion_uncond": ("uncond.pt", "guided-diffusion"),
    "improved_diffusion": ("cifar10.pt", "improved-diffusion"),
    "consistency_edm_teacher": ("edm_bedroom.pt", "consistency"),
    "consistency_model": ("cd_bedroom.pt", "consistency"),
    "ho_ddpm": ("ema_model.ckpt", "ddpm"),
    "edm_cifar10_uncond_vp": ("edm.pkl", "edm"),
    "edm2": ("edm2.pkl", "edm"),
    "dit": ("DiT.pt", "dit"),
}


def file_of(name: str, folder: Path) -> Path:
    known, path = fixture(name), folder / FILES[name][0]
    if path.suffix == ".pkl":
        return edm_pickle(known, path)
    torch.save(state_of(known), path)
    return path


def said(capsys, *arguments: str) -> tuple[int, str]:
    code = run(["doctor", *arguments])
    told = capsys.readouterr()
    return code, told.out + told.err


@pytest.mark.parametrize("name", FILES)
def test_doctor_prints_spec_line_for_published_file(elsewhere, capsys, name):
    path = file_of(name, elsewhere)
    _, told = said(capsys, str(path), "--set", "denoiser.size=16")
    line = re.search(r"load it by this line of a spec: denoiser: (.*)", told)
    assert line is not None
    part = yaml.safe_load(line[1])
    assert (part["name"], part["weights"]) == (FILES[name][1], str(path))


def test_doctor_prints_parameters_size_and_averaging(elsewhere, capsys):
    path = file_of("edm_cifar10_uncond_vp", elsewhere)
    code, told = said(capsys, str(path))
    model = unfool.load_denoiser(name="edm", weights=str(path))
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in told
    assert " x ".join(map(str, model.shape or ())) in told
    assert "averaged weights (EMA), found in 'ema'" in told
    assert "plain pickle" in told
    assert code in (0, 1)


def test_doctor_asks_for_missing_options_and_uses_them(elsewhere, capsys):
    path = file_of("guided_diffusion_uncond", elsewhere)
    code, told = said(capsys, str(path))
    assert code == 1
    assert "size: 64" in told
    assert "does not say whether they are averaged" in told
    options = ["--set", "denoiser.size=16", "--set", "denoiser.head_width=8"]
    _, told = said(capsys, str(path), *options)
    assert "images of 3 x 16 x 16" in told


@pytest.mark.parametrize("name", ["kuangliu_resnet18", "wrn_trades", "chenyaofo_resnet20"])
def test_doctor_identifies_and_examines_classifier(elsewhere, capsys, name):
    known = json.loads((CLASSIFIERS / f"{name}.json").read_text())
    prefix = known.get("seed_prefix", "")
    torch.save({n: weight(prefix + n, s) for n, s in known["weights"].items()}, "c.pth")
    code, told = said(capsys, "c.pth")
    assert "classifier: {name: cifar-network, weights: c.pth}" in told
    assert "cifar10-sample" in told
    assert "an answer does not depend on the batch" in told
    assert code in (0, 1)


def test_doctor_identifies_imagenet_resnet_by_its_timm_name(elsewhere, capsys):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    torch.save(timm.create_model("resnet50", num_classes=10).state_dict(), "r.pth")
    _, told = said(capsys, "r.pth")
    assert "{name: timm, weights: r.pth, model: resnet50}" in told


@pytest.mark.parametrize(
    ("blocks", "kernel", "name"),
    [
        (6, (64, 64, 3, 3), "resnet50"),
        (6, (128, 128, 3, 3), "wide_resnet50_2"),
        (6, (128, 4, 3, 3), "resnext50_32x4d"),
        (23, (256, 8, 3, 3), "resnext101_32x8d"),
        (23, (256, 4, 3, 3), "resnext101_64x4d"),
    ],
)
def test_bottleneck_networks_differ_in_the_shape_of_a_kernel(elsewhere, blocks, kernel, name):
    state = {"conv1.weight": torch.zeros(64, 3, 7, 7), "layer1.0.conv3.weight": torch.zeros(1)}
    state |= {f"layer3.{block}.conv1.weight": torch.zeros(1) for block in range(blocks)}
    torch.save(state | {"layer1.0.conv2.weight": torch.zeros(kernel)}, "r.pth")
    assert (identify(Path("r.pth")).part or {}).get("model") == name


def test_doctor_lists_weight_names_of_unknown_network(elsewhere, capsys):
    save_file({"secret.weight": torch.zeros(3)}, "n.safetensors")
    code, told = said(capsys, "n.safetensors")
    assert code == 1
    assert "secret.weight" in told
    assert "name: network" in told


@pytest.mark.parametrize(
    ("given", "content", "word"),
    [
        ("none.pth", None, "no file none.pth"),
        ("damaged.pth", b"not a file of weights", "damaged.pth"),
        ("empty.pth", b"", "empty.pth"),
    ],
)
def test_missing_or_damaged_file_is_refused_without_traceback(
    elsewhere, capsys, given, content, word
):
    if content is not None:
        Path(given).write_bytes(content)
    code, told = said(capsys, given)
    assert code == 2
    assert word in told
    assert "Traceback" not in told


def test_empty_folder_is_refused(elsewhere, capsys):
    Path("nothing").mkdir()
    code, told = said(capsys, "nothing")
    assert code == 2
    assert "nothing is not a folder of weights" in told


def test_trained_denoiser_passes_denoising_check(capsys):
    code, told = said(capsys, "cifar10-denoiser-small")
    assert code == 0
    errors = [float(e) for e in re.findall(r"error is ([\d., ]+) of", told)[0].split(", ")]
    assert len(errors) == 5
    assert max(errors) < 0.5


def digits_denoiser() -> tuple[NetworkDenoiser, torch.Tensor, torch.Tensor]:
    denoiser = unfool.load_denoiser("digits-denoiser")
    assert isinstance(denoiser, NetworkDenoiser)
    return denoiser, *fetch(digits(), range(128))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"predicts": "image"}, "predicts: noise"),
        ({"time": "edm"}, "time: "),
        ({"predicts": "edm", "time": "edm"}, "predicts: noise, time: "),
    ],
)
def test_wrong_setting_is_found_and_right_one_is_named(wrong, told):
    denoiser, x, y = digits_denoiser()
    for name, value in wrong.items():
        setattr(denoiser, name, value)
    (finding,) = check_denoiser(denoiser, x, y, 10)
    assert finding.mark == "FAIL"
    assert f"with {told}" in finding.what
    for name, value in wrong.items():
        assert getattr(denoiser, name) == value, "the doctor leaves the denoiser as it was"


def test_times_before_the_first_step_of_a_chain_are_left_out():
    model = Mixture(torch.zeros(2, 1, 4, 4), 0.3, Discrete(20))
    x = Noise.of(0, range(8)).uniform(torch.empty(8, 1, 4, 4))
    errors = denoising_errors(model, clean_images(model, x), (0.02, 0.05, 0.2))
    assert [error.t for error in errors] == [0.05, 0.2]
    assert all(ratio > 0 for ratio in ratios(errors))


def test_wrong_schedule_is_found_and_right_one_is_named():
    denoiser = unfool.load_denoiser("cifar10-denoiser-small")
    assert isinstance(denoiser, NetworkDenoiser)
    x, _ = fetch(cifar10_sample(), range(0, 100, 3))
    clean = clean_images(denoiser, x, 8)
    good = max(ratios(denoising_errors(denoiser, clean, (0.05, 0.2))))
    denoiser.schedule = Discrete(1000, "cosine")
    assert max(ratios(denoising_errors(denoiser, clean, (0.05, 0.2)))) > 1.3 * good
    found = better_setting(denoiser, clean, (0.05, 0.2))
    assert found is not None
    assert found[0] in ("schedule: vp", "schedule: discrete")
    assert found[1] == pytest.approx(good, rel=0.2)


def test_denoiser_is_not_compared_with_statistics_of_one_image():
    denoiser, x, y = digits_denoiser()
    (finding,) = check_denoiser(denoiser, x[:1], y[:1], 10)
    assert finding.mark == "note"
    assert "it takes 2 images or more" in finding.what


def test_denoiser_of_little_noise_is_tested_at_its_largest_time():
    denoiser, x, y = digits_denoiser()
    denoiser.t_max = 0.01
    (finding,) = check_denoiser(denoiser, x, y, 10)
    assert "at t = 0.01 its error is" in finding.what


def test_random_weights_fail_without_a_suggested_setting():
    denoiser, x, y = digits_denoiser()
    with torch.no_grad():
        for number, p in enumerate(denoiser.parameters()):
            p.copy_(weight(str(number), tuple(p.shape)))
    (finding,) = check_denoiser(denoiser, x, y, 10)
    assert finding.mark == "FAIL"
    assert "check that these weights are trained" in finding.what


def test_exact_denoiser_is_at_least_as_good_as_linear_estimate():
    data = Blobs(size=256)
    x = torch.stack([data[index][0] for index in range(len(data))])
    clean = clean_images(mixture(), x, 256)
    errors = denoising_errors(mixture(), clean)
    assert all(e.x_hat < 1.02 * e.linear < 1.02 * e.nothing for e in errors)


def test_images_of_another_size_give_a_note():
    denoiser, _, y = digits_denoiser()
    (finding,) = check_denoiser(denoiser, torch.rand(4, 3, 32, 32), y[:4], 10)  # noqa: TID251
    assert finding.mark == "note"
    assert "3 x 32 x 32" in finding.what


@pytest.mark.parametrize(
    ("place", "classes", "said"),
    [
        ("Standard.pt", 10, {"model": "Standard"}),
        ("L2/Rice2020Overfitting.pt", 10, {"model": "Rice2020Overfitting", "threat": "L2"}),
        ("Wu2020Adversarial.pt", 100, {"model": "Wu2020Adversarial", "dataset": "cifar100"}),
    ],
)
def test_file_with_robustbench_name_is_identified(tmp_path, place, classes, said):
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    torch.save(WideResNet(1, 1, classes, 0.0).state_dict(), path)
    known = identify(path)
    assert known.part == {"name": "robustbench", "weights": str(path), **said}
    assert not known.advice
    model = specs.build("classifier", specs.check("classifier", known.part))
    assert model.reported is not None
