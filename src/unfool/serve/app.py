"""The routes of the service, and its responses to mistakes: a status and one sentence."""

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from torch import Tensor

from unfool import __version__
from unfool.api.apply import images_to_array, resize_purified
from unfool.data.image_files import png
from unfool.serve import examples, open_inference
from unfool.serve.batcher import ModelFailed, Overloaded
from unfool.serve.defense import Defense, Prediction, Work
from unfool.serve.limits import PendingBodies, Refused
from unfool.serve.metrics import CountRequests, Metrics
from unfool.serve.request import (
    SMALL,
    Body,
    Images,
    body_of,
    images_to_classify,
    images_to_purify,
    in_thread,
    parse_body,
    to_flag,
    to_seed,
    to_votes,
)

ABOUT = "Classify and purify images with a classifier behind a diffusion defense."


class _Route(APIRoute):
    """A route that FastAPI only documents: its function reads the request and responds itself."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        return self.endpoint


def make_app(defense: Defense, metrics: Metrics, votes: int) -> FastAPI:
    """Make the service as an ASGI application; closing it finishes the accepted requests.

    Args:
        defense: The model.
        metrics: The metrics to update.
        votes: Passes per image if a request does not choose a number.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(defense.batcher.close)

    metrics.watch(defense.batcher, defense.name)
    app = FastAPI(title="unfool", version=__version__, description=ABOUT, lifespan=lifespan)
    app.router.route_class = _Route
    app.add_middleware(CountRequests, metrics=metrics)
    for kind in (Refused, HTTPException, Exception):
        app.add_exception_handler(kind, _error_response)
    pending = PendingBodies(defense.limits)
    _add_plain(app, defense, metrics, pending, votes)
    _add_open_inference(app, defense, metrics, pending, votes)
    _add_status(app, defense, metrics)
    return app


def _add_status(app: FastAPI, defense: Defense, metrics: Metrics) -> None:
    name, tags = defense.name, ["status"]
    alive = examples.status(name, "/health", "Whether the process is alive.")
    accepting = examples.status(name, "/ready", "Whether requests are accepted.", waits=True)

    @app.get("/health", tags=[*tags], **alive)
    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    @app.get("/ready", tags=[*tags], **accepting)
    async def ready(_: Request) -> Response:
        fine = defense.batcher.accepting
        return JSONResponse({"ready": fine}, 200 if fine else 503)

    @app.get(
        "/metrics",
        summary="Counters for Prometheus.",
        tags=[*tags],
        response_class=PlainTextResponse,
    )
    async def counters(_: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_plain(
    app: FastAPI, defense: Defense, metrics: Metrics, pending: PendingBodies, votes: int
) -> None:
    limits = defense.limits

    @app.post("/classify", tags=["defense"], **examples.classify(defense.name, limits))
    async def classify(request: Request) -> Response:
        async def answer(content: bytes) -> Response:
            body = await parse_body(request, content, limits)
            draws = to_votes(body.fields.get("votes", votes), limits)
            seed = to_seed(body.fields.get("seed"), limits)
            images = await in_thread(
                images_to_classify, body, defense.loaded, limits, small=body.small
            )
            _check_size(images, draws, limits.queue)
            predictions = await defense.classify(Work(images.groups, draws, seed))
            metrics.images.labels("/classify").inc(len(predictions))
            return JSONResponse(_votes_json(defense, draws, seed, images, predictions))

        return await _in_time(request, pending, answer)

    @app.post("/purify", tags=["defense"], **examples.purify(defense.name, limits))
    async def purify(request: Request) -> Response:
        async def answer(content: bytes) -> Response:
            if defense.purifier is None:
                raise Refused(
                    404, "this model has no purifier, so it cannot purify images: use /classify"
                )
            body = await parse_body(request, content, limits)
            seed = to_seed(body.fields.get("seed"), limits)
            force = to_flag(body.fields.get("force", False), "force")
            shape = defense.purifier_shape
            images = await in_thread(images_to_purify, body, shape, force, limits, small=body.small)
            _check_size(images, 1, limits.queue)
            purified = await defense.purify(Work(images.groups, 1, seed))
            metrics.images.labels("/purify").inc(sum(map(len, purified)))
            json_ = "application/json" in request.headers.get("accept", "")
            metadata = {"model": defense.name, "seed": seed, "notes": images.notes}
            return await in_thread(
                _purified_response, metadata, body, images, purified, json_, small=body.small
            )

        return await _in_time(request, pending, answer)


def _add_open_inference(
    app: FastAPI, defense: Defense, metrics: Metrics, pending: PendingBodies, votes: int
) -> None:
    limits, tags = defense.limits, ["Open Inference Protocol"]

    def get(
        path: str, respond: Callable[[], tuple[Any, int]], summary: str, waits: bool = False
    ) -> None:
        async def route(request: Request) -> Response:
            _check_model(request, defense)
            content, status = respond()
            return JSONResponse(content, status)

        openapi = examples.status(defense.name, path, summary, waits)
        app.add_api_route(path, route, methods=["GET"], tags=[*tags], **openapi)

    def ready() -> tuple[Any, int]:
        fine = defense.batcher.accepting
        return {"name": defense.name, "ready": fine}, 200 if fine else 503

    get("/v2", lambda: (open_inference.server(), 200), "The server.")
    get("/v2/health/live", lambda: ({"live": True}, 200), "Whether the process is alive.")
    get(
        "/v2/health/ready",
        lambda: ({"ready": ready()[0]["ready"]}, ready()[1]),
        "Whether it is ready.",
        waits=True,
    )

    async def infer(request: Request) -> Response:
        async def answer(content: bytes) -> Response:
            _check_model(request, defense)
            header, small = request.headers.get(open_inference.HEADER), len(content) <= SMALL
            inference = await in_thread(
                open_inference.read, content, header, defense, limits, small=small
            )
            body, draws = Body((), inference.array, {}), inference.votes or votes
            images = await in_thread(
                images_to_classify, body, defense.loaded, limits, small=body.small
            )
            _check_size(images, draws, limits.queue)
            predictions = await defense.classify(Work(images.groups, draws, inference.seed))
            metrics.images.labels("/v2").inc(len(predictions))
            return open_inference.answer(inference, defense, predictions)

        return await _in_time(request, pending, answer)

    for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        get(model, lambda: (open_inference.metadata(defense), 200), "The model.")
        get(f"{model}/ready", ready, "Whether the model is ready.", waits=True)
        openapi = examples.infer(defense.name, model, limits)
        app.add_api_route(f"{model}/infer", infer, methods=["POST"], tags=[*tags], **openapi)


def _check_model(request: Request, defense: Defense) -> None:
    if request.path_params.get("name", defense.name) != defense.name:
        raise Refused(404, f"there is no model of that name: this service has {defense.name!r}")
    if request.path_params.get("version", open_inference.VERSION) != open_inference.VERSION:
        raise Refused(
            404, f"there is no such version: the model has the version {open_inference.VERSION}"
        )


def _check_size(images: Images, votes: int, limit: int) -> None:
    rows = sum(map(len, images.groups)) * votes
    if rows > limit:
        raise Refused(
            413,
            (
                f"{rows} passes exceed the size of the queue ({limit}): send fewer images or ask for "
                "fewer votes"
            ),
        )


async def _in_time(
    request: Request, pending: PendingBodies, answer: Callable[[bytes], Awaitable[Response]]
) -> Response:
    """Answer a request's body in time; a timeout, full queue, or failed model raises `Refused`."""
    seconds = pending.limits.seconds
    try:
        async with asyncio.timeout(seconds), body_of(request, pending) as content:
            return await answer(content)
    except TimeoutError:
        raise Refused(
            503, f"the answer took longer than {seconds:g} seconds: try again later", 1
        ) from None
    except Overloaded as error:
        raise Refused(503, str(error), error.retry_after) from None
    except ModelFailed:
        raise Refused(500, "the model failed on these images: see the log of the service") from None


async def _error_response(_: Request, error: Exception) -> Response:
    """Return an error as JSON, without details of the server."""
    if isinstance(error, Refused):
        wait = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        return JSONResponse({"error": error.why}, error.status, wait)
    status = getattr(error, "status_code", 500)
    if status == 404:
        return JSONResponse({"error": "there is no such path: /openapi.json lists them"}, 404)
    if status == 405:
        return JSONResponse(
            {"error": "this path does not take this HTTP method: /openapi.json lists the methods"},
            405,
            getattr(error, "headers", None),
        )
    if status < 500:
        return JSONResponse({"error": "the request is malformed and cannot be read"}, status)
    return JSONResponse({"error": "the service failed: see its log"}, 500)


def _votes_json(
    defense: Defense, votes: int, seed: int | None, images: Images, predictions: list[Prediction]
) -> dict[str, Any]:
    return {
        "model": defense.name,
        "classes": [
            defense.loaded.label(index) for index in range(len(predictions[0].tally.counts))
        ],
        "votes": votes,
        "seed": seed,
        "predictions": [
            {
                "class": prediction.label,
                "index": prediction.tally.winner,
                "votes": prediction.tally.votes,
                "undecided": prediction.tally.undecided,
                "share": prediction.share.value,
                "low": prediction.share.low,
                "high": prediction.share.high,
                "counts": prediction.tally.counts,
                "probabilities": prediction.probabilities,
            }
            for prediction in predictions
        ],
        "notes": images.notes,
    }


def _purified_response(
    metadata: dict[str, Any], body: Body, images: Images, purified: list[Tensor], json_: bool
) -> Response:
    """Return purified images: an array as an array, one file as PNG, others as base64 in JSON."""
    restored = [resize_purified(x, shape) for x, shape in zip(purified, images.shapes, strict=True)]
    if body.array is not None:
        channels_last = body.array.ndim == 4 and images.shapes[0][1:] != body.array.shape[1:]
        return JSONResponse(
            metadata | {"images": images_to_array(restored[0], body.array, channels_last).tolist()}
        )
    if len(restored) == 1 and not json_:
        return Response(png(restored[0][0]), media_type="image/png")
    return JSONResponse(
        metadata | {"png": [base64.b64encode(png(x[0])).decode() for x in restored]}
    )
