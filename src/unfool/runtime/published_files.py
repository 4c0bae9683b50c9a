"""Published files of weights by name: their addresses, sizes, licenses, and hashes.

A hash is listed only if the publisher states it, in a list or in the file's name. Files that can be
downloaded only through a web page have no address; a message then says how to get them.
"""

from dataclasses import dataclass
from pathlib import Path

from unfool.runtime.downloads import cache_folder, downloads_allowed, fetch, say

_OPENAI = "https://openaipublic.blob.core.windows.net"
_EDM = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained"
_CHEN = "https://github.com/chenyaofo/pytorch-cifar-models/releases/download"
_HEIBOX = "https://heibox.uni-heidelberg.de/f"


@dataclass(frozen=True)
class Remote:
    """A file that its authors published.

    Attributes:
        page: The authors' web page for it.
        license: The license, as they state it.
        megabytes: The approximate size.
        url: Its address; None if a program cannot download it.
        size: The exact size in bytes, if known.
        sha256: Its SHA-256 or a prefix of it, if published.
        md5: Its MD5, if published.
    """

    page: str
    license: str
    megabytes: int
    url: str | None = None
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None


def _openai(
    kind: str, repository: str, name: str, megabytes: int, size: int | None = None
) -> Remote:
    page = f"https://github.com/openai/{repository}"
    return Remote(page, "MIT", megabytes, f"{_OPENAI}/{kind}/{name}", size)


def _nvidia(name: str, megabytes: int) -> Remote:
    page = "https://github.com/NVlabs/edm"
    return Remote(page, "CC BY-NC-SA 4.0", megabytes, f"{_EDM}/{name}")


def _chen(kind: str, name: str, megabytes: int) -> Remote:
    """Describe a file of a collection whose names end with the first 8 digits of the SHA-256."""
    page = "https://github.com/chenyaofo/pytorch-cifar-models"
    prefix = Path(name).stem.rpartition("-")[2]
    return Remote(page, "BSD-3-Clause", megabytes, f"{_CHEN}/{kind}/{name}", sha256=prefix)


def _ho(key: str, md5: str, size: int | None = None) -> Remote:
    page = "https://github.com/pesser/pytorch_diffusion"
    return Remote(page, "MIT", 143, f"{_HEIBOX}/{key}/?dl=1", size, md5=md5)


FILES: dict[str, Remote] = {
    "checkpoint_8.pth": Remote(
        "https://github.com/yang-song/score_sde_pytorch (vp/cifar10_ddpmpp_deep_continuous)",
        "Apache-2.0",
        1707,
        size=1_707_310_559,
    ),
    "celeba_hq.ckpt": Remote("https://github.com/ermongroup/SDEdit", "MIT", 455),
    "Standard.pt": Remote("https://github.com/RobustBench/robustbench", "MIT", 146),
    "ema_diffusion_cifar10_model/model-790000.ckpt": _ho(
        "2e4f01e2d9ee49bab1d5", "1fa350b952534ae442b1d5235cce5cd3", 143_046_049
    ),
    "diffusion_cifar10_model/model-790000.ckpt": _ho(
        "869980b53bf5416c8a28", "82ed3067fd1002f5cf4c339fb80c4669"
    ),
    **{
        name: _openai("diffusion/jul-2021", "guided-diffusion", name, megabytes, size)
        for name, megabytes, size in (
            ("256x256_diffusion_uncond.pt", 2211, 2_211_383_297),
            ("256x256_diffusion.pt", 2215, None),
            ("128x128_diffusion.pt", 1686, None),
            ("64x64_diffusion.pt", 1184, None),
            ("512x512_diffusion.pt", 2236, None),
            ("lsun_bedroom.pt", 2211, None),
            ("lsun_cat.pt", 2211, None),
            ("lsun_horse.pt", 2211, None),
            ("lsun_horse_nodropout.pt", 2211, None),
        )
    },
    **{
        name: _openai("diffusion/march-2021", "improved-diffusion", name, megabytes)
        for name, megabytes in (
            ("cifar10_uncond_50M_500K.pt", 210),
            ("cifar10_uncond_vlb_50M_500K.pt", 210),
            ("imagenet64_uncond_100M_1500K.pt", 484),
            ("imagenet64_uncond_vlb_100M_1500K.pt", 484),
            ("imagenet64_cond_270M_250K.pt", 1092),
        )
    },
    **{
        name: _openai("consistency", "consistency_models", name, megabytes)
        for name, megabytes in (
            ("edm_imagenet64_ema.pt", 1184),
            ("edm_bedroom256_ema.pt", 2211),
            ("cd_imagenet64_l2.pt", 1184),
            ("cd_bedroom256_lpips.pt", 2211),
            ("cd_cat256_lpips.pt", 2211),
        )
    },
    **{
        name: _nvidia(name, megabytes)
        for name, megabytes in (
            ("edm-cifar10-32x32-uncond-vp.pkl", 223),
            ("edm-cifar10-32x32-cond-vp.pkl", 223),
            ("edm-cifar10-32x32-uncond-ve.pkl", 226),
            ("edm-cifar10-32x32-cond-ve.pkl", 226),
            ("edm-ffhq-64x64-uncond-vp.pkl", 247),
            ("edm-afhqv2-64x64-uncond-vp.pkl", 247),
            ("edm-imagenet-64x64-cond-adm.pkl", 1184),
        )
    },
    **{
        f"DiT-XL-2-{size}x{size}.pt": Remote(
            "https://github.com/facebookresearch/DiT",
            "CC BY-NC 4.0",
            2701,
            f"https://dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-{size}x{size}.pt",
        )
        for size in (256, 512)
    },
    **{
        name: _chen(kind, name, megabytes)
        for kind, name, megabytes in (
            ("resnet", "cifar10_resnet20-4118986f.pt", 1),
            ("resnet", "cifar10_resnet32-ef93fc4d.pt", 2),
            ("resnet", "cifar10_resnet44-2a3cabcb.pt", 3),
            ("resnet", "cifar10_resnet56-187c023a.pt", 3),
            ("mobilenetv2", "cifar10_mobilenetv2_x1_0-fe6a5b48.pt", 9),
            ("shufflenetv2", "cifar10_shufflenetv2_x1_0-98807be3.pt", 5),
            ("resnet", "cifar100_resnet20-23dac2f1.pt", 1),
            ("resnet", "cifar100_resnet32-84213ce6.pt", 2),
            ("resnet", "cifar100_resnet44-ffe32858.pt", 3),
            ("resnet", "cifar100_resnet56-f2eff4c8.pt", 3),
            ("mobilenetv2", "cifar100_mobilenetv2_x1_0-1311f9ff.pt", 9),
            ("shufflenetv2", "cifar100_shufflenetv2_x1_0-9ae22beb.pt", 6),
        )
    },
}


def path_or_cached(path: Path) -> Path:
    """Return the path; for a published file that is only in the cache, its path there."""
    cached = cache_folder() / path.as_posix()
    return cached if path.as_posix() in FILES and not path.exists() and cached.is_file() else path


def find_file(path: Path, download: bool = False) -> Path:
    """Find a file of weights at its path or in the cache, or download it if that was asked for.

    A path that names no published file is returned unchanged.

    Args:
        path: The file, or the name of a published one.
        download: Whether it may be downloaded; `--download` allows it, too.

    Raises:
        FileNotFoundError: A published file is missing, and may not or cannot be downloaded.
        ValueError: The downloaded file is not the published one.
    """
    name = path.as_posix()
    if (path := path_or_cached(path)).exists() or name not in FILES:
        return path
    remote, cached = FILES[name], cache_folder() / name
    details = f"{remote.megabytes:,} MB, {remote.license}"
    offline_advice = f"download it from {remote.page} and put it at {cached}"
    if remote.url is None:
        raise FileNotFoundError(
            f"there is no file {path}, and unfool cannot download it: {offline_advice} ({details}), "
            "or give the path of your copy"
        )
    if not (download or downloads_allowed()):
        raise FileNotFoundError(
            f"there is no file {path}: to download it ({details}, from {remote.page}), add "
            "--download, or `download: true` next to weights; or give the path of your copy"
        )
    say(f"fetching {name} ({details}) from {remote.url} to {cached}")
    fetch(
        remote.url,
        cached,
        size=remote.size,
        md5=remote.md5,
        sha256=remote.sha256,
        offline_advice=offline_advice,
    )
    if remote.sha256 is None and remote.md5 is None:
        say(f"{name}: its authors published no hash, so the download could not be verified")
    return cached
