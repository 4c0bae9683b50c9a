"""The papers' specs, from the command to the report, on files with the names that they expect.

The files have the published layouts, random weights, and tiny widths; a run takes two images and two
steps. Options that follow from a published width, such as the image size, are given explicitly.
"""

import json
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from published_files import fixture, state_of

from published_rule import weight
from unfool.cli.main import run
from unfool.models import build, card
from unfool.spec import Part

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
CLASSIFIERS = Path(__file__).parents[1] / "fixtures" / "classifiers"
WNIDS = [f"n{i:08}" for i in range(1000)]
FEW = ["evaluation.images=2", "evaluation.draws=2", "machine.batch_size=8"]
TRAINED = ["training.steps=2", "training.batch_size=2"]


# ---- the files


def classifier(name: str, path: str, classes: int = 10) -> None:
    """Write a classifier in a published layout, with any number of classes."""
    known = json.loads((CLASSIFIERS / f"{name}.json").read_text())
    *_, last = (n for n, shape in known["weights"].items() if n.endswith("weight"))
    head = last.rpartition(".")[0]
    shapes = {
        n: [classes, *shape[1:]] if n.startswith(f"{head}.") else shape
        for n, shape in known["weights"].items()
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    torch.save({n: weight(n, shape) for n, shape in shapes.items()}, path)


def denoiser(name: str, path: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    torch.save(state_of(fixture(name)), path)


def score_sde(path: str = "checkpoint_8.pth") -> None:
    """Write a file as the authors do: raw weights of DataParallel, and a list of averaged parameters."""
    known = fixture("score_sde_vp_ddpmpp")
    model = {f"module.{n}": v for n, v in state_of(known, "raw.").items()}
    ema = {"decay": 0.9999, "shadow_params": list(state_of(known).values())}
    torch.save({"optimizer": {}, "model": model, "ema": ema, "step": 1}, path)


def cifar(folder: str, classes: int) -> None:
    """Write files in the binary layout: one pattern for all images, and labels of all classes."""
    home, head = Path(folder), 2 if classes == 100 else 1
    home.mkdir()
    names = {"test": 10_000, "train": 50_000} if classes == 100 else dict.fromkeys(
        ("test_batch", *(f"data_batch_{i}" for i in range(1, 6))), 10_000
    )  # fmt: skip
    for name, count in names.items():
        records = np.zeros((count, head + 3072), np.uint8)
        records[:, :head] = (np.arange(count) % classes)[:, None] % (20 if head == 2 else 10)
        records[:, head - 1] = np.arange(count) % classes
        records[:, head:] = np.arange(3072) % 251
        records.tofile(home / f"{name}.bin")


def picture(path: Path, size: int = 64) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.arange(size * size * 3).reshape(size, size, 3) % 253
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def imagenet(subset: str | None) -> None:
    home = Path("data")
    known = Path(build.__file__).parents[1] / "data" / "imagenet_subsets.json"
    wnids = json.loads(known.read_text())[subset] if subset else WNIDS[:2]
    every = wnids + [w for w in WNIDS if w not in wnids][: 1000 - len(wnids)]
    for wnid in wnids:
        picture(home / "val" / wnid / f"{wnid}_0.png")
    table = {str(i): [wnid, f"name {i}"] for i, wnid in enumerate(sorted(every))}
    (home / "imagenet_class_index.json").write_text(json.dumps(table))


def tiny_imagenet() -> None:
    home = Path("data") / "tiny-imagenet-200"
    for i, wnid in enumerate(WNIDS[:2]):
        picture(home / "train" / wnid / "images" / f"{wnid}_0.JPEG")
        picture(home / "val" / "images" / f"val_{i}.JPEG")
    (home / "wnids.txt").write_text("".join(f"{w}\n" for w in WNIDS[:2]))
    (home / "words.txt").write_text("".join(f"{w}\tname {i}\n" for i, w in enumerate(WNIDS[:2])))
    rows = [f"val_{i}.JPEG\t{w}\t0\t0\t1\t1\n" for i, w in enumerate(WNIDS[:2])]
    (home / "val" / "val_annotations.txt").write_text("".join(rows))


def faces() -> None:
    home = Path("data")
    rows = [f"{i}.jpg  {2 * (i % 2) - 1}  1\n" for i in range(4)]
    for i in range(4):
        picture(home / "CelebA-HQ-img" / f"{i}.jpg")
    (home / "CelebAMask-HQ-attribute-anno.txt").write_text(
        "4\nEyeglasses Smiling\n" + "".join(rows)
    )
    part: Part = {"name": "small-cnn", "channels": 3, "size": 32, "classes": 2}
    model = build.small_cnn(3, 32, 2)
    card.save(Path("runs") / "attribute-classifier", "classifier", part, model)


def in_two_steps(*attacks: str) -> list[str]:
    """Return changes that reduce an evaluation to two images, with the given options of each attack."""
    rows = (f"attacks.{i}.{option}" for i, said in enumerate(attacks) for option in said.split())
    return [*FEW, *rows]


def diffpure_cifar10() -> list[str]:
    cifar("data", 10)
    classifier("wrn_trades", "Standard.pt")
    score_sde()
    return ["purifier.steps=2", *in_two_steps("steps=2 eot=2", "steps=2 eot=2")]


def diffpure_cifar10_bpda() -> list[str]:
    diffpure_cifar10()
    return ["purifier.steps=2", *in_two_steps("steps=2 eot=2 selection_draws=2")]


def with_timm(file: str, classes: int) -> list[str]:
    """Write the spec's timm network, or another one without timm. Return the changes to the spec."""
    if find_spec("timm"):
        timm = import_module("timm")
        name = file.partition("-")[0].removesuffix(".pth")
        torch.save(timm.create_model(name, num_classes=classes).state_dict(), file)
        return []
    classifier("wrn_trades", file, classes)
    return [f"classifier={{name: cifar-network, weights: {file}}}"]


def small_pictures() -> list[str]:
    options = ["data.size=32", "data.shorter=40", "purifier.size=48", "purifier.purifier.steps=2"]
    return [*options, "denoiser.size=48", "denoiser.head_width=32"]


def diffpure_imagenet() -> list[str]:
    imagenet(None)
    denoiser("guided_diffusion_uncond", "256x256_diffusion_uncond.pt")
    changes = with_timm("resnet50.pth", 1000)
    return [*changes, *small_pictures(), *in_two_steps("steps=2 eot=2", "steps=2 eot=2")]


def diffpure_celebahq() -> list[str]:
    faces()
    denoiser("ho_ddpm", "celeba_hq.ckpt")
    changes = ["data.size=32", "denoiser.size=32", "purifier.steps=2"]
    return [*changes, *in_two_steps("steps=2 eot=2", "steps=2 eot=2")]


def coup_cifar10() -> list[str]:
    diffpure_cifar10()
    return ["purifier.steps=2", *in_two_steps("steps=2", "steps=2 eot=2", "steps=2 eot=2")]


def coup_cifar100() -> list[str]:
    cifar("data", 100)
    classifier("wrn_trades", "wrn-28-10-cifar100.pt", 100)
    score_sde()
    return ["purifier.steps=2", *in_two_steps("steps=2 eot=2")]


def transfer_cifar10() -> list[str]:
    cifar("data", 10)
    classifier("kuangliu_resnet18", "resnet18.pt")
    denoiser("improved_diffusion", "cifar10_uncond_50M_500K.pt")
    changes = ["denoiser.size=32", "denoiser.heads=4", "purifier.steps=2"]
    return [*changes, *in_two_steps("steps=2", "steps=2 eot=2", "steps=2 eot=2")]


def transfer_imagenet30() -> list[str]:
    imagenet("imagenet-30")
    denoiser("guided_diffusion_uncond", "256x256_diffusion_uncond.pt")
    changes = with_timm("resnet18-imagenet30.pth", 30)
    return [*changes, *small_pictures(), *in_two_steps("steps=2", "steps=2 eot=2")]


EVALUATIONS: dict[str, Callable[[], list[str]]] = {
    "diffpure-cifar10-linf": diffpure_cifar10,
    "diffpure-cifar10-l2": diffpure_cifar10,
    "diffpure-cifar10-bpda": diffpure_cifar10_bpda,
    "diffpure-imagenet": diffpure_imagenet,
    "diffpure-celebahq": diffpure_celebahq,
    "coup-cifar10": coup_cifar10,
    "coup-cifar100": coup_cifar100,
    "distribution-transfer-cifar10": transfer_cifar10,
    "distribution-transfer-imagenet30": transfer_imagenet30,
}


def spec_of(name: str) -> str:
    path = EXPERIMENTS / f"{name}.yaml"
    return str(path) if path.is_file() else name


def command(kind: str, name: str, changes: list[str]) -> int:
    words = [kind, spec_of(name), "--quiet", "--data", "data", "--out", "run"]
    return run([*words, *(word for change in changes for word in ("--set", change))])


@pytest.mark.slow
@pytest.mark.parametrize("name", EVALUATIONS)
def test_evaluation_of_paper_spec_writes_report(elsewhere, name):
    assert command("evaluate", name, EVALUATIONS[name]()) == 0
    report = json.loads((elsewhere / "run" / "report.json").read_text())
    assert report["n"] == 2
    assert len(report["attacks"]) >= 1
    assert (elsewhere / "run" / "report.html").is_file()


# ---- trainings


def few_test_images(size: int, classes: int) -> list[str]:
    """Write four test images, because the usual 2000 take minutes. Return the change to the spec."""
    images = np.arange(4 * size * size * 3).reshape(4, size, size, 3) % 241
    labels = np.array([0, 1, 0, classes - 1])
    np.savez("few.npz", images=images.astype(np.uint8), labels=labels)
    return ["test={name: arrays, path: few.npz}"]


def addt(classes: int) -> list[str]:
    name = "wrn-28-10.pt" if classes == 10 else "wrn-28-10-cifar100.pt"
    cifar("data", classes)
    classifier("wrn_trades", name, classes)
    denoiser("ho_ddpm", "ema_diffusion_cifar10_model/model-790000.ckpt")
    return ["denoiser.size=32", *few_test_images(32, classes)]


def addt_tiny_imagenet() -> list[str]:
    tiny_imagenet()
    classifier("wrn_trades", "wrn-28-10-tiny-imagenet.pt", 2)
    denoiser("ho_ddpm", "ddpm-tiny-imagenet.ckpt")
    return few_test_images(64, 2)


def tmdc_cifar10() -> list[str]:
    cifar("data", 10)
    tiny.stable_diffusion(Path("stable-diffusion-2-base"))
    classifier("kuangliu_resnet50", "resnet50.pt")
    few = few_test_images(32, 10)
    return ["training.save_steps=[1]", "objective.attack.steps=2", "objective.images=4", *few]


TRAININGS: dict[str, Callable[[], list[str]]] = {
    "addt-cifar10": lambda: addt(10),
    "addt-cifar100": lambda: addt(100),
    "addt-tiny-imagenet": addt_tiny_imagenet,
    "tmdc-cifar10": tmdc_cifar10,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_training_of_paper_spec_writes_card(elsewhere, name):
    assert command("train", name, [*TRAININGS[name](), *TRAINED]) == 0
    made = json.loads((elsewhere / "run" / "card.json").read_text())
    assert made["kind"] == "denoiser"
    assert made["training"]["steps"] == 2


def test_all_paper_specs_are_covered():
    walked = {*EVALUATIONS, *TRAININGS}
    prefixes = ("diffpure-", "coup-", "addt-cifar100", "addt-tiny", "distribution-", "tmdc-")
    shipped = Path(build.__file__).parents[1] / "specs"
    found = {p.stem for folder in (shipped, EXPERIMENTS) for p in folder.glob("*.yaml")}
    assert {name for name in found if name.startswith(prefixes)} <= walked
