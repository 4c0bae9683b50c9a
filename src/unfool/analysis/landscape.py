"""The loss around an image in the plane of two attacks, on known noise and on fresh noise.

One axis is the final perturbation of DW-box. The other is the part of that of white box with EOT that is
orthogonal to the first (Liu et al., 2024, figure 1).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unfool.analysis.trajectories import DW, EOT, losses_at
from unfool.argument_checks import images_of_any_range
from unfool.attacks.losses import Loss
from unfool.attacks.pgd import PGD
from unfool.noise import Noise
from unfool.protocols import Classifier
from unfool.ranges import AtLeastTwo, Count, check_arguments
from unfool.runtime.progress import progress
from unfool.threat import Threat


@dataclass(frozen=True)
class Landscape:
    """The loss over the plane x + a u + b r.

    Attributes:
        along: The values of a, and of b (N,).
        known: The loss on the noise that DW-box knows (N, N); rows are b, columns are a.
        fresh: The mean loss over fresh draws (N, N).
        paths: The iterates of both attacks in the plane: setting to coordinates (a, b), (S + 1, 2).
        outside: Setting to the share of the final perturbation's length that lies outside the plane.
        directions: u and r, in pixels (2, C, H, W).
    """

    along: np.ndarray
    known: np.ndarray
    fresh: np.ndarray
    paths: dict[str, np.ndarray]
    outside: dict[str, float]
    directions: np.ndarray


def landscape(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    noise: Noise,
    *,
    steps: Count = 20,
    step_size: float = 0.25,
    eot: int = 10,
    draws: Count = 16,
    grid: AtLeastTwo = 17,
    reach: float = 1.6,
    loss: Loss = "margin",
    clip: bool = True,
    quiet: bool = False,
) -> Landscape:
    """Compute the loss landscape around one image.

    Args:
        model: The defense.
        x: The image (1, C, H, W) in [0, 1].
        y: Its label (1,).
        threat: What an attacker may change.
        noise: Source of random draws; DW-box knows its stream `defense`.
        steps: Steps of PGD from the clean image.
        step_size: In units of eps.
        eot: Draws per step of the attack with EOT.
        draws: Fresh draws behind a mean loss.
        grid: Points along each axis.
        reach: The end of both axes; 1 is the end of the attack.
        loss: The loss to maximize and to show.
        clip: Clip images to [0, 1].
        quiet: Show no progress.

    Raises:
        ValueError: A number is out of range, there is not exactly one image, DW-box left it unchanged, or
            the two attacks span no plane.
    """
    check_arguments(landscape, locals())
    if len(x) != 1:
        raise ValueError(f"a landscape needs exactly one image, not {len(x)}")
    known, fresh, deltas = noise.child("defense"), noise.child("held"), {}
    with progress("attacking and looking", grid + 2, 0, quiet) as show:
        for done, (name, per_step) in enumerate(((DW, 1), (EOT, eot)), 1):
            attack_noise = noise.child(name)
            attack = PGD(steps, per_step, step_size, start="zero", loss=loss)
            attack_noise = attack_noise.with_known_noise(known) if name == DW else attack_noise
            path = [x_adv - x for x_adv, _ in attack.path(model, x, y, threat, attack_noise)]
            deltas[name] = torch.cat(path).flatten(1).double()
            show(done, name)
        u = deltas[DW][-1]
        if not float(u.norm()):
            raise ValueError(
                "the attack with known noise left the image unchanged: try the loss `margin`"
            )
        r = deltas[EOT][-1] - (deltas[EOT][-1] @ u) / (u @ u) * u
        if not float(r.norm()):
            raise ValueError(
                "the two attacks end at the same image, so they span no plane: try more steps, or "
                "another image"
            )
        along = torch.linspace(0, reach, grid, dtype=torch.float64)
        surfaces: dict[str, list[np.ndarray]] = {"known": [], "fresh": []}
        streams = known.take([0] * grid), fresh.take([0] * grid)
        for done, b in enumerate(along, 3):
            offsets = (along[:, None].to(u) * u + b.to(u) * r).to(x).view(grid, *x.shape[1:])
            points = (x + offsets).clamp(0, 1) if clip else x + offsets
            with images_of_any_range():  # without `clip`, points may leave [0, 1]
                losses = losses_at(model, points, y.expand(grid), loss, *streams, draws)
            for kind, surface in surfaces.items():
                surface.append(losses[kind][0])
            show(done, "looking")
    plane = torch.stack([u / (u @ u), r / (r @ r)], 1)  # (P, 2)
    paths = {name: (path @ plane).cpu().numpy() for name, path in deltas.items()}
    outside = {}
    for name, path in deltas.items():
        rest = path[-1] - paths[name][-1][0] * u - paths[name][-1][1] * r
        outside[name] = float(rest.norm() / path[-1].norm())
    return Landscape(
        along.numpy(),
        np.stack(surfaces["known"]),
        np.stack(surfaces["fresh"]),
        paths,
        outside,
        torch.stack([u, r]).view(2, *x.shape[1:]).cpu().numpy(),
    )
