"""Writes the dashboards that Grafana loads: python -m deploy.grafana.generator"""

from __future__ import annotations

import json
from pathlib import Path

from deploy.grafana.generator import batching, fleet, service

FOLDER = Path(__file__).parents[1] / "dashboards"


def files() -> dict[str, str]:
    """Returns the contents of the dashboard files by name."""
    boards = {"service": service.dashboard(), "batching": batching.dashboard(), "fleet": fleet.dashboard()}
    return {
        f"{name}.json": json.dumps(board, indent=2, ensure_ascii=False) + "\n"
        for name, board in boards.items()
    }


if __name__ == "__main__":
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
