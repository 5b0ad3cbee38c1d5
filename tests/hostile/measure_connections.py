"""Measures the server memory that a connection takes if it sends half a request or reads no response.

python -m tests.hostile.measure_connections
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from alignserve.v1 import align_service_pb2 as pb

from tests.hostile.raw import RawClient, framed, raw_client
from tests.integration.test_access import add_key, bearer
from tests.load.report import table
from tests.processes import server_process

_SERVICE = "/alignserve.v1.AlignService"
_LARGE = {"alignserve-max-response-bytes": str(16 << 20)}
_QUIET_SECONDS = 3.0  # without growth; then the measurement ends
_LONGEST_SECONDS = 60.0


@dataclass(frozen=True)
class Attack:
    """An attack by one connection."""

    name: str
    run: Callable[[RawClient], Awaitable[None]]
    has_keys: bool = False


async def _unread_texts(client: RawClient) -> None:
    texts = pb.EmbedTextRequest(texts=[f"text {number}" for number in range(64)])
    for _ in range(1000):
        await client.call(f"{_SERVICE}/EmbedText", framed(texts.SerializeToString()))


async def _unread_classifications(client: RawClient) -> None:
    labels = [f"{number:0>100}" for number in range(1000)]
    images = [pb.Image(content=b"image %d" % number) for number in range(64)]
    request = framed(pb.ClassifyRequest(images=images, labels=labels).SerializeToString())
    for _ in range(40):
        call = await client.call(f"{_SERVICE}/Classify", ends=False, metadata=_LARGE)
        await client.send_all(call, request, ends=True)


async def _uploads(client: RawClient, metadata: dict[str, str] | None = None) -> None:
    half = framed(bytes(14 << 20), announced=15 << 20)
    calls = [await client.call(f"{_SERVICE}/EmbedImage", ends=False, metadata=metadata) for _ in range(60)]
    sending = {asyncio.ensure_future(client.send_all(call, half, ends=False)) for call in calls}
    await asyncio.wait(sending, timeout=15)
    for each in sending:
        each.cancel()


_ATTACKS = (
    Attack("1,000 EmbedText of 64 texts, not read", _unread_texts),
    Attack("40 Classify of 64 images and 1,000 labels of 100 bytes, not read", _unread_classifications),
    Attack("60 unfinished uploads of 15 MB, without a key", _uploads, has_keys=True),
    Attack("60 unfinished uploads of 15 MB", _uploads),
)


async def _growth_mb(attack: Attack) -> float:
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--checkpoint", "fake"]
        if attack.has_keys:
            api_keys_file = Path(folder) / "keys.json"
            bearer(add_key(api_keys_file, "somebody"))
            flags += ["--api-keys-file", str(api_keys_file)]
        with server_process(*flags) as server:
            process = psutil.Process(server.process.pid)
            before = peak = process.memory_info().rss
            async with raw_client(server.port, window=0) as client:
                attacking = asyncio.ensure_future(attack.run(client))
                quiet = 0.0
                for _ in range(round(_LONGEST_SECONDS / 0.1)):
                    await asyncio.sleep(0.1)
                    rss = process.memory_info().rss
                    quiet = quiet + 0.1 if rss <= peak and attacking.done() else 0.0
                    peak = max(peak, rss)
                    if quiet >= _QUIET_SECONDS:
                        break
                attacking.cancel()
                await asyncio.gather(attacking, return_exceptions=True)
            return (peak - before) / 1e6


async def _rows() -> Sequence[tuple[str, str]]:
    return [(attack.name, f"{await _growth_mb(attack):.0f} MB") for attack in _ATTACKS]


if __name__ == "__main__":
    print(table(("what one connection does", "growth of the server's memory"), asyncio.run(_rows())))
