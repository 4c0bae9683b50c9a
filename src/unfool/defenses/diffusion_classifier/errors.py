"""The errors of a denoiser on images under each class, and their exact gradient.

A draw is a time and a noise image. All classes of an image share it, so that the differences
between classes, which are all that counts, are free of the noise they have in common. For a class
with several wordings, the mean over them counts. Work goes through the network in chunks of
(draw, image, label) rows. The backward pass recomputes chunk by chunk, with the memory of one, and
only for the classes whose gradient is needed; if that is nearly all of them, as many chunks as fit
into free memory keep their graphs instead.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from unfool.batching import BatchLimit, in_parts
from unfool.diffusion.denoiser import Denoiser
from unfool.diffusion.gradient import Learned, same_precision, vector_jacobian
from unfool.diffusion.schedule import Scales
from unfool.noise import Noise

# takes rows (draw, image, label), their entries in the table, and their weights
Use = Callable[[Tensor, tuple[Tensor, ...], Tensor], object]
Loss = Literal["l2", "l1", "huber"]
# input and output of a graph, its entries in the table, and the object that counts its memory
_Kept = tuple[Tensor, Tensor, tuple[Tensor, ...], object]

LOSSES: dict[Loss, Callable[[Tensor], Tensor]] = {
    "l2": torch.square,
    "l1": torch.abs,
    "huber": lambda gap: F.huber_loss(gap, torch.zeros_like(gap), reduction="none"),
}


@dataclass(frozen=True)
class ClassErrors:
    """The errors of a denoiser's noise prediction, by image, class and draw.

    Attributes:
        denoiser: A conditional denoiser.
        scales: The scales of each draw, (M,) in float64.
        noise: Draw k of an image uses the stream k below this one.
        loss: The loss of eps_hat - eps; its mean over all values of an image is the error.
        limit: The most rows in one call of the network; lowered when memory runs out.
    """

    denoiser: Denoiser
    scales: Scales
    noise: Noise
    loss: Loss
    limit: BatchLimit
    _streams: dict[int, Noise] = field(default_factory=dict)
    _kept: list[_Kept] = field(default_factory=list)

    def at(self, z: Tensor, places: Tensor) -> Tensor:
        """The errors (n,) at (draw, image, label) `places` (n, 3), sorted by draw and image."""
        pairs, row = torch.unique_consecutive(places[:, :2], dim=0, return_inverse=True)
        draw, image = pairs.unbind(1)
        t, alpha, sigma, _ = (s.to(z.device)[draw, None, None, None] for s in self.scales)
        ratio, alpha, sigma = ((alpha / sigma).to(z), alpha.to(z), sigma.to(z))
        draws, counts = draw.unique_consecutive(return_counts=True)
        parts = zip(draws.tolist(), image.split(counts.tolist()), strict=True)
        eps = Noise.join([self._stream(k).take(of) for k, of in parts]).normal(z[image])
        x_t, target = self.meet(z, image, alpha, sigma, eps)  # once for all classes
        if self.denoiser.multi_head:
            every = torch.arange(self.denoiser.classes, device=z.device).expand(len(pairs), -1)
            x_hat = self.denoiser(x_t, t.to(z), every)[row, places[:, 2]].to(z)
        else:
            x_hat = self.denoiser(x_t[row], t[row].to(z), places[:, 2]).to(z)
        # eps_hat - eps, whatever the network predicts: x_t is the same on both sides
        gap = ratio[row] * (target[row] - x_hat)
        return LOSSES[self.loss](gap).flatten(1).mean(1)

    def meet(
        self, z: Tensor, image: Tensor, alpha: Tensor, sigma: Tensor, eps: Tensor
    ) -> tuple[Tensor, Tensor]:
        """For each pair (draw, image), x_t and the target of x_hat, both (n, C, H, W).

        Args:
            z: All images, in the denoiser's space.
            image: The index in `z` of each pair's image (n,).
            alpha: alpha of each pair (n, 1, 1, 1).
            sigma: sigma of each pair (n, 1, 1, 1).
            eps: The noise of each pair (n, C, H, W).
        """
        return alpha * z[image] + sigma * eps, z[image]

    def fill(self, table: Tensor, z: Tensor, wanted: Tensor) -> None:
        """Write the errors of the mask `wanted` (B, K, M) into `table` (B, K, M), which is 0 there.

        If gradients are needed, graphs may be kept for the backward pass of `mean`.
        """
        back = torch.is_grad_enabled() and (z.requires_grad or bool(self.trained()))
        # the wordings of one error may be in two chunks, so no graphs are kept for them
        keeps, learned = back and not self.denoiser.wordings, self.learned(z)
        most = learned.graphs(self.limit.batch_size or len(z), z.device) if keeps else 0

        def add(places: Tensor, spot: tuple[Tensor, ...], part: Tensor) -> None:
            keep, at = len(self._kept) < most, z.detach()
            with torch.set_grad_enabled(keep):
                value = self.at(at.requires_grad_(keep), places)
            if keep:
                self._kept.append((at, value, spot, learned.held(self.rows(places))))
            table.index_put_(spot, (value.detach() * part).to(table), accumulate=True)

        self.each(wanted, add)

    def trained(self) -> list[Tensor]:
        """The denoiser's weights that are in training."""
        return [p for p in self.denoiser.parameters() if p.requires_grad]

    def learned(self, z: Tensor) -> Learned:
        """The memory of a row's graph."""
        cast = torch.is_autocast_enabled(z.device.type)
        return Learned(self.denoiser, (type(self), self.loss, z.shape[1:], z.dtype, cast))

    def mean(self, table: Tensor, taken: Tensor, z: Tensor, weight: Tensor) -> Tensor:
        """The weighted mean (B, K) of the errors in a filled `table` that the mask `taken` selects.

        Its gradient reaches `z`, and the denoiser's weights if they are in training.
        """
        share = taken * weight
        share = share / share.sum(2, keepdim=True)
        value = (table.double() * share).sum(2).to(z)
        trained = self.trained()
        if not torch.is_grad_enabled() or not (z.requires_grad or trained):
            return value
        return _Mean.apply(self, value, share, z, *trained)  # pyright: ignore[reportReturnType]

    def rows(self, places: Tensor) -> int:
        """The number of network rows for `places` (n, 3), sorted by draw and image."""
        if not self.denoiser.multi_head:
            return len(places)
        return len(places[:, :2].unique_consecutive(dim=0))

    def each(self, wanted: Tensor, use: Use) -> None:
        """Call `use` for the mask `wanted` (B, K, M), at most `limit` network rows at a time."""
        # draws first, classes last, so that the classes of one x_t are in one call
        places = wanted.permute(2, 0, 1).nonzero()
        classes = wanted.shape[1]
        ways = torch.tensor(self.denoiser.wordings or (1,) * classes, device=wanted.device)
        ways = ways[places[:, 2]]
        spot = torch.arange(len(places), device=wanted.device).repeat_interleave(ways)
        wording = torch.arange(len(spot), device=wanted.device) - (ways.cumsum(0) - ways)[spot]

        ends = list(range(len(spot) + 1))  # where each row of the network begins and ends
        if self.denoiser.multi_head:  # a row gives the errors of all classes
            _, counts = places[:, :2].unique_consecutive(dim=0, return_counts=True)
            ends = [0, *counts.cumsum(0).tolist()]

        def part(of: slice) -> None:
            here = spot[ends[of.start] : ends[of.stop]]
            draw, image, label = places[here].unbind(1)
            told = label + (classes + 1) * wording[ends[of.start] : ends[of.stop]]
            rows = torch.stack((draw, image, told), 1)
            use(rows, (image, label, draw), 1 / ways[here].double())

        in_parts(part, len(ends) - 1, self.limit, "noised images")

    def _stream(self, draw: int) -> Noise:
        if draw not in self._streams:
            self._streams[draw] = self.noise.child(draw)
        return self._streams[draw]


class _Mean(torch.autograd.Function):
    """Known means, whose gradient is computed on the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, errors: ClassErrors, value: Tensor, share: Tensor, z: Tensor, *trained: Tensor
    ) -> Tensor:
        ctx.errors, ctx.precision = errors, same_precision(z.device.type)
        ctx.save_for_backward(share, z, *trained)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        share, z, *trained = ctx.saved_tensors
        errors, wanted = ctx.errors, share * gradient.double()[:, :, None]
        total = torch.zeros_like(z)
        totals = [torch.zeros_like(p) for p in trained]

        def back(at: Tensor, value: Tensor, told: Tensor) -> None:
            parts = vector_jacobian(value, (at, *trained), told)
            for whole, found in zip((total, *totals), parts, strict=True):
                if found is not None:
                    whole.add_(found)

        def add(places: Tensor, spot: tuple[Tensor, ...], part: Tensor) -> None:
            watched = learned.watching(errors.rows(places)) if most else nullcontext()
            with torch.enable_grad(), ctx.precision(), watched:
                at = z.detach().requires_grad_()
                value = errors.at(at, places)
            back(at, value, (wanted[spot] * part).to(value))

        left, learned = wanted != 0, errors.learned(z)
        # a product costs 2 forward calls: replay costs 3 per needed entry, kept graphs 2 per entry
        most = 3 * int(left.sum()) >= 2 * int((share != 0).sum())
        if not most:
            learned.forget()
        while errors._kept:  # a second backward pass replays
            at, value, spot, _ = errors._kept.pop(0)
            if most:
                back(at, value, wanted[spot].to(value))
                left[spot] = False
        errors.each(left, add)
        return None, None, None, total, *totals
