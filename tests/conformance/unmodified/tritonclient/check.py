"""tritonclient against the Open Inference Protocol: every way to call that its documentation shows.

Prints one JSON line per check; see ../README.md.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import queue
import struct
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

TARGET = os.environ["ALIGNSERVE_TARGET"]
GOLDEN = json.loads(Path(os.environ["ALIGNSERVE_GOLDEN"]).read_text())
PHOTOS = Path(os.environ["ALIGNSERVE_PHOTOS"])
TOLERANCE = 1e-4
WAIT_SECONDS = 60.0
LABELS = ["cat", "coffee", "rocket"]

CHECKS: list[tuple[str, Callable[[], str]]] = []


def check(name: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Registers a check: a function that returns what it saw, or raises."""

    def register(run: Callable[[], str]) -> Callable[[], str]:
        CHECKS.append((name, run))
        return run

    return register


def main() -> None:
    packages = {name: version(name) for name in ("tritonclient", "grpcio", "numpy", "protobuf")}
    report(client="tritonclient (gRPC)", versions={**packages, "python": platform.python_version()})
    for name, run in CHECKS:
        try:
            report(check=name, ok=True, detail=run())
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            report(check=name, ok=False, detail=f"{type(error).__name__}: {error}")


def report(**line: Any) -> None:
    print(json.dumps(line), flush=True)


def photo(name: str) -> bytes:
    return (PHOTOS / name).read_bytes()


def tensor(name: str, values: list[Any], module: Any = triton, columns: bool = False) -> Any:
    """Returns a BYTES input. The dtype is object: `S` would cut zero bytes off the end of an image."""
    array = np.array(values, dtype=object)
    array = array[:, np.newaxis] if columns else array
    made = module.InferInput(name, list(array.shape), "BYTES")
    made.set_data_from_numpy(array)
    return made


def golden(kind: str, *names: str) -> np.ndarray:
    return np.array([GOLDEN[kind][name] for name in names])


def same(got: np.ndarray, expected: np.ndarray, tolerance: float = TOLERANCE) -> str:
    """Compares arrays; returns the difference in words."""
    assert got.shape == expected.shape, f"shape {got.shape}, expected {expected.shape}"
    difference = float(np.abs(got - expected).max())
    assert difference <= tolerance, f"differs by {difference}"
    return f"{list(got.shape)}, difference {difference:.1e}"


@contextmanager
def client(target: str = TARGET, **options: Any) -> Iterator[triton.InferenceServerClient]:
    opened = triton.InferenceServerClient(target, **options)
    try:
        yield opened
    finally:
        opened.close()


def refusal(call: Callable[[], Any]) -> InferenceServerException:
    """Makes a call that must fail; returns its error."""
    try:
        call()
    except InferenceServerException as error:
        return error
    raise AssertionError("the call succeeded")


TEXTS = list(GOLDEN["texts"])[:2]


@check("live, ready, and the readiness of a model")
def probes() -> str:
    with client() as server:
        assert server.is_server_live()
        assert server.is_server_ready()
        assert all(map(server.is_model_ready, ("image", "text", "classify", "compare")))
        assert server.is_model_ready("text", "1")
        assert not server.is_model_ready("resnet50")
    return "4 models are ready, an unknown one is not"


@check("metadata, configuration and statistics, as perf_analyzer reads them")
def descriptions() -> str:
    with client() as server:
        extensions = server.get_server_metadata(as_json=True)["extensions"]
        assert not any("shared_memory" in extension for extension in extensions)
        metadata = server.get_model_metadata("text", as_json=True)
        assert metadata["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": ["-1", "1"]}]
        config = server.get_model_config("text", as_json=True)["config"]
        assert config["max_batch_size"] > 1
        assert config["input"][0]["data_type"] == "TYPE_STRING"
        before = counts(server)
        server.infer("text", [tensor("text", ["statistics one", "statistics two"])])
        after = counts(server)
    assert (after[0] - before[0], after[1] - before[1]) == (1, 2), (before, after)
    return f"extensions {', '.join(extensions)}; 1 request of 2 items was counted"


def counts(server: triton.InferenceServerClient) -> tuple[int, int]:
    """Returns the requests and items of the model `text` so far; items from the cache count as well."""
    stats = server.get_inference_statistics("text").model_stats[0]
    cached = stats.inference_stats.cache_hit.count
    return stats.inference_stats.success.count, stats.inference_count + cached


@check("embeddings of texts")
def texts() -> str:
    with client() as server:
        result = server.infer("text", [tensor("text", TEXTS)], request_id="texts-1")
    assert result.get_response().id == "texts-1"
    return same(result.as_numpy("embedding"), golden("texts", *TEXTS))


@check("embeddings of photos, [N, 1]")
def images() -> str:
    given = tensor("image", [photo("cat.jpg"), photo("rocket.jpg")], columns=True)
    with client() as server:
        result = server.infer("image", [given])
    return same(result.as_numpy("embedding"), golden("images", "cat.jpg", "rocket.jpg"))


@check("raw pixels, UINT8")
def pixels() -> str:
    frame = np.full((1, 48, 64, 3), (200, 30, 30), np.uint8)
    given = triton.InferInput("image", list(frame.shape), "UINT8")
    given.set_data_from_numpy(frame)
    with client() as server:
        result = server.infer("image", [given])
    length = float(np.linalg.norm(result.as_numpy("embedding")[0]))
    assert abs(length - 1) < TOLERANCE
    return f"length {length:.6f}"


@check("FP16 and a subset of the outputs")
def half_precision() -> str:
    asked = [triton.InferRequestedOutput("embedding_fp16")]
    with client() as server:
        result = server.infer("text", [tensor("text", TEXTS)], outputs=asked)
    assert result.as_numpy("embedding") is None
    got = result.as_numpy("embedding_fp16")
    assert got.dtype == np.float16
    return same(got.astype(np.float32), golden("texts", *TEXTS), 1e-3)


@check("scores of labels, with a template")
def scores() -> str:
    inputs = [tensor("image", [photo("cat.jpg")]), tensor("labels", LABELS)]
    with client() as server:
        result = server.infer("classify", inputs, parameters={"prompt_template": "a photo of a {label}"})
    expected = np.array([[GOLDEN["classify"]["cat.jpg"][label] for label in LABELS]])
    return same(result.as_numpy("scores"), expected)


@check("classification: class_count, and labels with colons")
def classification() -> str:
    inputs = [tensor("image", [photo("cat.jpg")]), tensor("labels", ["animal: cat", "drink: coffee: black"])]
    with client() as server:
        result = server.infer(
            "classify", inputs, outputs=[triton.InferRequestedOutput("scores", class_count=2)]
        )
    classes = [entry.decode().split(":", 2) for entry in result.as_numpy("scores")[0]]
    assert classes[0][1:] == ["0", "animal: cat"], classes
    assert classes[1][1:] == ["1", "drink: coffee: black"], classes
    assert float(classes[0][0]) > float(classes[1][0])
    return ", ".join(map(":".join, classes))


@check("pairs of images and texts")
def compare() -> str:
    with client() as server:
        result = server.infer("compare", [tensor("image", [photo("cat.jpg")]), tensor("text", TEXTS[:1])])
    expected = (golden("images", "cat.jpg") * golden("texts", TEXTS[0])).sum(axis=1)
    return same(result.as_numpy("similarity"), expected)


@check("async_infer")
def asynchronous() -> str:
    answers: queue.Queue[Any] = queue.Queue()

    def done(result: Any, error: Any) -> None:
        answers.put(error or result)

    with client() as server:
        for text in TEXTS:
            server.async_infer("text", [tensor("text", [text])], done, request_id=text)
        results = [answers.get(timeout=WAIT_SECONDS) for _ in TEXTS]
    by_id = {result.get_response().id: result.as_numpy("embedding")[0] for result in results}
    return same(np.array([by_id[text] for text in TEXTS]), golden("texts", *TEXTS))


@check("a stream: order, ids, and an error that does not end it")
def stream() -> str:
    answers: queue.Queue[Any] = queue.Queue()
    with client() as server:
        server.start_stream(lambda result, error: answers.put(error or result))
        for number in range(20):
            if number == 7:
                server.async_stream_infer("image", [tensor("image", [b"no image"])], request_id="bad")
            server.async_stream_infer(
                "text",
                [tensor("text", [TEXTS[number % 2]])],
                request_id=str(number),
                enable_empty_final_response=True,
            )
        results = [answers.get(timeout=WAIT_SECONDS) for _ in range(21)]
        server.stop_stream()
    error = results.pop(7)
    assert isinstance(error, InferenceServerException), error
    assert "IMAGE_UNREADABLE" in error.message(), error.message()
    assert "'bad'" in error.message(), error.message()
    assert [result.get_response().id for result in results] == list(map(str, range(20)))
    assert all(result.get_response().parameters["triton_final_response"].bool_param for result in results)
    same(results[1].as_numpy("embedding"), golden("texts", TEXTS[1]))
    return error.message()


@check("aio")
def aio() -> str:
    async def run() -> str:
        async with triton_aio.InferenceServerClient(TARGET) as server:
            given = [tensor("text", [text], triton_aio) for text in TEXTS]
            results = await asyncio.gather(*(server.infer("text", [one]) for one in given))
            assert await server.is_server_ready()
        return same(np.concatenate([one.as_numpy("embedding") for one in results]), golden("texts", *TEXTS))

    return asyncio.run(run())


@check("an aio stream")
def aio_stream() -> str:
    async def requests() -> Any:
        for number, text in enumerate(TEXTS):
            yield {
                "model_name": "text",
                "inputs": [tensor("text", [text], triton_aio)],
                "request_id": str(number),
            }

    async def run() -> str:
        async with triton_aio.InferenceServerClient(TARGET) as server:
            got = []
            async for result, error in server.stream_infer(requests()):
                assert error is None, error
                got.append(result.as_numpy("embedding")[0])
        return same(np.array(got), golden("texts", *TEXTS))

    return asyncio.run(run())


@check("refusals carry reason, field and id")
def refusals() -> str:
    with client() as server:
        infer = partial(server.infer, "text")
        unreadable = refusal(
            lambda: server.infer("image", [tensor("image", [photo("cat.jpg"), b"no"])], request_id="r1")
        )
        empty = refusal(lambda: infer([tensor("text", ["a cat", ""])]))
        unknown_model = refusal(lambda: server.infer("resnet50", [tensor("image", [b""])]))
        twice = refusal(lambda: infer([tensor("text", TEXTS), tensor("text", TEXTS)]))
        unknown_parameter = refusal(lambda: infer([tensor("text", TEXTS)], parameters={"truncated": True}))
        sequence = refusal(lambda: infer([tensor("text", TEXTS)], sequence_id=3))
    for error, parts in (
        (unreadable, ("INVALID_ARGUMENT", "IMAGE_UNREADABLE", "image[1]", "'r1'")),
        (empty, ("INVALID_ARGUMENT", "TEXT_EMPTY", "text[1]")),
        (unknown_model, ("NOT_FOUND", "MODEL_UNKNOWN", "'resnet50'")),
        (twice, ("INVALID_ARGUMENT", "given twice")),
        (unknown_parameter, ("INVALID_ARGUMENT", "did you mean 'truncate'")),
        (sequence, ("INVALID_ARGUMENT", "sequences")),
    ):
        text = f"{error.status()} {error.message()}"
        assert all(part in text for part in parts), (text, parts)
    return unreadable.message()


@check("shared memory is refused by name")
def shared_memory() -> str:
    given = triton.InferInput("text", [1], "BYTES")
    given.set_shared_memory("region", 64)
    with client() as server:
        error = refusal(lambda: server.infer("text", [given]))
        registration = refusal(lambda: server.get_system_shared_memory_status())
    assert "shared memory" in error.message(), error.message()
    assert registration.status() == "StatusCode.UNIMPLEMENTED", registration
    return error.message()


@check("timeout in microseconds, client_timeout and priority")
def deadlines() -> str:
    with client() as server:
        given = [tensor("text", TEXTS)]
        server.infer("text", given, timeout=30_000_000, client_timeout=30.0, priority=2)
        malformed = refusal(lambda: server.infer("text", given, timeout=-1))
        priority = refusal(lambda: server.infer("text", given, priority=9))
    assert "parameters.timeout" in malformed.message(), malformed.message()
    assert "parameters.priority" in priority.message(), priority.message()
    return malformed.message()


@check("TLS and keys with scopes")
def access() -> str:
    options = {"ssl": True, "root_certificates": os.environ["ALIGNSERVE_CA"]}
    keyed = {"authorization": f"Bearer {os.environ['ALIGNSERVE_KEY']}"}
    embed_only = {"authorization": f"Bearer {os.environ['ALIGNSERVE_EMBED_KEY']}"}
    inputs = [tensor("image", [photo("cat.jpg")]), tensor("labels", LABELS)]
    with client(os.environ["ALIGNSERVE_TLS_TARGET"], **options) as server:
        assert server.is_server_live()  # needs no key
        missing = refusal(lambda: server.infer("text", [tensor("text", TEXTS)]))
        scope = refusal(lambda: server.infer("classify", inputs, headers=embed_only))
        server.infer("text", [tensor("text", TEXTS)], headers=embed_only)
        server.infer("classify", inputs, headers=keyed)
    assert (missing.status(), scope.status()) == (
        "StatusCode.UNAUTHENTICATED",
        "StatusCode.PERMISSION_DENIED",
    )
    assert missing.message().startswith("KEY_MISSING"), missing.message()
    return scope.message()


@check("an image that ends with zero bytes, serialized as the client does")
def zero_bytes() -> str:
    padded = photo("cat.jpg") + bytes(3)
    given = tensor("image", [padded])
    assert given._get_content()[:4] == struct.pack("<I", len(padded))
    with client() as server:
        result = server.infer("image", [given])
    return same(result.as_numpy("embedding"), golden("images", "cat.jpg"))


if __name__ == "__main__":
    main()
