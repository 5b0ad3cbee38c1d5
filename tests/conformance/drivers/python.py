"""The driver of the Python client: `AsyncClient`, or `Client` with `--blocking`."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import traceback
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import alignserve
import google.protobuf
import grpc
import numpy as np
from alignserve import (
    AlignserveError,
    AsyncClient,
    ClassifyItem,
    Client,
    CompareItem,
    ImageItem,
    QueryItem,
    QueryTerm,
    RetryPolicy,
    TextItem,
)

# Any: requests and answers are JSON.
Request = Mapping[str, Any]

_LINE_BYTES = 32 << 20
_DTYPES = {"float32": "float32", "float16": "float16", "int8": "int8", "binary": "binary"}


class Unsupported(Exception):
    """The library cannot do what is asked."""


class AsyncLibrary:
    """The asyncio client."""

    client: AsyncClient

    def connect(self, **options: Any) -> None:
        """Makes a client."""
        self.client = AsyncClient(**options)

    async def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Calls a method of the client."""
        return await _method(self.client, method)(*arguments, **options)

    async def cancelled_after(self, seconds: float, method: str, *arguments: Any, **options: Any) -> Any:
        """Calls a method and cancels its task after a time."""
        task = asyncio.create_task(self.call(method, *arguments, **options))
        asyncio.get_running_loop().call_later(seconds, task.cancel)
        return await task

    def stream(self, items: list[Any], **options: Any) -> AsyncGenerator[Any, None]:
        """Returns the results of a stream."""
        return self.client.stream(items, **options)

    async def close(self) -> None:
        """Closes the client."""
        await self.client.close()


class BlockingLibrary:
    """The blocking client, called in threads."""

    client: Client

    def connect(self, **options: Any) -> None:
        """Makes a client."""
        self.client = Client(**options)

    async def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Calls a method of the client."""
        return await asyncio.to_thread(_method(self.client, method), *arguments, **options)

    async def cancelled_after(self, seconds: float, method: str, *arguments: Any, **options: Any) -> Any:
        """Calls a method and closes the client after a time, which is how another thread cancels."""
        asyncio.get_running_loop().call_later(seconds, self.client.close)
        return await self.call(method, *arguments, **options)

    async def stream(self, items: list[Any], **options: Any) -> AsyncGenerator[Any, None]:
        """Yields the results of a stream."""
        results = self.client.stream(items, **options)
        try:
            while (result := await asyncio.to_thread(next, results, None)) is not None:
                yield result
        finally:
            results.close()

    async def close(self) -> None:
        """Closes the client."""
        await asyncio.to_thread(self.client.close)


class Driver:
    """Answers requests, one at a time."""

    def __init__(
        self, library: AsyncLibrary | BlockingLibrary, write: Callable[[dict[str, Any]], None]
    ) -> None:
        self._library = library
        self._write = write
        self._is_connected = False

    async def answer(self, request: Request) -> dict[str, Any]:
        """Returns the answer of a request, without its id."""
        try:
            if (operation := getattr(self, f"_{request['op']}", None)) is None:
                raise Unsupported(f"no {request['op']}")
            return await operation(request)
        except Unsupported as error:
            return {"unsupported": str(error)}
        except AlignserveError as error:
            return {"error": _error(error)}
        except asyncio.CancelledError:
            return {"error": _plain_error("CANCELLED", "the call was cancelled")}
        except (TypeError, ValueError, OSError) as error:
            traceback.print_exc()
            return {"error": _plain_error("CLIENT", f"{type(error).__name__}: {error}")}

    async def stop(self) -> None:
        """Closes the connection, if there is one."""
        if self._is_connected:
            await self._library.close()

    async def _hello(self, _: Request) -> dict[str, Any]:
        versions = {
            "python": ".".join(map(str, sys.version_info[:3])),
            "alignserve": alignserve.__version__,
            "grpcio": grpc.__version__,
            "protobuf": google.protobuf.__version__,
        }
        name = "Python" if isinstance(self._library, AsyncLibrary) else "Python, blocking"
        return {"ok": {"language": name, "library": "alignserve", "versions": versions}}

    async def _connect(self, request: Request) -> dict[str, Any]:
        await self.stop()
        options: dict[str, Any] = {
            "root_certificates": request.get("tls_ca"),
            "client_certificate": request.get("tls_certificate"),
            "client_key": request.get("tls_key"),
            "api_key": request.get("api_key"),
            "metadata": list((request.get("metadata") or {}).items()),
            "options": list(_channel_options(request)),
        }
        if (seconds := request.get("timeout_seconds")) is not None:
            options["timeout_seconds"] = seconds
        if request.get("retry") is False:
            options["retry"] = RetryPolicy(max_attempts=1)
        self._library.connect(target=request["target"], **options)
        self._is_connected = True
        return {"ok": {}}

    async def _close(self, _: Request) -> dict[str, Any]:
        await self.stop()
        self._is_connected = False
        return {"ok": {}}

    async def _embed_image(self, request: Request) -> dict[str, Any]:
        images = [_image(each) for each in request["images"]]
        found = await self._called(request, "embed_image_detailed", images, **_embedding_options(request))
        return {"ok": {"embeddings": _vectors(found, request)}}

    async def _embed_text(self, request: Request) -> dict[str, Any]:
        options = {**_embedding_options(request), "truncate": bool(request.get("truncate"))}
        found = await self._called(request, "embed_text_detailed", request["texts"], **options)
        tokenizations = [asdict(each) for each in found.tokenizations]
        return {"ok": {"embeddings": _vectors(found, request), "tokenizations": tokenizations}}

    async def _classify(self, request: Request) -> dict[str, Any]:
        images = [_image(each) for each in request["images"]]
        options = {
            "prompt_templates": request.get("prompt_templates") or (),
            "top_k": request.get("top_k") or 0,
        }
        found = await self._called(request, "classify", images, request["labels"], **options)
        results = [[asdict(each) for each in labels] for labels in found]
        if not request.get("summary"):
            return {"ok": {"results": results}}
        return {"ok": {"results": [labels[:1] for labels in results], "counts": list(map(len, results))}}

    async def _compare(self, request: Request) -> dict[str, Any]:
        images = [_image(pair["image"]) for pair in request["pairs"]]
        texts = [pair["text"] for pair in request["pairs"]]
        found = await self._called(request, "compare", images, texts, truncate=bool(request.get("truncate")))
        return {"ok": {"comparisons": [asdict(each) for each in found]}}

    async def _embed_query(self, request: Request) -> dict[str, Any]:
        queries = [[_term(term) for term in query["terms"]] for query in request["queries"]]
        options = {**_embedding_options(request), "truncate": bool(request.get("truncate"))}
        found = await self._called(request, "embed_query_detailed", queries, **options)
        return {"ok": {"embeddings": _vectors(found, request)}}

    async def _model_info(self, request: Request) -> dict[str, Any]:
        return {"ok": asdict(await self._called(request, "model_info"))}

    async def _health(self, request: Request) -> dict[str, Any]:
        return {"ok": {"ready": await self._called(request, "is_ready")}}

    async def _stream(self, request: Request) -> dict[str, Any]:
        results: list[dict[str, Any]] = []
        items = [_item(each) for each in request["items"]]
        options = {"ordered": bool(request.get("ordered")), "window": request["window"]}
        every, leave_after = request.get("progress_every"), request.get("cancel_after_items")
        try:
            stream = self._library.stream(items, timeout_seconds=request.get("timeout_seconds"), **options)
            async with aclosing(stream):
                async for result in stream:
                    results.append(_result(result, request["items"]))
                    if every and len(results) % every == 0:
                        self._write({"id": request["id"], "progress": len(results)})
                    if len(results) == leave_after:
                        break
        except AlignserveError as error:
            return {"error": _error(error), "results": results}
        return {"ok": {"results": results, "reconnects": None}}

    async def _repeat(self, request: Request) -> dict[str, Any]:
        left = iter(range(request["calls"]))
        failed: Counter[tuple[str, str]] = Counter()

        async def caller() -> None:
            for _ in left:
                answer = await self.answer(request["request"])
                if error := answer.get("error"):
                    failed[error["code"], error["reason"]] += 1

        async with asyncio.TaskGroup() as callers:
            for _ in range(request["concurrency"]):
                callers.create_task(caller())
        errors = [{"code": code, "reason": reason, "count": n} for (code, reason), n in failed.items()]
        return {"ok": {"answered": request["calls"] - failed.total(), "errors": errors}}

    async def _called(self, request: Request, method: str, *arguments: Any, **options: Any) -> Any:
        if (seconds := request.get("timeout_seconds")) is not None:
            options["timeout_seconds"] = seconds
        if (delay_ms := request.get("cancel_after_ms")) is not None:
            return await self._library.cancelled_after(delay_ms / 1000, method, *arguments, **options)
        return await self._library.call(method, *arguments, **options)


def _method(client: AsyncClient | Client, name: str) -> Callable[..., Any]:
    if (method := getattr(client, name, None)) is None:
        raise Unsupported(f"{type(client).__name__} has no {name}")
    return method


def _channel_options(request: Request) -> Iterator[tuple[str, int]]:
    if (size := request.get("max_response_bytes")) is not None:
        yield "grpc.max_receive_message_length", size
    if (seconds := request.get("keepalive_seconds")) is not None:
        yield "grpc.keepalive_time_ms", int(1000 * seconds)
    if (seconds := request.get("keepalive_timeout_seconds")) is not None:
        yield "grpc.keepalive_timeout_ms", int(1000 * seconds)
        # gRPC also pings for other reasons. While it waits for that answer, by default for a minute, it sends
        # no keepalive ping.
        yield "grpc.http2.ping_timeout_ms", int(1000 * seconds)


def _image(given: Request) -> Any:
    if path := given.get("path"):
        return Path(path)
    if (content := given.get("base64")) is not None:
        return base64.b64decode(content)
    pixels = given["pixels"]
    data = np.frombuffer(base64.b64decode(pixels["data"]), np.uint8)
    return data.reshape(pixels["height"], pixels["width"], 3)  # ValueError if they do not fit


def _embedding_options(given: Request) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if (name := given.get("format")) is not None:
        if name not in _DTYPES:
            raise Unsupported(f"format {name}: the client chooses between packed formats only")
        options["dtype"] = _DTYPES[name]
    if given.get("normalize") is False:
        options["normalize"] = False
    return options


def _vectors(found: Any, request: Request) -> list[Any]:
    scales = found.int8_scales if found.int8_scales is not None else [None] * len(found.embeddings)
    return [
        _vector(vector, scale, request.get("format"))
        for vector, scale in zip(found.embeddings, scales, strict=True)
    ]


def _vector(vector: Any, scale: float | None, form: str | None) -> Any:
    if form == "int8":
        assert scale is not None
        return {"values": vector.tolist(), "scale": float(scale)}
    if form == "binary":
        return base64.b64encode(vector.tobytes()).decode()
    return vector.astype(np.float64).tolist()


def _term(given: Request) -> QueryTerm:
    weight = {"weight": given["weight"]} if given.get("weight") is not None else {}
    if (text := given.get("text")) is not None:
        return QueryTerm(text=text, **weight)
    return QueryTerm(image=_image(given["image"]), **weight)


def _item(given: Request) -> Any:
    key, kind = given["id"], given["kind"]
    if kind == "text":
        options = {**_embedding_options(given), "truncate": bool(given.get("truncate"))}
        return TextItem(given["text"], id=key, **options)
    if kind == "image":
        return ImageItem(_image(given["image"]), id=key, **_embedding_options(given))
    if kind == "classify":
        templates, top_k = given.get("prompt_templates") or (), given.get("top_k") or 0
        return ClassifyItem(
            _image(given["image"]), given["labels"], prompt_templates=templates, top_k=top_k, id=key
        )
    if kind == "compare":
        return CompareItem(_image(given["image"]), given["text"], id=key)
    if kind == "query":
        return QueryItem([_term(term) for term in given["terms"]], id=key, **_embedding_options(given))
    raise Unsupported(f"a stream has no items of kind {kind}")


def _result(result: Any, items: list[Request]) -> dict[str, Any]:
    if result.error is not None:
        return {"id": result.id, "error": _error(result.error)}
    item = next(each for each in items if each["id"] == result.id)
    if item["kind"] == "classify":
        return {"id": result.id, "classifications": [asdict(each) for each in result.classifications]}
    if item["kind"] == "compare":
        return {"id": result.id, **asdict(result.comparison)}
    vector = _vector(result.embedding, result.int8_scale, item.get("format"))
    return {"id": result.id, "embedding": vector}


def _error(error: AlignserveError) -> dict[str, Any]:
    return {
        "code": error.code.name,
        "reason": error.reason,
        "domain": None,  # the client does not show it
        "message": error.message,
        "fields": [asdict(each) for each in error.violations],
        "retry_delay_seconds": error.retry_delay_seconds,
        "metadata": {"error_id": error.error_id} if error.error_id else {},
    }


def _plain_error(code: str, message: str) -> dict[str, Any]:
    return _error(AlignserveError(message)) | {"code": code}


def _write(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


async def main() -> None:
    """Answers until the input ends."""
    driver = Driver(BlockingLibrary() if "--blocking" in sys.argv[1:] else AsyncLibrary(), _write)
    reader = asyncio.StreamReader(limit=_LINE_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while line := await reader.readline():
        request = json.loads(line)
        _write({"id": request["id"], **await driver.answer(request)})
    await driver.stop()


if __name__ == "__main__":
    asyncio.run(main())
