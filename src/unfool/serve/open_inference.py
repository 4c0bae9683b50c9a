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
    asked, binary = load_json(content[:size]), content[size:]
    given = asked.get("inputs")
    if not isinstance(given, list) or len(given) != 1 or not isinstance(given[0], dict):
        raise Refused(400, f"the request must have exactly one input, {INPUT!r}")
    if given[0].get("name") != INPUT:
        raise Refused(400, f"the input of this model must be called {INPUT!r}")
    parameters = _table(asked, "parameters")
    default = bool(parameters.get("binary_data_output", False))
    outputs = [] if asked.get("outputs") is None else asked["outputs"]
    if not isinstance(outputs, list) or not all(isinstance(each, dict) for each in outputs):
        raise Refused(400, "`outputs` must be a list of objects with a name")
    wanted = {
        str(each.get("name"))[:40]: bool(_table(each, "parameters").get("binary_data", default))
        for each in outputs
    }
    names = _names(defense)
    if unknown := set(wanted) - set(names):
        raise Refused(
            400, f"there is no output {min(unknown)!r}: this model has {', '.join(names)}"
        )
    votes, id_ = parameters.get("votes"), asked.get("id")
    if id_ is not None and not isinstance(id_, str):
        raise Refused(400, "`id` must be a string")
    return Inference(
        id_,
        _tensor(given[0], binary),
        None if votes is None else to_votes(votes, limits),
        to_seed(parameters.get("seed"), limits),
        wanted or dict.fromkeys(names, default),
    )


def answer(asked: Inference, defense: Defense, found: Sequence[Prediction]) -> Response:
    """Return the response to a request for inference."""
    values: dict[str, list[Any]] = {
        "class": [each.tally.winner for each in found],
        "label": [each.label for each in found],
        "votes": [each.tally.counts for each in found],
        "interval": [[each.share.low, each.share.high] for each in found],
        "probabilities": [each.probabilities for each in found],
    }
    outputs, tail = [], b""
    for name, binary in asked.outputs.items():
        kind = OUTPUTS[name][0]
        nested = values[name]
        shape = [len(found), *([len(nested[0])] if isinstance(nested[0], list) else [])]
        row: dict[str, Any] = {"name": name, "datatype": kind, "shape": shape}
        if binary:
            packed = _packed(nested, kind)
            row["parameters"] = {"binary_data_size": len(packed)}
            tail += packed
        else:
            row["data"] = [x for each in nested for x in each] if len(shape) > 1 else nested
        outputs.append(row)
    told: dict[str, Any] = {"model_name": defense.name, "model_version": VERSION}
    if asked.id is not None:
        told["id"] = asked.id
    told["outputs"] = outputs
    if not any(asked.outputs.values()):
        return JSONResponse(told)
    head = json.dumps(told).encode()
    return Response(
        head + tail,
        media_type="application/octet-stream",
        headers={"Inference-Header-Content-Length": str(len(head))},
    )


def _names(defense: Defense) -> list[str]:
    return [name for name in OUTPUTS if name != "probabilities" or not defense.decides]


def _table(of: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = {} if of.get(name) is None else of[name]
    if not isinstance(found, dict):
        raise Refused(400, f"`{name}` must be an object")
    return found


def _tensor(given: Mapping[str, Any], binary: bytes) -> np.ndarray:
    kind, shape = given.get("datatype"), given.get("shape")
    if not isinstance(kind, str) or kind not in DATATYPES:
        raise Refused(400, f"the datatype of {INPUT!r} must be one of {', '.join(DATATYPES)}")
    if not isinstance(shape, list) or not 3 <= len(shape) <= 4:
        raise Refused(
            400, f"the shape of {INPUT!r} must be [N, C, H, W], [N, H, W, C], or [N, H, W]"
        )
    sizes = [whole_number(size, "each number of a shape", 1, 2**31) for size in shape]
    dtype, size = np.dtype(DATATYPES[kind]), _table(given, "parameters").get("binary_data_size")
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
    array = to_array(given.get("data"), np.uint8 if kind == "UINT8" else np.float32)
    if array.size != math.prod(sizes):
        raise Refused(400, f"{array.size} numbers do not fill the shape {sizes}")
    return array.reshape(sizes)


def _packed(values: list[Any], kind: str) -> bytes:
    """Encode a tensor as binary data; a string becomes its length in four bytes and its UTF-8."""
    if kind == "BYTES":
        words = [word.encode() for word in values]
        return b"".join(len(word).to_bytes(4, "little") + word for word in words)
    return np.asarray(values, "<i8" if kind == "INT64" else "<f4").tobytes()
