"""Published checkpoints at full width, against the code of their authors if it is available.

`UNFOOL_PEERS` names a folder with clones of the original repositories, under their own names. Each
original runs in a separate process: it builds its network, writes a file, and computes an output.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny
import torch

from unfool import spec as specs
from unfool.models.published.stable_diffusion import build_unet, build_vae, read_single_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
PEERS = os.environ.get("UNFOOL_PEERS")
GUIDED = """
from guided_diffusion.script_util import create_model
size, classes = {size}, {classes}
options = dict(learn_sigma=True, use_scale_shift_norm=True, resblock_updown=True)
options.update(attention_resolutions='32,16,8', num_head_channels=64, class_cond=classes)
net = create_model(size, {width}, {layers}, use_new_attention_order={new}, **options)
content = fill(net)
x, t = inputs(64), torch.tensor([499.0])
label = torch.tensor([7]) if classes else None
save(content, net(x, t, label) if classes else net(x, t), x, t, label)
"""
IMPROVED = """
from improved_diffusion.script_util import create_model
net = create_model(32, 128, 3, True, False, False, '16,8', 4, -1, True, 0.3)
content = fill(net)
x, t = inputs(32), torch.tensor([124.75])
save(content, net(x, t), x, t)
"""
SCORE_SDE = """
import types
from types import SimpleNamespace as Settings
absent = ('upfirdn2d', 'fused_leaky_relu', 'FusedLeakyReLU')  # which compile code of CUDA, for FIR
sys.modules['op'] = types.ModuleType('op')
vars(sys.modules['op']).update(dict.fromkeys(absent))
from models import ncsnpp
model = dict(nf=128, ch_mult=(1, 2, 2, 2), num_res_blocks=8, attn_resolutions=(16,), dropout=0.1)
model.update(resamp_with_conv=True, conditional=True, fir=False, fir_kernel=[1, 3, 3, 1])
model.update(skip_rescale=True, resblock_type='biggan', progressive='none', nonlinearity='swish')
model.update(progressive_input='none', progressive_combine='sum', embedding_type='positional')
model.update(init_scale=0.0, fourier_scale=16, scale_by_sigma=False, conv_size=3, name='ncsnpp')
model.update(sigma_max=50, sigma_min=0.01, num_scales=1000)
data = Settings(image_size=32, num_channels=3, centered=True)
net = ncsnpp.NCSNpp(Settings(model=Settings(**model), data=data, training=Settings(continuous=True)))
raw = {'module.' + name: value.clone() for name, value in net.state_dict().items()}
fill(net)
shadow = [p.detach() for p in net.parameters() if p.requires_grad]
x, t = inputs(32), torch.tensor([99.9])
save({'model': raw, 'ema': {'decay': 0.9999, 'shadow_params': shadow}, 'step': 1}, net(x, t), x, t)
"""
DDIM = """
from types import SimpleNamespace as Settings
from models.diffusion import Model
model = dict(type='simple', in_channels=3, out_ch=3, ch=128, ch_mult=[1, 2, 2, 2], num_res_blocks=2)
model.update(attn_resolutions=[16], dropout=0.1, resamp_with_conv=True)
chain = Settings(num_diffusion_timesteps=1000)
net = Model(Settings(model=Settings(**model), data=Settings(image_size=32), diffusion=chain))
content = fill(net)
x, t = inputs(32), torch.tensor([99.0])
save(content, net(x, t), x, t)
"""
EDM = """
import pickle
from training.networks import EDMPrecond
net = EDMPrecond({size}, 3, label_dim={classes}, **{options}).eval().requires_grad_(False)
fill(net)
x, t = inputs({size}), torch.tensor([-0.3])
label = torch.tensor([7])
known = torch.eye({classes})[label] if {classes} else None
with open(sys.argv[1], 'wb') as file:
    pickle.dump(dict(ema=net), file)
save(None, net.model(x, t, class_labels=known), x, t, label if {classes} else None)
"""
EDM2 = """
import pickle
from training.networks_edm2 import Precond
net = Precond(64, 3, 1000, model_channels=192).eval().requires_grad_(False)
fill(net)
x, t, label = inputs(64), torch.tensor([-0.3]), torch.tensor([7])
with open(sys.argv[1], 'wb') as file:
    pickle.dump(dict(ema=net), file)
save(None, net.unet(x, t, torch.eye(1000)[label]), x, t, label)
"""
CONSISTENCY = """
from cm import unet
unet.QKVFlashAttention = lambda channels, heads: unet.QKVAttention(heads)  # without code of CUDA
size, classes = {size}, {classes}
net = unet.UNetModel(
    size, 3, {width}, 3, {layers}, tuple(size // s for s in (32, 16, 8)), channel_mult={multiples},
    num_classes=classes, num_head_channels=64, use_scale_shift_norm={shift}, resblock_updown=True,
)
content = fill(net)
x, t = inputs(64), torch.tensor([-180.0])
label = torch.tensor([7]) if classes else None
save(content, net(x, t, label), x, t, label)
"""
DIT = """
from models import DiT_models
net = DiT_models['DiT-XL/2'](input_size=32, num_classes=1000)
content = fill(net)
x, t, label = inputs(32, 4), torch.tensor([499.0]), torch.tensor([7])
save(content, net(x, t, label)[:, :4], x, t, label)
"""
STABLE_DIFFUSION = """
import types
sys.modules['omegaconf'] = types.ModuleType('omegaconf')
sys.modules['omegaconf.listconfig'] = types.ModuleType('omegaconf.listconfig')
vars(sys.modules['omegaconf.listconfig'])['ListConfig'] = tuple
from ldm.modules.diffusionmodules import model, openaimodel
options = dict(num_res_blocks=2, channel_mult=[1, 2, 4, 4], use_spatial_transformer=True)
options |= dict(attention_resolutions=[4, 2, 1], transformer_depth=1, legacy=False, {more})
with torch.device('meta'):
    unet = openaimodel.UNetModel(32, 4, 320, out_channels=4, **options)
unet.to_empty(device='cpu')
options = dict(double_z=True, z_channels=4, resolution=256, in_channels=3, out_ch=3, ch=128)
options |= dict(ch_mult=[1, 2, 4, 4], num_res_blocks=2, attn_resolutions=[], dropout=0.0)
parts = dict(encoder=model.Encoder(**options), decoder=model.Decoder(**options))
parts |= dict(quant_conv=torch.nn.Conv2d(8, 8, 1), post_quant_conv=torch.nn.Conv2d(4, 4, 1))
vae = torch.nn.ModuleDict(parts)
content = {{'model.diffusion_model.' + n: v for n, v in fill(unet).items()}}
content |= {{'first_stage_model.' + n: v for n, v in fill(vae).items()}}
content['cond_stage_model.{text}'] = torch.ones(1)  # all that is looked at of the text encoder here
z, t, image = inputs(32, 4), torch.tensor([499.0]), inputs(64)
context = torch.from_numpy(numbers('context', (1, 7, {context}))).float()
latent = vae['quant_conv'](vae['encoder'](image))
decoded = vae['decoder'](vae['post_quant_conv'](z[..., :8, :8]))
expected = [each.detach() for each in (latent, decoded)]
save({{'state_dict': content}}, unet(z, t, context), z, t, context, image, *expected)
"""
START = """
import math
import sys
sys.path[:0] = [{peer!r}, {here!r}]
import torch
from published_rule import numbers

def fill(net):
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in net.named_parameters():
            value.uniform_(-1, 1, generator=random)
            if value.ndim >= 2:
                value.mul_(math.sqrt(3 / value[0].numel()))
            elif value.ndim == 0:
                value.mul_(0.25).add_(0.5)
            else:
                value.mul_(0.2).add_(1.0 if name.endswith('weight') else 0.0)
    net.eval()
    return net.state_dict()

def inputs(size, channels=3):
    return torch.from_numpy(numbers('x', (1, channels, size, size))).float()

def save(content, out, *inputs):
    if content is not None:
        torch.save(content, sys.argv[1])
    torch.save((out.detach(), *inputs), sys.argv[2])

"""
CIFAR = "dict(model_type='SongUNet', model_channels=128, channel_mult=[2, 2, 2], augment_dim=9"
SONG_VE = "channel_mult_noise=2, resample_filter=[1, 3, 3, 1], embedding_type='fourier'"
SONG_VE += ", encoder_type='residual'"
ADM_64 = "dict(model_type='DhariwalUNet', model_channels=192, channel_mult=[1, 2, 3, 4])"


class Case(NamedTuple):
    """A published network.

    Attributes:
        repository: Name of the authors' repository.
        script: Script that builds the network there.
        name: Name of its loader in a spec.
        file: Name of its file.
        needs: Packages that the original needs and `unfool` does not.
    """

    repository: str
    script: str
    name: str
    file: str
    needs: tuple[str, ...] = ()


OF_LSUN = dict(
    size=256, classes=None, width=256, layers=2, multiples=(1, 1, 2, 2, 4, 4), shift=False
)
OF_IMAGENET = dict(size=64, classes=1000, width=192, layers=3, multiples=(1, 2, 3, 4), shift=True)
CASES = {
    "256x256_diffusion_uncond": Case(
        "guided-diffusion",
        GUIDED.format(size=256, classes=False, width=256, layers=2, new=False),
        "guided-diffusion",
        "a.pt",
    ),
    "64x64_diffusion": Case(
        "guided-diffusion",
        GUIDED.format(size=64, classes=True, width=192, layers=3, new=True),
        "guided-diffusion",
        "a.pt",
    ),
    "cifar10_uncond_50M_500K": Case("improved-diffusion", IMPROVED, "improved-diffusion", "a.pt"),
    "cifar10_ddpmpp_deep_continuous": Case("score_sde_pytorch", SCORE_SDE, "score-sde", "a.pth"),
    "ema_diffusion_cifar10_model": Case("ddim", DDIM, "ddpm", "a.ckpt"),
    "edm-cifar10-32x32-uncond-vp": Case(
        "edm", EDM.format(size=32, classes=0, options=f"{CIFAR})"), "edm", "a.pkl"
    ),
    "edm-cifar10-32x32-cond-ve": Case(
        "edm", EDM.format(size=32, classes=10, options=f"{CIFAR}, {SONG_VE})"), "edm", "a.pkl"
    ),
    "edm-imagenet-64x64-cond-adm": Case(
        "edm", EDM.format(size=64, classes=1000, options=ADM_64), "edm", "a.pkl"
    ),
    "edm2-img64-s": Case("edm2", EDM2, "edm", "a.pkl"),
    "edm_bedroom256_ema": Case(
        "consistency_models", CONSISTENCY.format(**OF_LSUN), "consistency", "edm_bedroom256_ema.pt"
    ),
    "edm_imagenet64_ema": Case(
        "consistency_models",
        CONSISTENCY.format(**OF_IMAGENET),
        "consistency",
        "edm_imagenet64_ema.pt",
    ),
    "DiT-XL-2-256x256": Case("DiT", DIT, "dit", "DiT-XL-2-256x256.pt", ("timm",)),
}


STABLE = {
    "v1-5-pruned-emaonly": (
        "stable-diffusion",
        dict(
            more="num_heads=8, context_dim=768",
            context=768,
            text="transformer.text_model.final_layer_norm.weight",
        ),
    ),
    "v2-1_768-ema-pruned": (
        "stablediffusion",
        dict(
            more="num_head_channels=64, use_linear_in_transformer=True, context_dim=1024",
            context=1024,
            text="model.ln_final.weight",
        ),
    ),
}


@pytest.mark.parametrize("case", STABLE)
def test_stable_diffusion_at_full_width_reproduces_original(tmp_path: Path, case: str):
    repository, settings = STABLE[case]
    path = tmp_path / f"{case}.ckpt"
    script = STABLE_DIFFUSION.format(**settings)
    expected, z, t, texts, image, latent, decoded = original(repository, script, path, ["einops"])
    file = read_single_file(path)
    unet, vae = build_unet(file, torch.float32, 8), build_vae(file)
    with torch.no_grad():
        pairs = (
            (unet(z, t, texts, return_dict=False)[0], expected),
            (vae.encode(image).latent_dist.parameters, latent),
            (vae.decode(z[..., :8, :8]).sample, decoded),
        )
    for found, wanted in pairs:
        assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("case", CASES)
def test_network_at_full_width_reproduces_original(tmp_path: Path, case: str):
    repository, script, name, file, needs = CASES[case]
    expected, x, *inputs = original(repository, script, tmp_path / file, needs)
    part: dict[str, Any] = {"name": name, "weights": str(tmp_path / file)}
    if name == "dit":
        tiny.lively(tiny.autoencoder()).save_pretrained(tmp_path / "vae")
        part["vae"] = str(tmp_path / "vae")
    network: Any = specs.build("denoiser", specs.check("denoiser", part)).network
    with torch.no_grad():
        found = network(x, *[each for each in inputs if each is not None])
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def original(repository: str, script: str, file: Path, needs: Sequence[str] = ()) -> list[Any]:
    """Run a script with a cloned repository, which writes `file`. Return its output and inputs."""
    home = Path(PEERS or "nowhere") / repository
    if not home.is_dir():
        pytest.skip(f"set UNFOOL_PEERS to a folder with a clone of {repository}")
    for package in needs:
        pytest.importorskip(package, reason=f"{repository} needs {package}")
    told = START.format(peer=str(home), here=str(Path(__file__).parents[1])) + script
    answer = file.with_name("answer.pt")
    subprocess.run([sys.executable, "-c", told, str(file), str(answer)], check=True)
    return torch.load(answer)
