"""Diffusion: schedules, denoisers, the one reverse loop and its exact gradient."""

from typing import TYPE_CHECKING

from unfool.lazy import lazily

if TYPE_CHECKING:
    from unfool.diffusion.denoiser import Denoiser as Denoiser
    from unfool.diffusion.denoiser import NetworkDenoiser as NetworkDenoiser
    from unfool.diffusion.reverse import DDIM as DDIM
    from unfool.diffusion.reverse import Ancestral as Ancestral
    from unfool.diffusion.reverse import Heun as Heun
    from unfool.diffusion.reverse import ascent as ascent
    from unfool.diffusion.reverse import euler_maruyama as euler_maruyama
    from unfool.diffusion.reverse import flow as flow
    from unfool.diffusion.schedule import VP as VP
    from unfool.diffusion.schedule import Discrete as Discrete

# `reverse` is called like its module, and so is exported by `unfool` alone.
_HOMES = {
    "Ancestral": "unfool.diffusion.reverse",
    "ascent": "unfool.diffusion.reverse",
    "DDIM": "unfool.diffusion.reverse",
    "Denoiser": "unfool.diffusion.denoiser",
    "Discrete": "unfool.diffusion.schedule",
    "euler_maruyama": "unfool.diffusion.reverse",
    "flow": "unfool.diffusion.reverse",
    "Heun": "unfool.diffusion.reverse",
    "NetworkDenoiser": "unfool.diffusion.denoiser",
    "VP": "unfool.diffusion.schedule",
}
__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]
if not TYPE_CHECKING:  # lest a name that is not there pass for one
    __getattr__, __dir__ = lazily(__name__, _HOMES)
