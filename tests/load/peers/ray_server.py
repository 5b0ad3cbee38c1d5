"""Ray Serve with the same checkpoint on plain transformers: one replica per modality.

python -m tests.load.peers.ray_server FOLDER PORT
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
import tempfile
from contextlib import AbstractContextManager
from typing import Any

# Ray reads these at import.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # otherwise Ray sends usage statistics
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # otherwise Ray writes one to the home folder

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from tests.load.peers.plain_model import BATCH_WAIT_SECONDS, MAX_BATCH_SIZES, PlainModel

_OBJECT_STORE_BYTES = 80 << 20  # about the minimum; the default is a third of the memory


# Ray tells a replica of one CPU to use one thread; the other servers use all cores.
_ALL_CORES = {"env_vars": {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}}


@serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 1, "runtime_env": _ALL_CORES})
class Embed:
    """Embeds images or texts, sent as raw bytes."""

    def __init__(self, folder: str, modality: str) -> None:
        self._model, self._modality = PlainModel(folder), modality
        self._embed.set_max_batch_size(MAX_BATCH_SIZES[modality])

    async def __call__(self, request: Request) -> Response:
        return Response(await self._embed(await request.body()))

    @serve.batch(batch_wait_timeout_s=BATCH_WAIT_SECONDS)
    async def _embed(self, bodies: list[bytes]) -> list[bytes]:
        # in a thread, so that requests are still read
        return await asyncio.to_thread(self._model.embed, self._modality, bodies)


def main(folder: str, port: str) -> None:
    """Serves until SIGTERM, then stops Ray's processes."""
    with tempfile.TemporaryDirectory(prefix="ray-") as temporary_folder, _ray(temporary_folder):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # Ray's own handler aborts
        serve.start(
            http_options={"host": "127.0.0.1", "port": int(port)},
            logging_config={"enable_access_log": False},
        )
        for modality in MAX_BATCH_SIZES:
            serve.run(Embed.bind(folder, modality), name=modality, route_prefix=f"/{modality}")
        signal.pause()


def _ray(temporary_folder: str) -> AbstractContextManager[Any]:
    return ray.init(
        address="local",
        num_cpus=len(MAX_BATCH_SIZES),
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        _node_ip_address="127.0.0.1",
        _temp_dir=temporary_folder,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
