"""The OpenAPI descriptions of the routes, with examples that can be sent unchanged."""

from typing import Any

from unfool.serve.limits import Limits
from unfool.serve.open_inference import DATATYPES, INPUT, VERSION

JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}
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
FORCE = {"force": {"type": "boolean", "description": "Accept images far larger than the model's."}}
DTYPE = {"dtype": {"type": "string", "enum": ["float32", "uint8"], "default": "float32"}}
SIZES = {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 3, "maxItems": 4}
INFER = {
    "type": "object",
    "properties": {
        "id": {"type": ["string", "null"]},
        "inputs": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "name": {"enum": [INPUT]},
                    "datatype": {"enum": [*DATATYPES]},
                    "shape": SIZES,
                },
                "required": ["name", "datatype", "shape"],
            },
            "minItems": 1,
            "maxItems": 1,
        },
        "parameters": {"type": ["object", "null"]},
        "outputs": {"type": ["array", "null"], "items": {"type": "object"}},
    },
    "required": ["inputs"],
}
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
NO_SEEDS = {403: "The request has a seed, and the service does not accept one."}
NO_MODEL = {404: "The service has no model of this name and version."}
NO_PURIFIER = {404: "The model has no purifier."}
ERROR = {
    "type": "object",
    "properties": {"error": {"type": "string", "description": "What is wrong, in one sentence."}},
    "required": ["error"],
}
PNGS = {"type": "array", "items": {"type": "string", "contentEncoding": "base64"}}
NULLABLE = ("seed", "probabilities")  # fields of an answer that may be null


def classify(model: str, limits: Limits) -> dict[str, Any]:
    """Describe `/classify`."""
    return {
        "summary": "Classify images by majority vote.",
        "responses": _answers(VOTED | {"model": model}, ERRORS | NO_SEEDS),
        "openapi_extra": _body(_numbers(limits), PLAIN),
    }


def purify(model: str, limits: Limits) -> dict[str, Any]:
    """Describe `/purify`."""
    example = {key: value for key, value in PLAIN.items() if key != "votes"}
    numbers = {key: value for key, value in _numbers(limits).items() if key != "votes"}
    answers = _answers(PURIFIED | {"model": model}, ERRORS | NO_SEEDS | NO_PURIFIER)
    content = answers[200]["content"]
    schema = content["application/json"]["schema"]
    schema["properties"] |= {"images": {"anyOf": [_nested(3), _nested(4)]}, "png": PNGS}
    schema["required"] = ["model", "seed", "notes"]
    content["image/png"] = {"schema": {"type": "string", "format": "binary"}}
    return {
        "summary": "Images, purified.",
        "responses": answers,
        "openapi_extra": _body(numbers | FORCE, example),
    }


def infer(model: str, path: str, limits: Limits) -> dict[str, Any]:
    """Describe `infer` of the Open Inference Protocol."""
    example = TENSOR if limits.seeds else TENSOR | {"parameters": {"votes": 4}}
    content = {"application/json": {"schema": INFER, "example": example}}
    answers = _answers(INFERRED | {"model_name": model}, ERRORS | NO_SEEDS | NO_MODEL)
    answers[200]["content"]["application/json"].pop("schema")  # outputs have different data types
    return {
        "summary": "Classify images by majority vote.",
        "responses": answers,
        "openapi_extra": {"requestBody": {"required": True, "content": content}}
        | _path_parameters(model, path),
    }


def status(model: str, path: str, summary: str, waits: bool = False) -> dict[str, Any]:
    """Describe a status route; one that `waits` responds with 503 unless the service is ready."""
    parameters = _path_parameters(model, path)
    return {
        "summary": summary,
        "responses": {
            **({503: {"description": "Not ready."}} if waits else {}),
            **(_errors(NO_MODEL) if parameters else {}),
        },
        "openapi_extra": parameters,
    }


def _path_parameters(model: str, path: str) -> dict[str, Any]:
    """Describe the parameters of a path, each with the only value that the service accepts."""
    values = {"{name}": model, "{version}": VERSION}
    parameters = [
        {"name": part[1:-1], "in": "path", "required": True, "schema": {"enum": [values[part]]}}
        for part in path.split("/")
        if part in values
    ]
    return {"parameters": parameters} if parameters else {}


def _numbers(limits: Limits) -> dict[str, Any]:
    votes = {"type": "integer", "minimum": 1, "maximum": limits.votes}
    seed = {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
    numbers = {"votes": votes | {"description": "Passes that vote."}}
    if limits.seeds:
        about = "Seed for a repeatable answer; without it, the noise is fresh."
        numbers["seed"] = seed | {"description": about}
    return numbers


def _body(fields: dict[str, Any], example: dict[str, Any]) -> dict[str, Any]:
    """Describe a body: a form with image files, or JSON with an array."""
    picture = {"type": "string", "contentMediaType": "image/png", "format": "binary"}
    files = {"image": {"type": "array", "items": picture, "minItems": 1}}
    array = {
        "images": {
            "anyOf": [_nested(3), _nested(4)],
            "description": "(N, H, W, C), (N, C, H, W) or (N, H, W), all lists of equal length.",
        }
    }
    json_ = array | DTYPE | fields
    example = {key: value for key, value in example.items() if key in json_}
    form = files | fields
    if "force" in form:
        form["force"] = form["force"] | {"type": "string", "enum": ["true", "false", "1", "0"]}
    if "seed" in json_:
        json_["seed"] = json_["seed"] | {"type": ["integer", "null"]}
    content = {
        "multipart/form-data": {"schema": _object(form, ["image"])},
        "application/json": {"schema": _object(json_, ["images"]), "example": example},
    }
    return {"requestBody": {"required": True, "content": content}}


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _nested(depth: int) -> dict[str, Any]:
    if not depth:
        return {"type": "number", "minimum": 0, "maximum": 255}
    return {"type": "array", "items": _nested(depth - 1), "minItems": 1}


def _answers(example: dict[str, Any], errors: dict[int, str]) -> dict[int, Any]:
    content = {"application/json": {"schema": _schema(example), "example": example}}
    return {200: {"description": "The answer.", "content": content}, **_errors(errors)}


def _errors(errors: dict[int, str]) -> dict[int, Any]:
    content = {"application/json": {"schema": ERROR, "example": {"error": "one sentence"}}}
    return {number: {"description": why, "content": content} for number, why in errors.items()}


def _schema(example: object, name: str = "") -> dict[str, Any]:
    """Derive the schema of an answer from an example."""
    if isinstance(example, dict):
        properties = {key: _schema(value, key) for key, value in example.items()}
        return {"type": "object", "properties": properties, "required": sorted(example)}
    if isinstance(example, list):
        schema: dict[str, Any] = {"type": "array", "items": _schema(example[0]) if example else {}}
    else:
        schema = {"type": JSON_TYPES[type(example)]}
    if name in NULLABLE:
        schema["type"] = [schema["type"], "null"]
    return schema
