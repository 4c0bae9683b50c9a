"""What the OpenAPI description says of the routes, with examples that can be sent as they are."""

from typing import Any

LINES = [[0.0, 0.5, 1.0, 0.5], [0.5, 1.0, 0.5, 0.0], [1.0, 0.5, 0.0, 0.5], [0.5, 0.0, 0.5, 1.0]]
PLAIN = {"images": [LINES], "votes": 4, "seed": 0}
TENSOR = {
    "inputs": [
        {
            "name": "images",
            "datatype": "FP32",
            "shape": [1, 4, 4],
            "data": [value for line in LINES for value in line],
        }
    ],
    "parameters": {"votes": 4, "seed": 0},
}
NUMBERS = {
    "votes": {"type": "integer", "minimum": 1, "description": "Passes that vote."},
    "seed": {
        "type": "integer",
        "description": "Seed for a repeatable answer; without it, the noise is fresh.",
    },
}
FORCE = {"force": {"type": "boolean", "description": "Accept images far larger than the model's."}}
DTYPE = {"dtype": {"enum": ["float32", "uint8"], "default": "float32"}}
PREDICTION = {
    "class": "dark", "index": 0, "votes": 3, "undecided": False, "share": 0.75, "low": 0.301,
    "high": 0.954, "counts": [3, 1], "probabilities": [0.71, 0.29],
}  # fmt: skip
VOTED = {
    "model": "blobs", "classes": ["dark", "bright"], "votes": 4, "seed": 0,
    "predictions": [PREDICTION], "notes": [],
}  # fmt: skip
PURIFIED = {"model": "blobs", "seed": 0, "notes": [], "images": [LINES]}
INFERRED = {
    "model_name": "blobs", "model_version": "1",
    "outputs": [{"name": "class", "datatype": "INT64", "shape": [1], "data": [0]}],
}  # fmt: skip
ERRORS = {
    400: (
        "The request is invalid: it has no image, a damaged one, ragged numbers, or an unknown "
        "field."
    ),
    413: "The request has more bytes, pixels, images, or passes than the service accepts.",
    415: "The request is neither a form with image files nor JSON.",
    503: "The queue is full, or the request timed out; Retry-After says when to try again.",
}


def classify(model: str) -> dict[str, Any]:
    """Of `/classify`."""
    return _route(
        "Classify images by majority vote.", _content(NUMBERS, PLAIN), VOTED | {"model": model}
    )


def purify(model: str) -> dict[str, Any]:
    """Of `/purify`."""
    example = {key: value for key, value in PLAIN.items() if key != "votes"}
    fields = {"seed": NUMBERS["seed"], **FORCE}
    told = _route("Images, purified.", _content(fields, example), PURIFIED | {"model": model})
    told["responses"][200]["content"]["image/png"] = {
        "schema": {"type": "string", "format": "binary"}
    }
    return told


def infer(model: str) -> dict[str, Any]:
    """Of `infer` of the Open Inference Protocol."""
    content = {"application/json": {"schema": {"type": "object"}, "example": TENSOR}}
    return _route("Classify images by majority vote.", content, INFERRED | {"model_name": model})


def _content(fields: dict[str, Any], example: dict[str, Any]) -> dict[str, Any]:
    file = {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}}
    array = {
        "images": {
            "type": "array",
            "items": {},
            "description": "(N, H, W, C), (N, C, H, W) or (N, H, W).",
        }
    }
    return {
        "multipart/form-data": {
            "schema": {"type": "object", "properties": file | fields, "required": ["image"]}
        },
        "application/json": {
            "schema": {
                "type": "object",
                "properties": array | DTYPE | fields,
                "required": ["images"],
            },
            "example": example,
        },
    }


def _route(summary: str, content: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    error = {"application/json": {"example": {"error": "one sentence"}}}
    responses: dict[int, Any] = {
        status: {"description": why, "content": error} for status, why in ERRORS.items()
    }
    responses[200] = {
        "description": "The answer.",
        "content": {"application/json": {"example": answer}},
    }
    return {
        "summary": summary,
        "responses": responses,
        "openapi_extra": {"requestBody": {"required": True, "content": content}},
    }
