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
else:  # at run time alone, lest a type checker take a name that is not there
    __getattr__, __dir__, __all__ = lazily(__name__)
