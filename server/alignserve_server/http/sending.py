"""Sends an answer in pieces, so that a large one neither fills a buffer nor holds up the event loop."""

from __future__ import annotations

import asyncio

from starlette.types import Send

from alignserve_server.http.answer import Answer, HeaderList

_PIECE_BYTES = 1 << 16
_WITHOUT_LENGTH = {204, 304}  # in a 304 it would be the length of what the client has


async def send_answer(send: Send, answer: Answer, request_id: str) -> None:
    """Sends an answer; returns once all but the last piece has been handed to the kernel."""
    headers = answer.headers
    if answer.status not in _WITHOUT_LENGTH:
        headers = (("content-length", str(len(answer.body))), *headers)
    if answer.media_type is not None:
        headers = (("content-type", answer.media_type), *headers)
    start = {"status": answer.status, "headers": encoded_headers(request_id, headers)}
    await send({"type": "http.response.start", **start})
    body = memoryview(answer.body)
    while len(body) > _PIECE_BYTES:
        await send({"type": "http.response.body", "body": body[:_PIECE_BYTES], "more_body": True})
        await asyncio.sleep(0)
        body = body[_PIECE_BYTES:]
    await send({"type": "http.response.body", "body": body, "more_body": False})


def encoded_headers(request_id: str, headers: HeaderList) -> list[tuple[bytes, bytes]]:
    """Returns headers as ASGI takes them, and those that every answer has."""
    common = (("x-request-id", request_id), ("x-content-type-options", "nosniff"))
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in (*headers, *common)]
