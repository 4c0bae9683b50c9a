"""The Square attack (Andriushchenko et al., 2020): random search that needs no gradient."""

from dataclasses import replace

import torch
from torch import Tensor

from unfool.argument_checks import checked_attack
from unfool.attacks.candidates import choose, require_norm
from unfool.attacks.losses import query_model
from unfool.attacks.noise_free import split_by_noise
from unfool.noise import Noise
from unfool.protocols import Classifier
from unfool.ranges import Count, ShareAboveZero, checked_dataclass
from unfool.threat import Threat, per_image

# After each of these proposals, of 10 000, the squares have half the area.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@checked_dataclass
class Square:
    """Random changes of squares by the full budget; those that raise the mean margin are kept.

    The best image and each proposal are compared on the same draws, so that no lucky draw decides;
    at the end, the best image and the original are compared on fresh draws. Images that the model
    classifies without noise get a single draw, even if others get several (`noise_free`), and are
    not attacked further once they are misclassified (Andriushchenko et al., 2020).

    Attributes:
        queries: Number of proposals, including the start.
        eot: Draws of the defense's noise per proposal and image.
        share: The share of the pixels that the first squares cover, in (0, 1].
        steps_per_draw: Proposals that share their draws. With 1, every proposal has fresh draws,
            which costs an additional query of the best image per proposal. A model without
            noise needs no such query.
        selection_draws: Fresh draws on which the candidates are compared; None takes as many as
            `eot`.
    """

    queries: Count = 5000
    eot: Count = 1
    share: ShareAboveZero = 0.8
    steps_per_draw: Count = 1
    selection_draws: Count | None = None

    @checked_attack
    @torch.no_grad()
    def __call__(
        self, model: Classifier, x: Tensor, y: Tensor, threat: Threat, noise: Noise
    ) -> Tensor:
        """Adversarial images, shaped like `x`.

        Raises:
            ValueError: The threat's norm is l1 or l0.
        """
        require_norm("Square", threat, "linf", "l2")
        single = replace(self, eot=1, steps_per_draw=self.queries, selection_draws=1)
        return split_by_noise(model, x, y, threat, noise, self._attack, single._attack)

    def _attack(
        self,
        model: Classifier,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        noise: Noise,
        noise_free: bool,
    ) -> Tensor:
        propose = _stripes if threat.norm == "linf" else _tiles
        best = propose(x, threat, noise.child("start"))
        self._climb(model, x, y, best, noise_free, threat, noise)
        draws = self.selection_draws or self.eot
        return choose(model, y, [best, x], "margin", noise.child("compare"), draws)

    def _climb(
        self,
        model: Classifier,
        x: Tensor,
        y: Tensor,
        best: Tensor,
        noise_free: bool,
        threat: Threat,
        noise: Noise,
    ) -> None:
        """Improve `best` in place; with `noise_free`, skip images that are misclassified already."""
        remaining = torch.arange(len(x), device=x.device)

        def loss(images: Tensor, i: int) -> Tensor:
            query_index = i // self.steps_per_draw
            return query_model(
                model, images, y, "margin", noise, query_index, self.eot, gradient=False
            ).loss

        best_loss = loss(best, 0)
        for i in range(1, self.queries):
            if noise_free and bool((is_broken := best_loss > 0).any()):
                keep = (~is_broken).nonzero()[:, 0]
                remaining, noise, best_loss = remaining[keep], noise.take(keep), best_loss[keep]
                x, y = x[keep], y[keep]
            if not len(x):
                return
            step_noise, current = noise.child("square", i), best[remaining]
            if threat.norm == "linf":
                proposal = _square(x, current, self.side(x, i, 1), threat, step_noise)
            else:
                side = odd_side(self.side(x, i, 3), min(x.shape[2:]))
                proposal = _two_squares(x, current, side, threat, step_noise)
            if i % self.steps_per_draw == 0:  # new draws, on which the best image is evaluated, too
                best_loss = loss(current, i)
            proposal_loss = loss(proposal, i)
            is_better = proposal_loss > best_loss
            best[remaining] = torch.where(per_image(is_better), proposal, current)
            best_loss = torch.where(is_better, proposal_loss, best_loss)

    def side(self, x: Tensor, i: int, least: int) -> int:
        """Return the side of square `i` in pixels: at least `least`, if that fits into `x`."""
        progress = 10_000 * i / self.queries
        share = self.share / 2 ** sum(progress > after for after in HALVINGS)
        height, width = x.shape[2:]
        side = max(round((share * height * width) ** 0.5), least)
        return min(side, height, width)


def _stripes(x: Tensor, threat: Threat, noise: Noise) -> Tensor:
    return threat.project(x, x + threat.eps * _signs(x[:, :, :1], noise))


def _square(x: Tensor, best: Tensor, side: int, threat: Threat, noise: Noise) -> Tensor:
    inside = _inside(_corner(x, side, noise.child("corner")), side, x)
    moved = x + threat.eps * _signs(x[:, :, :1, :1], noise.child("signs"))
    return threat.project(x, torch.where(inside, moved, best))


def _tiles(x: Tensor, threat: Threat, noise: Noise) -> Tensor:
    height, width = x.shape[2:]
    side = max(min(height, width) // 5, 1)
    rows, columns = -(-height // side), -(-width // side)
    signs = _signs(x.new_empty(len(x), x.shape[1], rows, columns), noise)
    signs = signs.repeat_interleave(side, 2).repeat_interleave(side, 3)
    delta = signs * bumps(side).to(x).repeat(rows, columns)
    return _at_full_budget(x, delta[:, :, :height, :width], threat)


def _two_squares(x: Tensor, best: Tensor, side: int, threat: Threat, noise: Noise) -> Tensor:
    """Move the budget of two squares, and any that is unused, into one; clear the other."""
    delta = best - x
    corner = _corner(x, side, noise.child("corner"))
    in_first, in_second = (
        _inside(corner, side, x),
        _inside(_corner(x, side, noise.child("other")), side, x),
    )
    both = _channel(torch.where(in_first | in_second, delta, 0)).square()
    unused = (threat.eps**2 - threat.size(delta).square()).clamp(min=0) / x.shape[1]
    first_delta = torch.where(in_first, delta, 0)
    first_delta = first_delta / per_image(threat.size(first_delta)).clamp(min=1e-12)
    is_transposed = noise.child("turn").uniform(x[:, :1, :1, :1]) < 0.5
    pattern = bumps(side).to(x)
    bump = torch.where(is_transposed, _placed(pattern.T, corner, x), _placed(pattern, corner, x))
    new_delta = first_delta + bump * _signs(x[:, :, :1, :1], noise.child("signs"))
    new_delta = new_delta / _channel(new_delta).clamp(min=1e-12) * (per_image(unused) + both).sqrt()
    return _at_full_budget(
        x, torch.where(in_first, new_delta, torch.where(in_second, 0, delta)), threat
    )


def odd_side(side: int, limit: int) -> int:
    """The next odd number, as in the release, or the one before where that exceeds the limit."""
    return side if side % 2 else side + 1 if side < limit else side - 1


def bumps(side: int) -> Tensor:
    """A bump above a negative bump (side, side), of unit norm (Andriushchenko et al., 2020).

    For an odd side, the negative bump is larger; both have the same norm, as in the release.
    """
    upper = side // 2
    halves = [_bump(upper, side)] if upper else []
    pattern = torch.cat([*halves, -_bump(side - upper, side)])
    return pattern / pattern.norm()


def _bump(height: int, width: int) -> Tensor:
    radius = max(height // 2, width // 2) + 1
    steps = 1 / torch.arange(1, radius + 1, dtype=torch.float64).square()
    heights = steps.flip(0).cumsum(0).flip(0)  # at each distance from the center
    row = (torch.arange(height) - height // 2).abs()
    column = (torch.arange(width) - width // 2).abs()
    bump = heights[torch.maximum(row[:, None], column)]
    return bump / bump.norm()


def _corner(x: Tensor, side: int, noise: Noise) -> Tensor:
    """Draw the upper left corner (B, 2) of a square."""
    positions = torch.tensor(x.shape[2:], device=x.device) - side + 1
    return (noise.uniform(x[:, 0, 0, :1].expand(-1, 2)) * positions).long().minimum(positions - 1)


def _inside(corner: Tensor, side: int, x: Tensor) -> Tensor:
    row, column = _offsets(corner, x)
    rows, columns = (row >= 0) & (row < side), (column >= 0) & (column < side)
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def _placed(pattern: Tensor, corner: Tensor, x: Tensor) -> Tensor:
    """Place the pattern at each image's corner; 0 elsewhere, (B, 1, H, W)."""
    side = len(pattern)
    row, column = (offset.clamp(0, side - 1) for offset in _offsets(corner, x))
    spread = pattern[row[:, :, None], column[:, None, :]][:, None]
    return torch.where(_inside(corner, side, x), spread, 0)


def _offsets(corner: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    row = torch.arange(x.shape[2], device=x.device) - corner[:, :1]
    column = torch.arange(x.shape[3], device=x.device) - corner[:, 1:]
    return row, column


def _signs(like: Tensor, noise: Noise) -> Tensor:
    return 2 * noise.uniform(like).round() - 1


def _channel(delta: Tensor) -> Tensor:
    """The l2 norm of every channel, (B, C, 1, 1)."""
    return delta.flatten(2).norm(dim=2)[:, :, None, None]


def _at_full_budget(x: Tensor, delta: Tensor, threat: Threat) -> Tensor:
    return threat.project(x, x + threat.eps * threat.steepest(delta))
