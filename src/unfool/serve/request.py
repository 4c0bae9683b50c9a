"""Turns the body of a request into images: multipart image files or JSON arrays, within limits."""

import io
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from torch import Tensor

from unfool.api.apply import (
    Loaded,
    Shape,
    array_to_images,
    read_image,
    read_image_for_model,
    refuse_large,
    resize_for_denoiser,
    resize_for_model,
)
from unfool.serve.limits import Limits, PendingBodies, Refused

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
DRAINED = 4  # a body is read up to this many times its limit, so that the client gets the refusal
SMALL = 2**16  # bytes of JSON that need no thread; an image file this small may have many pixels
FIELDS = ("votes", "seed", "force")
Result = TypeVar("Result")
_THREADS: RunVar[CapacityLimiter | None] = RunVar("unfool_decoding", default=None)
DTYPES = {"float32": np.float32, "uint8": np.uint8}


class Body(NamedTuple):
    """A parsed body.

    Attributes:
        files: The contents of the uploaded files.
        array: Images in an array, or None.
        fields: The other fields.
    """

    files: Sequence[bytes]
    array: np.ndarray | None
    fields: Mapping[str, Any]

    @property
    def small(self) -> bool:
        """Whether it can be turned into images without noticeable delay."""
        return self.array is not None and self.array.nbytes <= 4 * SMALL


@dataclass
class Images:
    """The images of a request.

    Attributes:
        groups: Images (B, C, H, W) of each group, shaped for the model.
        shapes: Shapes (B, C, H, W) before resizing, only for `/purify`.
        notes: What was changed, such as the size.
    """

    groups: list[Tensor] = field(default_factory=list)
    shapes: list[torch.Size] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@asynccontextmanager
async def body_of(request: Request, pending: PendingBodies) -> AsyncIterator[bytes]:
    """Read the body of a request; its bytes count as held until the block ends.

    Raises:
        Refused: The body is too large, compressed, or incomplete, or too many bytes are held.
    """
    size = 0
    try:
        chunks = []
        async for chunk in _chunks(request, pending.limits):
            pending.add(len(chunk))
            size += len(chunk)
            chunks.append(chunk)
        yield b"".join(chunks)
    except ClientDisconnect:
        raise Refused(400, "the connection closed before the body was complete") from None
    finally:
        pending.release(size)


async def _chunks(request: Request, limits: Limits) -> AsyncIterator[bytes]:
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused(
            415, "the body is compressed, which the service does not support: send it uncompressed"
        )
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= limits.body:
            yield chunk
        elif size > DRAINED * limits.body:
            break
    if size > limits.body:
        raise Refused(
            413, f"the body has more than {limits.body} bytes: send fewer or smaller images"
        )


async def parse_body(request: Request, content: bytes, limits: Limits) -> Body:
    """Parse a multipart or JSON body.

    Raises:
        Refused: The body is neither, is malformed, or has unknown fields.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        body = await _parse_form(request, content, limits)
    elif kind == "application/json":
        body = await in_thread(_parse_json, content, small=len(content) <= SMALL)
    else:
        raise Refused(
            415, "send image files as multipart/form-data, or arrays of numbers as application/json"
        )
    if unknown := sorted(set(body.fields) - set(FIELDS)):
        raise Refused(
            400, f"there is no field {unknown[0][:40]!r}: the fields are {', '.join(FIELDS)}"
        )
    return body


async def in_thread(call: Callable[..., Result], *arguments: object, small: bool = False) -> Result:
    """Run slow work, such as decoding, in one of two threads, so that the event loop stays free.

    Work that is `small` is done at once, because waiting for a thread would take longer.
    """
    if small:
        return call(*arguments)
    if _THREADS.get() is None:
        _THREADS.set(CapacityLimiter(2))
    return await to_thread.run_sync(call, *arguments, limiter=_THREADS.get())


def load_json(content: bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        Refused: The content is not a JSON object.
    """
    try:
        table = json.loads(content)
    except (ValueError, RecursionError):
        raise Refused(400, "the body cannot be read as JSON") from None
    if not isinstance(table, dict):
        raise Refused(400, 'the body must be an object, such as {"images": [...]}')
    return table


def whole_number(value: object, name: str, least: int, most: int) -> int:
    """Return an integer from JSON or a form.

    Raises:
        Refused: The value is not an integer, or is out of range.
    """
    if isinstance(value, str) and value.strip().removeprefix("-").isdecimal() and len(value) < 25:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise Refused(400, f"{name} must be a whole number from {least} to {most}")
    return value


def to_flag(value: object, name: str) -> bool:
    """Return a boolean from JSON or a form.

    Raises:
        Refused: The value is neither true (or 1) nor false (or 0).
    """
    for flag, words in ((True, ("true", "1")), (False, ("false", "0"))):
        if value is flag or value in words:
            return flag
    raise Refused(400, f"{name} must be true or false")


def to_votes(value: object, limits: Limits) -> int:
    """Return the number of passes that vote.

    Raises:
        Refused: The value is not an integer from 1 to the limit.
    """
    return whole_number(value, "votes", 1, limits.votes)


def to_seed(value: object, limits: Limits) -> int | None:
    """Return the seed, or None for fresh noise.

    Raises:
        Refused: The value is not a 64-bit integer, or the service accepts no seeds.
    """
    if value is not None and not limits.seeds:
        raise Refused(
            403,
            (
                "this service does not accept a seed, so every answer uses fresh noise: leave the seed "
                "out"
            ),
        )
    return None if value is None else whole_number(value, "seed", -(2**63), 2**63 - 1)


def images_to_classify(body: Body, loaded: Loaded, limits: Limits) -> Images:
    """Return the images of a body, shaped for the classifier.

    Raises:
        Refused: The body contains no valid images, or too many images or pixels.
    """
    images, room = Images(), _Room(limits)
    for number, content in enumerate(body.files, 1):
        name = f"image {number}"
        room.take(_pixels(content, name))
        file = io.BytesIO(content)
        images.groups.append(
            _decoded(read_image_for_model, loaded, file, name, images.notes.append)
        )
    if body.array is not None:
        x = _checked_array(body.array, room)
        images.groups.append(resize_for_model(x, loaded.shape, images.notes.append))
    return images


def images_to_purify(body: Body, shape: Shape | None, force: bool, limits: Limits) -> Images:
    """Return the images of a body, shaped for the denoiser.

    Raises:
        Refused: The body contains no valid images, too many, or one that is too large.
    """
    images, room = Images(), _Room(limits)

    def add(x: Tensor, name: str) -> None:
        if not force:
            try:
                refuse_large(x, shape, name, "add the field force=true")
            except ValueError as error:
                raise Refused(413, str(error)) from None
        images.shapes.append(x.shape)
        images.groups.append(resize_for_denoiser(x, shape, images.notes.append))

    for number, content in enumerate(body.files, 1):
        name = f"image {number}"
        room.take(_pixels(content, name))
        add(_decoded(read_image, io.BytesIO(content), name, shape, images.notes.append), name)
    if body.array is not None:
        add(_checked_array(body.array, room), "each image")
    return images


class _Room:
    """The images and pixels of a request, counted against the limits."""

    def __init__(self, limits: Limits):
        self.limits, self.images, self.pixels = limits, 0, 0

    def take(self, pixels: int, images: int = 1) -> None:
        self.images, self.pixels = self.images + images, self.pixels + pixels
        if self.images > self.limits.images:
            raise Refused(
                413, f"a request may have at most {self.limits.images} images: send fewer"
            )
        if self.pixels > self.limits.pixels:
            raise Refused(
                413,
                (
                    f"the images of a request may have at most {self.limits.pixels} pixels "
                    "together: send fewer or smaller images"
                ),
            )


def to_array(values: object, kind: type) -> np.ndarray:
    """Convert nested lists to an array.

    Raises:
        Refused: The lists are ragged, empty, not of numbers, or out of range for `kind`.
    """
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "iuf" or not array.size:
            raise ValueError
        if kind is np.uint8 and (array.dtype.kind == "f" or array.min() < 0 or array.max() > 255):
            raise ValueError
        with np.errstate(all="ignore"):
            return array.astype(kind)
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise Refused(
            400,
            "the images must be nested lists of numbers, all of one shape: floating point in [0, "
            "1], or integers from 0 to 255 for uint8",
        ) from None


def _checked_array(array: np.ndarray, room: _Room) -> Tensor:
    try:
        x, _ = array_to_images(array, "the body")
    except ValueError as error:
        raise Refused(400, str(error)) from None
    room.take(len(x) * x.shape[2] * x.shape[3], len(x))
    return x


def _pixels(content: bytes, name: str) -> int:
    """Return the pixels that the header of an image file states; nothing is decompressed."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            return opened.width * opened.height
    except Image.DecompressionBombError:
        raise Refused(413, f"{name} has far too many pixels: send a smaller image") from None
    except Exception:  # a damaged file may raise anything
        raise Refused(400, f"{name} cannot be read as PNG, JPEG, WebP, or BMP") from None


def _decoded(decode: Callable[..., Tensor], *arguments: object) -> Tensor:
    try:
        return decode(*arguments)
    except ValueError as error:
        raise Refused(400, " ".join(str(error).split())[:300]) from None
    except MemoryError:
        raise
    except Exception:  # a damaged file may raise anything
        raise Refused(400, "an image is damaged and cannot be read: save it again") from None


async def _parse_form(request: Request, content: bytes, limits: Limits) -> Body:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield content

    parser = MultiPartParser(
        request.headers, stream(), max_files=limits.images, max_fields=2 * len(FIELDS)
    )
    parser.spool_max_size = limits.body  # stay in memory
    files, fields = [], {}
    try:
        form = await parser.parse()
    except MultiPartException as error:
        status = 413 if "Too many files" in error.message else 400
        raise Refused(status, f"the form cannot be read: {error.message[:200]}") from None
    except Exception:  # a damaged form may raise anything
        raise Refused(400, "the form cannot be read: check its boundary") from None
    for key, value in form.multi_items():
        if isinstance(value, UploadFile):
            files.append(await value.read())
        else:
            fields[key] = value
    await form.close()
    if not files:
        raise Refused(400, "the form has no image file: add one, such as curl -F image=@photo.png")
    return Body(files, None, fields)


def _parse_json(content: bytes) -> Body:
    fields = load_json(content)
    if "images" not in fields:
        raise Refused(400, "the body needs `images`, nested lists of numbers (N, H, W, C)")
    kind = fields.pop("dtype", "float32")
    if not isinstance(kind, str) or kind not in DTYPES:
        raise Refused(400, f"dtype must be one of {', '.join(DTYPES)}")
    array = to_array(fields.pop("images"), DTYPES[kind])
    return Body((), array, fields)
