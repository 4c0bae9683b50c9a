"""Measure time, memory and error of the gradient through a purifier, and of other ways to compute it.

    python bench/speed.py                            # prints the tables
    python bench/speed.py --write docs               # and puts them and the figure into docs/speed.md
    python bench/speed.py --peers FOLDER             # with DiffHammer and DiffBreak, cloned there;
                                                     # without it, the page keeps its rows on them
    python bench/speed.py --device cuda              # the same on a GPU, and its throughput

All variants run in one process, in turn, for several repetitions. Times are divided by one forward pass
of the network per step (the floor) of the same repetition; tables show the median [least, most] ratio.
On a CPU: one thread, CPU time. Weights are random, which does not change the cost of a step.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import measuring
from activations import activations
from forward import forwards
from measuring import error, interleaved, over, shown, table
from unfool.diffusion.denoiser import Denoiser, NetworkDenoiser
from unfool.diffusion.execution import trials
from unfool.diffusion.reverse import (
    DDIM,
    Ancestral,
    Heun,
    Step,
    churned,
    euler_maruyama,
    even,
    flow,
    karras,
    reverse,
    strided,
)
from unfool.diffusion.schedule import VP, Scales
from unfool.noise import Noise
from variants import Case, base, pair, small, tiny

MARKS = "<!-- made by bench/speed.py: begin -->", "<!-- end -->"
LENGTHS = (1, 5, 20, 100)
STEPS = {"sde": euler_maruyama, "ode": flow, "ddpm": Ancestral(), "ddim": DDIM(0.5), "heun": None}
PEERS = ("diffhammer", "diffbreak")
PUBLIC = "### Public code"
SIZES: dict[str, tuple[Callable[[], Denoiser], int, int]] = {  # network, images, steps
    "4.2 M parameters": (small, 4, 6),
    "35.7 M parameters": (base, 1, 2),
}
GUIDED, COUP = "guided", (small, 4, 3)  # the same for a purifier guided by a classifier
CROWD = 128  # batch size for the throughput of a GPU


def main() -> None:
    """Run all parts, print the tables, and write the page if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--write", type=Path, help="the folder of speed.md")
    parser.add_argument("--peers", type=Path, help="where DiffHammer and DiffBreak are cloned")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    device, repetitions = options.device, options.repetitions
    if device != "cpu" and not torch.cuda.is_available():
        sys.exit("there is no GPU here: run the part for the CPU, without --device")
    if options.memory:
        print(json.dumps(peaks(device)))
        return
    began, results, lines = time.monotonic(), {}, []
    machine = measuring.machine(device)
    for part in (
        correctness,
        memory,
        partial(gradients, repetitions=repetitions),
        partial(activations, repetitions=repetitions),
        partial(forwards, repetitions=repetitions),
        partial(guided, repetitions=repetitions),
        partial(overhead, repetitions=repetitions),
        partial(execution, repetitions=repetitions),
        throughput,
        *([partial(peers, folder=options.peers, repetitions=repetitions)] if options.peers else []),
    ):
        section = part(device, results)
        print("\n".join(section), flush=True)
        lines += section
    conditions = f"Measured on {machine}, in {(time.monotonic() - began) / 60:.0f} minutes."
    print(conditions)
    if options.write:
        from drawing import draw

        draw(results, options.write / "speed.png")
        page = options.write / "speed.md"
        old = page.read_text("utf-8")
        beginning = ["![Time and peak memory of a gradient](speed.png)", "", conditions, "", *lines]
        page.write_text(
            measuring.between(
                old, MARKS, beginning + ([] if options.peers else public_section(old))
            ),
            "utf-8",
        )


def public_section(page: str) -> list[str]:
    """The lines of a page on public code: the last section between its marks."""
    _, heading, rest = page.partition(MARKS[1])[0].partition(PUBLIC)
    return (heading + rest).rstrip().splitlines()


def times_and_step(name: str, steps: int) -> tuple[Tensor, Step | Heun]:
    """Decreasing times from t* = 0.1, and the step of a sampler between them."""
    if (step := STEPS[name]) is None:
        times = karras(VP(), 0.1, steps)
        return times, Heun(VP(), churned(VP(), times, 1.0))
    return strided(0.1, steps, 1000) if name in ("ddpm", "ddim") else even(0.1, steps), step


def correctness(device: str, results: dict[str, Any]) -> list[str]:
    """Tabulate the largest relative error of the gradient, compared with plain autograd."""
    rows = []
    for guide in (False, True):
        for name in STEPS:
            row: list[object] = [name + (", guided" if guide else "")]
            for steps in LENGTHS:
                cell = []
                for dtype in (torch.float32, torch.float64):
                    case = Case(pair(), 2, *times_and_step(name, steps), guide, device, dtype)
                    true = case.gradient(case.plain)
                    ways = [partial(case.kept, k) for k in (0, steps // 2)]
                    largest = max(error(case.gradient(way), true) for way in ways)
                    cell.append(shown(largest, 1))
                row.append(" / ".join(cell))
            rows.append(row)
    heads = ["float32 / float64", *(f"N = {n}" for n in LENGTHS)]
    return [
        "### Is it the gradient?",
        "",
        "|difference| / |plain autograd|, the larger of two cases: no graph kept, and half of them "
        "kept. The network is two convolutions on 8 x 8 pixels, with 2 images; U-Nets are below.",
        "",
        *table(heads, rows),
    ]


def peaks(device: str) -> dict[str, dict[str, float | None]]:
    """Measure the peak memory of each way to the gradient, in MiB, for each case."""
    cases = {f"N = {n}": (tiny, 8, n) for n in (1, 5, 10, 20, 100)} | SIZES | {GUIDED: COUP}
    results: dict[str, dict[str, float | None]] = {}
    for name, (network, images, steps) in cases.items():
        kind: dict[str, Any] = {"guided": name == GUIDED, "device": device}
        case = Case(network(), images, even(0.1, steps), euler_maruyama, **kind)
        once = Case(case.denoiser, images, even(0.1, 1), euler_maruyama, **kind)
        results[name] = {
            way: measuring.peak_mib(
                partial(once.gradient, once.ways()[way]), partial(case.gradient, chain), device
            )
            for way, chain in case.ways().items()
        }
        results[name]["purify"] = measuring.peak_mib(once.purify, case.purify, device)
    return results


def memory(device: str, results: dict[str, Any]) -> list[str]:
    """Tabulate peak memory, measured in a process of its own that has not used autograd before."""
    output = subprocess.run(
        [sys.executable, __file__, "--memory", "--device", device],
        env=os.environ | measuring.ALLOCATOR,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    results["peaks"] = peaks_mib = json.loads(output)
    lengths = [name for name in peaks_mib if name.startswith("N")]
    rows = [
        [way, *(shown(peaks_mib[name][way]) for name in lengths)] for way in peaks_mib[lengths[0]]
    ]
    return [
        "### Peak memory",
        "",
        "MiB more than before the call, for a U-Net of 16 x 16 pixels with attention, 8 images.",
        "",
        *table(["", *lengths], rows),
    ]


def gradients(device: str, results: dict[str, Any], repetitions: int) -> list[str]:
    """Tabulate time in units of the floor, error, and memory."""
    lines = ["### Time of a gradient", ""]
    results["gradients"] = {}
    for size, (network, images, steps) in SIZES.items():
        case = Case(network(), images, even(0.1, steps), euler_maruyama, device=device)
        chains = case.ways()
        errors = {
            dtype: errors_of(network, images, steps, device, dtype)
            for dtype in (torch.float32, torch.float64)
        }
        runs: dict[str, Any] = {"floor": case.floor, "purify": case.purify}
        runs |= {name: partial(case.gradient, chain) for name, chain in chains.items()}
        took = interleaved(runs, device, repetitions)
        floor = measuring.ratio(took["floor"])
        rows = []
        for name in runs:
            if name == "floor":
                continue
            ratio = over(took, name, "floor")
            results["gradients"].setdefault(size, {})[name] = ratio
            errors_shown = [shown(errors[d].get(name), 1) for d in errors]
            rows.append([name, ratio, *errors_shown, shown(results["peaks"][size].get(name))])
        count = f"batch {images}, N = {steps}, {repetitions} repetitions"
        lines += [
            f"{size}, {count}; the floor takes {floor.middle / steps * 1e3:.0f} ms per step.",
            "",
            *table(["", "x floor", "error float32", "error float64", "peak MiB"], rows),
        ]
    return lines


def errors_of(
    network: Callable[[], Denoiser], images: int, steps: int, device: str, dtype: torch.dtype
) -> dict[str, float]:
    """Build a case, and return the relative error of each way, compared with plain autograd."""
    case = Case(network(), images, even(0.1, steps), euler_maruyama, device=device, dtype=dtype)
    return errors_in(case)


def errors_in(case: Case) -> dict[str, float]:
    """Relative errors of all ways, compared with plain autograd; of `purify`, with the plain loop."""
    true = case.gradient(case.plain)
    errors = {name: error(case.gradient(chain), true) for name, chain in case.ways().items()}
    with torch.no_grad():
        return errors | {"purify": error(case.purify(), case.plain(case.x))}


def guided(device: str, results: dict[str, Any], repetitions: int) -> list[str]:
    """Tabulate the same for a guided purifier, which needs second derivatives of the classifier."""
    network, images, steps = COUP
    case = Case(network(), images, even(0.1, steps), euler_maruyama, guided=True, device=device)
    runs: dict[str, Any] = {"floor": case.floor, "purify": case.purify}
    runs |= {name: partial(case.gradient, chain) for name, chain in case.ways().items()}
    errors, peak = errors_in(case), results["peaks"][GUIDED]
    took = interleaved(runs, device, repetitions)
    rows = [
        [name, over(took, name, "floor"), shown(errors[name], 1), shown(peak.get(name))]
        for name in runs
        if name != "floor"
    ]
    return [
        "### Guided by a classifier (COUP)",
        "",
        f"The network of 4.2 M parameters, batch {images}, N = {steps}. The floor is the denoiser's "
        "forward pass alone. The classifier's forward pass, gradient, and second derivative are extra.",
        "",
        *table(["", "x floor", "error float32", "peak MiB"], rows),
    ]


class _Drawn(Noise):
    """Noise drawn in advance, so that the time of a step is that of the loop alone."""

    def normal(self, like: Tensor) -> Tensor:
        """The same samples in every call."""
        return _given(like.shape, like.device)


@lru_cache
def _given(shape: torch.Size, device: torch.device) -> Tensor:
    return Noise.of(0, range(shape[0])).normal(torch.empty(shape, device=device))


def _without_drawing(x_t: Tensor, x_hat: Tensor, now: Scales, then: Scales, noise: Noise) -> Tensor:
    return euler_maruyama(x_t, x_hat, now, then, _Drawn(noise.keys))


class _Nothing(Denoiser):
    """A denoiser that costs nothing, so that the time of a step is that of the loop alone."""

    schedule = VP()

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return x_t


def overhead(device: str, results: dict[str, Any], repetitions: int) -> list[str]:
    """Tabulate the cost of a step without the network, and the share of drawing noise."""
    steps, rows, denoiser = 20, [], _Nothing()
    for images in (1, 8, 64):
        x, noise, times = (
            torch.zeros(images, 3, 32, 32, device=device),
            Noise.of(0, range(images)),
            even(0.1, steps),
        )

        def loop(
            x: Tensor = x, noise: Noise = noise, times: Tensor = times, step: Any = None
        ) -> None:
            with torch.no_grad():
                reverse(denoiser, x, times, noise, step=step)

        def draw(x: Tensor = x, noise: Noise = noise) -> None:
            for i in range(steps):
                noise.child(i).normal(x)

        def rand(x: Tensor = x) -> None:
            for _ in range(steps):
                torch.empty_like(x).normal_()

        runs = {
            "sde": partial(loop, step=euler_maruyama),
            "drawn": partial(loop, step=_without_drawing),
            "ode": partial(loop, step=flow),
            "drawing": draw,
            "torch": rand,
        }
        took = interleaved(runs, device, repetitions)
        ratios = {name: measuring.ratio([t / steps * 1e3 for t in took[name]]) for name in runs}
        rows.append(
            [images, *(ratios[name] for name in ("sde", "drawn", "ode", "drawing", "torch"))]
        )
    return [
        "### The loop",
        "",
        "Milliseconds per step around a network that does nothing, 3 x 32 x 32 pixels.",
        "",
        *table(
            [
                "batch",
                "sde",
                "its noise given",
                "ode",
                "noise of a step",
                "by torch's own generator",
            ],
            rows,
        ),
    ]


def execution(device: str, results: dict[str, Any], repetitions: int) -> list[str]:
    """Tabulate the trial on which `machine: {execution: auto}` is based."""
    rows = []
    for size, (network, _, _) in SIZES.items():
        if network is base and device == "cpu":
            continue  # compiling takes minutes
        denoiser = network().to(device)
        assert isinstance(denoiser, NetworkDenoiser)
        trial_of = trials(denoiser, 8, repetitions)
        plain = trial_of["plain"]
        for way, trial in trial_of.items():
            forward, gradient = (
                measuring.ratio([a / b for a, b in zip(mine, theirs, strict=True)])
                for mine, theirs in (
                    (plain.forward, trial.forward),
                    (plain.gradient, trial.gradient),
                )
            )
            row = [f"{size}, {way}", forward, gradient, shown(trial.error, 1)]
            rows.append([*row, shown(trial.prepare)])
    heads = ["", "forward", "forward and product", "error float32", "seconds of the first calls"]
    return [
        "### Ways to execute the network",
        "",
        "How many times as fast as `plain`, batch 8.",
        "",
        *table(heads, rows),
    ]


def throughput(device: str, results: dict[str, Any]) -> list[str]:
    """Tabulate the TFLOP/s of the networks on a GPU."""
    lines = ["### Throughput of a GPU", ""]
    if device == "cpu":
        return [
            *lines,
            "Not measured, because this machine has no GPU (use `--device cuda` on one that has).",
            "",
        ]
    rows = []
    for size, (network, _, _) in SIZES.items():
        case = Case(network(), CROWD, even(0.1, 1), euler_maruyama, device=device)
        with FlopCounterMode(display=False) as counter:
            case.floor()
        for compiled in (False, True):
            if compiled:
                case.denoiser.get_submodule("network").compile(mode="reduce-overhead")
            for dtype in (torch.float32, torch.bfloat16):
                with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
                    took = interleaved({"floor": case.floor}, device, 20)["floor"]
                speed = counter.get_total_flops() / measuring.ratio(took).middle / 1e12
                way = "compiled, CUDA graphs" if compiled else "eager"
                rows.append([f"{size}, {way}, {str(dtype)[6:]}", f"{speed:.0f}"])
    return [*lines, f"Batch {CROWD}.", "", *table(["", "TFLOP/s"], rows)]


def revision(folder: Path) -> str:
    """The commit of a checkout as text; empty if git cannot tell."""
    command = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True)
    return f", commit {done.stdout.strip()}" if done.returncode == 0 else ""


def peers(device: str, results: dict[str, Any], folder: Path, repetitions: int) -> list[str]:
    """Compare with public code for the same gradient, from checkouts in `folder`."""
    lines, rows = [PUBLIC, ""], []
    for name in PEERS:
        adaptor = importlib.import_module(f"peers.{name}")
        if not (folder / adaptor.FOLDER).is_dir():
            lines += [f"{adaptor.FOLDER}: not measured, there is no checkout in `--peers`.", ""]
            continue
        try:
            case = Case(small(), 4, adaptor.times(10), adaptor.STEP, device=device)
            peer = adaptor.Peer(folder / adaptor.FOLDER, case)
            runs = {
                "floor": case.floor,
                "ours": partial(case.gradient, partial(case.kept, 0)),
                "theirs": peer.gradient,
            }
            took = interleaved(runs, device, repetitions)
        except ImportError as missing:
            lines += [f"{adaptor.FOLDER}: not measured, it needs {missing.name}.", ""]
            continue
        rows.append(
            [
                f"{adaptor.FOLDER}{revision(folder / adaptor.FOLDER)}",
                over(took, "theirs", "floor"),
                shown(peer.error(), 1),
            ]
        )
        rows.append(["  unfool, one activation set", over(took, "ours", "floor"), ""])
    if rows:
        lines += [
            f"4.2 M parameters, batch 4, N = 10, on {measuring.machine(device)}; error to plain "
            "autograd on its own noise.",
            "",
        ]
        lines += table(["", "x floor", "error float32"], rows)
    return lines


if __name__ == "__main__":
    main()
