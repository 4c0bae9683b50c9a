"""The service gives the same answers as the commands, bit for bit, and loses none."""

import asyncio
import base64
import http.client
import io
import threading
import time

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from running import started

import unfool
from unfool.cli.main import run
from unfool.defenses.purified_classifier import predict_draws
from unfool.noise import Noise
from unfool.toy.blobs import Blobs

DIGITS = ["purifier.steps=2"]


def blobs(count):
    data = Blobs(size=count)
    return torch.stack([data[i][0] for i in range(count)])


def test_seeded_answer_matches_the_command_under_load(elsewhere, capsys):
    """The model is a network, whose kernels round differently in calls of another size."""
    data = unfool.digits("test")
    pictures = [(data[i][0][0] * 255).round().byte().numpy() for i in range(3)]
    for i, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(elsewhere / f"{i}.png")
    names = [f"{i}.png" for i in range(3)]
    options = ["--spec", "demo", "--set", DIGITS[0], "--votes", "5", "--seed", "7"]
    assert run(["classify", *names, *options]) == 0
    lines = [line.split("\t")[1:] for line in capsys.readouterr().out.splitlines()]
    model = unfool.load("demo", DIGITS)
    likely = []
    for i, pixels in enumerate(pictures):
        x, noise = torch.from_numpy(pixels)[None, None] / 255, Noise.of(7, [i]).child("apply")
        rows = Noise(tuple(k for vote in range(5) for k in noise.child("vote", vote).keys))
        with torch.no_grad():
            likely.append(model(x.repeat(5, 1, 1, 1), rows).softmax(1).mean(0).tolist())

    files = [("image", (elsewhere / name).read_bytes()) for name in names]
    with started("demo", DIGITS) as service:
        done = threading.Event()
        threads = []
        answers = []
        try:
            threads = crowd_of_digits(service, data, done)
            for _ in range(4):
                form = {"votes": "5", "seed": "7"}
                told = service.client.post("/classify", files=files, data=form)
                answers.append(told.json()["predictions"])
        finally:
            done.set()
            for thread in threads:
                thread.join()
        metrics = service.client.get("/metrics").text
    shared = float(metrics.split("unfool_batch_passes_sum ")[1].split()[0])
    calls = float(metrics.split("unfool_batch_passes_count ")[1].split()[0])
    assert shared / calls > 2, "the others did share calls"
    for found in answers:
        assert [
            [each["class"], f"{each['votes']} of 5 votes" + ", undecided" * each["undecided"]]
            for each in found
        ] == lines
        assert [each["probabilities"] for each in found] == likely


def crowd_of_digits(service, data, done):
    def ask(i):
        x = torch.stack([data[i + j][0] for j in range(1 + i % 3)]).tolist()
        with httpx.Client(base_url=service.address, timeout=60) as client:
            while not done.is_set():
                assert (
                    client.post("/classify", json={"images": x, "votes": 1 + i}).status_code == 200
                )

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(5)]
    for thread in threads:
        thread.start()
    return threads


def test_array_request_matches_the_commands_on_an_npz_file(service, elsewhere, capsys):
    x = blobs(5)
    np.savez("some.npz", images=x.numpy())
    options = ["--spec", "blobs", "--set", "purifier.steps=3", "--seed", "3"]
    assert run(["classify", "some.npz", *options, "--votes", "9"]) == 0
    lines = [line.split("\t")[1:] for line in capsys.readouterr().out.splitlines()]
    told = service.client.post(
        "/classify", json={"images": x.tolist(), "votes": 9, "seed": 3}
    ).json()
    assert [[p["class"], f"{p['votes']} of 9 votes"] for p in told["predictions"]] == lines
    assert told["classes"] == ["dark", "bright"]
    for each in told["predictions"]:
        assert sum(each["counts"]) == 9
        assert each["counts"][each["index"]] == each["votes"]
        assert each["low"] <= each["share"] == each["votes"] / 9 <= each["high"]
        assert sum(each["probabilities"]) == pytest.approx(1)
    assert run(["purify", "some.npz", *options, "--out", "out"]) == 0
    with np.load("out/some.npz") as file:
        pure = file["images"]
    told = service.client.post("/purify", json={"images": x.tolist(), "seed": 3}).json()
    assert np.array_equal(np.array(told["images"], np.float32), pure)


def test_purified_images_match_the_command(service, elsewhere, picture):
    (elsewhere / "a.png").write_bytes(picture(6, 5))
    (elsewhere / "b.jpg").write_bytes(picture(4, 4, 3, "JPEG"))
    options = ["--spec", "blobs", "--set", "purifier.steps=3", "--seed", "4", "--out", "out"]
    assert run(["purify", "a.png", "b.jpg", *options]) == 0
    files = [("image", (elsewhere / name).read_bytes()) for name in ("a.png", "b.jpg")]
    one = service.client.post("/purify", files=files[:1], data={"seed": "4"})
    assert one.headers["content-type"] == "image/png"
    assert one.content == (elsewhere / "out/a.png").read_bytes()
    told = service.client.post("/purify", files=files, data={"seed": "4"}).json()
    made = [base64.b64decode(each) for each in told["png"]]
    assert made == [(elsewhere / "out" / name).read_bytes() for name in ("a.png", "b.png")]
    assert "image 2 loses its colors" in told["notes"][-2] + told["notes"][-1]
    with Image.open(io.BytesIO(made[0])) as opened:
        assert opened.size == (5, 6)


def test_noise_is_fresh_without_a_seed(service):
    x = {"images": torch.full((1, 4, 4), 0.5).tolist(), "votes": 64}
    found = [service.client.post("/classify", json=x).json() for _ in range(4)]
    assert all(told["seed"] is None for told in found)
    assert len({str(told["predictions"][0]["probabilities"]) for told in found}) > 1
    pure = [service.client.post("/purify", json={"images": x["images"]}).json() for _ in range(2)]
    assert pure[0]["images"] != pure[1]["images"]


def test_idle_connection_stays_open_for_longer_than_five_seconds(service):
    """Many servers close after 5 s, which makes proxies send requests into closed connections."""
    connection = http.client.HTTPConnection(service.address.removeprefix("http://"), timeout=60)
    for pause in (6, 0):
        connection.request("GET", "/health")
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
        assert not answer.will_close
        time.sleep(pause)
    connection.close()


def test_votes_in_shared_calls_match_the_model(service):
    """The images are clear, so all passes agree, and an answer sent to another client would show."""

    async def ask(client, i):
        x = torch.full((1 + i % 3, 4, 4), 0.15 if i % 2 else 0.85)
        told = await client.post("/classify", json={"images": x.tolist(), "votes": 1 + i % 5})
        assert told.status_code == 200
        rows = told.json()["predictions"]
        assert len(rows) == len(x)
        wanted = "dark" if i % 2 else "bright"
        assert all(row["class"] == wanted and row["votes"] == 1 + i % 5 for row in rows)

    async def everybody():
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(
            base_url=service.address, timeout=120, limits=limits, trust_env=False
        ) as client:
            for _ in range(2):
                await asyncio.gather(*(ask(client, i) for i in range(200)))

    before = predict_draws(
        unfool.load("blobs", ["purifier.steps=3"]),
        torch.stack([torch.full((1, 4, 4), v) for v in (0.15, 0.85)]),
        Noise.of(0, [0, 1]),
        64,
    )
    assert before.tolist() == [[0] * 64, [1] * 64]
    asyncio.run(everybody())
