"""alignserve with a model that only sleeps, so that the device takes time and no core: queueing, undisturbed.

python -m tests.load.peers.sleeping_server [flags of alignserve-server]
"""

from __future__ import annotations

from alignserve_server import cli, server
from alignserve_server.model.fake import FakeEncoder

SECONDS_PER_BATCH, SECONDS_PER_ENTRY = 0.02, 0.002


def main(slower: float = 1.0) -> None:
    """Runs the server; `slower` times as slow a model."""
    server.load_encoder = lambda *_: FakeEncoder(
        embedding_dimension=640,
        is_recording=False,
        seconds_per_batch=SECONDS_PER_BATCH * slower,
        seconds_per_entry=SECONDS_PER_ENTRY * slower,
    )
    cli.main()


if __name__ == "__main__":
    main()
