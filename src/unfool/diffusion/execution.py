"""Execution modes of a denoiser's network: the same numbers up to rounding, at different speeds.

A short trial finds the fastest mode, which is remembered for the machine and the shape of the
network. Second derivatives always use the plain mode (`gradient.twice_differentiable`).
"""

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from unfool.diffusion.denoiser import NetworkDenoiser
from unfool.diffusion.gradient import may_be_replayed
from unfool.errors import SpecError
from unfool.runtime.files import write_bytes

ExecutionMode = Literal["plain", "channels_last", "compiled", "cuda_graphs"]
Execution = Literal["auto", ExecutionMode]
TRIAL_MODES: tuple[ExecutionMode, ...] = ("plain", "channels_last", "compiled")
RELATIVE_TOLERANCE = 1e-3  # a mode with a larger relative error than this is not used
MAX_BATCH = 32  # the most images in a trial
MODES_VERSION = 2  # version of the modes: increase it when one changes, so that trials run again


class Trial(NamedTuple):
    """Measurements of one execution mode.

    Attributes:
        forward: Seconds of a forward pass, in each repetition.
        gradient: Seconds of a forward pass with its vector-Jacobian product, in each repetition.
        error: The relative difference of outputs or gradients from the plain mode, the larger one.
        prepare: Seconds to set up the mode and run the first calls.
    """

    forward: list[float]
    gradient: list[float]
    error: float
    prepare: float


def execute(model: object, mode: Execution, rows: int) -> None:
    """Set the execution mode of all denoisers in a model.

    Args:
        model: Any object; without a `NetworkDenoiser` among its modules, it stays unchanged.
        mode: The mode; `"auto"` is the fastest on this machine, by trial or from memory.
        rows: The number of images in one call.

    Raises:
        SpecError: CUDA graphs are requested without a GPU, or the mode gives different numbers
            here.
    """
    if mode == "plain" or not isinstance(model, nn.Module):
        return
    for part in [module for module in model.modules() if isinstance(module, NetworkDenoiser)]:
        chosen = choose(part, min(rows, MAX_BATCH)) if mode == "auto" else mode
        if (
            mode != "auto"
            and (error := relative_error_of(part, mode, min(rows, MAX_BATCH))) > RELATIVE_TOLERANCE
        ):
            raise SpecError(
                f"machine.execution: {mode} gives different numbers than plain on this machine (a "
                f"relative error of {error:.1g}): use auto or plain"
            )
        run_as(part, chosen)


def relative_error_of(denoiser: NetworkDenoiser, mode: ExecutionMode, rows: int) -> float:
    """The relative error of a mode's values and gradients; 0 if the denoiser has no fixed shape."""
    if denoiser.shape is None:
        return 0.0
    copy, x = deepcopy(denoiser), _input(denoiser, rows)
    run_as(copy, mode)
    return _relative_error(_outputs_of(copy, x), _outputs_of(denoiser, x))


def run_as(denoiser: NetworkDenoiser, mode: ExecutionMode) -> None:
    """Set the execution mode of a denoiser's network.

    Raises:
        SpecError: CUDA graphs are requested without a GPU.
    """
    network = denoiser.network
    if mode == "cuda_graphs" and not any(p.is_cuda for p in network.parameters()):
        raise SpecError("machine.execution: cuda_graphs needs a GPU: use auto or plain")
    if mode == "channels_last":
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    elif mode == "cuda_graphs":  # compiled networks choose their own memory layout
        compile_network(network, mode="reduce-overhead")
    elif mode == "compiled" and any(p.is_cuda for p in network.parameters()):
        compile_network(network)
    elif mode == "compiled":
        network.forward = _Compiled(network)  # pyright: ignore[reportAttributeAccessIssue]


class _Compiled:
    """The forward method of a frozen network on a CPU, compiled for calls without gradients.

    In compiled code, the weights are constants that are laid out for matrix products in advance.
    With gradients, compiled code is slower than the original, so the original runs. It also runs
    where steps may be replayed later, so that the replay gives the same values. A copy is not
    compiled.
    """

    def __init__(self, network: nn.Module):
        self.plain = network.forward
        options: dict[str, Any] = {"freezing": True, "max_autotune": True}
        self.compiled = torch.compile(network.forward, options=options)

    def __call__(self, *args: Any, **options: Any) -> Any:
        plain = torch.is_grad_enabled() or may_be_replayed.get()
        run = self.plain if plain else self.compiled
        return run(*args, **options)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return deepcopy(self.plain, memo)


def compile_network(network: nn.Module, **options: Any) -> None:
    """Compile a network in place, after `replace_upsampling`; its weights keep their names.

    Args:
        network: The network.
        options: Options of `torch.compile`.
    """
    replace_upsampling(network)
    network.compile(**options)


def replace_upsampling(network: nn.Module) -> None:
    """Replace upsampling by a factor of 2 with a view that repeats pixels, with the same values.

    This covers `nn.Upsample`, as in our U-Net, and diffusers' `Upsample2D`.

    It avoids a fault of torch 2.13: the gradient of `interpolate` is summed in place by index, and
    the compiler lets later kernels read the zeros that the sum starts from.
    """
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Upsample) and (module.scale_factor, module.mode) == (2, "nearest"):
            network.set_submodule(name, _RepeatPixels())
        elif type(module).__name__ == "Upsample2D" and getattr(module, "interpolate", False):
            module.interpolate = False  # pyright: ignore[reportArgumentType]
            module.register_forward_pre_hook(_upsample_before)


class _RepeatPixels(nn.Module):
    """A layer that repeats pixels, from (B, C, H, W) to (B, C, 2H, 2W)."""

    def forward(self, x: Tensor) -> Tensor:
        rows, channels, height, width = x.shape
        twice = x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2)
        return twice.reshape(rows, channels, 2 * height, 2 * width)


def _upsample_before(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    x, *rest = inputs
    if rest and rest[0] is not None:  # a given output size may differ from double
        return nn.functional.interpolate(x, size=rest[0], mode="nearest"), *rest
    return _RepeatPixels()(x), *rest


def choose(denoiser: NetworkDenoiser, rows: int, memory: Path | None = None) -> ExecutionMode:
    """Choose the mode with the fastest forward and backward pass, by `trials` or from memory.

    Args:
        denoiser: The denoiser, frozen.
        rows: The number of images in one call.
        memory: The file of earlier choices; None is the one in the user's cache folder.
    """
    if denoiser.shape is None:
        return "plain"
    memory, key = memory or _memory(), _fingerprint(denoiser, rows)
    remembered: dict[str, ExecutionMode] = {}
    with suppress(OSError, ValueError, TypeError):
        remembered = dict(json.loads(memory.read_text("utf-8")))
    if remembered.get(key) in TRIAL_MODES:
        return remembered[key]
    print(
        (
            "unfool: finding the fastest way to run the denoiser on this machine; this takes minutes, "
            "once"
        ),
        file=sys.stderr,
    )
    usable: dict[ExecutionMode, Trial]
    usable = {
        mode: trial
        for mode, trial in trials(denoiser, rows).items()
        if trial.error <= RELATIVE_TOLERANCE
    }
    best = min(usable, key=lambda mode: min(usable[mode].forward) + min(usable[mode].gradient))
    with suppress(OSError):  # if the file cannot be written, the next run tries again
        write_bytes(memory, (json.dumps(remembered | {key: best}, indent=1) + "\n").encode())
    return best


def trials(
    denoiser: NetworkDenoiser, rows: int, repetitions: int = 5
) -> dict[ExecutionMode, Trial]:
    """Time the modes of `TRIAL_MODES` on copies of a denoiser, without those that fail here.

    Args:
        denoiser: The denoiser, frozen.
        rows: The number of images.
        repetitions: The number of timings of each mode; in each repetition, all modes run in order.
    """
    x = _input(denoiser, rows)
    copies: dict[ExecutionMode, tuple[NetworkDenoiser, float, list[Tensor]]] = {}
    for mode in TRIAL_MODES:
        copy, began = deepcopy(denoiser), time.perf_counter()
        try:
            run_as(copy, mode)
            outputs = _outputs_of(copy, x)
        except Exception:  # no compiler, or a network that it cannot compile
            if mode == "plain":
                raise
            continue
        copies[mode] = copy, time.perf_counter() - began, outputs
    plain = copies["plain"][2]
    errors = {mode: _relative_error(outputs, plain) for mode, (_, _, outputs) in copies.items()}
    results: dict[ExecutionMode, Trial]
    results = {
        mode: Trial([], [], errors[mode], prepare_seconds)
        for mode, (_, prepare_seconds, _) in copies.items()
    }
    for _ in range(repetitions):
        for mode, (copy, _, _) in copies.items():
            results[mode].forward.append(_seconds(_forward, copy, x))
            results[mode].gradient.append(_seconds(_gradient, copy, x))
    return results


def _input(denoiser: NetworkDenoiser, rows: int) -> Tensor:
    assert denoiser.shape is not None
    size = rows * torch.Size(denoiser.shape).numel()
    x = torch.linspace(-1, 1, size).sin().view(rows, *denoiser.shape)
    return x.to(next(denoiser.parameters()))


def _outputs_of(denoiser: NetworkDenoiser, x: Tensor) -> list[Tensor]:
    return [_forward(denoiser, x), _gradient(denoiser, x)]


def _relative_error(outputs: list[Tensor], plain: list[Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(outputs, plain, strict=True))


def _forward(denoiser: NetworkDenoiser, x: Tensor) -> Tensor:
    with torch.no_grad():
        return denoiser(x, torch.tensor(0.1, dtype=torch.float64))


def _gradient(denoiser: NetworkDenoiser, x: Tensor) -> Tensor:
    at = x.clone().requires_grad_()
    with torch.enable_grad():
        out = denoiser(at, torch.tensor(0.1, dtype=torch.float64))
        return torch.autograd.grad(out.square().sum(), at)[0]


def _seconds(
    run: Callable[[NetworkDenoiser, Tensor], Tensor], denoiser: NetworkDenoiser, x: Tensor
) -> float:
    """Seconds of process time on a CPU, as it may be shared; of wall-clock time on a GPU."""
    clock = time.perf_counter if x.is_cuda else time.process_time
    start = clock()
    float(run(denoiser, x).flatten()[0])  # wait for the device
    return clock() - start


def _memory() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "unfool" / "execution.json"


def _fingerprint(denoiser: NetworkDenoiser, rows: int) -> str:
    """A hash of the machine, the torch version, and the shapes of the network and the images."""
    weight = next(denoiser.parameters())
    if weight.is_cuda:
        hardware = torch.cuda.get_device_name(weight.device)
    else:
        hardware = (
            f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {os.cpu_count()}"
        )
    facts = [
        f"ways {MODES_VERSION}",
        hardware,
        torch.__version__,
        f"{torch.get_num_threads()} {rows} {denoiser.shape}",
    ]
    facts += [f"{name} {tuple(p.shape)} {p.dtype}" for name, p in denoiser.named_parameters()]
    return hashlib.blake2b("\n".join(facts).encode(), digest_size=16).hexdigest()
