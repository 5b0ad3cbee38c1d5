"""connect-go, as `buf curl`, calls the HTTP port by each protocol that the port speaks."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.integration.http.ports import serving
from tests.integration.serving import RunningServer
from tests.processes import BIN, ROOT

pytestmark = pytest.mark.contract


async def curled(served: RunningServer, method: str, protocol: str, data: str) -> tuple[int, Any]:
    """Calls a method; returns the exit code and the messages, or the error."""
    process = await asyncio.create_subprocess_exec(
        *(BIN / "buf", "curl", "--protocol", protocol, "--data", data),
        *("--schema", ROOT / "protos/baseline.binpb"),
        f"http://127.0.0.1:{served.server.http_port}/alignserve.v1.AlignService/{method}",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, error = await process.communicate()
    return process.returncode or 0, json.loads(output or error)


@pytest.mark.parametrize("protocol", ["connect", "grpcweb"])
async def test_an_answer_is_read(protocol: str) -> None:
    """It is a message of the proto."""
    async with serving() as (served, _):
        code, answer = await curled(served, "EmbedText", protocol, '{"texts": ["a cat"]}')

    assert code == 0
    assert len(answer["embeddings"]) == 1


@pytest.mark.parametrize("protocol", ["connect", "grpcweb"])
async def test_an_error_is_read_with_its_details(protocol: str) -> None:
    """Reason and field arrive."""
    async with serving() as (served, _):
        code, error = await curled(served, "EmbedText", protocol, '{"texts": [" "]}')

    assert code != 0
    assert error["code"] == "invalid_argument"
    assert [detail["type"] for detail in error["details"]] == [
        "google.rpc.ErrorInfo",
        "google.rpc.BadRequest",
    ]
