"""The inputs of an analysis, built from a spec: its model, a few images, and the noise."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unfool import spec as specs
from unfool.attacks.views import Batched
from unfool.batching import estimate_batch_size
from unfool.compatibility import check_fit
from unfool.data import fetch
from unfool.data.subset import choose_indices, labels_of
from unfool.diffusion.denoiser import Denoiser
from unfool.errors import SpecError
from unfool.evaluation import run as evaluation
from unfool.evaluation.prepare import build_model
from unfool.evaluation.spec import refuse_ray
from unfool.noise import Noise
from unfool.results.run_folder import Run
from unfool.results.spec import EvaluationSpec, ModelSpec
from unfool.runtime.device import pick_device
from unfool.threat import Threat


class AnalysisInputs(NamedTuple):
    """The inputs of an analysis.

    Attributes:
        spec: The checked evaluation spec.
        model: The spec's classifier, behind its purifier if it has one.
        x: Images (B, C, H, W).
        y: Labels (B,).
        indices: The images' positions in the data set.
        noise: Noise with one key per image.
        threat: What an attacker may change.
    """

    spec: EvaluationSpec
    model: Batched
    x: Tensor
    y: Tensor
    indices: list[int]
    noise: Noise
    threat: Threat

    @property
    def facts(self) -> dict[str, Any]:
        """The part that a report records: the spec and the indices."""
        return {"spec": self.spec, "indices": self.indices}


def load_inputs(
    spec: str,
    changes: Sequence[str],
    folder: str | None,
    images: int | None,
    device: str = "auto",
    *,
    position: int = 0,
) -> AnalysisInputs:
    """Load the defense of an evaluation spec, with some of the images that it evaluates.

    The spec's attacks are ignored, because no analysis runs them.

    Args:
        spec: A spec's name or path, or a run folder with its spec.
        changes: Changes to its values.
        folder: The folder with the data sets.
        images: How many of the spec's first images to take, 2 or more; None takes one image.
        device: The device to compute on.
        position: Its position among the spec's images, from 0.

    Raises:
        SpecError: The spec is wrong, its engine is Ray, or it has too few images.
    """
    if images is not None and images < 2:
        raise SpecError(f"--images must be 2 or more, not {images}")
    table = specs.load(Run.open(Path(spec)).spec if is_run(spec) else spec, changes)
    table.pop("sweep", None)
    table["attacks"] = []
    checked_spec = evaluation.check(table, folder)
    refuse_ray(checked_spec["machine"], "an analysis")
    options, device = checked_spec["evaluation"], pick_device(device)
    data = specs.build("data", checked_spec["data"])
    model = build_model(checked_spec, device)
    indices = choose_indices(
        len(data), options["images"], options["subset_seed"], labels=labels_of(data)
    )
    if images is None and position >= len(indices):
        count = len(indices)
        raise SpecError(
            f"--image must be from 0 to {count - 1}, for the spec evaluates {count} images; not "
            f"{position}"
        )
    if images is not None and len(indices) < images:
        raise SpecError(
            f"--images must be at most {len(indices)}, the number of images that the spec "
            f"evaluates; not {images}"
        )
    indices = [indices[position]] if images is None else indices[:images]
    check_fit(model, data, indices, device)
    x, y = (part.to(device) for part in fetch(data, indices))
    noise = Noise.of(options["seed"], indices).child("analysis")
    batch_size = checked_spec["machine"]["batch_size"]
    batch_size = estimate_batch_size(model, x) if batch_size == "auto" else batch_size
    threat = Threat(**checked_spec["threat"])
    return AnalysisInputs(checked_spec, Batched(model, batch_size), x, y, indices, noise, threat)


def is_run(source: str) -> bool:
    """Whether `source` is a run folder rather than a spec."""
    return (Path(source) / "run.json").is_file()


def load_generative_denoiser(spec: ModelSpec, device: torch.device) -> Denoiser:
    """Build the denoiser of a checked spec, which must be able to start from pure noise.

    Raises:
        SpecError: There is no denoiser, or it was trained only for times below 1.
    """
    if "denoiser" not in spec:
        raise SpecError("the spec has no denoiser to generate images with: name a spec with one")
    part = spec["denoiser"]
    denoiser: Denoiser = specs.build("denoiser", part)
    if denoiser.t_max < 1:
        raise SpecError(
            f"{part.get('weights', part['name'])} was trained up to t = {denoiser.t_max:g} and "
            "cannot start from pure noise: name a denoiser that was trained up to t = 1"
        )
    return denoiser.eval().requires_grad_(False).to(device)
