"""Checkpoints in published layouts load from a spec, and reproduce outputs of the original code."""

import json
import math
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from published_files import (
    edm_pickle,
    fixture,
    lively,
    numbers,
    openai_state,
    score_sde_state,
    state_of,
    weight,
)
from safetensors.torch import save as to_bytes
from torch import Tensor

import unfool
from unfool import spec as specs
from unfool.diffusion.denoiser import Denoiser, NetworkDenoiser
from unfool.diffusion.schedule import VP, Discrete, time_of_noise
from unfool.networks.score_unet import ADM, DDPMPP, ScoreUNet
from unfool.noise import Noise

SMALL = {"size": 16}  # the image size of the fixtures


def load(name: str, weights: Path, **options: Any) -> Denoiser:
    return specs.build(
        "denoiser", specs.check("denoiser", {"name": name, "weights": str(weights), **options})
    )


def saved(folder: Path, content: object, name: str = "a.pt") -> Path:
    torch.save(content, folder / name)
    return folder / name


def answer(model: Denoiser, case: dict[str, Any], at_noise: bool = False) -> tuple[Tensor, Tensor]:
    """Return the output of a denoiser for a case, and that of the original code."""
    shape = tuple(case["x_shape"])
    x_t = torch.from_numpy(1.5 * numbers("x_t", shape)).float()
    t, alpha = torch.tensor(case["t"], dtype=torch.float64), 1.0
    if at_noise:  # x_t is x_0 + sigma noise, for images in [-1, 1]
        t = torch.tensor(time_of_noise(VP(), case["t"] / 2), dtype=torch.float64)
        alpha = float(VP()(t).alpha)
    label = None if case["labels"] is None else torch.tensor(case["labels"])
    with torch.no_grad():
        return model(alpha * x_t, t, label), torch.tensor(case["output"]).view(shape)


def check(
    model: Denoiser, known: dict[str, Any], at_noise: bool = False, within: float = 1e-5
) -> None:
    """Compare with the original in all cases, and the input gradient with finite differences."""
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(module.training for module in model.modules())
    assert to_bytes({n: v.contiguous() for n, v in model.state_dict().items()}), "no shared memory"
    for case in known["cases"]:
        found, told = answer(model, case, at_noise)
        assert (found - told).abs().max() < within * told.abs().max()
    model.double()
    case = known["cases"][-1]
    label = None if case["labels"] is None else torch.tensor(case["labels"])
    shape = tuple(case["x_shape"])
    x = torch.from_numpy(numbers("x_t", shape)).requires_grad_()
    direction, seen = (torch.from_numpy(numbers(name, shape)) for name in ("direction", "seen"))
    t = torch.tensor(0.3, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((model(x, t, label) * seen).sum(), x)
    with torch.no_grad():
        ends = [(model(x + step * direction, t, label) * seen).sum() for step in (1e-5, -1e-5)]
    assert float((gradient * direction).sum()) == pytest.approx(
        float(ends[0] - ends[1]) / 2e-5, rel=1e-5
    )


# ---- score_sde


def score_sde_file(folder: Path, known: dict[str, Any]) -> Path:
    """Write a file as score_sde does: raw weights of DataParallel, and a list of averaged parameters."""
    average, raw = state_of(known), state_of(known, "raw.")
    trained = [v for n, v in average.items() if n != "all_modules.0.W"]
    raw = {n: v if n != "all_modules.0.W" else average[n] for n, v in raw.items()}
    model = {f"module.{n}": v for n, v in raw.items()} | {
        "module.sigmas": torch.linspace(50, 0.01, 1000, dtype=torch.float64)
    }
    ema = {"decay": 0.9999, "num_updates": 7, "shadow_params": trained}
    return saved(folder, {"optimizer": {"state": {}}, "model": model, "ema": ema, "step": 7})


def test_score_sde_vp_reproduces_original(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    known = fixture("score_sde_vp_ddpmpp")
    assert list(known["weights"]) == known["order"]
    model = load("score-sde", score_sde_file(tmp_path, known), **SMALL)
    assert "averaged weights" in capsys.readouterr().err
    check(model, known)


def test_score_sde_ve_reproduces_original(tmp_path: Path):
    known = fixture("score_sde_ve_ncsnpp")
    model = load("score-sde", score_sde_file(tmp_path, known), **SMALL)
    for case in known["cases"]:  # the original takes images in [0, 1], and sigma on their scale
        u = torch.from_numpy(1.5 * numbers("x_t", tuple(case["x_shape"]))).float() / 3 + 0.5
        t = torch.tensor(time_of_noise(VP(), case["t"]), dtype=torch.float64)
        with torch.no_grad():
            found = model.decode(model(VP()(t).alpha * model.encode(u), t))
        told = torch.tensor(case["output"]).view_as(u)
        assert (found - told).abs().max() < 1e-5 * told.abs().max()


def test_score_sde_file_of_another_sde_is_refused(tmp_path: Path):
    file = score_sde_file(tmp_path, fixture("score_sde_ve_ncsnpp"))
    with pytest.raises(specs.SpecError, match="set sde: ve, not vp"):
        load("score-sde", file, sde="vp")
    file = score_sde_file(tmp_path, fixture("score_sde_vp_ddpmpp"))
    with pytest.raises(specs.SpecError, match="sde: vp or subvp, not ve"):
        load("score-sde", file, sde="ve")
    assert load("score-sde", file, sde="subvp").predicts == "subvp"
    assert load("score-sde", file, continuous=False).time == "index"


NCSNPP = replace(DDPMPP, fourier=True, pyramid=True, resample_filter=(1, 3, 3, 1))


@pytest.mark.parametrize(
    "options",
    [
        {"widths": (32, 128, 128), "layers": 2, "attention": (1,)},
        {"widths": (64, 64), "layers": 4, "attention": (0, 1), "first": 32},
        {"widths": (32,), "layers": 3, "channels": 1, "outputs": 1},
        {"widths": (32, 96, 64), "attention": (2,), "style": NCSNPP},
    ],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_score_sde_architectures_are_inferred(tmp_path: Path, options: dict[str, Any], prefix: str):
    network = lively(ScoreUNet(**{"style": DDPMPP, "heads": 1, **options}))
    if network.style.fourier:
        network.frequencies.copy_(weight("frequencies", (32,)))
    state = {prefix + n: v for n, v in score_sde_state(network).items()}
    model = load("score-sde", saved(tmp_path, state), **SMALL)
    assert isinstance(model, NetworkDenoiser)
    assert model.predicts == ("ve" if network.style.fourier else "noise")
    x = torch.from_numpy(numbers("x", (2, options.get("channels", 3), 16, 16))).float()
    time = torch.tensor([0.5, -2.0]) if network.style.fourier else torch.tensor([3.0, 700.0])
    with torch.no_grad():
        assert torch.allclose(model.network(x, time), network(x, time), atol=1e-5)


# ---- guided-diffusion, improved-diffusion, consistency models


def test_guided_diffusion_reproduces_original(tmp_path: Path):
    known = fixture("guided_diffusion_uncond")
    file = saved(tmp_path, state_of(known))
    check(load("guided-diffusion", file, **SMALL, head_width=32), known)


def test_conditional_guided_diffusion_reproduces_original(tmp_path: Path):
    known = fixture("guided_diffusion_cond")
    file = saved(tmp_path, state_of(known))
    cosine = {"name": "discrete", "kind": "cosine"}
    told = {"head_width": 32, "attention_order": "new", "schedule": cosine}
    model = load("guided-diffusion", file, **SMALL, **told)
    assert model.classes == 1000
    with pytest.raises(ValueError, match="1000 classes and no null class"):
        model(torch.zeros(1, 3, 16, 16), torch.tensor(0.1))
    check(model, known)


def test_improved_diffusion_reproduces_original(tmp_path: Path):
    known = fixture("improved_diffusion")
    file = saved(tmp_path, state_of(known))
    check(load("improved-diffusion", file, **SMALL, heads=4), known)


@pytest.mark.parametrize(
    ("layout", "file"),
    [("consistency_edm_teacher", "edm_a.pt"), ("consistency_model", "cd_a.pt")],
)
def test_consistency_models_reproduce_original(tmp_path: Path, layout: str, file: str):
    known = fixture(layout)
    path = saved(tmp_path, state_of(known), file)
    check(load("consistency", path, **SMALL, head_width=32), known, at_noise=True, within=5e-5)
    other = saved(tmp_path, state_of(known), "a.pt")
    with pytest.raises(specs.SpecError, match=r"a\.pt .* kind: teacher or kind: model"):
        load("consistency", other, **SMALL, head_width=32)


def test_options_missing_from_guided_diffusion_file_are_requested(tmp_path: Path):
    file = saved(tmp_path, state_of(fixture("guided_diffusion_uncond")))
    with pytest.raises(specs.SpecError, match=r"width 32, levels 1,2, 1 blocks, .*size: 64"):
        load("guided-diffusion", file)
    with pytest.raises(specs.SpecError, match="heads: 4, or head_width: 64"):
        load("guided-diffusion", file, **SMALL)
    with pytest.raises(specs.SpecError, match="64 channels, which heads: 7 does not divide"):
        load("guided-diffusion", file, **SMALL, heads=7)
    with pytest.raises(specs.SpecError, match="either heads or head_width"):
        load("guided-diffusion", file, **SMALL, heads=2, head_width=32)


PLAIN = replace(ADM, blocks_resample=False, scale_shift=False)
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # our network, and options of a spec
    "deep": ({"widths": (32, 64, 96), "layers": 2, "attention": (1, 2), "heads": 2}, {"heads": 2}),
    "wide heads": ({"widths": (32, 64), "attention": (0, 1), "head_width": 16}, {"head_width": 16}),
    "no attention below": ({"widths": (64, 32), "layers": 3, "heads": 1}, {"heads": 1}),
    "one level": ({"widths": (32,), "layers": 2, "heads": 4}, {"heads": 4}),
    "labels": ({"widths": (32, 32), "labels": 5, "outputs": 6, "heads": 1}, {"heads": 1}),
    "embedded": ({"widths": (32, 96), "time_size": 64, "heads": 1}, {"heads": 1}),
    "plain": ({"widths": (32, 64), "layers": 2, "style": PLAIN, "heads": 2}, {"heads": 2}),
    "gray": ({"widths": (32, 64), "channels": 1, "outputs": 2, "heads": 2}, {"heads": 2}),
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("order", ["legacy", "new"])
def test_guided_diffusion_architectures_are_inferred(tmp_path: Path, name: str, order: str):
    options, told = VARIANTS[name]
    network = lively(ScoreUNet(**options))
    file = saved(tmp_path, {f"module.{n}": v for n, v in openai_state(network, order).items()})
    model = load("guided-diffusion", file, **SMALL, **told, attention_order=order)
    assert isinstance(model, NetworkDenoiser)
    shape = (options.get("channels", 3), 16, 16)
    assert model.shape == shape
    x = torch.from_numpy(numbers("x", (2, *shape))).float()
    time = torch.tensor([3.0, 700.0])
    label = torch.tensor([1, 4]) if model.classes else None
    with torch.no_grad():
        assert torch.allclose(model.network(x, time, label), network(x, time, label), atol=1e-5)


# Published file: loader, our network, millions of weights, image size, schedule, and time.
ATTENTION = {"outputs": 6, "head_width": 64}
WHOLE: dict[str, tuple[str, dict[str, Any], float, int, Discrete, str]] = {
    "256x256_diffusion_uncond.pt": (
        "guided-diffusion",
        {
            "widths": (256, 256, 512, 512, 1024, 1024),
            "layers": 2,
            "attention": (3, 4, 5),
            **ATTENTION,
        },
        552.8,
        256,
        Discrete(),
        "index",
    ),
    "512x512_diffusion.pt": (
        "guided-diffusion",
        {
            "widths": (128, 256, 256, 512, 512, 1024, 1024),
            "time_size": 256,
            "layers": 2,
            "attention": (4, 5, 6),
            "labels": 1000,
            **ATTENTION,
        },
        559.0,
        512,
        Discrete(),
        "index",
    ),
    "128x128_diffusion.pt": (
        "guided-diffusion",
        {
            "widths": (256, 256, 512, 768, 1024),
            "layers": 2,
            "attention": (2, 3, 4),
            "labels": 1000,
            "outputs": 6,
            "heads": 4,
        },
        421.5,
        128,
        Discrete(),
        "index",
    ),
    "64x64_diffusion.pt": (
        "guided-diffusion",
        {
            "widths": (192, 384, 576, 768),
            "layers": 3,
            "attention": (1, 2, 3),
            "labels": 1000,
            **ATTENTION,
        },
        295.9,
        64,
        Discrete(1000, "cosine"),
        "index",
    ),
    "cifar10_uncond_50M_500K.pt": (
        "improved-diffusion",
        {
            "widths": (128, 256, 256, 256),
            "layers": 3,
            "attention": (1, 2),
            "outputs": 6,
            "heads": 4,
            "style": replace(ADM, blocks_resample=False),
        },
        52.5,
        32,
        Discrete(4000, "cosine"),
        "rescaled",
    ),
    "lsun_uncond_100M_1200K_bs128.pt": (
        "improved-diffusion",
        {
            "widths": (128, 128, 256, 256, 512, 512),
            "layers": 2,
            "attention": (4,),
            "outputs": 6,
            "heads": 1,
            "style": PLAIN,
        },
        113.7,
        256,
        Discrete(),
        "index",
    ),
}


@pytest.mark.parametrize("file", WHOLE)
def test_published_openai_files_are_recognized_by_their_shapes(tmp_path: Path, file: str):
    name, options, millions, size, schedule, time = WHOLE[file]
    with torch.device("meta"):
        network = ScoreUNet(**options)
    state = {n: torch.zeros(1).expand(v.shape) for n, v in openai_state(network, "legacy").items()}
    # The file has only a few kB, because each tensor repeats one number.
    model = load(name, saved(tmp_path, state))
    assert isinstance(model, NetworkDenoiser)
    assert sum(p.numel() for p in model.network.parameters()) / 1e6 == pytest.approx(
        millions, abs=0.06
    )
    assert (model.shape, model.schedule, model.time) == ((3, size, size), schedule, time)
    assert attention_of(model.network) == attention_of(network)


def attention_of(network: Any) -> dict[str, int]:
    """Return the head width of each attention layer."""
    return {n: m.head for n, m in network.named_modules() if hasattr(m, "to_q")}


# ---- DDPM and diffusers


def test_ddpm_reproduces_original(tmp_path: Path):
    known = fixture("ho_ddpm")
    check(load("ddpm", saved(tmp_path, state_of(known), "model.ckpt"), **SMALL), known)
    with pytest.raises(specs.SpecError, match=r"not one of the published .*1,2.*size: 64"):
        load("ddpm", tmp_path / "model.ckpt")


def test_ddim_training_checkpoint_uses_averaged_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    known = fixture("ho_ddpm")
    raw, average = ({f"module.{n}": v for n, v in state_of(known, s).items()} for s in ("raw.", ""))
    file = saved(tmp_path, [raw, {"state": {}, "param_groups": []}, 3, 400, average], "ckpt.pth")
    check(load("ddpm", file, **SMALL), known)
    assert "averaged weights" in capsys.readouterr().err


TWO_BLOCKS = {"sample_size": 16, "layers_per_block": 2, "block_out_channels": (32, 64)}
UNETS: dict[str, dict[str, Any]] = {  # settings of diffusers' UNet2DModel
    "as google/ddpm-cifar10-32": {
        **TWO_BLOCKS,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": None,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
        "downsample_padding": 0,
    },
    "as diffusers trains": {
        **TWO_BLOCKS,
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
        "norm_num_groups": 16,
    },
    "as ADM": {
        "sample_size": (16, 16),
        "layers_per_block": 1,
        "block_out_channels": (32, 64, 64),
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 32,
        "attention_head_dim": 16,
        "num_class_embeds": 7,
        "out_channels": 6,
    },
    "other sines": {
        **TWO_BLOCKS,
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "flip_sin_to_cos": True,
        "freq_shift": 1,
        "in_channels": 1,
        "out_channels": 1,
    },
}


def diffusers_folder(home: Path, settings: dict[str, Any], at_root: bool, **options: Any) -> Any:
    """Save a folder like a diffusers pipeline, or like google/ddpm-*. Return network and scheduler."""
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    network = lively(UNet2DModel(**settings))
    network.save_pretrained(home if at_root else home / "unet", **options)
    scheduler = DDPMScheduler(500, beta_start=2e-4, prediction_type="epsilon")
    scheduler.save_pretrained(home if at_root else home / "scheduler")
    return network, scheduler


@pytest.mark.parametrize("name", UNETS)
@pytest.mark.parametrize("at_root", [True, False])
def test_diffusers_folder_reproduces_diffusers(tmp_path: Path, name: str, at_root: bool):
    network, scheduler = diffusers_folder(
        tmp_path, UNETS[name], at_root, safe_serialization=at_root
    )
    model = load("diffusers", tmp_path)
    channels = UNETS[name].get("in_channels", 3)
    assert model.shape == (channels, 16, 16)
    x = torch.from_numpy(numbers("x", (2, channels, 16, 16))).float()
    label = torch.tensor([2, 6]) if model.classes else None
    for index in (0, 123, 499):
        told = scheduler.alphas_cumprod[index].double()
        with torch.no_grad():
            out = network(x, index, class_labels=label).sample[:, :channels]
            found = model(x, torch.tensor((index + 1) / 500, dtype=torch.float64), label)
        expected = (x - (1 - told).sqrt() * out) / told.sqrt()
        assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()))


def test_attention_names_of_early_diffusers_are_read(tmp_path: Path):
    settings = UNETS["as google/ddpm-cifar10-32"]
    network, _ = diffusers_folder(tmp_path, settings, True, safe_serialization=False)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = network.state_dict()
    for new, name in old.items():
        state = {n.replace(f".{new}.", f".{name}."): v for n, v in state.items()}
    torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    before = load("diffusers", tmp_path)
    network.save_pretrained(tmp_path)
    x, t = torch.from_numpy(numbers("x", (1, 3, 16, 16))).float(), torch.tensor(0.3)
    assert torch.allclose(before(x, t), load("diffusers", tmp_path)(x, t), atol=1e-5)


def test_unsupported_diffusers_folder_is_refused(tmp_path: Path):
    with pytest.raises(specs.SpecError, match=r"needs config\.json, scheduler_config\.json"):
        load("diffusers", tmp_path)
    diffusers_folder(tmp_path, UNETS["other sines"], True)
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text())
    for change in ({"act_fn": "relu"}, {"time_embedding_type": "fourier"}, {"freq_shift": 2}):
        path.write_text(json.dumps(settings | change))
        (key, value), *_ = change.items()
        with pytest.raises(specs.SpecError, match=f"{key} {value!r}"):
            load("diffusers", tmp_path)


# ---- EDM


EDM = {  # layout: tolerance; one is larger, because the original rounds time to float32
    "edm_cifar10_uncond_vp": 1e-5,
    "edm_cifar10_uncond_ve": 1e-5,
    "edm_imagenet64_adm": 1e-5,
    "edm_baseline_cifar10_vp": 5e-5,
    "edm2": 1e-5,
}


@pytest.mark.parametrize("layout", EDM)
def test_edm_reproduces_original(tmp_path: Path, layout: str):
    known = fixture(layout)
    model = load("edm", edm_pickle(known, tmp_path / "a.pkl"))
    assert model.shape == (3, 16, 16)
    check(model, known, at_noise=True, within=EDM[layout])


@pytest.mark.parametrize("prefix", ["", "model.", "module.model."])
def test_bare_state_dict_of_edm_is_read_in_any_order(tmp_path: Path, prefix: str):
    known = fixture("edm_cifar10_uncond_vp")
    state = {prefix + n.removeprefix("model."): v for n, v in state_of(known).items()}
    names = sorted(state, reverse=True)  # in any order
    model = load("edm", saved(tmp_path, {n: state[n] for n in names}))
    check(model, known, at_noise=True)


def test_edm_labels_shift_input_of_first_layer(tmp_path: Path):
    known = fixture("edm_cifar10_uncond_vp")
    state = state_of(known)
    told = state["model.map_layer0.weight"].shape[1]
    table = weight("map_label.weight", (told, 10))
    state |= {"model.map_label.weight": table, "model.map_label.bias": torch.full((told,), 0.1)}
    model = load("edm", saved(tmp_path, state))
    assert model.classes == 10
    first = "model.map_layer0"
    for label, row in ((7, math.sqrt(10) * table[:, 7]), (None, torch.zeros(told))):
        without = {n: v for n, v in state.items() if "map_label" not in n}
        without[f"{first}.bias"] = state[f"{first}.bias"] + state[f"{first}.weight"] @ (row + 0.1)
        plain = load("edm", saved(tmp_path, without, "b.pt"))
        x, t = torch.from_numpy(numbers("x", (2, 3, 16, 16))).float(), torch.tensor(0.3)
        labels = None if label is None else torch.full((2,), label)
        with torch.no_grad():
            assert torch.allclose(model(x, t, labels), plain(x, t), atol=1e-5)


@pytest.mark.parametrize("name", ["VEPrecond", "iDDPMPrecond"])
def test_other_edm_preconditionings_equal_their_formulas(tmp_path: Path, name: str):
    levels = torch.linspace(40, 0, 101, dtype=torch.float64) ** 2 / 40  # 100 steps, decreasing
    known = fixture("edm_cifar10_uncond_vp") | {"class_name": name}
    known |= {"tables": {"u": levels}} if name == "iDDPMPrecond" else {}
    model = load("edm", edm_pickle(known, tmp_path / "a.pkl"))
    assert isinstance(model, NetworkDenoiser)
    x = torch.from_numpy(numbers("x", (2, 3, 16, 16))).float()
    for noise in (0.06, 0.7, 9.0):
        t = torch.tensor(time_of_noise(VP(), noise / 2), dtype=torch.float64)
        with torch.no_grad():
            if name == "VEPrecond":
                told = torch.full((2,), math.log(noise / 2))
                expected = x + noise * model.network(x, told)
            else:
                nearest = min(range(101), key=lambda j: abs(float(levels[j]) - noise))
                told = torch.full((2,), 99.0 - nearest)
                expected = x - noise * model.network(x / math.sqrt(noise**2 + 1), told)
            found = model(VP()(t).alpha * x, t)
        assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()))


def test_unknown_edm_class_is_refused(tmp_path: Path):
    known = fixture("edm_cifar10_uncond_vp") | {"class_name": "MinePrecond"}
    with pytest.raises(specs.SpecError, match=r"a\.pkl holds a MinePrecond"):
        load("edm", edm_pickle(known, tmp_path / "a.pkl"))


# ---- DiT


def dit_state(known: dict[str, Any], seed: str = "") -> dict[str, Tensor]:
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    table = get_2d_sincos_pos_embed(32, 4, base_size=4, output_type="pt")
    assert float(table.sum()) == pytest.approx(known["pos_embed_sum"], rel=1e-5)
    return state_of(known, seed) | {"pos_embed": table[None].float()}


@pytest.fixture
def vae(tmp_path: Path) -> Path:
    lively(tiny.autoencoder()).save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


@pytest.mark.parametrize("nested", [False, True])
def test_dit_reproduces_original(tmp_path: Path, vae: Path, nested: bool):
    known = fixture("dit")
    content: Any = dit_state(known)
    if nested:  # as DiT's train.py saves it
        args = Namespace(model="DiT-XL/2", num_classes=10)
        content = {"model": dit_state(known, "raw."), "ema": content, "opt": {}, "args": args}
    file = saved(tmp_path, content)
    model = load("dit", file, vae=str(vae), heads=2)
    assert (model.shape, model.classes) == ((3, 16, 16), 10)
    check(model, known)


def test_dit_folder_uses_time_frequencies_of_its_training(tmp_path: Path, vae: Path):
    known = fixture("dit")
    original = load("dit", saved(tmp_path, dit_state(known)), vae=str(vae), heads=2)
    network: Any = original.network
    network.transformer.save_pretrained(tmp_path / "transformer")
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text("{}")
    check(load("dit", tmp_path), known)
    other = load("dit", tmp_path, trained_with="diffusers")
    found, told = answer(other, known["cases"][-1])
    assert (found - told).abs().max() > 0.01 * told.abs().max()


def test_options_missing_from_dit_file_are_requested(tmp_path: Path, vae: Path):
    file = saved(tmp_path, dit_state(fixture("dit")))
    with pytest.raises(specs.SpecError, match=r"a\.pt .* vae: FOLDER"):
        load("dit", file)
    with pytest.raises(specs.SpecError, match=r"width of 32, .*heads: 16"):
        load("dit", file, vae=str(vae))


# ---- all families


FILES: dict[str, tuple[str, dict[str, Any]]] = {  # loader: layout, and further options
    "consistency": ("consistency_edm_teacher", {"kind": "teacher", **SMALL, "head_width": 32}),
    "ddpm": ("ho_ddpm", SMALL),
    "dit": ("dit", {"heads": 2}),
    "edm": ("edm_cifar10_uncond_vp", {}),
    "guided-diffusion": ("guided_diffusion_uncond", {**SMALL, "head_width": 32}),
    "improved-diffusion": ("improved_diffusion", {**SMALL, "heads": 4}),
    "score-sde": ("score_sde_vp_ddpmpp", SMALL),
}
SAME_NAMES = {"consistency", "guided-diffusion", "improved-diffusion"}


def options_of(name: str, vae: Path) -> dict[str, Any]:
    return FILES[name][1] | ({"vae": str(vae)} if name == "dit" else {})


def published(name: str) -> dict[str, Tensor]:
    known = fixture(FILES[name][0])
    return dit_state(known) if name == "dit" else state_of(known)


@pytest.mark.parametrize("name", FILES)
def test_file_of_another_family_is_refused(tmp_path: Path, vae: Path, name: str):
    for other in FILES:
        if other == name or {other, name} <= SAME_NAMES:
            continue
        file = saved(tmp_path, published(other))
        with pytest.raises(specs.SpecError) as error:
            load(name, file, **options_of(name, vae))
        said = str(error.value)
        assert f"{file} is not a file of {name}" in said
        assert "use name: " in said
        assert said.split("use name: ")[1] in {other, "guided-diffusion"}


@pytest.mark.parametrize("name", FILES)
def test_incomplete_or_mismatched_file_is_refused(tmp_path: Path, vae: Path, name: str):
    state, options = published(name), options_of(name, vae)
    names = list(state)
    for kept in (len(names) // 3, len(names) // 2, len(names) - 8, len(names) - 1):
        file = saved(tmp_path, {n: state[n] for n in names[:kept]})
        with pytest.raises(specs.SpecError, match=r"a\.pt"):
            load(name, file, **options)
    wider = {n: torch.cat([v, v]) if n == names[len(names) // 2] else v for n, v in state.items()}
    with pytest.raises(specs.SpecError, match=r"a\.pt"):
        load(name, saved(tmp_path, wider), **options)
    file = saved(tmp_path, state | {"another.weight": torch.zeros(1)})
    with pytest.raises(specs.SpecError, match=r"unexpected 1 \(another\.weight\)"):
        load(name, file, **options)
    whole = saved(tmp_path, state).read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(specs.SpecError, match=r"a\.pt .* cannot be read: it is truncated"):
        load(name, file, **options)
    with pytest.raises(specs.SpecError, match="nowhere"):
        load(name, tmp_path / "nowhere.pt", **options)


@pytest.mark.parametrize("name", FILES)
def test_half_precision_weights_are_computed_in_float32(tmp_path: Path, vae: Path, name: str):
    state = published(name)
    torso = {n: v.half() if v.ndim > 1 else v for n, v in state.items()}
    half = load(name, saved(tmp_path, torso), **options_of(name, vae))
    rounded = {n: v.float() for n, v in torso.items()}
    whole = load(name, saved(tmp_path, rounded, "b.pt"), **options_of(name, vae))
    case = fixture(FILES[name][0])["cases"][0]
    with torch.no_grad():
        assert torch.equal(answer(half, case)[0], answer(whole, case)[0])


@pytest.mark.parametrize("name", FILES)
def test_load_denoiser_accepts_published_files(tmp_path: Path, vae: Path, name: str):
    file = saved(tmp_path, published(name))
    model = unfool.load_denoiser(name=name, weights=file, **options_of(name, vae))
    case = fixture(FILES[name][0])["cases"][0]
    named = load(name, file, **options_of(name, vae))
    with torch.no_grad():
        assert torch.allclose(answer(model, case)[0], answer(named, case)[0], atol=1e-6)
    with pytest.raises(unfool.SpecError, match="sizes"):
        unfool.load_denoiser(name=name, weights=file, sizes=3)


def test_identity_of_spec_changes_with_the_weights(tmp_path: Path):
    state = published("ddpm")
    file = saved(tmp_path, state)
    part = {"denoiser": {"name": "ddpm", "weights": str(file)}}
    before = specs.identity(part)
    state["conv_in.bias"][0] += 1
    saved(tmp_path, state)
    assert specs.identity(part) != before
    folder = tmp_path / "folder"
    network, _ = diffusers_folder(folder, UNETS["other sines"], True)
    part = {"denoiser": {"name": "diffusers", "weights": str(folder)}}
    before = specs.identity(part)
    with torch.no_grad():
        network.conv_in.bias[0] += 1
    network.save_pretrained(folder)
    assert specs.identity(part) != before


def test_diffpure_runs_on_published_checkpoint(tmp_path: Path):
    """The network is small, but in the published layout; outputs are finite, gradients nonzero."""
    known = fixture("score_sde_vp_ddpmpp")
    model = load("score-sde", score_sde_file(tmp_path, known))
    part = {"name": "diffpure", "t": 0.1, "steps": 2, "sampler": "sde", "forward": "discrete"}
    purifier = specs.build("purifier", specs.check("purifier", part), denoiser=model)
    x = torch.from_numpy(numbers("x", (2, 3, 32, 32))).float().add(1).div(2).requires_grad_()
    purified = purifier(x, Noise.of(0, range(2)))
    assert purified.isfinite().all()
    (gradient,) = torch.autograd.grad(purified.square().sum(), x)
    assert bool((gradient.flatten(1).norm(dim=1) > 0).all())
