"""The settings of the page, and how a link encodes them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args
from urllib.parse import urlencode

from unfool.serve.limits import Limits, Refused

Gradient = Literal["exact", "classifier-only"]
EOT = 16  # largest number of draws for a gradient


@dataclass(frozen=True)
class Settings:
    """The settings of the page.

    Attributes:
        sample: The index of the sample; -1 for an uploaded image, which a link cannot contain.
        votes: Passes that vote.
        seed: Seed of all noise; None for fresh noise.
        eps: The attack's budget, in the page's unit (`Choices.unit`).
        steps: Steps of the attack.
        eot: Draws of the noise for each gradient.
        gradient: `"exact"`, or `"classifier-only"` if the attacker does not know about the defense.
        purifiers: The keys of the purifiers to compare.
    """

    sample: int = 0
    votes: int = 16
    seed: int | None = 0
    eps: float = 0.0
    steps: int = 10
    eot: int = 1
    gradient: Gradient = "exact"
    purifiers: tuple[str, ...] = ()

    def check(self, limits: Limits) -> None:
        """Check all settings, because a client may send any values.

        Raises:
            Refused: A setting is out of range, or the service accepts no seed.
        """
        _within("votes", self.votes, limits.votes)
        _within("steps", self.steps, limits.steps)
        _within("draws per step", self.eot, EOT)
        if not math.isfinite(self.eps):
            raise Refused(400, "eps must be a finite number")
        if self.seed is not None and not limits.seeds:
            raise Refused(
                403,
                (
                    "this service does not accept a seed, so every answer uses fresh noise: leave the "
                    "seed empty"
                ),
            )
        if self.gradient not in get_args(Gradient):
            raise Refused(400, f"the gradient must be one of {', '.join(get_args(Gradient))}")

    def to_query(self) -> str:
        """Return the query of a link, such as `?sample=3&votes=16`."""
        values = {k: ",".join(v) if k == "purifiers" else v for k, v in asdict(self).items()}
        values |= {"seed": "fresh" if self.seed is None else self.seed, "eps": f"{self.eps:g}"}
        return f"?{urlencode(values, safe=',')}"

    def from_query(self, query: Mapping[str, str], limits: Limits) -> "Settings":
        """Return these settings, changed by the query of a link; invalid values are ignored."""
        settings = self
        for key in set(query) & set(asdict(self)):
            try:
                changed = replace(settings, **{key: _parsed(key, query[key])})
                changed.check(limits)
            except (ValueError, Refused):
                continue
            settings = changed
        return settings


def to_seed(value: float | str | None) -> int | None:
    """Return the seed in a field of the page; None if the field is empty.

    Raises:
        Refused: The value is not an integer below 2^53 in size.
    """
    if value is None or value == "":
        return None
    try:
        seed = float(value)
    except ValueError:
        seed = float("nan")
    if not seed.is_integer() or abs(seed) >= 2**53:
        raise Refused(400, "the seed must be a whole number below 2^53, or empty for fresh noise")
    return int(seed)


def known(keys: Iterable[str], choices: Iterable[str]) -> tuple[str, ...]:
    """Return those of the keys that can be chosen, without duplicates."""
    available = set(choices)
    return tuple(dict.fromkeys(key for key in keys if key in available))


def _parsed(key: str, text: str) -> Any:
    if key == "purifiers":
        return tuple(filter(None, text.split(",")))
    if key == "gradient":
        return text
    if key == "seed":
        return None if text == "fresh" else to_seed(text)
    return float(text) if key == "eps" else int(text)


def _within(name: str, value: int, limit: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
        raise Refused(400, f"{name} must be a whole number from 1 to {limit}")
