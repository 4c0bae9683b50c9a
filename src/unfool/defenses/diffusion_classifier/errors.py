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
from unfool.diffusion.gradient import GraphMemory, same_precision, vector_jacobian
from unfool.diffusion.schedule import Scales
from unfool.noise import Noise

# takes rows (draw, image, label), their entries in the table, and their weights
UseRows = Callable[[Tensor, tuple[Tensor, ...], Tensor], object]
Loss = Literal["l2", "l1", "huber"]
# input and output of a graph, its entries in the table, and the object that counts its memory
_KeptGraph = tuple[Tensor, Tensor, tuple[Tensor, ...], object]

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
    _kept_graphs: list[_KeptGraph] = field(default_factory=list)

    def at(self, z: Tensor, entries: Tensor) -> Tensor:
        """The errors (n,) at (draw, image, label) `entries` (n, 3), sorted by draw and image."""
        pairs, row = torch.unique_consecutive(entries[:, :2], dim=0, return_inverse=True)
        draw, image = pairs.unbind(1)
        t, alpha, sigma, _ = (s.to(z.device)[draw, None, None, None] for s in self.scales)
        ratio, alpha, sigma = ((alpha / sigma).to(z), alpha.to(z), sigma.to(z))
        draws, counts = draw.unique_consecutive(return_counts=True)
        parts = zip(draws.tolist(), image.split(counts.tolist()), strict=True)
        eps = Noise.join([self._stream(k).take(of) for k, of in parts]).normal(z[image])
        x_t, target = self.noised_pairs(z, image, alpha, sigma, eps)  # once for all classes
        if self.denoiser.multi_head:
            every = torch.arange(self.denoiser.classes, device=z.device).expand(len(pairs), -1)
            x_hat = self.denoiser(x_t, t.to(z), every)[row, entries[:, 2]].to(z)
        else:
            x_hat = self.denoiser(x_t[row], t[row].to(z), entries[:, 2]).to(z)
        # eps_hat - eps, whatever the network predicts: x_t is the same on both sides
        gap = ratio[row] * (target[row] - x_hat)
        return LOSSES[self.loss](gap).flatten(1).mean(1)

    def noised_pairs(
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
        needs_gradient = torch.is_grad_enabled() and (z.requires_grad or bool(self.trained()))
        # the wordings of one error may be in two chunks, so no graphs are kept for them
        keeps_graphs, memory = needs_gradient and not self.denoiser.wordings, self.graph_memory(z)
        max_graphs = (
            memory.graphs_to_keep(self.limit.batch_size or len(z), z.device) if keeps_graphs else 0
        )

        def add(rows: Tensor, index: tuple[Tensor, ...], weight: Tensor) -> None:
            keeps_graph, input_z = len(self._kept_graphs) < max_graphs, z.detach()
            with torch.set_grad_enabled(keeps_graph):
                value = self.at(input_z.requires_grad_(keeps_graph), rows)
            if keeps_graph:
                self._kept_graphs.append(
                    (input_z, value, index, memory.counted_bytes(self.row_count(rows)))
                )
            table.index_put_(index, (value.detach() * weight).to(table), accumulate=True)

        self.in_chunks(wanted, add)

    def trained(self) -> list[Tensor]:
        """The denoiser's weights that are in training."""
        return [p for p in self.denoiser.parameters() if p.requires_grad]

    def graph_memory(self, z: Tensor) -> GraphMemory:
        """The memory of a row's graph."""
        autocast = torch.is_autocast_enabled(z.device.type)
        return GraphMemory(self.denoiser, (type(self), self.loss, z.shape[1:], z.dtype, autocast))

    def mean(self, table: Tensor, computed: Tensor, z: Tensor, weight: Tensor) -> Tensor:
        """The weighted mean (B, K) of the errors in a filled `table`, where `computed` is true.

        Its gradient reaches `z`, and the denoiser's weights if they are in training.
        """
        share = computed * weight
        share = share / share.sum(2, keepdim=True)
        value = (table.double() * share).sum(2).to(z)
        trained = self.trained()
        if not torch.is_grad_enabled() or not (z.requires_grad or trained):
            return value
        return _Mean.apply(self, value, share, z, *trained)  # pyright: ignore[reportReturnType]

    def row_count(self, entries: Tensor) -> int:
        """The number of network rows for `entries` (n, 3), sorted by draw and image."""
        if not self.denoiser.multi_head:
            return len(entries)
        return len(entries[:, :2].unique_consecutive(dim=0))

    def in_chunks(self, wanted: Tensor, use: UseRows) -> None:
        """Call `use` for the mask `wanted` (B, K, M), at most `limit` network rows at a time."""
        # draws first, classes last, so that the classes of one x_t are in one call
        entries = wanted.permute(2, 0, 1).nonzero()
        classes = wanted.shape[1]
        wording_count = torch.tensor(self.denoiser.wordings or (1,) * classes, device=wanted.device)
        wording_count = wording_count[entries[:, 2]]
        entry_of_row = torch.arange(len(entries), device=wanted.device).repeat_interleave(
            wording_count
        )
        wording = (
            torch.arange(len(entry_of_row), device=wanted.device)
            - (wording_count.cumsum(0) - wording_count)[entry_of_row]
        )

        ends = list(range(len(entry_of_row) + 1))  # where each row of the network begins and ends
        if self.denoiser.multi_head:  # a row gives the errors of all classes
            _, counts = entries[:, :2].unique_consecutive(dim=0, return_counts=True)
            ends = [0, *counts.cumsum(0).tolist()]

        def run_part(rows: slice) -> None:
            entry_indices = entry_of_row[ends[rows.start] : ends[rows.stop]]
            draw, image, label = entries[entry_indices].unbind(1)
            wording_label = label + (classes + 1) * wording[ends[rows.start] : ends[rows.stop]]
            network_rows = torch.stack((draw, image, wording_label), 1)
            use(network_rows, (image, label, draw), 1 / wording_count[entry_indices].double())

        in_parts(run_part, len(ends) - 1, self.limit, "noised images")

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

        def add_gradient(input_z: Tensor, value: Tensor, vector: Tensor) -> None:
            parts = vector_jacobian(value, (input_z, *trained), vector)
            for total_gradient, part_gradient in zip((total, *totals), parts, strict=True):
                if part_gradient is not None:
                    total_gradient.add_(part_gradient)

        def add(rows: Tensor, index: tuple[Tensor, ...], weight: Tensor) -> None:
            measuring = memory.measure(errors.row_count(rows)) if use_kept_graphs else nullcontext()
            with torch.enable_grad(), ctx.precision(), measuring:
                input_z = z.detach().requires_grad_()
                value = errors.at(input_z, rows)
            add_gradient(input_z, value, (wanted[index] * weight).to(value))

        remaining, memory = wanted != 0, errors.graph_memory(z)
        # a product costs 2 forward calls: replay costs 3 per needed entry, kept graphs 2 per entry
        use_kept_graphs = 3 * int(remaining.sum()) >= 2 * int((share != 0).sum())
        if not use_kept_graphs:
            memory.forget()
        while errors._kept_graphs:  # a second backward pass replays
            input_z, value, index, _ = errors._kept_graphs.pop(0)
            if use_kept_graphs:
                add_gradient(input_z, value, wanted[index].to(value))
                remaining[index] = False
        errors.in_chunks(remaining, add)
        return None, None, None, total, *totals
