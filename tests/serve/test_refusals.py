"""Invalid, too large, and too many requests are refused in one sentence without server details."""

import asyncio
import io
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from typing import Any

import httpx
import pytest
from PIL import Image
from running import started

from unfool.serve.limits import Limits

SLOW = ["purifier.steps=400"]
GRAY = {"images": [[[0.5] * 4] * 4]}


def refused(answer, *statuses):
    """Check that a response is a refusal with one of `statuses`, and return its sentence."""
    assert answer.status_code in statuses, answer.text
    assert list(answer.json()) == ["error"]
    sentence = answer.json()["error"]
    assert 0 < len(sentence) < 400
    assert "\n" not in sentence
    assert not re.search(
        r"Traceback|\.py|site-packages|object at 0x|File \"|/usr/|/home/|/root/", sentence
    )
    return sentence


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(width, height, data=b"", more=b""):
    """Make a PNG whose header claims a size, whatever its data are."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + more
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


def saved(kind, mode="RGB", size=(8, 8), **options):
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("route", ["/classify", "/purify"])
@pytest.mark.parametrize(
    ("content", "status"),
    [
        (png_of(100_000, 100_000), 413),
        (png_of(2**31 - 1, 2**31 - 1), 413),
        (png_of(5000, 4000, bytes(5001 * 4000)), 413),
        (png_of(8, 8, bytes(20), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**26)))), 400),
        (png_of(8, 8, b""), 400),
        (png_of(0, 0), 400),
        (saved("PNG", size=(64, 64))[:-40], 400),
        (saved("JPEG", size=(640, 640))[:700], 400),
        (saved("BMP")[:60], 400),
        (saved("WEBP")[:30], 400),
        (saved("GIF"), 400),
        (saved("TIFF"), 400),
        (saved("PNG", "RGBA"), 400),
        (saved("PNG", "I;16"), 400),
        (b"", 400),
        (b"no picture at all", 400),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 400),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 400),
    ],
    ids=range(18),
)
def test_invalid_images_and_decompression_bombs_are_refused(service, route, content, status):
    refused(service.client.post(route, files={"image": content}), status)


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({}, 400, "images"),
        ([], 400, "object"),
        ({"images": []}, 400, "numbers"),
        ({"images": "x"}, 400, "numbers"),
        ({"images": {"a": 1}}, 400, "numbers"),
        ({"images": [[[0.5, 0.5], [0.5]]]}, 400, "numbers"),
        ({"images": [[[10**400]]]}, 400, "numbers"),
        ({"images": [[["a"]]]}, 400, "numbers"),
        ({"images": [[[True]]]}, 400, "numbers"),
        ({"images": [0.5]}, 400, "images"),
        ({"images": [[[[[0.5]]]]]}, 400, "images"),
        ({"images": [[[1.5]]]}, 400, "[0, 1]"),
        ({"images": [[[256]]], "dtype": "uint8"}, 400, "255"),
        ({"images": [[[0.5]]], "dtype": "uint8"}, 400, "255"),
        ({"images": [[[0.5]]], "dtype": []}, 400, "dtype"),
        ({"images": [[[[0.5] * 2] * 5] * 5]}, 400, "channels"),
        (GRAY | {"votes": 0}, 400, "votes"),
        (GRAY | {"votes": 65}, 400, "64"),
        (GRAY | {"votes": 1.5}, 400, "votes"),
        (GRAY | {"votes": True}, 400, "votes"),
        (GRAY | {"seed": "a"}, 400, "seed"),
        (GRAY | {"seed": 2**70}, 400, "seed"),
        (GRAY | {"stepz": 3}, 400, "stepz"),
        ({"images": [GRAY["images"][0]] * 65}, 413, "64"),
    ],
)
def test_invalid_json_bodies_are_refused(service, body, status, named):
    assert named in refused(service.client.post("/classify", json=body), status)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "nul",
        "[" * 100_000,
        '{"images": [[[NaN]]]}',
        '{"images": [[[1e999]]]}',
        '{"votes": ' + "9" * 5000 + "}",
    ],
    ids=range(7),
)
def test_malformed_json_text_is_refused(service, text):
    head = {"content-type": "application/json"}
    refused(service.client.post("/classify", content=text.encode(), headers=head), 400)


def test_invalid_requests_are_refused(service, picture):
    post = service.client.post
    refused(post("/classify", content=b"x"), 415)
    refused(post("/classify", content=b"x", headers={"content-type": "image/png"}), 415)
    refused(post("/classify", content=b"x", headers={"content-encoding": "gzip"}), 415)
    refused(post("/classify", content=b"x", headers={"content-type": "multipart/form-data"}), 400)
    bounded = {"content-type": "multipart/form-data; boundary=b"}
    refused(post("/classify", content=b"x", headers=bounded), 400)
    for votes in ("many", "--5", "-"):
        refused(post("/classify", files={"image": picture()}, data={"votes": votes}), 400)
    refused(post("/classify", files=[("image", picture())] * 65), 413)
    refused(post("/classify", files={"votes": (None, "3")}), 400)
    refused(service.client.get("/nothing"), 404)
    refused(service.client.get("/../../etc/passwd"), 404)
    refused(service.client.get("/classify"), 405)
    assert "force" in refused(post("/purify", files={"image": picture(40, 4)}), 413)
    forced = post("/purify", files={"image": picture(40, 4)}, data={"force": "true"})
    assert forced.status_code == 200


def test_configured_limits_are_enforced():
    limits = Limits(body=5000, pixels=100, images=3, votes=4, queue=6, seconds=30)
    with started(limits=limits, votes=2) as service:
        post = service.client.post
        assert "5000" in refused(post("/classify", content=bytes(6000)), 413)
        assert "5000" in refused(post("/classify", content=bytes(60_000)), 413)
        wide = {"images": [[[0.5] * 101]]}
        assert "100" in refused(post("/classify", json=wide), 413)
        assert "3" in refused(post("/classify", json={"images": GRAY["images"] * 4}), 413)
        assert "4" in refused(post("/classify", json=GRAY | {"votes": 5}), 400)
        many = {"images": GRAY["images"] * 2, "votes": 4}
        assert "6" in refused(post("/classify", json=many), 413)
        assert post("/classify", json=GRAY).json()["votes"] == 2


def test_seeds_are_refused_when_disabled():
    with started(limits=Limits(seeds=False)) as service:
        post = service.client.post
        assert "seed" in refused(post("/classify", json=GRAY | {"seed": 1}), 403)
        tensor = {"name": "images", "datatype": "FP32", "shape": [1, 4, 4], "data": [0.5] * 16}
        asked = {"inputs": [tensor], "parameters": {"seed": 1}}
        assert "seed" in refused(post("/v2/models/blobs/infer", json=asked), 403)
        assert post("/classify", json=GRAY).status_code == 200
        for path, route in service.client.get("/openapi.json").json()["paths"].items():
            body = route.get("post", {}).get("requestBody")
            if body is not None:  # its example can be sent, and has no seed
                told = body["content"]["application/json"]
                assert "seed" not in json.dumps(told), path
                assert post(path.format(name="blobs", version=1), json=told["example"]).is_success


def test_waiting_bodies_share_a_limit():
    """While 16 clients hold bodies of nearly the largest size, even a small body finds no room."""
    limits = Limits(body=20_000, seconds=20)
    with started(limits=limits) as service:
        port, held = int(service.address.rsplit(":", 1)[1]), []
        for _ in range(16):
            held.append(socket.create_connection(("127.0.0.1", port)))
            head = "POST /classify HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            held[-1].sendall((head + "Content-Length: 20000\r\n\r\n").encode() + b" " * 19_900)
        until = time.monotonic() + 10
        padded = json.dumps(GRAY).encode() + b" " * 2000
        heads = {"content-type": "application/json"}
        while (
            answer := service.client.post("/classify", content=padded, headers=heads)
        ).is_success:
            assert time.monotonic() < until
        refused(answer, 503)
        assert answer.headers["retry-after"]
        for connection in held:
            connection.close()
        until = time.monotonic() + 10
        while not service.client.post("/classify", content=padded, headers=heads).is_success:
            assert time.monotonic() < until


def test_randomly_damaged_bodies_are_refused_or_answered(service, picture):
    """Valid bodies get random damage. The seed is fixed, so a failure can be reproduced."""
    source = random.Random(0)
    tensor = {
        "inputs": [{"name": "images", "datatype": "FP32", "shape": [1, 4, 4], "data": [0.5] * 16}]
    }
    forms = [
        picture(),
        picture(9, 7, 3),
        picture(9, 7, 3, "JPEG"),
        picture(5, 5, 3, "BMP"),
        picture(9, 7, 3, "WEBP"),
    ]
    seen = set()
    for _ in range(300):
        kind = source.choice(("form", "raw form", "json", "tensor", "noise"))
        route = source.choice(("/classify", "/purify", "/v2/models/blobs/infer"))
        heads = {"content-type": "application/json"}
        if kind == "form":
            content = damaged(source, source.choice(forms))
            answer = service.client.post(route, files={"image": content})
        else:
            if kind == "raw form":
                heads = {"content-type": "multipart/form-data; boundary=b"}
                body = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
                body += source.choice(forms) + b"\r\n--b--\r\n"
            elif kind == "noise":
                body = source.randbytes(source.randrange(300))
                heads = {
                    "content-type": source.choice(("multipart/form-data; boundary=", "a/b", ";"))
                }
            else:
                body = json.dumps(
                    tensor if kind == "tensor" else GRAY | {"votes": 2, "seed": 1}
                ).encode()
            if route.startswith("/v2") and source.random() < 0.3:
                heads["inference-header-content-length"] = str(
                    source.choice((-1, 0, 5, len(body), "a"))
                )
            answer = service.client.post(route, content=damaged(source, body), headers=heads)
        seen.add(answer.status_code)
        if answer.status_code != 200:
            refused(answer, 400, 413, 415)
    assert {200, 400} <= seen, seen


def damaged(source, content):
    content = bytearray(content)
    for _ in range(source.choice((0, 1, 1, 2, 5, 20))):
        if not content:
            break
        place = source.randrange(len(content))
        how = source.randrange(4)
        if how == 0:
            content[place] = source.randrange(256)
        elif how == 1:
            del content[place : place + source.randrange(1, 9)]
        elif how == 2:
            content[place:place] = source.choice(
                (b"9" * 9, b"-", b'"', b"[", b"{}", b"null", b"\0", b"\xff")
            )
        elif source.random() < 0.2:
            del content[place:]
    return bytes(content)


def test_overload_is_answered_with_retry_after():
    with started(changes=SLOW, limits=Limits(queue=64)) as service:

        async def everybody():
            limits = httpx.Limits(max_connections=30)
            async with httpx.AsyncClient(
                base_url=service.address, timeout=60, limits=limits, trust_env=False
            ) as client:
                asked = [client.post("/classify", json=GRAY | {"votes": 16}) for _ in range(30)]
                return await asyncio.gather(*asked)

        answers = asyncio.run(everybody())
        done = [answer for answer in answers if answer.status_code == 200]
        full = [answer for answer in answers if answer.status_code != 200]
        assert len(done) >= 4
        assert full
        for answer in full:
            assert "queue is full" in refused(answer, 503)
            assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert service.client.post("/classify", json=GRAY).status_code == 200, "and then it goes on"
        counted = service.client.get("/metrics").text
        assert (
            f'unfool_requests_total{{route="/classify",status="503"}} {float(len(full))}' in counted
        )
        assert "unfool_queue_passes 0.0" in counted


def test_request_that_takes_too_long_is_refused():
    with started(changes=["purifier.steps=1500"], limits=Limits(seconds=0.3)) as service:
        answer = service.client.post("/classify", json=GRAY | {"votes": 2})
        assert "0.3 seconds" in refused(answer, 503)
        assert "retry-after" in answer.headers


def test_model_failure_is_reported_without_its_error(elsewhere, monkeypatch, caplog):
    (elsewhere / "failing.py").write_text(
        "import torch\n"
        "class Picky(torch.nn.Module):\n"
        "    def forward(self, x, noise=None):\n"
        "        logits = torch.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3))], 1)\n"
        "        return torch.where(logits == 1, float('nan'), logits)\n"
    )
    monkeypatch.syspath_prepend(elsewhere)
    changes = ["purifier=null", "classifier={name: 'failing:Picky'}"]
    with started(changes=changes) as service:
        answer = service.client.post("/classify", json={"images": [[[1.0] * 4] * 4]})
        assert "log" in refused(answer, 500)
        assert service.client.post("/classify", json=GRAY).status_code == 200
        assert "no purifier" in refused(service.client.post("/purify", json=GRAY), 404)
    assert "not finite" in caplog.text


def test_shutdown_finishes_accepted_requests(elsewhere):
    command = [sys.executable, "-m", "unfool", "serve", "blobs", "--port", "0"]
    process: Any = subprocess.Popen(
        [*command, "--set", "purifier.steps=1500"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        address = re.findall(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
        answers = []

        def ask():
            with httpx.Client(base_url=address, timeout=100) as client:
                answers.append(client.post("/classify", json=GRAY | {"votes": 8, "seed": 1}))

        with httpx.Client(base_url=address, timeout=100) as client:
            while client.get("/ready").status_code != 200:
                time.sleep(0.05)
            threads = [threading.Thread(target=ask) for _ in range(3)]
            for thread in threads:
                thread.start()
            while "unfool_queue_passes 24.0" not in client.get("/metrics").text:
                assert not answers, "all are to be accepted before the first is done"
                time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(100)
        assert [answer.status_code for answer in answers] == [200] * 3
        assert process.wait(60) == 0
        assert process.stderr.read() == ""
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/health", trust_env=False)
    finally:
        process.kill()
        process.communicate()


def test_taken_port_bad_options_and_missing_libraries_are_refused(mistake, monkeypatch):
    with started() as service:
        port = service.address.rsplit(":", 1)[1]
        assert port in mistake("serve", "blobs", "--port", port)
    assert "max-votes" in mistake("serve", "blobs", "--port", 0, "--votes", 65)
    assert "blobz" in mistake("serve", "blobz", "--port", 0)
    for library in ("uvicorn", "prometheus_client", "python_multipart"):
        with monkeypatch.context() as missing:
            missing.setitem(sys.modules, library, None)
            assert "pip install 'unfool[serve]'" in mistake("serve", "blobs")
