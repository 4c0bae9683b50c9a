"""Training: one loop for every objective, resumed exactly where it stopped.

The images, augmentation and noise of a step are a function of the seed and the step. A checkpoint holds
the step, the weights, their running average and the optimizer, and is written atomically. So a training
run that is killed and run again ends with the same weights as one that was not (bit for bit on the CPU).

A batch may be split over processes and into parts that run one after another. Each image keeps its place
in the batch, and with it its augmentation, time and noise, and the gradient is the mean over the whole
batch. This is the same sum in another order, so the weights agree with those of one process up to
rounding. Dropout and the statistics of batch normalization are separate for each part.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unfool.data import fetch
from unfool.diffusion.execution import compile_network
from unfool.noise import Noise, permutation, seed_torch
from unfool.protocols import Dataset
from unfool.runtime.progress import progress
from unfool.training import checkpoint
from unfool.training.augmentation import augmented
from unfool.training.distributed import Processes
from unfool.training.lr_schedule import Plan
from unfool.training.muon import Muon, is_kernel
from unfool.training.options import TrainingOptions

Batch = tuple[Tensor, Tensor, Noise]


def train(
    model: nn.Module,
    objective: Any,
    data: Dataset,
    folder: Path,
    options: TrainingOptions,
    *,
    on_save: Callable[[int, nn.Module], object] | None = None,
    save_every: int = 500,
    device: str = "cpu",
    channels_last: bool = False,
    compile: bool = False,
    identity: Mapping[str, str] | None = None,
    quiet: bool = False,
    processes: Processes = Processes(),  # noqa: B008
) -> nn.Module:
    """Train `model` in place: all of its weights that require a gradient.

    Args:
        model: A `Denoiser` or a classifier.
        objective: The loss (see `protocols.Objective`).
        data: Images with labels.
        folder: Where the checkpoint (`latest.pt`) and the log (`log.jsonl`) go.
        options: How to train it.
        on_save: Called with the step and the averaged model after each of `options.save_steps`,
            before the checkpoint is written: after a kill it may be called again, with the same
            bits.
        save_every: Steps between checkpoints.
        device: Device to train on.
        channels_last: Store images with the channels last, which is faster on some devices.
        compile: Compile the network by torch.compile.
        identity: The identity of the training run (`checkpoint.run_identity`); a checkpoint with
            another one is refused.
        quiet: Show no progress.
        processes: The processes that share each batch (`distributed.together`); the first one
            writes.

    Returns:
        The running average of the weights, as a copy of the model in evaluation mode.

    Raises:
        RuntimeError: The checkpoint belongs to another training, the loss is NaN or infinite, or
            the processes do not share the folder.
        ValueError: The batch cannot be split evenly.
    """
    steps, accumulate = options.steps, options.accumulate
    plan = Plan.of(options)
    parts_of_batch = processes.count * accumulate
    for size in plan.batch_sizes():
        if size % parts_of_batch:
            raise ValueError(
                f"a batch of {size} cannot be split into {parts_of_batch} parts of one size "
                f"({processes.count} processes, accumulate {accumulate})"
            )
    model = model.to(device).train()
    if channels_last:
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    shared = {id(p): p for p in frozen.values()}  # deepcopy's memo: frozen weights are not copied
    mean = deepcopy(model, shared).eval().requires_grad_(False)
    if compile:
        compile_network(getattr(model, "network", model))
    optimizer = build_optimizer(model, options)
    parts: dict[str, Any] = {"now": model, "mean": mean, "optimizer": optimizer}
    identity = dict(identity or {})
    saved = checkpoint.read(folder, identity, device)
    if saved:
        plan.check_same(saved["plan"], saved["step"])
    step = checkpoint.restore(saved, parts, frozen) if saved else 0
    if step != processes.broadcast(step):
        raise RuntimeError(
            f"{folder} is not the same folder for all processes: use one on a file system that "
            "they share"
        )
    trained = [p for p in model.parameters() if p.requires_grad]
    lines = checkpoint.logged(folder, step)
    recent: deque[float] = deque(saved["recent"] if saved else (), maxlen=100)
    kind, half = torch.device(device).type, options.precision == "bfloat16"

    def batch_at(step: int) -> Batch:
        count = plan.size(step) // processes.count
        start = plan.images_before(step) + processes.rank * count
        positions = range(start, start + count)
        return load_batch(data, options.seed, positions, options.flip, options.crop, device)

    with progress(f"training {folder.name}", steps, step, quiet) as show:
        began, first = time.monotonic(), step
        for x, y, noise in batches_ahead(batch_at, range(step, steps), kind != "cpu"):
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate * group.get("faster", 1) * plan.rate(step)
            optimizer.zero_grad()
            share, total = len(x), torch.zeros((), device=device)
            for part in range(accumulate):
                rows = range(share)[part * share // accumulate :][: share // accumulate]
                part_number = [processes.rank * accumulate + part] if parts_of_batch > 1 else []
                seed_torch(options.seed, "step", step, *part_number)  # dropout
                span = slice(rows.start, rows.stop)
                with torch.autocast(kind, dtype=torch.bfloat16, enabled=half):
                    loss = objective(model, x[span], y[span], noise.take(rows)).mean() / accumulate
                loss.backward()
                total += loss.detach()
            mean_loss = processes.average(trained, total)
            norm = nn.utils.clip_grad_norm_(trained, options.grad_clip)
            # A single transfer, which waits for the device once.
            value, size = torch.stack([mean_loss, norm.to(mean_loss)]).tolist()
            if not (math.isfinite(value) and math.isfinite(size)):
                name = "gradient" if math.isfinite(value) else "loss"
                raise RuntimeError(
                    f"the {name} is {size if name == 'gradient' else value} at step {step}; the "
                    f"last good checkpoint is {checkpoint.last(folder)}; lower the learning rate, "
                    "and start again in another folder"
                )
            optimizer.step()
            step += 1
            blend(mean, model, average_decay(step, options))
            recent.append(value)
            loss_now = sum(recent) / len(recent)
            show(step, f"loss {loss_now:.4f}")
            if not processes.first:
                continue
            if on_save is not None and step in options.save_steps:
                on_save(step, mean)
            if step % save_every == 0 or step == steps:
                done = plan.images_before(step) - plan.images_before(first)
                pace = done / (time.monotonic() - began)
                lines.append({"step": step, "loss": loss_now, "images_per_second": pace})
                more = {"asked": identity, "precision": options.precision, "plan": plan.state()}
                more["recent"] = list(recent)
                checkpoint.write(folder, lines, parts, frozen, step=step, **more)
    return mean


@torch.no_grad()
def blend(average: nn.Module, now: nn.Module, decay: float) -> None:
    """Update a running average of weights with those of `now`; buffers are copied."""
    for slow, fast in zip(average.parameters(), now.parameters(), strict=True):
        if slow is not fast:
            slow.lerp_(fast, 1 - decay)
    for slow, fast in zip(average.buffers(), now.buffers(), strict=True):
        slow.copy_(fast)


def build_optimizer(model: nn.Module, options: TrainingOptions) -> torch.optim.Optimizer:
    """Build the optimizer; the key `faster` of a group is a factor of the learning rate."""
    decay, bias_factor = options.weight_decay, options.bias_lr_factor
    settings: dict[str, Any] = {"lr": options.learning_rate, "weight_decay": decay}
    trained: list[Any] = [p for p in model.parameters() if p.requires_grad]
    if bias_factor != 1:
        biases = [p for n, p in model.named_parameters() if n.endswith("bias") and p.requires_grad]
        bias_ids = set(map(id, biases))
        bias_options = {"faster": bias_factor, "weight_decay": decay / bias_factor}
        weights = [p for p in trained if id(p) not in bias_ids]
        trained = [{"params": weights}, {"params": biases} | bias_options]
    if options.optimizer == "sgd":
        return torch.optim.SGD(trained, momentum=0.9, nesterov=True, **settings)
    first, second = options.betas
    if options.optimizer == "muon":
        groups = _kernels_apart(trained, options.muon_lr_factor)
        return Muon(groups, betas=(first, second), **settings)
    return torch.optim.AdamW(trained, betas=(first, second), **settings)


def _kernels_apart(trained: list[Any], kernel_factor: float) -> list[dict[str, Any]]:
    """Split off convolution kernels into a parameter group of their own."""
    groups = trained if isinstance(trained[0], dict) else [{"params": trained}]
    kernels = [p for group in groups for p in group["params"] if is_kernel(p)]
    others = [
        group | {"params": [p for p in group["params"] if not is_kernel(p)]} for group in groups
    ]
    split = [{"params": kernels, "muon": True, "faster": kernel_factor}, *others]
    return [group for group in split if group["params"]]


def load_batch(
    data: Dataset, seed: int, positions: range, flip: bool, crop: int, device: str
) -> Batch:
    """Load the images at `positions` of the endless shuffled data set, augmented, with their noise."""
    x, y = fetch(data, _indices(len(data), seed, positions))
    noise = Noise.of(seed, positions).child("train")
    x = augmented(x, noise.child("augment"), flip, crop)
    if device != "cpu":
        x, y = x.pin_memory(), y.pin_memory()
    return x.to(device, non_blocking=True), y.to(device, non_blocking=True), noise


def batches_ahead(make: Callable[[int], Batch], steps: range, helper: bool) -> Iterator[Batch]:
    """Yield the batches of `steps`; with `helper`, threads prepare four ahead of the device."""
    if not helper:
        yield from map(make, steps)
        return
    with ThreadPoolExecutor(4) as pool:
        waiting: deque[Future[Batch]] = deque()
        try:
            for step in steps:
                waiting.append(pool.submit(make, step))
                if len(waiting) > 4:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _indices(size: int, seed: int, positions: range) -> list[int]:
    epochs = {position // size for position in positions}
    orders = {epoch: _order(size, seed, epoch) for epoch in epochs}
    return [orders[position // size][position % size] for position in positions]


@lru_cache(maxsize=2)
def _order(size: int, seed: int, epoch: int) -> list[int]:
    return permutation(size, seed, "epoch", epoch)


def average_decay(step: int, options: TrainingOptions) -> float:
    """The decay of the running average of the weights at `step` (from 1)."""
    if options.ema_gamma is not None:
        return (1 - 1 / step) ** (options.ema_gamma + 1)
    power = options.ema_power
    return min(options.ema_decay, step / (9 + step) if power is None else 1 - step**-power)
