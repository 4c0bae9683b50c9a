"""Clients of the Open Inference Protocol, version 2: JSON and binary tensors, and Triton's own client."""

import json
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from unfool.serve import examples
from unfool.toy.blobs import Blobs

INFER = "/v2/models/blobs/infer"


def images(count=3):
    data = Blobs(size=count)
    return torch.stack([data[i][0] for i in range(count)]).numpy()


def tensor(x, **more):
    row = {"name": "images", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
    return {"inputs": [row | more]}


def test_server_and_model_describe_themselves(service):
    get = service.client.get
    assert get("/v2").json()["name"] == "unfool"
    assert get("/v2/health/live").json() == {"live": True}
    assert get("/v2/health/ready").json() == {"ready": True}
    for path in ("/v2/models/blobs", "/v2/models/blobs/versions/1"):
        told = get(path).json()
        assert told["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, 1, 4, 4]}]
        assert {"name": "probabilities", "datatype": "FP32", "shape": [-1, 2]} in told["outputs"]
        assert get(f"{path}/ready").json() == {"name": "blobs", "ready": True}
    for path in ("/v2/models/other", "/v2/models/other/ready", "/v2/models/blobs/versions/2"):
        answer = get(path)
        assert answer.status_code == 404
        assert list(answer.json()) == ["error"]


def test_inference_matches_the_classify_route(service):
    x, parameters = images(), {"votes": 9, "seed": 5}
    asked = tensor(x) | {"id": "a1", "parameters": parameters}
    told = service.client.post(INFER, json=asked).json()
    assert (told["model_name"], told["model_version"], told["id"]) == ("blobs", "1", "a1")
    found = {row["name"]: row for row in told["outputs"]}
    plain = service.client.post("/classify", json={"images": x.tolist(), **parameters}).json()
    rows = plain["predictions"]
    assert found["class"]["data"] == [row["index"] for row in rows]
    assert found["label"]["data"] == [row["class"] for row in rows]
    assert found["votes"]["shape"] == [3, 2]
    assert found["votes"]["data"] == [count for row in rows for count in row["counts"]]
    assert found["probabilities"]["data"] == [p for row in rows for p in row["probabilities"]]
    assert found["interval"]["data"] == [row[end] for row in rows for end in ("low", "high")]
    nested = {"name": "images", "datatype": "FP32", "shape": [3, 1, 4, 4], "data": x.tolist()}
    asked = {"inputs": [nested], "outputs": [{"name": "class"}], "parameters": parameters}
    told = service.client.post("/v2/models/blobs/versions/1/infer", json=asked).json()
    assert told["outputs"] == [found["class"]]


@pytest.mark.parametrize("kind", ["FP32", "FP64", "UINT8"])
def test_binary_tensors_match_the_classify_route(service, kind):
    x = images()
    x = (
        (x * 255).round().astype(np.uint8)
        if kind == "UINT8"
        else x.astype(f"f{int(kind[2:]) // 8}")
    )
    row = {"name": "images", "datatype": kind, "shape": list(x.shape)}
    row["parameters"] = {"binary_data_size": x.nbytes}
    outputs = [
        {"name": name, "parameters": {"binary_data": name != "votes"}}
        for name in ("class", "label", "votes")
    ]
    asked = {"inputs": [row], "outputs": outputs, "parameters": {"seed": 5, "votes": 3}}
    head = json.dumps(asked).encode()
    heads = {"Inference-Header-Content-Length": str(len(head))}
    answer = service.client.post(INFER, content=head + x.tobytes(), headers=heads)
    size = int(answer.headers["inference-header-content-length"])
    told, tail = json.loads(answer.content[:size]), answer.content[size:]
    sizes = [each.get("parameters", {}).get("binary_data_size", 0) for each in told["outputs"]]
    assert sum(sizes) == len(tail)
    plain = {"images": x.tolist(), "seed": 5, "votes": 3}
    plain |= {"dtype": "uint8"} if kind == "UINT8" else {}
    rows = service.client.post("/classify", json=plain).json()["predictions"]
    assert np.frombuffer(tail[: sizes[0]], "<i8").tolist() == [each["index"] for each in rows]
    words = b"".join(
        len(each["class"]).to_bytes(4, "little") + each["class"].encode() for each in rows
    )
    assert tail[sizes[0] :] == words
    assert told["outputs"][2]["data"] == [count for each in rows for count in each["counts"]]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"inputs": []}, "images"),
        ({"inputs": [3]}, "images"),
        ({"inputs": [{"name": "x"}]}, "images"),
        ({"outputs": [{"name": "x"}]}, "x"),
        ({"outputs": [3]}, "outputs"),
        ({"parameters": 3}, "parameters"),
        ({"parameters": {"votes": 1000}}, "votes"),
        ({"id": 3}, "id"),
        ({"id": "\ud800"}, "id"),
        (tensor(images(), datatype="BYTES"), "FP32"),
        (tensor(images(), shape=[3, 5, 5]), "[3, 5, 5]"),
        (tensor(images(), shape=[48]), "shape"),
        (tensor(images(), shape=[-1, 4, 4]), "shape"),
        (tensor(images(), parameters={"binary_data_size": 3}), "3"),
        (tensor(images() * 2), "[0, 1]"),
    ],
)
def test_invalid_requests_are_refused(service, change, named):
    body = json.dumps(tensor(images()) | change).encode()
    answer = service.client.post(INFER, content=body)
    assert answer.status_code == 400
    assert named in answer.json()["error"]


def test_invalid_length_of_the_json_part_is_refused(service):
    body, name = json.dumps(tensor(images())).encode(), "inference-header-content-length"
    for length in ("--5", "0", "9" * 9):
        answer = service.client.post(INFER, content=body, headers={name: length})
        assert answer.status_code == 400
        assert name in answer.json()["error"]


def test_schemathesis_finds_no_response_outside_the_openapi_schema(service, tmp_path):
    """Schemathesis sends what the schema allows, and what it forbids, to every route.

    One of its checks is left out: a schema cannot say that all lists of an image have the same
    length, so the service refuses some bodies that the schema allows.
    """
    command = [Path(sys.executable).with_name("schemathesis"), "run"]
    options = ["--max-examples=5", "--seed=1", "--exclude-checks=positive_data_acceptance"]
    done = subprocess.run(
        [*command, f"{service.address}/openapi.json", "--phases=coverage,fuzzing", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "14 passed" in done.stdout


def test_openapi_examples_are_accepted(service):
    told = service.client.get("/openapi.json").json()
    for path, keys in (
        ("/classify", set(examples.VOTED)),
        ("/purify", set(examples.PURIFIED)),
        ("/v2/models/{name}/infer", set(examples.INFERRED)),
    ):
        route = told["paths"][path]["post"]
        example = route["requestBody"]["content"]["application/json"]["example"]
        answer = service.client.post(path.format(name="blobs"), json=example)
        assert answer.status_code == 200
        shown = route["responses"]["200"]["content"]["application/json"]["example"]
        assert set(answer.json()) == set(shown) == keys
    rows = service.client.post("/classify", json=examples.PLAIN).json()["predictions"]
    assert list(rows[0]) == list(examples.PREDICTION)


def test_triton_client_works_unchanged(service):
    pytest.importorskip("geventhttpclient", reason="tritonclient[http] is not installed")
    triton = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
    client = triton.InferenceServerClient(service.address.removeprefix("http://"))
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("blobs")
    assert client.is_model_ready("blobs", "1")
    assert client.get_model_metadata("blobs")["name"] == "blobs"
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    x, parameters = images(), {"votes": 9, "seed": 5}
    rows = service.client.post("/classify", json={"images": x.tolist(), **parameters}).json()
    for binary in (True, False):
        given = triton.InferInput("images", list(x.shape), "FP32")
        given.set_data_from_numpy(x, binary_data=binary)
        wanted = [
            triton.InferRequestedOutput(name, binary_data=binary)
            for name in ("class", "label", "probabilities")
        ]
        for outputs in (wanted, None):
            told = client.infer("blobs", [given], outputs=outputs, parameters=parameters)
            found = rows["predictions"]
            assert told.as_numpy("class").tolist() == [row["index"] for row in found]
            labels = [
                v.decode() if isinstance(v, bytes) else v for v in told.as_numpy("label").tolist()
            ]
            assert labels == [row["class"] for row in found]
            likely = np.array([row["probabilities"] for row in found], np.float32)
            assert np.array_equal(told.as_numpy("probabilities"), likely)
    with pytest.raises(triton.InferenceServerException, match="no such model"):
        client.infer("other", [given])
    client.close()
    assert httpx.get(f"{service.address}/v2/health/live", trust_env=False).json() == {"live": True}
