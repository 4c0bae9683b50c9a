"""Stable Diffusion and DiT, from a folder in the diffusers layout or a file in the original format.

Only the networks and settings of diffusers and transformers are used. Missing files are downloaded
only from the repositories that the user names.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from unfool.diffusion.latent_space import Latent, Numbered, Prompted, factor_of
from unfool.diffusion.schedule import Discrete
from unfool.models import lora
from unfool.models.prompts import read_prompts
from unfool.models.published.dit import build_transformer, tell_time_as_original
from unfool.models.published.stable_diffusion import (
    build_text_encoder,
    build_unet,
    build_vae,
    read_single_file,
)
from unfool.models.scheduler import Predicts, read_schedule
from unfool.ranges import Count, CountFromZero, check_arguments
from unfool.runtime.device import pick_device
from unfool.runtime.files import raise_system_error, weights_in
from unfool.runtime.published_files import find_file

Precision = Literal["float32", "float16", "bfloat16"]
_ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth")
_OF_FILES = ("scaled_linear", 0.85, 12.0)  # the schedule of every single file of Stable Diffusion


def stable_diffusion(
    weights: Path,
    prompts: str = "cifar10",
    templates: Sequence[str] = (),
    predicts: Predicts | None = None,
    size: Count | None = None,
    precision: Precision = "float32",
    adapter: Path | None = None,
    tokenizer: Path | None = None,
    download: Sequence[str] = (),
) -> Latent:
    """Stable Diffusion 1.5, 2 or 2.1 (Rombach et al., 2022), conditioned on classes by prompts.

    The empty text serves as the null class. The text encoder embeds the prompts once, at loading,
    and is then released.

    Args:
        weights: A folder in the diffusers layout, or a single file in the original format, such as
            `v2-1_512-ema-pruned.safetensors`.
        prompts: The name of a shipped table of prompts, or a CSV file (see `read_prompts`).
        templates: Texts that contain `{class}`, used instead of the table's own prompts.
        predicts: What the network predicts; None takes what its scheduler's settings state, or what
            is known for a single file.
        size: Height and width of its images in pixels; None takes the size of its training.
        precision: The precision of the U-Net; the autoencoder and the text encoder are in float32.
        adapter: The file of a LoRA adapter of the U-Net, which is added to its weights before they
            are rounded to `precision`.
        tokenizer: The folder of the tokenizer (`vocab.json`, `merges.txt`); None takes the folder
            `tokenizer` in the folder `weights`, or next to the file.
        download: Repositories from which to download the folder if it is incomplete, `owner/name`
            or `https://mirror/owner/name`, tried in turn.

    Raises:
        FileNotFoundError: There is no file `weights` or `adapter`.
        ValueError: Another file is missing or does not fit, `predicts` is needed, or the prompts
            are invalid.
    """
    check_arguments(stable_diffusion, locals())
    class_prompts = read_prompts(prompts, templates)
    weights = find_file(Path(weights))
    if weights.suffix in _ENDINGS and not weights.is_file():
        raise FileNotFoundError(f"there is no file {weights}: name a file or a folder of the model")
    texts = ["", *(text for variants in class_prompts for text in variants)]
    if weights.is_file():
        file = read_single_file(weights, predicts, size)
        text_tokenizer = _tokenizer(
            Path(tokenizer or weights.parent / "tokenizer"), weights, file.fill
        )
        vae = build_vae(file)
        dtype = getattr(torch, precision if adapter is None else "float32")
        unet = build_unet(file, dtype, factor_of(vae))
        if adapter is not None:
            lora.load(unet, Path(adapter), precision=precision)
        embedded = _embed(text_tokenizer, build_text_encoder(file), texts)
        chain: tuple[Discrete, Predicts] = (Discrete(1000, *_OF_FILES), file.predicts)
    else:
        _complete(weights, ("unet", "vae", "text_encoder"), ("tokenizer",), download)
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        unet = _adapted(UNet2DConditionModel, weights / "unet", precision, adapter)
        text_tokenizer = _tokenizer(Path(tokenizer or weights / "tokenizer"), weights)
        embedded = _embed(text_tokenizer, _text_encoder(weights / "text_encoder"), texts)
        vae = _autoencoder(weights / "vae")
        chain = read_schedule(weights / "scheduler" / "scheduler_config.json")
    text_width = unet.config["cross_attention_dim"]
    if embedded.shape[2] != text_width:
        raise ValueError(
            f"the text embeddings of {weights} have {embedded.shape[2]} dimensions, and its U-Net "
            f"takes {text_width}: use the unet and the text_encoder of the same model"
        )
    network = Prompted(unet, embedded, _text_indices([len(variants) for variants in class_prompts]))
    wordings = tuple(len(variants) for variants in class_prompts)
    return _latent(network, unet, vae, chain, predicts, size, len(class_prompts), wordings)


def dit(
    weights: Path,
    labels: Sequence[CountFromZero] | None = None,
    predicts: Predicts | None = None,
    size: Count | None = None,
    precision: Precision = "float32",
    adapter: Path | None = None,
    vae: Path | None = None,
    heads: Count | None = None,
    trained_with: Literal["original", "diffusers"] = "original",
    download: Sequence[str] = (),
) -> Latent:
    """A class-conditional DiT (Peebles and Xie, 2023).

    Args:
        weights: A folder in the diffusers layout, or a file in the original format, such as
            `DiT-XL-2-256x256.pt`.
        labels: The network's label for each class of the data set; None takes all in order.
        predicts: What the network predicts; None takes what its scheduler's settings state.
        size: Height and width of its images in pixels; None takes the size of its training.
        precision: The precision of the transformer; the autoencoder is in float32.
        adapter: The file of a LoRA adapter of the transformer (see `stable_diffusion`).
        vae: The folder of the autoencoder, such as a copy of `stabilityai/sd-vae-ft-ema`; None
            takes the one in the folder `weights`. A file in the original format needs it.
        heads: The number of attention heads of a file in the original format; known for the
            published ones.
        trained_with: The code that trained the weights, which decides how the network embeds the
            time. The published folders hold weights of the original code.
        download: Repositories from which to download the folder if it is incomplete (see
            `stable_diffusion`).

    Raises:
        FileNotFoundError: There is no file `adapter`.
        ValueError: Another file is missing or does not fit, or there is no such label.
    """
    check_arguments(dit, locals())
    weights = Path(weights)
    if weights.is_file():
        if vae is None:
            raise ValueError(
                f"{weights} holds a transformer alone: name the folder of its autoencoder, such as a "
                "copy of stabilityai/sd-vae-ft-ema, by vae: FOLDER"
            )
        dtype = getattr(torch, precision if adapter is None else "float32")
        transformer = build_transformer(weights, heads, dtype)
        if adapter is not None:
            lora.load(transformer, Path(adapter), precision=precision)
    else:
        _complete(weights, ("transformer", "vae"), (), download)
        from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

        transformer = _adapted(DiTTransformer2DModel, weights / "transformer", precision, adapter)
    if trained_with == "original":
        tell_time_as_original(transformer)
    classes = transformer.config["num_embeds_ada_norm"]
    numbers = list(range(classes)) if labels is None else list(labels)
    if wrong := [n for n in numbers if not 0 <= n < classes]:
        raise ValueError(f"labels must be numbers from 0 to {classes - 1}, not {wrong[0]}")
    for part in transformer.modules():
        if hasattr(part, "token_drop"):
            part.dropout_prob = 0.0  # in training mode it would randomly replace labels by null
    network = Numbered(transformer, torch.tensor([*numbers, classes]))
    settings = weights / "scheduler" / "scheduler_config.json"
    chain = (Discrete(), "noise") if weights.is_file() else read_schedule(settings)
    autoencoder = _autoencoder(weights / "vae" if vae is None else Path(vae))
    return _latent(network, transformer, autoencoder, chain, predicts, size, len(numbers))


def _latent(
    network: Prompted | Numbered,
    inner: Any,
    vae: Any,
    chain: tuple[Discrete, Predicts],
    predicts: Predicts | None,
    size: int | None,
    classes: int,
    wordings: tuple[int, ...] = (),
) -> Latent:
    schedule, default_predicts = chain
    latent = Latent(
        network,
        vae,
        size=size or inner.config["sample_size"] * factor_of(vae),
        schedule=schedule,
        predicts=predicts or default_predicts,
        classes=classes,
        wordings=wordings if set(wordings) - {1} else (),
    )
    return latent.eval().requires_grad_(False)


def _text_indices(counts: Sequence[int]) -> Tensor:
    """Return the index of the text for each label (see `Denoiser.wordings`); 0 is the null text."""
    classes = len(counts)
    indices = torch.zeros(max(counts), classes + 1, dtype=torch.long)
    first = 1
    for k, count in enumerate(counts):
        indices[:count, k] = torch.arange(first, first + count)
        first += count
    return indices.flatten()


def _autoencoder(folder: Path) -> Any:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return _load(AutoencoderKL, folder, "float32")


def _text_encoder(folder: Path) -> Any:
    from transformers import CLIPTextModel

    return _load(CLIPTextModel, folder, "float32")


def _tokenizer(folder: Path, model: Path, fill: str | None = None) -> Any:
    """Load the tokenizer in a folder, which pads texts with `fill`, or by its settings if None.

    Raises:
        ValueError: transformers is not installed, or a file of the tokenizer is missing.
    """
    try:
        from transformers import CLIPTokenizer
    except (ImportError, RuntimeError) as error:
        raise ValueError(
            "stable-diffusion needs the package transformers: pip install 'unfool[latent]' "
            f"({error})"
        ) from error
    if lacks := [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]:
        raise ValueError(
            f"{model} needs a tokenizer, and there is no file {folder / lacks[0]}: copy the folder "
            "tokenizer (vocab.json, merges.txt) of any Stable Diffusion there, or name it by "
            "tokenizer: FOLDER"
        )
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    if fill is not None:
        tokenizer.pad_token = fill
    return tokenizer


@torch.no_grad()
def _embed(tokenizer: Any, encoder: Any, texts: Sequence[str]) -> Tensor:
    """Return the last hidden states (P, L, D) of the text encoder for P texts, on the CPU.

    Raises:
        ValueError: The tokenizer has a token that the encoder does not have.
    """
    encoder = encoder.to(pick_device("auto"))
    most = encoder.config.max_position_embeddings
    tokens = tokenizer(
        list(texts), padding="max_length", max_length=most, truncation=True, return_tensors="pt"
    )
    if (highest := int(tokens.input_ids.max())) >= encoder.config.vocab_size:
        raise ValueError(
            f"the tokenizer has a token {highest}, and the text encoder has tokens up to "
            f"{encoder.config.vocab_size - 1}: use both from the same model"
        )
    parts = tokens.input_ids.to(encoder.device).split(32)
    return torch.cat([encoder(part)[0].cpu() for part in parts])


def _adapted(kind: Any, part: Path, precision: Precision, adapter: Path | None) -> Any:
    """Load a network, and merge an adapter into its weights if there is one."""
    if adapter is None:
        return _load(kind, part, precision)
    network = _load(kind, part, "float32")  # rounded after the adapter is merged
    lora.load(network, Path(adapter), precision=precision)
    return network


def _load(kind: Any, part: Path, precision: Precision) -> Any:
    """Load a network of diffusers or transformers from its sub-folder, and require all weights."""
    file = weights_in(part) or part
    options: dict[str, Any] = {
        "local_files_only": True,
        "output_loading_info": True,
        "use_safetensors": file.suffix == ".safetensors",
        "variant": "fp16" if ".fp16." in file.name else None,
        "dtype" if kind.__module__.startswith("transformers") else "torch_dtype": getattr(
            torch, precision
        ),
    }
    try:
        with _silence(kind):
            model, info = kind.from_pretrained(str(part), **options)
    except Exception as error:  # a damaged or unrelated file can raise any exception
        raise_system_error(error)
        message = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{file} cannot be read as a {kind.__name__} ({message}): fetch it again"
        ) from error
    if lacks := sorted(info["missing_keys"]):
        raise ValueError(
            f"{file} does not fit its config.json: it lacks {len(lacks)} weights ({lacks[0]}, "
            "...): fetch the folder again"
        )
    return model


@contextmanager
def _silence(kind: Any) -> Iterator[None]:
    """Silence warnings and progress bars of the library of `kind`; `_load` checks what matters."""
    logging = import_module(f"{kind.__module__.partition('.')[0]}.utils.logging")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


def _complete(
    folder: Path, networks: Sequence[str], others: Sequence[str], download: Sequence[str]
) -> None:
    """Check that a diffusers folder has all files that are needed, or download them.

    Raises:
        ValueError: A file is missing and could not be downloaded.
    """
    lacks = _lacking(folder, networks, others)
    failed = []
    for address in download if lacks else ():
        from huggingface_hub import snapshot_download

        server, name = address.rsplit("/", 2)[:-2], "/".join(address.rsplit("/", 2)[-2:])
        wanted = [f"{part}/*.json" for part in (*networks, *others, "scheduler")]
        wanted += [f"{part}/*.txt" for part in others]
        wanted += [f"{part}/{stem}.safetensors" for part in networks
                   for stem in ("diffusion_pytorch_model", "model")]  # fmt: skip
        try:
            snapshot_download(
                name,
                endpoint=server[0] if server else None,
                local_dir=folder,
                allow_patterns=wanted,
            )
        except Exception as error:  # the network and the hub raise many kinds of exceptions
            failed.append(f"{address} ({' '.join(str(error).split())[:80]})")
        lacks = _lacking(folder, networks, others)
        if not lacks:
            return
    if failed:
        raise ValueError(
            f"{folder} lacks {lacks[0]}, and it could not be fetched: {'; '.join(failed)}"
        )
    if lacks:
        parts = ", ".join((*networks, *others, "scheduler"))
        raise ValueError(
            f"{folder} lacks {lacks[0]}: put a model in the diffusers layout there (the folders "
            f"{parts}), or name the repositories to fetch it from by `download`"
        )


def _lacking(folder: Path, networks: Sequence[str], others: Sequence[str]) -> list[str]:
    needed = [f"{part}/config.json" for part in networks] + ["scheduler/scheduler_config.json"]
    lacks = [name for name in needed if not (folder / name).is_file()]
    lacks += [
        f"{part}/{'diffusion_pytorch_model' if part != 'text_encoder' else 'model'}.safetensors "
        "(or .bin)"
        for part in networks
        if weights_in(folder / part) is None
    ]
    return lacks + [part for part in others if not (folder / part).is_dir()]
