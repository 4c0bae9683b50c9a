"""Reading the noise schedule and the kind of prediction from a diffusers scheduler's settings."""

import json
from pathlib import Path
from typing import Literal

from unfool.diffusion.schedule import Discrete

Predicts = Literal["noise", "velocity", "image"]

TERMS: dict[str, Predicts] = {"epsilon": "noise", "v_prediction": "velocity", "sample": "image"}
KINDS: dict[str, Literal["linear", "scaled_linear", "cosine"]] = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "cosine",
}


def read_schedule(path: Path) -> tuple[Discrete, Predicts]:
    """Return the noise schedule in a scheduler's settings, and what the network predicts.

    Raises:
        ValueError: The kind of schedule or prediction is not supported.
    """
    settings = json.loads(path.read_text("utf-8"))
    kind = settings.get("beta_schedule", "linear")
    if kind not in KINDS:
        raise ValueError(
            f"{path}: the beta_schedule must be one of {', '.join(KINDS)}, not {kind!r}"
        )
    for name in ("trained_betas", "rescale_betas_zero_snr"):
        if settings.get(name):
            raise ValueError(
                f"{path}: a schedule with {name} is not supported: use a model without it"
            )
    prediction = settings.get("prediction_type", "epsilon")
    if prediction not in TERMS:
        raise ValueError(
            f"{path}: the prediction_type must be one of {', '.join(TERMS)}, not {prediction!r}"
        )
    steps = settings.get("num_train_timesteps", 1000)
    low, high = settings.get("beta_start", 1e-4), settings.get("beta_end", 0.02)
    return Discrete(steps, KINDS[kind], low * steps, high * steps), TERMS[prediction]
