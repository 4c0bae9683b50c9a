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
from unfool.serve.limits import Held, Refused
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
        app.add_exception_handler(kind, _told)
    held = Held(defense.limits)
    _add_plain(app, defense, metrics, held, votes)
    _add_open_inference(app, defense, metrics, held, votes)
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


def _add_plain(app: FastAPI, defense: Defense, metrics: Metrics, held: Held, votes: int) -> None:
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
            found = await defense.classify(Work(images.groups, draws, seed))
            metrics.images.labels("/classify").inc(len(found))
            return JSONResponse(_told_votes(defense, draws, seed, images, found))

        return await _in_time(request, held, answer)

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
            pure = await defense.purify(Work(images.groups, 1, seed))
            metrics.images.labels("/purify").inc(sum(map(len, pure)))
            json_ = "application/json" in request.headers.get("accept", "")
            told = {"model": defense.name, "seed": seed, "notes": images.notes}
            return await in_thread(_told_pure, told, body, images, pure, json_, small=body.small)

        return await _in_time(request, held, answer)


def _add_open_inference(
    app: FastAPI, defense: Defense, metrics: Metrics, held: Held, votes: int
) -> None:
    limits, tags = defense.limits, ["Open Inference Protocol"]

    def get(
        path: str, told: Callable[[], tuple[Any, int]], summary: str, waits: bool = False
    ) -> None:
        async def route(request: Request) -> Response:
            _check_model(request, defense)
            content, status = told()
            return JSONResponse(content, status)

        more = examples.status(defense.name, path, summary, waits)
        app.add_api_route(path, route, methods=["GET"], tags=[*tags], **more)

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
            asked = await in_thread(
                open_inference.read, content, header, defense, limits, small=small
            )
            body, draws = Body((), asked.array, {}), asked.votes or votes
            images = await in_thread(
                images_to_classify, body, defense.loaded, limits, small=body.small
            )
            _check_size(images, draws, limits.queue)
            found = await defense.classify(Work(images.groups, draws, asked.seed))
            metrics.images.labels("/v2").inc(len(found))
            return open_inference.answer(asked, defense, found)

        return await _in_time(request, held, answer)

    for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        get(model, lambda: (open_inference.metadata(defense), 200), "The model.")
        get(f"{model}/ready", ready, "Whether the model is ready.", waits=True)
        more = examples.infer(defense.name, model, limits)
        app.add_api_route(f"{model}/infer", infer, methods=["POST"], tags=[*tags], **more)


def _check_model(request: Request, defense: Defense) -> None:
    if request.path_params.get("name", defense.name) != defense.name:
        raise Refused(404, f"there is no model of that name: this service has {defense.name!r}")
    if request.path_params.get("version", open_inference.VERSION) != open_inference.VERSION:
        raise Refused(
            404, f"there is no such version: the model has the version {open_inference.VERSION}"
        )


def _check_size(images: Images, votes: int, most: int) -> None:
    rows = sum(map(len, images.groups)) * votes
    if rows > most:
        raise Refused(
            413,
            (
                f"{rows} passes exceed the size of the queue ({most}): send fewer images or ask for "
                "fewer votes"
            ),
        )


async def _in_time(
    request: Request, held: Held, answer: Callable[[bytes], Awaitable[Response]]
) -> Response:
    """Answer a request's body in time; a timeout, full queue, or failed model raises `Refused`."""
    seconds = held.limits.seconds
    try:
        async with asyncio.timeout(seconds), body_of(request, held) as content:
            return await answer(content)
    except TimeoutError:
        raise Refused(
            503, f"the answer took longer than {seconds:g} seconds: try again later", 1
        ) from None
    except Overloaded as error:
        raise Refused(503, str(error), error.retry_after) from None
    except ModelFailed:
        raise Refused(500, "the model failed on these images: see the log of the service") from None


async def _told(_: Request, error: Exception) -> Response:
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


def _told_votes(
    defense: Defense, votes: int, seed: int | None, images: Images, found: list[Prediction]
) -> dict[str, Any]:
    return {
        "model": defense.name,
        "classes": [defense.loaded.label(index) for index in range(len(found[0].tally.counts))],
        "votes": votes,
        "seed": seed,
        "predictions": [
            {
                "class": each.label,
                "index": each.tally.winner,
                "votes": each.tally.votes,
                "undecided": each.tally.undecided,
                "share": each.share.value,
                "low": each.share.low,
                "high": each.share.high,
                "counts": each.tally.counts,
                "probabilities": each.probabilities,
            }
            for each in found
        ],
        "notes": images.notes,
    }


def _told_pure(
    told: dict[str, Any], body: Body, images: Images, pure: list[Tensor], json_: bool
) -> Response:
    """Return purified images: an array as an array, one file as PNG, others as base64 in JSON."""
    made = [resize_purified(x, shape) for x, shape in zip(pure, images.shapes, strict=True)]
    if body.array is not None:
        last = body.array.ndim == 4 and images.shapes[0][1:] != body.array.shape[1:]
        return JSONResponse(told | {"images": images_to_array(made[0], body.array, last).tolist()})
    if len(made) == 1 and not json_:
        return Response(png(made[0][0]), media_type="image/png")
    return JSONResponse(told | {"png": [base64.b64encode(png(x[0])).decode() for x in made]})
