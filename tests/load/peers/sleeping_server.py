"""alignserve with a model that only sleeps: takes time but no core, so only queueing is measured.

python -m tests.load.peers.sleeping_server [flags of alignserve-server]
"""

from __future__ import annotations

from alignserve_server.cli.main import main as run_server
from alignserve_server.model.fake import FakeEncoder
from alignserve_server.serving import loading

SECONDS_PER_BATCH, SECONDS_PER_ENTRY = 0.02, 0.002


def main(slower: float = 1.0) -> None:
    """Runs the server with a model that is `slower` times as slow."""
    loading.load_encoder = lambda *_: FakeEncoder(
        embedding_dimension=640,
        is_recording=False,
        seconds_per_batch=SECONDS_PER_BATCH * slower,
        seconds_per_entry=SECONDS_PER_ENTRY * slower,
    )
    run_server()


if __name__ == "__main__":
    main()
