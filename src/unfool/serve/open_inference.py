"""The Open Inference Protocol, version 2, with binary tensors, for clients of KServe and Triton."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from starlette.responses import JSONResponse, Response

from unfool import __version__
from unfool.serve.defense import Defense, Prediction
from unfool.serve.limits import Limits, Refused
from unfool.serve.request import load_json, to_array, to_seed, to_votes, whole_number

VERSION = "1"  # the only version of the model
HEADER = "inference-header-content-length"
INPUT = "images"
DATATYPES = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "UINT8": "u1"}
OUTPUTS = {
    "class": ("INT64", ()),
    "label": ("BYTES", ()),
    "votes": ("INT64", ("classes",)),
    "interval": ("FP32", (2,)),
    "probabilities": ("FP32", ("classes",)),
}


class Inference(NamedTuple):
    """A request for inference.

    Attributes:
        id: The client's name for the request, or None.
        array: The images.
        votes: Passes per image, or None for the default.
        seed: Seed of the noise, or None for fresh noise.
        outputs: The requested outputs, and whether each is sent as binary data.
    """

    id: str | None
    array: np.ndarray
    votes: int | None
    seed: int | None
    outputs: Mapping[str, bool]


def server() -> dict[str, Any]:
    """Return the metadata of the service."""
    return {"name": "unfool", "version": __version__, "extensions": ["binary_tensor_data"]}


def metadata(defense: Defense) -> dict[str, Any]:
    """Return the metadata of the model."""
    shape = defense.loaded.shape or (-1, -1, -1)
    classes = -1 if defense.logits is None else defense.logits
    return {
        "name": defense.name,
        "versions": [VERSION],
        "platform": "unfool",
        "inputs": [{"name": INPUT, "datatype": "FP32", "shape": [-1, *shape]}],
        "outputs": [
            {
                "name": name,
                "datatype": kind,
                "shape": [-1, *(classes if size == "classes" else size for size in sizes)],
            }
            for name, (kind, sizes) in OUTPUTS.items()
            if name in _names(defense)
        ],
    }


def read(content: bytes, header: str | None, defense: Defense, limits: Limits) -> Inference:
    """Parse a request for inference.

    Args:
        content: The body.
        header: The value of `HEADER`, the length of the JSON part, if binary data follow it.
        defense: The model.
        limits: What the service accepts.

    Raises:
        Refused: The body is not a valid request.
    """
    size = len(content) if header is None else whole_number(header, HEADER, 1, len(content))
    request, binary = load_json(content[:size]), content[size:]
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise Refused(400, f"the request must have exactly one input, {INPUT!r}")
    if inputs[0].get("name") != INPUT:
        raise Refused(400, f"the input of this model must be called {INPUT!r}")
    parameters = _table(request, "parameters")
    default = bool(parameters.get("binary_data_output", False))
    outputs = [] if request.get("outputs") is None else request["outputs"]
    if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in outputs):
        raise Refused(400, "`outputs` must be a list of objects with a name")
    requested = {
        str(output.get("name"))[:40]: bool(_table(output, "parameters").get("binary_data", default))
        for output in outputs
    }
    names = _names(defense)
    if unknown := set(requested) - set(names):
        raise Refused(
            400, f"there is no output {min(unknown)!r}: this model has {', '.join(names)}"
        )
    votes, id_ = parameters.get("votes"), request.get("id")
    # A lone surrogate, which JSON can write, cannot be sent back.
    if id_ is not None and not (
        isinstance(id_, str) and id_.encode(errors="replace").decode() == id_
    ):
        raise Refused(400, "`id` must be a string of Unicode characters")
    return Inference(
        id_,
        _tensor(inputs[0], binary),
        None if votes is None else to_votes(votes, limits),
        to_seed(parameters.get("seed"), limits),
        requested or dict.fromkeys(names, default),
    )


def answer(request: Inference, defense: Defense, predictions: Sequence[Prediction]) -> Response:
    """Return the response to a request for inference."""
    values: dict[str, list[Any]] = {
        "class": [prediction.tally.winner for prediction in predictions],
        "label": [prediction.label for prediction in predictions],
        "votes": [prediction.tally.counts for prediction in predictions],
        "interval": [[prediction.share.low, prediction.share.high] for prediction in predictions],
        "probabilities": [prediction.probabilities for prediction in predictions],
    }
    outputs, tail = [], b""
    for name, binary in request.outputs.items():
        kind = OUTPUTS[name][0]
        nested = values[name]
        shape = [len(predictions), *([len(nested[0])] if isinstance(nested[0], list) else [])]
        row: dict[str, Any] = {"name": name, "datatype": kind, "shape": shape}
        if binary:
            packed = _packed(nested, kind)
            row["parameters"] = {"binary_data_size": len(packed)}
            tail += packed
        else:
            row["data"] = (
                [x for values_of_image in nested for x in values_of_image]
                if len(shape) > 1
                else nested
            )
        outputs.append(row)
    metadata: dict[str, Any] = {"model_name": defense.name, "model_version": VERSION}
    if request.id is not None:
        metadata["id"] = request.id
    metadata["outputs"] = outputs
    if not any(request.outputs.values()):
        return JSONResponse(metadata)
    head = json.dumps(metadata).encode()
    return Response(
        head + tail,
        media_type="application/octet-stream",
        headers={"Inference-Header-Content-Length": str(len(head))},
    )


def _names(defense: Defense) -> list[str]:
    return [name for name in OUTPUTS if name != "probabilities" or not defense.decides]


def _table(parent: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = {} if parent.get(name) is None else parent[name]
    if not isinstance(value, dict):
        raise Refused(400, f"`{name}` must be an object")
    return value


def _tensor(tensor: Mapping[str, Any], binary: bytes) -> np.ndarray:
    kind, shape = tensor.get("datatype"), tensor.get("shape")
    if not isinstance(kind, str) or kind not in DATATYPES:
        raise Refused(400, f"the datatype of {INPUT!r} must be one of {', '.join(DATATYPES)}")
    if not isinstance(shape, list) or not 3 <= len(shape) <= 4:
        raise Refused(
            400, f"the shape of {INPUT!r} must be [N, C, H, W], [N, H, W, C], or [N, H, W]"
        )
    sizes = [whole_number(size, "each number of a shape", 1, 2**31) for size in shape]
    dtype, size = np.dtype(DATATYPES[kind]), _table(tensor, "parameters").get("binary_data_size")
    if size is not None:
        if whole_number(size, "binary_data_size", 0, 2**31) != len(binary):
            raise Refused(
                400,
                f"binary_data_size is {size}, and the body has {len(binary)} bytes: both must agree",
            )
        if len(binary) != math.prod(sizes) * dtype.itemsize:
            raise Refused(400, f"{len(binary)} bytes do not fill a {kind} array of shape {sizes}")
        array = np.frombuffer(binary, dtype).reshape(sizes)
        return np.array(array, np.uint8 if kind == "UINT8" else np.float32)
    array = to_array(tensor.get("data"), np.uint8 if kind == "UINT8" else np.float32)
    if array.size != math.prod(sizes):
        raise Refused(400, f"{array.size} numbers do not fill the shape {sizes}")
    return array.reshape(sizes)


def _packed(values: list[Any], kind: str) -> bytes:
    """Encode a tensor as binary data; a string becomes its length in four bytes and its UTF-8."""
    if kind == "BYTES":
        words = [word.encode() for word in values]
        return b"".join(len(word).to_bytes(4, "little") + word for word in words)
    return np.asarray(values, "<i8" if kind == "INT64" else "<f4").tobytes()
