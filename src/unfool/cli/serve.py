"""The command `serve`."""

import re
from pathlib import Path
from typing import Annotated

import typer

from unfool.cli.options import BatchSize, Data, Device, Set, Spec

MIB = 2**20


def serve(
    spec: Spec,
    changes: Set = None,
    data: Data = None,
    host: Annotated[
        str, typer.Option(help="The address to listen on; 0.0.0.0 accepts other machines.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port; 0 takes any free port.")
    ] = 8000,
    name: Annotated[
        str | None,
        typer.Option(help="The name of the model for clients (default: the spec's name)."),
    ] = None,
    votes: Annotated[
        int,
        typer.Option(
            min=1, help="Passes per image that vote, unless a request asks for another number."
        ),
    ] = 8,
    device: Device = "auto",
    batch_size: BatchSize = 256,
    max_body: Annotated[int, typer.Option(min=1, help="Largest size of a request, in MiB.")] = 16,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Most pixels in all images of one request.")
    ] = 16_000_000,
    max_images: Annotated[int, typer.Option(min=1, help="Most images in one request.")] = 64,
    max_votes: Annotated[int, typer.Option(min=1, help="Most votes per image.")] = 64,
    queue: Annotated[
        int,
        typer.Option(
            min=1, help="Passes (images x votes) that may wait; beyond that, the answer is 503."
        ),
    ] = 4096,
    timeout: Annotated[
        float,
        typer.Option(
            min=0.1, help="Seconds that a request may take; after that, the answer is 503."
        ),
    ] = 30.0,
    seeds: Annotated[
        bool, typer.Option(help="Let clients choose a seed. They then know the noise.")
    ] = True,
    playground: Annotated[
        bool,
        typer.Option(
            "--playground", help="Serve a page at / to try the model (needs unfool[web])."
        ),
    ] = False,
    max_steps: Annotated[
        int, typer.Option(min=1, help="Most steps of an attack in the playground.")
    ] = 50,
) -> None:
    """Serve a defended classifier over HTTP, without authentication (see docs/serve.md).

    POST /classify and /purify take image files (multipart) or arrays (JSON). /v2 speaks the Open
    Inference Protocol. See also /health, /ready, /metrics and /openapi.json. --playground adds a
    page at / that shows the defense at work. On Ctrl-C or SIGTERM, accepted requests are finished.
    """
    from unfool.runtime.optional import require

    for library in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
        require(library, "serve")
    if playground:
        require("gradio", "web")
    from unfool.serve import run
    from unfool.serve.limits import Limits

    limits = Limits(
        max_body * MIB, max_pixels, max_images, max_votes, queue, timeout, seeds, max_steps
    )
    model_name = name or re.sub(r"[^\w.-]", "-", Path(spec).stem) or "model"
    with run.listen(host, port) as listener:
        server = run.make_server(
            spec, changes or [], data, name=model_name, device=device, batch_size=batch_size,
            votes=votes, limits=limits, playground=playground,
        )  # fmt: skip
        url_host = f"[{host}]" if ":" in host else host
        address = f"http://{url_host}:{listener.getsockname()[1]}"
        run.serve(
            server,
            listener,
            lambda: typer.echo(f"serving {model_name} on {address}; Ctrl-C stops it"),
        )
