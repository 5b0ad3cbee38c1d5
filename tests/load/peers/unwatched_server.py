"""alignserve without counting and timing, to measure what metrics cost.

python -m tests.load.peers.unwatched_server [flags of alignserve-server]
"""

from __future__ import annotations

from alignserve_server.cli.main import main as run_server
from alignserve_server.observability.instruments import HistogramSeries, Value
from prometheus_client import Counter, Gauge, Histogram


def main() -> None:
    """Runs the server."""
    for kind in (Counter, Gauge, Histogram, Value, HistogramSeries):
        for name in ("inc", "dec", "set", "observe"):
            if hasattr(kind, name):
                setattr(kind, name, _nothing)
    run_server()


def _nothing(*_: object) -> None:
    """Ignores a measurement."""


if __name__ == "__main__":
    main()
