"""Noise schedules, denoisers, the reverse process, and its exact gradient."""

from typing import TYPE_CHECKING

from unfool.lazy import lazy_exports

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

# `reverse` has the same name as its module, so only `unfool` exports it.
else:  # only at run time, so that type checkers do not accept unknown names
    __getattr__, __dir__, __all__ = lazy_exports(__name__)
